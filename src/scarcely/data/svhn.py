"""SVHN, cropped: 73,257 + 26,032 colour images of house-number digits, 32 x 32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Unpack

from scarcely.data.arrays import image_samples
from scarcely.data.augment import Augmentation
from scarcely.data.module import Split
from scarcely.data.samples import Samples
from scarcely.data.torchvision_sets import TorchvisionSet

__all__ = ["SVHN"]


class SVHN(TorchvisionSet):
    """Street View House Numbers (Netzer et al., 2011); ``{train,test}_32x32.mat`` in the root.

    The 531,131 easier "extra" images are not read.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder of the two files.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        split: which labels are used (see `Split`).
    """

    title = "SVHN"
    source = "http://ufldl.stanford.edu/housenumbers/"

    def __init__(
        self,
        *,
        name: str = "svhn",
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
        """Return the two MATLAB files."""
        return ("train_32x32.mat", "test_32x32.mat")

    def fetch(self, folder: Path) -> None:
        """Let torchvision download the set below `folder`."""
        from torchvision import datasets

        for split in ("train", "test"):
            datasets.SVHN(folder, split=split, download=True)

    def sound(self, file: str) -> bool:
        """Return whether a file has its published MD5 sum."""
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        sums = {name: md5 for _, name, md5 in datasets.SVHN.split_list.values()}
        return check_integrity(self.folder / file, sums[file])

    def read(self) -> dict[str, Samples]:
        """Return the official train and test parts; the label of a digit is the digit.

        Raises:
            DataError: a file is missing or damaged.
        """
        from torchvision import datasets

        def part(split: str) -> Samples:
            found = datasets.SVHN(self.folder, split=split)
            return image_samples(found.data.transpose(0, 2, 3, 1), found.labels)

        self.classes = tuple("0123456789")
        return {"train": self.load(lambda: part("train")), "test": self.load(lambda: part("test"))}
