import bz2
import gzip

import numpy as np
import pytest
import scipy.sparse
import torch

from scarcely.data.text import Reuters10k, TfidfFile
from scarcely.errors import DataError

from .files import VECTORS, real

CLASSES = ("ham", "spam", "eggs")


def matrix(rows=6, columns=9, seed=0):
    return scipy.sparse.random(rows, columns, density=0.5, format="csr", dtype=np.float32, random_state=seed)


def write(path, sparse=None, **arrays):
    """Write what scipy.sparse.save_npz writes, with arrays added; return the matrix."""
    sparse = matrix() if sparse is None else sparse
    scipy.sparse.save_npz(path, sparse)
    with np.load(path) as file:
        content = dict(file)
    np.savez(path, **content, **{name: np.asarray(array) for name, array in arrays.items()})
    return sparse


def load(path, make=TfidfFile, **options):
    module = make(augmentation=VECTORS, root=str(path), **options)
    module.check()
    module.prepare_data()
    module.setup()
    return module


# .npz


def test_rows_labels_and_classes_are_read(tmp_path):
    dense = write(tmp_path / "news.npz", labels=np.uint8([0, 2, 1, 0, 2, 2]), classes=CLASSES).toarray()
    module = load(tmp_path / "news.npz")
    np.testing.assert_array_equal(module.parts["train"].inputs, dense)
    assert module.parts["train"].inputs.dtype == torch.float32
    assert module.parts["train"].labels.tolist() == [0, 2, 1, 0, 2, 2]
    assert module.classes == CLASSES
    assert (module.name, module.title) == ("tfidf", "news")


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_any_sparse_format_is_read(tmp_path, kind):
    dense = write(tmp_path / "a.npz", matrix().asformat(kind)).toarray()
    np.testing.assert_array_equal(load(tmp_path / "a.npz").parts["train"].inputs, dense)


def test_without_labels_there_are_no_classes(tmp_path):
    write(tmp_path / "a.npz", classes=CLASSES)
    module = load(tmp_path / "a.npz")
    assert module.classes == ()
    assert module.parts["train"].labels.tolist() == [-1] * 6


def test_without_names_the_distinct_labels_are_the_classes(tmp_path):
    write(tmp_path / "a.npz", labels=[40, 7, -1, 7, 40, 9])
    module = load(tmp_path / "a.npz")
    assert module.classes == ("7", "9", "40")
    assert module.parts["train"].labels.tolist() == [2, 0, -1, 0, 2, 1]


@pytest.mark.parametrize(("classes", "expected"), [({}, ("eggs", "ham")), ({"classes": CLASSES}, CLASSES)])
def test_labels_may_be_names(tmp_path, classes, expected):
    names = ["ham", "eggs", "ham", "ham", "eggs", "eggs"]
    write(tmp_path / "a.npz", labels=names, **classes)
    module = load(tmp_path / "a.npz")
    assert module.classes == expected
    assert [expected[label] for label in module.parts["train"].labels] == names


