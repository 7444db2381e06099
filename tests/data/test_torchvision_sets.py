"""USPS, SVHN, STL-10, and what all sets do that torchvision downloads."""

import bz2
import hashlib
import sys
import tarfile

import numpy as np
import pytest
import torch
from scipy.io import savemat

from scarcely.data.cifar import CIFAR10, CIFAR100, CIFAR100Coarse
from scarcely.data.mnist import KMNIST, MNIST, FashionMNIST
from scarcely.data.stl10 import STL10
from scarcely.data.svhn import SVHN
from scarcely.data.torchvision_sets import TorchvisionSet
from scarcely.data.usps import USPS
from scarcely.errors import DataError

from .files import GREY, RGB, noise, real

ALL = [MNIST, FashionMNIST, KMNIST, USPS, CIFAR10, CIFAR100, CIFAR100Coarse, SVHN, STL10]


@pytest.fixture
def offline(monkeypatch):
    """No way out: everything goes to a proxy that is not there."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def load(module):
    module.check()
    module.prepare_data()
    module.setup()
    return module


# Downloads


@pytest.mark.parametrize("make", ALL)
def test_without_a_network_the_message_says_where_the_files_go(tmp_path, offline, make):
    module = make(augmentation=GREY, root=str(tmp_path / "data"))
    module.check()
    with pytest.raises(DataError, match="could not be downloaded") as error:
        module.prepare_data()
    message = str(error.value)
    assert module.title in message
    assert str(tmp_path / "data") in message
    assert module.files()[0] in message
    assert module.source in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("make", ALL)
def test_a_download_may_be_forbidden(tmp_path, make):
    with pytest.raises(DataError, match=r"data\.download=false"):
        make(augmentation=GREY, root=str(tmp_path), download=False).check()


@pytest.mark.parametrize("make", ALL)
def test_a_root_must_be_given(make):
    with pytest.raises(DataError, match="needs a folder"):
        make(augmentation=GREY).check()


@pytest.mark.parametrize("make", ALL)
def test_a_root_below_a_file_is_refused_at_once(tmp_path, make):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file is not a folder"):
        make(augmentation=GREY, root=str(tmp_path / "file" / "data")).check()


@pytest.mark.parametrize("make", ALL)
def test_a_look_imports_no_torchvision(tmp_path, make):
    """A complete root costs no more than a few stats."""
    module = make(augmentation=GREY, root=str(tmp_path))
    for file in module.files():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("torchvision")}
    try:
        module.check()
        module.prepare_data()
        assert "torchvision" not in sys.modules
    finally:
        sys.modules.update(hidden)


@pytest.mark.parametrize("make", [make for make in ALL if make is not MNIST])
def test_empty_files_are_damaged_and_one_is_named(tmp_path, make):
    module = make(augmentation=GREY, root=str(tmp_path))
    for file in module.files():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(DataError, match="is damaged") as error:
        load(module)
    assert any(str(tmp_path / file) in str(error.value) for file in module.files())


class Toy(TorchvisionSet):
    """A set whose download is under the control of the test."""

    title, source = "Toy", "nowhere"

    def __init__(self, root, broken=False):
        super().__init__(name="toy", augmentation=GREY, root=str(root))
        self.broken = broken
        self.fetched = 0

    def files(self):
        return ("toy/a", "toy/b")

    def fetch(self, folder):
        self.fetched += 1
        (folder / "toy").mkdir(parents=True)
        (folder / "toy/a").write_text("new")
        if self.broken:
            raise OSError(104, "Connection reset by peer")
        (folder / "toy/b").write_text("new")
        (folder / "archive").write_text("left over")


def test_a_download_is_moved_when_complete_and_done_once(tmp_path):
    toy = Toy(tmp_path / "new" / "root")
    toy.prepare_data()
    toy.prepare_data()
    assert toy.fetched == 1
    assert {path.name for path in (tmp_path / "new/root").iterdir()} == {"toy", ".toy.lock"}
    assert (tmp_path / "new/root/toy/b").read_text() == "new"


def test_a_download_that_breaks_off_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="Connection reset by peer"):
        Toy(tmp_path, broken=True).prepare_data()
    assert not list(tmp_path.glob("toy*"))
    assert not list(tmp_path.glob(".toy.partial*"))
    toy = Toy(tmp_path)
    toy.prepare_data()
    assert toy.fetched == 1


def test_folders_made_for_a_download_that_fails_go_again(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="Connection reset by peer"):
        Toy(tmp_path / "mine/new/root", broken=True).prepare_data()
    assert not list((tmp_path / "mine").iterdir())


def test_what_a_killed_download_left_is_cleared_away(tmp_path):
    (tmp_path / ".toy.partial/toy").mkdir(parents=True)
    (tmp_path / ".toy.partial/toy/b").write_text("half")
    Toy(tmp_path).prepare_data()
    assert (tmp_path / "toy/b").read_text() == "new"
    assert not (tmp_path / ".toy.partial").exists()


def test_files_that_are_there_are_never_written_over(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/a").write_text("mine")
    toy = Toy(tmp_path)
    with pytest.raises(DataError, match=r"only in part: .*b is missing"):
        toy.prepare_data()
    assert (tmp_path / "toy/a").read_text() == "mine"
    assert toy.fetched == 0


def test_reading_without_preparing_says_so(tmp_path):
    with pytest.raises(DataError, match="prepare_data"):
        Toy(tmp_path).load(lambda: None)


class Packed(Toy):
    """The same, published as an archive."""

    def archives(self):
        return {"toy.tar.gz": self.sum}


@pytest.fixture
def packed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "made/toy").mkdir(parents=True, exist_ok=True)
        (tmp_path / "made/toy" / name).write_text("packed")
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / "root/toy.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made/toy", "toy")
    Packed.sum = hashlib.md5((tmp_path / "root/toy.tar.gz").read_bytes()).hexdigest()
    return Packed(tmp_path / "root")


def test_an_archive_in_the_root_is_unpacked_and_nothing_downloaded(packed):
    packed.prepare_data()
    assert packed.fetched == 0
    assert {path.name for path in packed.folder.iterdir()} == {"toy", "toy.tar.gz", ".toy.lock"}
    assert [(packed.folder / file).read_text() for file in packed.files()] == ["packed", "packed"]


def test_unpacking_adds_what_is_missing_and_leaves_the_rest(packed):
    (packed.folder / "toy").mkdir()
    (packed.folder / "toy/a").write_text("mine")
    packed.prepare_data()
    assert [(packed.folder / file).read_text() for file in packed.files()] == ["mine", "packed"]


def test_an_archive_with_a_wrong_sum_is_named_and_not_replaced(packed):
    Packed.sum = "0" * 32
    with pytest.raises(DataError, match=r"toy\.tar\.gz is damaged"):
        packed.prepare_data()
    assert packed.fetched == 0


# USPS


def write_usps(root, train=5, test=3):
    """Write the two files of torchvision; return images and labels of both."""
    arrays = []
    for file, count, seed in (("usps.bz2", train, 0), ("usps.t.bz2", test, 1)):
        values = np.random.default_rng(seed).uniform(-1, 1, (count, 256)).round(4)
        labels = np.arange(count) % 10
        lines = [
            f"{label + 1} " + " ".join(f"{i + 1}:{value}" for i, value in enumerate(row))
            for label, row in zip(labels, values, strict=True)
        ]
        (root / file).write_bytes(bz2.compress("\n".join(lines).encode()))
        arrays.append((values.reshape(-1, 16, 16), labels))
    return arrays


def test_usps_is_read_from_the_files_of_torchvision(tmp_path):
    arrays = write_usps(tmp_path)
    module = load(USPS(augmentation=GREY, root=str(tmp_path)))
    for part, (values, labels) in zip(("train", "test"), arrays, strict=True):
        assert module.parts[part].labels.tolist() == labels.tolist()
        pixels = module.parts[part].inputs[..., 0].numpy().astype(float)
        assert np.abs(pixels - (values + 1) / 2 * 255).max() <= 1  # rounded down


def test_a_truncated_usps_file_is_named(tmp_path):
    write_usps(tmp_path)
    (tmp_path / "usps.bz2").write_bytes((tmp_path / "usps.bz2").read_bytes()[:100])
    with pytest.raises(DataError, match=r"usps\.bz2 is damaged"):
        load(USPS(augmentation=GREY, root=str(tmp_path)))


@pytest.mark.parametrize("where", ["", "usps.npz"])
def test_usps_is_read_from_an_npz_file(tmp_path, where):
    images, labels = noise(0, 9298, 16, 16), noise(1, 9298) % 10
    np.savez(tmp_path / "usps.npz", images=images, labels=labels)
    module = load(USPS(augmentation=GREY, root=str(tmp_path / where)))
    np.testing.assert_array_equal(module.parts["train"].inputs[..., 0], images[:7291])
    np.testing.assert_array_equal(module.parts["test"].inputs[..., 0], images[7291:])
    np.testing.assert_array_equal(module.parts["test"].labels, labels[7291:])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": noise(0, 9298, 16, 16)}, "no array labels"),
        ({"images": noise(0, 50, 16, 16), "labels": np.zeros(50, int)}, "holds 50 images"),
        ({"images": noise(0, 9298, 8, 8), "labels": np.zeros(9298, int)}, r"images \(9298, 8, 8\)"),
        ({"images": noise(0, 9298, 16, 16), "labels": np.zeros(9298)}, "float64"),
        ({"images": np.zeros((9298, 16, 16)), "labels": np.zeros(9298, int)}, "float64"),
        ({"images": noise(0, 9298, 16, 16), "labels": np.zeros(9, int)}, r"labels \(9,\)"),
    ],
)
def test_an_npz_file_of_another_content_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "usps.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(USPS(augmentation=GREY, root=str(tmp_path)))


def test_pickled_arrays_are_not_opened(tmp_path):
    np.savez(tmp_path / "usps.npz", images=np.array([object()]), labels=np.zeros(1))
    with pytest.raises(DataError, match="pickled"):
        load(USPS(augmentation=GREY, root=str(tmp_path)))


def test_a_damaged_npz_file_is_named(tmp_path):
    (tmp_path / "usps.npz").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(DataError, match=r"cannot read .*usps\.npz"):
        load(USPS(augmentation=GREY, root=str(tmp_path)))


def test_the_real_usps_has_its_published_counts_and_the_configured_mean():
    module = load(USPS(augmentation=GREY, root=str(real("usps.npz")), download=False))
    assert torch.bincount(module.parts["train"].labels).tolist() == [
        1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644,
    ]  # fmt: skip
    assert len(module.parts["test"]) == 2007
    pixels = module.parts["train"].inputs.float() / 255
    assert pixels.mean().item() == pytest.approx(0.2493, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3005, abs=1e-4)


# SVHN: torchvision insists on the published sums, so small files can only be refused


def test_svhn_files_of_another_content_are_named(tmp_path):
    for file in ("train_32x32.mat", "test_32x32.mat"):
        savemat(tmp_path / file, {"X": noise(0, 32, 32, 3, 4), "y": np.ones((4, 1), np.uint8)})
    with pytest.raises(DataError, match=r"train_32x32\.mat is damaged: its content is not as published"):
        load(SVHN(augmentation=RGB, root=str(tmp_path)))


def test_half_of_svhn_names_the_other_half(tmp_path):
    (tmp_path / "train_32x32.mat").write_bytes(b"x")
    with pytest.raises(DataError, match=r"test_32x32\.mat is missing"):
        SVHN(augmentation=RGB, root=str(tmp_path)).check()


# STL-10


@pytest.fixture
def stl10(tmp_path):
    """A small STL-10 in its binary format, and its images in (N, H, W, C)."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = {
        "train": noise(0, 5, 96, 96, 3),
        "test": noise(1, 3, 96, 96, 3),
        "unlabeled": noise(2, 7, 96, 96, 3),
    }
    for part, array in images.items():
        (folder / f"{part}_X.bin").write_bytes(array.transpose(0, 3, 2, 1).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 10, 3, 4, 5]))
    (folder / "test_y.bin").write_bytes(bytes([2, 9, 10]))
    names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")
    return images


