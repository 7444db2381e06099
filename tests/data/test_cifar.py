import pickle

import numpy as np
import pytest
import torch

from scarcely.data.cifar import CIFAR10, CIFAR100, CIFAR100Coarse
from scarcely.errors import DataError

from .files import RGB, noise, real, write_image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(root, make=CIFAR10, **options):
    module = make(augmentation=RGB, root=str(root), **options)
    module.check()
    module.prepare_data()
    module.setup()
    return module


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path_factory.mktemp("cache")))


# The published pickles: torchvision insists on their sums, so small ones can only be refused


@pytest.mark.parametrize("make", [CIFAR10, CIFAR100, CIFAR100Coarse])
def test_pickles_of_another_content_are_named_and_never_opened(tmp_path, make):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    files = make(augmentation=RGB, root=str(tmp_path)).files()
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=f"{files[0]} is damaged: its content is not as published"):
        load(tmp_path, make)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("make", [CIFAR10, CIFAR100, CIFAR100Coarse])
def test_an_archive_of_another_content_is_named(tmp_path, make):
    module = make(augmentation=RGB, root=str(tmp_path))
    (archive,) = module.archives()
    (tmp_path / archive).write_bytes(b"no archive")
    module.check()
    with pytest.raises(DataError, match=f"{archive} is damaged: its checksum"):
        module.prepare_data()


def test_fine_and_coarse_labels_need_the_same_files():
    fine, coarse = CIFAR100(augmentation=RGB, root="x"), CIFAR100Coarse(augmentation=RGB, root="x")
    assert fine.files() == coarse.files()
    assert fine.files()[0].startswith("cifar-100-python/")


@pytest.mark.parametrize(("make", "labels"), [(CIFAR100, "fine_labels"), (CIFAR100Coarse, "coarse_labels")])
def test_the_labels_of_cifar100_are_those_asked_for(tmp_path, monkeypatch, make, labels):
    """With the sums of small files in the place of the published ones (they are data of torchvision)."""
    from torchvision import datasets
    from torchvision.datasets.utils import calculate_md5

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    entries = {
        part: {
            "data": noise(seed, count, 3072),
            "fine_labels": [(7 * i) % 100 for i in range(count)],
            "coarse_labels": [(3 * i) % 20 for i in range(count)],
        }
        for part, seed, count in (("train", 0, 6), ("test", 1, 4))
    }
    names = {
        "fine_label_names": [f"f{i}" for i in range(100)],
        "coarse_label_names": [f"c{i}" for i in range(20)],
    }
    for file, entry in {**entries, "meta": names}.items():
        (folder / file).write_bytes(pickle.dumps(entry))
    sums = {file: calculate_md5(folder / file) for file in ("train", "test", "meta")}
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": sums["meta"]})

    module = load(tmp_path, make)
    assert module.classes == tuple(names[labels.replace("labels", "label_names")])
    for part in ("train", "test"):
        assert module.parts[part].labels.tolist() == entries[part][labels]
        expected = entries[part]["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(module.parts[part].inputs, expected)


# Folders of JPEG files


def fill_folders(root, classes=CLASSES):
    for part in ("train", "test"):
        for label, name in enumerate(classes):
            write_image(root / part / name / "0000.png", seed=label, shape=(32, 32, 3))


def test_class_folders_are_read_in_the_official_order(tmp_path):
    fill_folders(tmp_path)
    module = load(tmp_path)
    assert module.classes == CLASSES
    assert module.parts["train"].labels.tolist() == list(range(10))
    assert module.parts["test"].names[9] == "test/truck/0000.png"
    np.testing.assert_array_equal(module.parts["test"].inputs[9], noise(9, 32, 32, 3))


def test_folders_of_other_classes_are_refused(tmp_path):
    fill_folders(tmp_path, (*CLASSES[:9], "tram"))
    with pytest.raises(DataError, match="not the classes of CIFAR-10: tram, truck") as error:
        load(tmp_path)
    assert "imagefolder" in error.value.instead


def test_the_published_files_go_before_folders(tmp_path):
    fill_folders(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"x")
    with pytest.raises(DataError, match="data_batch_2 is missing"):
        load(tmp_path)


# An .npz file


def arrays(train=4, test=2):
    return {
        "train_images": noise(0, train, 32, 32, 3),
        "train_labels": np.arange(train),
        "test_images": noise(1, test, 32, 32, 3),
        "test_labels": np.arange(test),
    }


@pytest.mark.parametrize("classes", [None, [f"class {i}" for i in range(5)]])
def test_an_npz_file_is_read(tmp_path, classes):
    given = arrays()
    np.savez(tmp_path / "small.npz", **given, **({} if classes is None else {"classes": classes}))
    module = load(tmp_path / "small.npz")
    assert module.classes == (CLASSES if classes is None else tuple(classes))
    for part in ("train", "test"):
        np.testing.assert_array_equal(module.parts[part].inputs, given[f"{part}_images"])
        np.testing.assert_array_equal(module.parts[part].labels, given[f"{part}_labels"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels": None}, "no array test_labels"),
        ({"train_images": noise(0, 4, 28, 28, 3)}, r"\(4, 28, 28, 3\)"),
        ({"train_images": np.zeros((4, 32, 32, 3), np.float32)}, "float32"),
        ({"test_labels": np.arange(3)}, r"labels \(3,\)"),
        ({"train_labels": np.arange(4) + 8}, "10 classes are named"),
    ],
)
def test_an_npz_file_of_another_content_is_refused(tmp_path, change, message):
    given = {name: array for name, array in (arrays() | change).items() if array is not None}
    np.savez(tmp_path / "small.npz", **given)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "small.npz")


# Real images


def test_the_real_npz_file_has_its_counts():
    module = load(real("cifar10_lossless.npz"))
    assert module.classes == CLASSES
    assert torch.bincount(module.parts["train"].labels).tolist() == [
        202, 191, 203, 195, 214, 183, 207, 199, 203, 203,
    ]  # fmt: skip
    assert len(module.parts["test"]) == 1000


@pytest.mark.slow
def test_the_real_folders_hold_the_same_pictures_as_the_npz_file():
    folders, exact = load(real("cifar10_jpg")), load(real("cifar10_lossless.npz"))
    assert torch.bincount(folders.parts["train"].labels).tolist() == [5000] * 10
    assert torch.bincount(folders.parts["test"].labels).tolist() == [1000] * 10
    # Files count a class's images in the original order, so the first of the class are the same.
    for label in range(10):
        lossy = folders.parts["test"].select(folders.parts["test"].labels == label).inputs.float()
        first = exact.parts["test"].select(exact.parts["test"].labels == label).inputs.float()
        error = (lossy[: len(first)] - first).pow(2).mean().sqrt()
        assert error < 12, label  # JPEG, about 30 dB; two different pictures differ by 80
