import gzip

import numpy as np
import pytest
import torch

from scarcely.data.mnist import KMNIST, MNIST, FashionMNIST
from scarcely.errors import DataError

from .files import GREY, noise, real, write_idx

SETS = [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST"), (KMNIST, "KMNIST")]
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def fill(root, folder="MNIST", train=6, test=4):
    """Write a small set in the layout of torchvision; return its arrays."""
    arrays = (noise(0, train, 28, 28), noise(1, train) % 10, noise(2, test, 28, 28), noise(3, test) % 10)
    for file, array in zip(FILES, arrays, strict=True):
        write_idx(root / folder / "raw" / f"{file}-ubyte", array)
    return arrays


def load(root, make=MNIST, **options):
    module = make(augmentation=GREY, root=str(root), **options)
    module.check()
    module.prepare_data()
    module.setup()
    return module


@pytest.mark.parametrize(("make", "folder"), SETS)
def test_every_pixel_and_label_of_the_idx_files_is_read(tmp_path, make, folder):
    train, train_labels, test, test_labels = fill(tmp_path, folder)
    module = load(tmp_path, make, download=False)
    assert len(module.classes) == 10
    assert module.input_shape == (1, 28, 28)
    for part, images, labels in (("train", train, train_labels), ("test", test, test_labels)):
        np.testing.assert_array_equal(module.parts[part].inputs[..., 0], images)
        np.testing.assert_array_equal(module.parts[part].labels, labels)


def test_a_root_with_the_set_is_not_touched(tmp_path):
    fill(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("missing", FILES)
def test_a_set_that_is_there_in_part_names_the_missing_file(tmp_path, missing):
    fill(tmp_path)
    (tmp_path / "MNIST/raw" / f"{missing}-ubyte").unlink()
    with pytest.raises(DataError, match=f"only in part: .*MNIST/raw/{missing}-ubyte is missing"):
        load(tmp_path)


@pytest.mark.parametrize("cut", FILES)
def test_a_truncated_file_is_named(tmp_path, cut):
    fill(tmp_path)
    file = tmp_path / "MNIST/raw" / f"{cut}-ubyte"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match=f"{cut}-ubyte is damaged"):
        load(tmp_path)


def test_a_file_of_another_format_is_named(tmp_path):
    fill(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").write_text("this is not an idx file at all")
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is damaged"):
        load(tmp_path)


def test_images_and_labels_of_different_numbers_are_refused(tmp_path):
    fill(tmp_path)
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(DataError, match="labels must be"):
        load(tmp_path)


def test_a_label_without_a_class_is_refused(tmp_path):
    fill(tmp_path)
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.full(6, 10))
    with pytest.raises(DataError, match="10 classes are named"):
        load(tmp_path)


def test_a_compressed_file_with_a_wrong_sum_is_named(tmp_path):
    for file in FILES:
        path = tmp_path / "MNIST/raw" / f"{file}-ubyte.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b"not the published file"))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is damaged: its checksum"):
        load(tmp_path)
    assert not list(tmp_path.glob(".MNIST.partial*"))


def test_the_real_set_has_its_published_counts():
    folder = real("MNIST")
    module = load(folder.parent, download=False)
    assert len(module.parts["train"]) == 60_000
    assert len(module.parts["test"]) == 10_000
    assert torch.bincount(module.parts["train"].labels).tolist()[:3] == [5923, 6742, 5958]
    pixels = module.parts["train"].inputs.float() / 255
    # The figures of the configuration, rounded to four digits.
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)