def test_stl10_gives_its_three_parts_upright(tmp_path, stl10):
    module = load(STL10(augmentation=RGB, root=str(tmp_path)))
    assert module.classes[0] == "airplane"
    assert len(module.classes) == 10
    for part, name in (("train", "train"), ("test", "test"), ("unlabelled", "unlabeled")):
        np.testing.assert_array_equal(module.parts[part].inputs, stl10[name])
    assert module.parts["train"].labels.tolist() == [0, 9, 2, 3, 4]
    assert module.parts["test"].labels.tolist() == [1, 8, 9]
    assert module.parts["unlabelled"].labels.tolist() == [-1] * 7


def test_the_unlabelled_images_stay_in_their_file(tmp_path, stl10):
    first = load(STL10(augmentation=RGB, root=str(tmp_path)))
    assert first.parts["unlabelled"].source is not None
    assert first.parts["train"].source is None
    first.parts["unlabelled"].inputs.zero_()  # reaches memory only
    again = load(STL10(augmentation=RGB, root=str(tmp_path)))
    np.testing.assert_array_equal(again.parts["unlabelled"].inputs, stl10["unlabeled"])
    assert again.fingerprint() == first.fingerprint()
    data = tmp_path / "stl10_binary/unlabeled_X.bin"
    data.write_bytes(data.read_bytes()[27_648:])
    assert load(STL10(augmentation=RGB, root=str(tmp_path))).fingerprint() != first.fingerprint()


def test_stl10_can_do_without_its_unlabelled_images(tmp_path, stl10):
    (tmp_path / "stl10_binary/unlabeled_X.bin").unlink()
    assert set(load(STL10(augmentation=RGB, root=str(tmp_path), unlabelled=False)).parts) == {"train", "test"}
    with pytest.raises(DataError, match=r"unlabeled_X\.bin is missing"):
        STL10(augmentation=RGB, root=str(tmp_path)).check()


@pytest.mark.parametrize("file", ["train_X.bin", "train_y.bin", "test_y.bin", "unlabeled_X.bin"])
def test_a_truncated_file_of_stl10_is_named(tmp_path, stl10, file):
    path = tmp_path / "stl10_binary" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{file} is damaged"):
        load(STL10(augmentation=RGB, root=str(tmp_path)))
