"""USPS: 7,291 + 2,007 grey images of handwritten digits, 16 x 16 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Unpack

from scarcely.data.arrays import checked_samples, image_samples, read_arrays
from scarcely.data.augment import Augmentation
from scarcely.data.module import Split
from scarcely.data.samples import Samples
from scarcely.data.torchvision_sets import TorchvisionSet
from scarcely.errors import DataError

__all__ = ["USPS"]

_TRAIN = 7291
_ALL = 9298


class USPS(TorchvisionSet):
    """Digits from envelopes (Hull, 1994), white on black.

    Read from ``usps.npz`` (the root itself or in it; keys ``images`` (9298, 16, 16) uint8 and
    ``labels``, the 7,291 official training images first), or else from the two files that torchvision
    downloads, ``usps.bz2`` and ``usps.t.bz2``.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder of the files, or the ``.npz`` file.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        split: which labels are used (see `Split`).
    """

    title = "USPS"
    source = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps"

    def __init__(
        self,
        *,
        name: str = "usps",
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
        """Return the two files of torchvision."""
        return ("usps.bz2", "usps.t.bz2")

    def fetch(self, folder: Path) -> None:
        """Let torchvision download the set below `folder`."""
        from torchvision import datasets

        for train in (True, False):
            datasets.USPS(folder, train=train, download=True)

    def sound(self, file: str) -> bool:
        """Return whether a file has the MD5 sum that torchvision knows."""
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        sums = {name: md5 for _, name, md5 in datasets.USPS.split_list.values()}
        return check_integrity(self.folder / file, sums[file])

    def check(self) -> None:
        """Look whether the set is there in one of its two forms, or may be downloaded.

        Raises:
            DataError: see `TorchvisionSet.check`.
        """
        if self._npz() is None:
            super().check()

    def prepare_data(self) -> None:
        """Download the set if it is not there."""
        if self._npz() is None:
            super().prepare_data()

    def read(self) -> dict[str, Samples]:
        """Return the official train and test parts.

        Raises:
            DataError: a file is missing or damaged.
        """
        self.classes = tuple("0123456789")
        npz = self._npz()
        if npz is not None:
            return _read_npz(npz)
        from torchvision import datasets

        def part(train: bool) -> Samples:
            found = datasets.USPS(self.folder, train=train)
            return image_samples(found.data, found.targets)

        return {"train": self.load(lambda: part(train=True)), "test": self.load(lambda: part(train=False))}

    def _npz(self) -> Path | None:
        candidates = (self.folder, self.folder / "usps.npz")
        return next((path for path in candidates if path.suffix == ".npz" and path.is_file()), None)


def _read_npz(path: Path) -> dict[str, Samples]:
    arrays = read_arrays(path, ("images", "labels"))
    samples = checked_samples(path, arrays["images"], arrays["labels"], shape=(16, 16))
    if len(samples) != _ALL:
        raise DataError(
            f"{path} holds {len(samples):,} images",
            where="data.root",
            instead=f"all {_ALL:,} images of USPS, the {_TRAIN:,} training images first",
        )
    return {"train": samples.select(slice(_TRAIN)), "test": samples.select(slice(_TRAIN, None))}