def test_normalised_rows_have_squares_that_average_one(tmp_path):
    rows = matrix().toarray()
    rows[2] = 0
    write(tmp_path / "a.npz", scipy.sparse.csr_matrix(rows))
    inputs = load(tmp_path / "a.npz", normalize=True).parts["train"].inputs
    squares = inputs.double().pow(2).mean(1)
    assert squares[2] == 0
    kept = torch.tensor([0, 1, 3, 4, 5])
    torch.testing.assert_close(squares[kept], torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0)
    plain = load(tmp_path / "a.npz").parts["train"].inputs
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(inputs[kept], plain[kept]), torch.ones(5)
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0, 1]}, "for 6 rows"),
        ({"labels": [0.5] * 6}, "float64"),
        ({"labels": [0, 1, 2, 3, 0, 1], "classes": CLASSES}, "from 0 to 3 for 3 classes"),
        ({"labels": [-2, 1, 2, 0, 0, 1], "classes": CLASSES}, "from -2 to 2"),
        ({"labels": ["ham"] * 5 + ["tofu"], "classes": CLASSES}, "the label tofu"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, arrays, message):
    write(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.npz")


def test_pickled_class_names_are_not_opened(tmp_path):
    write(tmp_path / "a.npz", labels=[0] * 6, classes=np.array(["a", None], dtype=object))
    with pytest.raises(DataError, match="fixed-width strings"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_names_its_row(tmp_path, bad):
    sparse = matrix()
    sparse.data[sparse.indptr[4]] = bad
    write(tmp_path / "a.npz", sparse)
    with pytest.raises(DataError, match="not finite in row 4"):
        load(tmp_path / "a.npz")


def test_a_file_that_does_not_fit_into_memory_is_refused(tmp_path):
    huge = scipy.sparse.csr_array((2, 2**50), dtype=np.float32)
    write(tmp_path / "a.npz", huge)
    with pytest.raises(DataError, match=f"{2**53:,} bytes"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.svm"])
def test_a_file_of_another_format_is_named(tmp_path, name):
    (tmp_path / name).write_text("hello, world: this is no such file")
    with pytest.raises(DataError, match=f"cannot read .*{name}"):
        load(tmp_path / name)


def test_a_dense_npz_file_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", features=np.zeros((4, 3)))
    with pytest.raises(DataError, match="no array format"):
        load(tmp_path / "a.npz")


def test_one_row_is_too_few(tmp_path):
    write(tmp_path / "a.npz", matrix(rows=1))
    with pytest.raises(DataError, match="at least 2"):
        load(tmp_path / "a.npz")


# svmlight


@pytest.mark.parametrize(
    ("name", "pack"), [("a.svm", bytes), ("a.txt.gz", gzip.compress), ("a.libsvm.bz2", bz2.compress)]
)
def test_svmlight_text_is_read_plain_and_packed(tmp_path, name, pack):
    text = b"-1 1:0.5 3:2\n+1 2:1 # a comment\n-1 3:-0.25\n"
    (tmp_path / name).write_bytes(pack(text))
    module = load(tmp_path / name)
    np.testing.assert_array_equal(module.parts["train"].inputs, [[0.5, 0, 2], [0, 1, 0], [0, 0, -0.25]])
    assert module.classes == ("-1", "1")
    assert module.parts["train"].labels.tolist() == [0, 1, 0]
    assert module.title == "a"


def test_a_single_svmlight_label_means_no_labels(tmp_path):
    (tmp_path / "a.svm").write_text("0 1:1\n0 2:1\n")
    module = load(tmp_path / "a.svm")
    assert module.classes == ()
    assert module.parts["train"].labels.tolist() == [-1, -1]


def test_svmlight_labels_that_are_no_classes_are_refused(tmp_path):
    (tmp_path / "a.svm").write_text("0.5 1:1\n1 2:1\n")
    with pytest.raises(DataError, match="no whole numbers"):
        load(tmp_path / "a.svm")


# Where the file is


def test_a_file_must_be_given_and_be_there(tmp_path):
    with pytest.raises(DataError, match="needs a file"):
        TfidfFile(augmentation=VECTORS).check()
    with pytest.raises(DataError, match=r"no file .*gone\.npz"):
        TfidfFile(augmentation=VECTORS, root=str(tmp_path / "gone.npz")).check()
    with pytest.raises(DataError, match="is a folder"):
        TfidfFile(augmentation=VECTORS, root=str(tmp_path)).check()


def test_reuters10k_says_how_its_file_is_prepared(tmp_path):
    with pytest.raises(DataError, match=r"reuters10k\.npz.*not downloaded") as error:
        Reuters10k(augmentation=VECTORS, root=str(tmp_path)).check()
    assert "save_npz" in error.value.instead
    assert "10,000 documents" in error.value.instead
    assert "rcv1-v2.topics.qrels" in error.value.instead
    with pytest.raises(DataError, match="needs a folder"):
        Reuters10k(augmentation=VECTORS).check()


def test_reuters10k_refuses_another_set(tmp_path):
    write(tmp_path / "reuters10k.npz", labels=[0, 1, 2, 0, 1, 2], classes=CLASSES)
    with pytest.raises(DataError, match="6 rows, 9 columns and 3 classes"):
        load(tmp_path, Reuters10k)


@pytest.mark.parametrize("where", ["", "reuters10k.npz"])
def test_reuters10k_is_read_from_the_file_that_was_prepared(tmp_path, where):
    sparse = scipy.sparse.random(10_000, 2000, density=0.001, format="csr", dtype=np.float32, random_state=0)
    write(tmp_path / "reuters10k.npz", sparse, labels=np.arange(10_000) % 4, classes=["C", "E", "G", "M"])
    module = load(tmp_path / where, Reuters10k)
    assert module.parts["train"].inputs.shape == (10_000, 2000)
    assert module.classes == ("C", "E", "G", "M")
    assert (module.name, module.title) == ("reuters10k", "reuters10k")


# Real documents


@pytest.mark.parametrize(
    ("name", "counts"),
    [("rcv1_1979", [841, 192, 477, 469]), ("reuters21578_4", [3937, 2356, 397, 344])],
)
def test_real_documents_have_their_counts_and_length(name, counts):
    module = load(real(f"{name}.npz"))
    assert module.title == name
    assert torch.bincount(module.parts["train"].labels).tolist() == counts
    # Rows of these files have length √2000, up to rounding, or are empty.
    squares = module.parts["train"].inputs.pow(2).sum(1)
    torch.testing.assert_close(squares, torch.full_like(squares, 2000.0), rtol=1e-4, atol=0)
