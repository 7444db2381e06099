"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour photographs of 32 x 32 pixels (Krizhevsky, 2009)."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

import torch

from scarcely.data.arrays import checked_samples, image_samples, read_arrays
from scarcely.data.augment import Augmentation
from scarcely.data.decode import load_images
from scarcely.data.imagefolder import scan
from scarcely.data.module import Split
from scarcely.data.samples import Samples
from scarcely.data.torchvision_sets import TorchvisionSet
from scarcely.errors import DataError

__all__ = ["CIFAR10", "CIFAR100", "CIFAR100Coarse"]

_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class _Pickles(TorchvisionSet):
    """The published Python pickles, opened only after torchvision has compared their MD5 sums."""

    def archives(self) -> dict[str, str]:
        """Return the published archive."""
        dataset = self._torchvision()
        return {dataset.filename: dataset.tgz_md5}

    def fetch(self, folder: Path) -> None:
        """Let torchvision download the set below `folder`."""
        self._torchvision()(folder, download=True)

    def sound(self, file: str) -> bool:
        """Return whether a file has its published MD5 sum."""
        from torchvision.datasets.utils import check_integrity

        dataset = self._torchvision()
        sums = {name: md5 for name, md5 in (*dataset.train_list, *dataset.test_list)}
        sums[dataset.meta["filename"]] = dataset.meta["md5"]
        return check_integrity(self.folder / file, sums[Path(file).name])

    def read(self) -> dict[str, Samples]:
        """Return the official train and test parts.

        Raises:
            DataError: a file is missing or damaged.
        """
        dataset = self._torchvision()
        train = self.load(lambda: dataset(self.folder, train=True))
        test = self.load(lambda: dataset(self.folder, train=False))
        self.classes = tuple(train.classes)
        return {
            "train": image_samples(train.data, train.targets),
            "test": image_samples(test.data, test.targets),
        }

    def _torchvision(self) -> Any:
        from torchvision import datasets

        return datasets.CIFAR100


class CIFAR10(_Pickles):
    """CIFAR-10, in any of three forms.

    * The published pickles, in ``ROOT/cifar-10-batches-py``: what torchvision downloads.
    * JPEG files in ``ROOT/train/CLASS`` and ``ROOT/test/CLASS``, with the ten official class names:
      decoded once to a cache.
    * The root itself an ``.npz`` file with ``train_images`` (N, 32, 32, 3) uint8, ``train_labels``,
      ``test_images``, ``test_labels`` and, where they are not the official ones, ``classes``.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: the folder or the file.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        split: which labels are used (see `Split`).
    """

    title = "CIFAR-10"
    source = "https://www.cs.toronto.edu/~kriz/cifar.html"

    def __init__(
        self,
        *,
        name: str = "cifar10",
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
        """Return the seven pickles."""
        batches = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
        return tuple(f"cifar-10-batches-py/{batch}" for batch in batches)

    def check(self) -> None:
        """Look whether the set is there in one of its forms, or may be downloaded.

        Raises:
            DataError: see `TorchvisionSet.check`.
        """
        if self._form() == "pickles":
            super().check()

    def prepare_data(self) -> None:
        """Unpack or download the set if it is not there."""
        if self._form() == "pickles":
            super().prepare_data()

    def read(self) -> dict[str, Samples]:
        """Return the train and test parts.

        Raises:
            DataError: a file is missing or damaged, or folders have other names than the classes.
        """
        form = self._form()
        if form == "npz":
            return self._read_npz()
        return self._read_folders() if form == "folders" else super().read()

    def _form(self) -> Literal["npz", "folders", "pickles"]:
        if self.folder.suffix == ".npz" and self.folder.is_file():
            return "npz"
        there = (self.folder / "train").is_dir() and (self.folder / "test").is_dir()
        pickles = (self.folder / "cifar-10-batches-py").is_dir()
        return "folders" if there and not pickles else "pickles"

    def _read_folders(self) -> dict[str, Samples]:
        self.classes, listings = scan(self.folder)
        if self.classes != _CIFAR10_CLASSES:
            odd = sorted(set(self.classes) ^ set(_CIFAR10_CLASSES))
            raise DataError(
                f"the folders of {self.folder / 'train'} are not the classes of CIFAR-10:"
                f" {', '.join(odd[:5])}",
                where="data.root",
                instead=f"{', '.join(_CIFAR10_CLASSES)}; or data=imagefolder for other classes",
            )
        return {
            part: load_images(self.folder, listing.files, listing.labels, size=32)[0]
            for part, listing in listings.items()
        }

    def _read_npz(self) -> dict[str, Samples]:
        names = ("train_images", "train_labels", "test_images", "test_labels")
        arrays = read_arrays(self.folder, names, ("classes",))
        self.classes = tuple(str(name) for name in arrays.get("classes", _CIFAR10_CLASSES))
        return {
            part: checked_samples(
                self.folder, arrays[f"{part}_images"], arrays[f"{part}_labels"], shape=(32, 32, 3)
            )
            for part in ("train", "test")
        }

    def _torchvision(self) -> Any:
        from torchvision import datasets

        return datasets.CIFAR10


class CIFAR100(_Pickles):
    """CIFAR-100 with its 100 classes; the published pickles in ``ROOT/cifar-100-python``.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder that holds ``cifar-100-python``.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        split: which labels are used (see `Split`).
    """

    title = "CIFAR-100"
    source = "https://www.cs.toronto.edu/~kriz/cifar.html"

    def __init__(
        self,
        *,
        name: str = "cifar100",
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
        """Return the three pickles."""
        return ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")


class CIFAR100Coarse(CIFAR100):
    """CIFAR-100 labelled with its 20 superclasses ("CIFAR-100-20"), each of five classes.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder that holds ``cifar-100-python``.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        split: which labels are used (see `Split`).
    """

    def __init__(
        self,
        *,
        name: str = "cifar100_20",
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

    def read(self) -> dict[str, Samples]:
        """Return the official train and test parts, with coarse labels.

        Raises:
            DataError: a file is missing or damaged.
        """
        parts = super().read()  # compares the MD5 sums of what is unpickled below
        self.classes = tuple(self._entry("meta")["coarse_label_names"])
        labels = {part: torch.tensor(self._entry(part)["coarse_labels"], dtype=torch.int64) for part in parts}
        return {part: replace(samples, labels=labels[part]) for part, samples in parts.items()}

    def _entry(self, file: str) -> dict[str, Any]:
        with open(self.folder / "cifar-100-python" / file, "rb") as pickled:
            return pickle.load(pickled, encoding="latin1")
