"""Handwritten digits of 8x8 pixels that come with scikit-learn: runs anywhere, without a download."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from torch.nn.functional import interpolate

from scarcely.data.augment import ImageAugmentation
from scarcely.data.module import DataModule, Split
from scarcely.data.samples import Samples
from scarcely.spec import PositiveInt

__all__ = ["TEST", "Digits", "read_digits"]

TEST = 4
"""Which of each five samples, from 0, is in the test part."""


class Digits(DataModule):
    """1,797 grey digits of 43 writers (scikit-learn's `load_digits`), enlarged.

    Every fifth sample, in scikit-learn's order, is the test part: 359 of them. The set has no split
    of its own, and this one needs no file and no random number.

    Args:
        augmentation: how views are drawn and normalised.
        size: side of the images in pixels, enlarged bilinearly from 8.
        name: short name.
        kind: what one sample is.
        root: not used.
        resident: where inputs are kept (see `DataModule`).
        split: which labels are used (see `Split`).
    """

    def __init__(
        self,
        *,
        augmentation: ImageAugmentation,
        size: PositiveInt = 16,
        name: str = "digits",
        kind: Literal["images"] = "images",
        root: None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        **split: Unpack[Split],
    ) -> None:
        super().__init__(
            name=name,
            kind=kind,
            augmentation=augmentation,
            root=root,
            resident=resident,
            **split,
        )
        self.size = size

    def read(self) -> dict[str, Samples]:
        """Return ``train`` (1,438) and ``test`` (359), images (N, size, size, 1)."""
        samples, self.classes = read_digits(self.size)
        test = torch.arange(len(samples)) % 5 == TEST
        return {"train": samples.select(~test), "test": samples.select(test)}


def read_digits(size: int) -> tuple[Samples, tuple[str, ...]]:
    """Return all digits, in scikit-learn's order, as images (N, size, size, 1), and the names of classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.tensor(digits.images, dtype=torch.float32) * (255 / 16)  # stored as 0 to 16
    large = interpolate(grey.unsqueeze(1), size=(size, size), mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    labels = torch.tensor(digits.target, dtype=torch.int64)
    return Samples(images, labels), tuple(map(str, digits.target_names))
