"""What a data set will hold, known without decoding an image: for a plan of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scarcely.data.imagefolder import ImageFolder
from scarcely.data.module import DataModule
from scarcely.data.samples import Samples
from scarcely.errors import DataError

__all__ = ["FEW", "Outline", "outline_of"]

FEW = 2
"""Images that each class has at least where some stand in for all, if it has so many."""


class _Block(NamedTuple):
    """Classes that follow one another, equally large; first is -1 for samples without a label."""

    first: int
    classes: int
    samples: int


@dataclass(frozen=True)
class _Published:
    """Sizes that a publication says.

    Attributes:
        shape: (H, W, C); None: square images of the size that the data are told.
        parts: samples of each part.
        known: number of known classes, where others are to be discovered.
        exact: the number of images is not rounded.
    """

    shape: tuple[int, int, int] | None
    parts: Mapping[str, _Block]
    known: int = 0
    exact: bool = True


def _two(side: int, channels: int, classes: int, train: int, test: int) -> _Published:
    parts = {"train": _Block(0, classes, train), "test": _Block(0, classes, test)}
    return _Published((side, side, channels), parts)


_PUBLISHED = {  # by class; where the set itself is there, it is read instead (but ImageNet)
    "CIFAR10": _two(32, 3, 10, 50_000, 10_000),
    "CIFAR100": _two(32, 3, 100, 50_000, 10_000),
    "CIFAR100Coarse": _two(32, 3, 20, 50_000, 10_000),
    "MNIST": _two(28, 1, 10, 60_000, 10_000),
    "FashionMNIST": _two(28, 1, 10, 60_000, 10_000),
    "KMNIST": _two(28, 1, 10, 60_000, 10_000),
    "USPS": _two(16, 1, 10, 7_291, 2_007),
    "SVHN": _two(32, 3, 10, 73_257, 26_032),
    "STL10": _Published(
        (96, 96, 3),
        {
            "train": _Block(0, 10, 5_000),
            "test": _Block(0, 10, 8_000),
            "unlabelled": _Block(-1, 1, 100_000),
        },
    ),
    "Omniglot": _Published(  # 659 characters in 20 alphabets, 20 drawings each
        None, {"train": _Block(0, 964, 19_280), "unlabelled": _Block(964, 33, 660)}, known=964, exact=False
    ),
    "ImageNet": _Published(  # 1,281,167 images of 1000 classes; 50 of each in val
        None,
        {
            "train": _Block(0, 882, 882 * 1_281),
            "unlabelled": _Block(882, 30, 30 * 1_281),
            "test": _Block(0, 912, 912 * 50),
        },
        known=882,
        exact=False,
    ),
}


@dataclass(frozen=True)
class Outline:
    """The labels of each part, and what one image will be.

    Attributes:
        shape: (H, W, C) as images are kept.
        labels: (N,) int64 of each part, -1 where unknown.
        classes: their names.
        source: where the numbers are from, in words.
        known: number of known classes, where others are to be discovered; else 0.
        exact: the numbers are not rounded.
        names: files of each part, where samples are files.
    """

    shape: tuple[int, int, int]
    labels: dict[str, Tensor]
    classes: tuple[str, ...]
    source: str
    known: int = 0
    exact: bool = True
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        height, width, channels = self.shape
        return sum(map(len, self.labels.values())) * height * width * channels

    def fill(self, data: DataModule, *, most: int | None = None) -> None:
        """Make a data module hold such images, of one pixel each, or some of them of the right size.

        Args:
            data: made from its configuration, not set up.
            most: images of each part, evenly taken, of random pixels, and more for `FEW` of each class; None:
                all, of one pixel.
        """
        shape = (1, 1, self.shape[2]) if most is None else self.shape
        parts = {}
        for part, labels in self.labels.items():
            rows = torch.arange(len(labels)) if most is None else _some(labels, most)
            names = tuple(self.names[part][i] for i in rows.tolist()) if part in self.names else None
            parts[part] = Samples(_overlapping(len(rows), shape), labels[rows], names)
        data.read = lambda: dict(parts)  # type: ignore[method-assign]
        data.prepare_data = lambda: None  # type: ignore[method-assign]  # Lightning calls it
        data.classes, data.num_known = self.classes, self.known
        given = data.labelled_classes
        if isinstance(given, list) and not self.names:  # which classes these are does not matter
            data.labelled_classes = len(given)


def outline_of(data: DataModule) -> Outline | None:
    """Return what a data set will hold; None where only reading it tells, or it is there to be read.

    Raises:
        DataError: the folders of one's own images are not as they should be.
    """
    if isinstance(data, ImageFolder):
        _, classes, listings = data.listed()
        return Outline(
            shape=(data.size, data.size, data.channels),
            labels={part: torch.tensor(listing.labels) for part, listing in listings.items()},
            classes=classes,
            source="the files of the folder",
            names={part: listing.files for part, listing in listings.items()},
        )
    name = type(data).__name__
    found = _PUBLISHED.get(name)
    if found is None or (name != "ImageNet" and _is_there(data)):
        return None
    size = getattr(data, "size", 0)
    channels = 1 if name == "Omniglot" else 3
    return Outline(
        shape=found.shape or (size, size, channels),
        labels={part: _labels(block) for part, block in found.parts.items()},
        classes=tuple(map(str, range(max(b.first + b.classes for b in found.parts.values())))),
        source=f"the published sizes of {name}",
        known=found.known,
        exact=found.exact,
    )


def _is_there(data: Any) -> bool:
    download, data.download = getattr(data, "download", False), False
    try:
        data.check()
    except DataError:
        return False
    finally:
        data.download = download
    return True


def _labels(block: _Block) -> Tensor:
    if block.first < 0:
        return torch.full((block.samples,), -1)
    return block.first + torch.arange(block.samples) * block.classes // block.samples


def _some(labels: Tensor, most: int) -> Tensor:
    """Return rows (n,) that are evenly taken, and the first `FEW` of each class."""
    even = torch.arange(0, len(labels), max(1, len(labels) // max(1, most)))
    order = labels.argsort(stable=True)
    sizes = labels[order].unique_consecutive(return_counts=True)[1]
    number = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # in its class
    return torch.cat([even, order[number < FEW]]).unique()


def _overlapping(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Return random images (N, H, W, C), each a byte behind the other: many in little memory."""
    height, width, channels = shape
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (height * width * channels + count,), dtype=torch.uint8, generator=generator)
    return pixels.as_strided((count, *shape), (1, width * channels, channels, 1))
