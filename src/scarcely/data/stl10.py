"""STL-10: 5,000 + 8,000 labelled and 100,000 unlabelled colour photographs of 96 x 96 pixels."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

import numpy as np
import torch

from scarcely.data.arrays import image_samples
from scarcely.data.augment import Augmentation
from scarcely.data.module import Split
from scarcely.data.samples import Samples
from scarcely.data.torchvision_sets import TorchvisionSet

__all__ = ["STL10"]

_SIDE = 96
_IMAGE = 3 * _SIDE * _SIDE
_STRIDE = 101


class STL10(TorchvisionSet):
    """STL-10 (Coates et al., 2011); binary files in ``ROOT/stl10_binary``.

    torchvision downloads and checks the set. The files are read here, because torchvision compares
    the sums of all five, 3 GB, each time; here it is sizes only, and the unlabelled images stay in
    their file, memory-mapped.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder that holds ``stl10_binary``.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        unlabelled: whether the unlabelled images are a part; without, their file need not be there.
        split: which labels are used (see `Split`).
    """

    title = "STL-10"
    source = "https://cs.stanford.edu/~acoates/stl10/"

    def __init__(
        self,
        *,
        name: str = "stl10",
        kind: Literal["images"] = "images",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        download: bool = True,
        unlabelled: bool = True,
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
        self.unlabelled = unlabelled

    def files(self) -> tuple[str, ...]:
        """Return the binary files, and the class names."""
        files = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")
        return tuple(f"stl10_binary/{file}" for file in files + ("unlabeled_X.bin",) * self.unlabelled)

    def archives(self) -> dict[str, str]:
        """Return the published archive."""
        from torchvision import datasets

        return {datasets.STL10.filename: datasets.STL10.tgz_md5}

    def fetch(self, folder: Path) -> None:
        """Let torchvision download the set below `folder`."""
        from torchvision import datasets

        datasets.STL10(folder, split="test", download=True)

    def sound(self, file: str) -> bool:
        """Return whether a file holds whole images, and as many labels as there are images."""
        path = self.folder / file
        size = path.stat().st_size
        if file.endswith("_X.bin"):
            return size > 0 and size % _IMAGE == 0
        if file.endswith("_y.bin"):
            images = path.with_name(path.name.replace("_y", "_X")).stat().st_size
            return size == images // _IMAGE and np.fromfile(path, np.uint8).min() >= 1
        return size > 0

    def read(self) -> dict[str, Samples]:
        """Return the parts ``train``, ``test`` and ``unlabelled``.

        Raises:
            DataError: a file is missing or damaged.
        """
        parts = {part: self.load(partial(self._labelled, part)) for part in ("train", "test")}
        if self.unlabelled:
            parts["unlabelled"] = self.load(self._mapped)
        names = self.load(lambda: (self.folder / "stl10_binary/class_names.txt").read_text())
        self.classes = tuple(names.split())
        return parts

    def _labelled(self, part: str) -> Samples:
        labels = np.fromfile(self.folder / f"stl10_binary/{part}_y.bin", np.uint8).astype(np.int64)
        return image_samples(np.array(self._images(part)), labels - 1)  # the files count from 1

    def _mapped(self) -> Samples:
        images = self._images("unlabeled")
        digest = hashlib.blake2b(f"{len(images)}".encode(), digest_size=16)
        # One image in 101, 27 MB: enough to know the file, and it need not be read whole in every run.
        for image in images[::_STRIDE]:
            digest.update(np.ascontiguousarray(image).data)
        labels = torch.full((len(images),), -1, dtype=torch.int64)
        return Samples(torch.from_numpy(images), labels, source=digest.hexdigest())

    def _images(self, part: str) -> np.ndarray:
        """Map images (N, H, W, C); the files hold (N, C, W, H)."""
        file = self.folder / f"stl10_binary/{part}_X.bin"
        shape = (-1, 3, _SIDE, _SIDE)
        return np.memmap(file, np.uint8, "c").reshape(shape).transpose(0, 3, 2, 1)
