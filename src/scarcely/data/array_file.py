"""Images as one array in an ``.npz`` file, with or without labels: what notebooks and own programs have."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Unpack

import numpy as np

from scarcely.data.arrays import image_samples, read_arrays
from scarcely.data.augment import ImageAugmentation
from scarcely.data.module import DataModule, Split
from scarcely.data.samples import Samples
from scarcely.data.text import labels_of
from scarcely.errors import DataError

__all__ = ["ArrayFile"]

_FORMAT = "an .npz file with images (N, H, W) or (N, H, W, C) uint8, square; labels (N,) and classes if known"


class ArrayFile(DataModule):
    """Square images of one file, as `numpy.savez` writes it.

    The file holds ``images``, (N, H, W) or (N, H, W, C) uint8, and may hold ``labels``, (N,) positions in
    ``classes`` (-1 where unknown) or class names, and ``classes``, the names. Images whose label is -1 beside
    labelled ones are the unlabelled part.

    Args:
        augmentation: how views are drawn and normalised.
        name: short name of the set.
        kind: what one sample is.
        root: the file.
        resident: where inputs are kept (see `DataModule`).
        split: which labels are used (see `Split`).
    """

    def __init__(
        self,
        *,
        augmentation: ImageAugmentation,
        name: str = "arrays",
        kind: Literal["images"] = "images",
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        **split: Unpack[Split],
    ) -> None:
        super().__init__(
            name=name, kind=kind, augmentation=augmentation, root=root, resident=resident, **split
        )

    @property
    def file(self) -> Path:
        """The file; a DataError where none is given."""
        if self.root is None:
            raise DataError(
                f"{self.name} needs a file", where="data.root", instead=f"data.root=FILE, {_FORMAT}"
            )
        return self.root

    def check(self) -> None:
        """Look whether the file is there.

        Raises:
            DataError: no file given, or none there.
        """
        if not self.file.is_file():
            raise DataError(f"no file {self.file}", where="data.root", instead=f"data.root=FILE, {_FORMAT}")

    def read(self) -> dict[str, Samples]:
        """Return ``train`` and, where some labels are -1 and others are not, ``unlabelled``.

        Raises:
            DataError: the file cannot be read, or what it holds does not fit together.
        """
        self.check()
        arrays = read_arrays(self.file, ("images",), ("labels", "classes"))
        images = arrays["images"]
        square = images.ndim in (3, 4) and images.shape[1] == images.shape[2]
        if not square or images.dtype != np.uint8 or not images.size:
            raise DataError(
                f"{self.file} holds images {images.shape} {images.dtype}", where="data.root", instead=_FORMAT
            )
        labels, self.classes = labels_of(self.file, arrays, len(images))
        samples = image_samples(images, labels)
        known = samples.labels >= 0
        if not known.any() or known.all():
            return {"train": samples}
        return {"train": samples.select(known), "unlabelled": samples.select(~known)}
