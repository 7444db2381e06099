"""MNIST and the two sets made to look like it: 60,000 + 10,000 grey images of 28 x 28 pixels, ten classes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Unpack

from scarcely.data.arrays import image_samples
from scarcely.data.augment import Augmentation
from scarcely.data.module import Split
from scarcely.data.samples import Samples
from scarcely.data.torchvision_sets import TorchvisionSet

__all__ = ["KMNIST", "MNIST", "FashionMNIST"]


class MNIST(TorchvisionSet):
    """Handwritten digits (LeCun et al., 1998); files in ``ROOT/MNIST/raw``.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder that holds ``MNIST``.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        split: which labels are used (see `Split`).
    """

    title = "MNIST"
    source = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    labels: ClassVar[tuple[str, ...]] = tuple("0123456789")
    """Class names, by label."""

    def __init__(
        self,
        *,
        name: str = "mnist",
        kind: Literal["images"] = "images",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        download: bool = True,
        **split: Unpack[Split],
    ) -> None:
        super().__init__(
            name=name,
            kind=kind,
            augmentation=augmentation,
            root=root,
            resident=resident,
            download=download,
            **split,
        )

    def files(self) -> tuple[str, ...]:
        """Return the four idx files."""
        parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
        return tuple(f"{type(self).__name__}/raw/{part}-ubyte" for part in parts)

    def archives(self) -> dict[str, str]:
        """Return the same, compressed, as they are published."""
        from torchvision import datasets

        resources = getattr(datasets, type(self).__name__).resources
        return {f"{type(self).__name__}/raw/{file}": md5 for file, md5 in resources}

    def fetch(self, folder: Path) -> None:
        """Let torchvision download the set below `folder`."""
        from torchvision import datasets

        getattr(datasets, type(self).__name__)(folder, download=True)

    def sound(self, file: str) -> bool:
        """Return whether a file is a complete idx file (the uncompressed ones have no published sums)."""
        from torchvision.datasets import mnist

        try:
            (mnist.read_image_file if "images" in file else mnist.read_label_file)(str(self.folder / file))
        except Exception:  # any parser error says the same
            return False
        return True

    def read(self) -> dict[str, Samples]:
        """Return the official train and test parts.

        Raises:
            DataError: a file is missing or damaged.
        """
        from torchvision import datasets

        def part(train: bool) -> Samples:
            found = getattr(datasets, type(self).__name__)(self.folder, train=train)
            return image_samples(found.data, found.targets)

        self.classes = self.labels
        return {"train": self.load(lambda: part(train=True)), "test": self.load(lambda: part(train=False))}


class FashionMNIST(MNIST):
    """Articles of clothing (Xiao et al., 2017); files in ``ROOT/FashionMNIST/raw``.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder that holds ``FashionMNIST``.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        split: which labels are used (see `Split`).
    """

    title = "Fashion-MNIST"
    source = "https://github.com/zalandoresearch/fashion-mnist"
    labels = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str = "fashion_mnist",
        kind: Literal["images"] = "images",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        download: bool = True,
        **split: Unpack[Split],
    ) -> None:
        super().__init__(
            name=name,
            kind=kind,
            augmentation=augmentation,
            root=root,
            resident=resident,
            download=download,
            **split,
        )


class KMNIST(MNIST):
    """Cursive Japanese characters, Kuzushiji-MNIST (Clanuwat et al., 2018); files in ``ROOT/KMNIST/raw``.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder that holds ``KMNIST``.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        split: which labels are used (see `Split`).
    """

    title = "Kuzushiji-MNIST"
    source = "http://codh.rois.ac.jp/kmnist/"
    labels = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

    def __init__(
        self,
        *,
        name: str = "kmnist",
        kind: Literal["images"] = "images",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        download: bool = True,
        **split: Unpack[Split],
    ) -> None:
        super().__init__(
            name=name,
            kind=kind,
            augmentation=augmentation,
            root=root,
            resident=resident,
            download=download,
            **split,
        )
