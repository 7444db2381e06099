"""What data sets share whose images and annotations of objects are files."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from scarcely.data.augment import ImageAugmentation
from scarcely.data.decode import load_images
from scarcely.data.objects import AnnotatedImage, ObjectImages
from scarcely.data.samples import Samples
from scarcely.data.whole import upright_size, wrong_size
from scarcely.errors import DataError
from scarcely.spec import NonNegativeInt, PositiveInt

__all__ = ["Annotation", "ObjectFiles", "Reading", "check_box"]

_SHOWN = 5
_LOOKED_AT = 10_000


@dataclass(frozen=True, eq=False)
class Annotation:
    """What a file says of one image; classes are names, as the data set has not numbered them yet.

    Attributes:
        image: the image file.
        source: the file that says it.
        size: (H, W) of the image, in pixels.
        names: class of each object.
        boxes: x0, y0, x1, y1 of each object (see `AnnotatedImage`).
        difficult: of each object.
        masks: see `AnnotatedImage`.
    """

    image: Path
    source: Path
    size: tuple[int, int]
    names: Sequence[str]
    boxes: Sequence[Sequence[float]]
    difficult: Sequence[bool]
    masks: Callable[[], Tensor] | None = None


class Reading(TypedDict, total=False):
    """Arguments that every such data set takes (see `ObjectFiles`); all may be left out."""

    kind: Literal["images"]
    root: str | None
    resident: Literal["auto", "host", "device"]
    image_size: PositiveInt
    on_error: Literal["raise", "skip"]
    workers: NonNegativeInt


class ObjectFiles(ObjectImages):
    """Base of the data sets that lie in files: a subclass defines `find`, the rest follows.

    Samples are the central squares of the images, decoded once to a cache (see `decode_image`).

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder of the data.
        resident: where the squares are kept (see `DataModule`).
        image_size: side of the squares in pixels.
        on_error: ``skip`` leaves out images that cannot be decoded, counts them and warns.
        workers: decoding threads; 0 for the number of cores.

    Attributes:
        skipped: files left out under ``on_error=skip``, relative to the root; set by `read`.
    """

    needs_root: ClassVar[bool] = True

    def __init__(
        self,
        *,
        name: str,
        augmentation: ImageAugmentation,
        kind: Literal["images"] = "images",
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        image_size: PositiveInt = 224,
        on_error: Literal["raise", "skip"] = "raise",
        workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__(name=name, kind=kind, augmentation=augmentation, root=root, resident=resident)
        self.image_size = image_size
        self.on_error: Literal["raise", "skip"] = on_error
        self.workers = workers
        self.skipped: tuple[str, ...] = ()

    def find(self) -> tuple[tuple[str, ...], dict[str, list[Annotation]]]:
        """Return the names of the classes, and the annotations of each part.

        Raises:
            DataError: something is missing or unreadable.
        """
        raise NotImplementedError(f"{type(self).__name__} must define find()")

    def read_annotated(self) -> dict[str, tuple[Samples, list[AnnotatedImage]]]:
        """Return the parts that were found; all is looked at before anything is decoded.

        Raises:
            DataError: a class without a name, an image that is missing, in two parts, not of the size that
                its annotation says, or that cannot be decoded.
        """
        self.check()
        assert self.root is not None
        self.classes, found = self.find()
        self.skipped = ()
        everything = [one for annotations in found.values() for one in annotations]
        _check_images(everything)
        annotated = {part: self._numbered(annotations) for part, annotations in found.items()}
        return {part: self._load(images) for part, images in annotated.items()}

    def _numbered(self, annotations: list[Annotation]) -> list[AnnotatedImage]:
        index = {name: label for label, name in enumerate(self.classes)}
        images = []
        for one in annotations:
            unknown = next((name for name in one.names if name not in index), None)
            if unknown is not None:
                raise DataError(
                    f"an object of {one.image.name} is of the class {unknown!r}, which there is not",
                    where=str(one.source),
                    instead=f"one of {', '.join(self.classes)}",
                )
            images.append(
                AnnotatedImage(
                    _relative(one.image, self.root),
                    one.size,
                    torch.tensor([index[name] for name in one.names], dtype=torch.int64),
                    torch.tensor(one.boxes, dtype=torch.float32).reshape(-1, 4),
                    torch.tensor(one.difficult, dtype=torch.bool),
                    one.masks,
                    one.image,
                )
            )
        return images

    def _load(self, images: list[AnnotatedImage]) -> tuple[Samples, list[AnnotatedImage]]:
        assert self.root is not None
        samples, failed = load_images(
            self.root,
            [one.name for one in images],
            [one.largest() for one in images],
            size=self.image_size,
            on_error=self.on_error,
            workers=self.workers,
        )
        self.skipped += tuple(failed)
        return samples, [one for one in images if one.name not in failed]


def check_box(box: Sequence[float], size: tuple[int, int], *, where: str) -> None:
    """Look whether a box, x0, y0, x1, y1, is inside of its image of `size` (H, W), but for a pixel.

    Raises:
        DataError: it is empty, or outside.
    """
    from scarcely.metrics.pointing import OVERSHOOT

    x0, y0, x1, y1 = box
    height, width = size
    # Not by its negation: a coordinate that is no number is neither smaller nor larger than any.
    if not all(
        -OVERSHOOT <= start < end <= length + OVERSHOOT and start < length and end > 0
        for start, end, length in ((x0, x1, width), (y0, y1, height))
    ):
        raise DataError(
            f"the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) is empty or outside of its image of"
            f" {width} x {height} pixels",
            where=where,
            instead=f"x from 0 to {width}, y from 0 to {height}, the end beyond the start",
        )


def _check_images(annotations: Sequence[Annotation]) -> None:
    """Look whether all images are there, annotated once and of the sizes that their annotations say."""
    sources: dict[Path, Path] = {}
    for one in annotations:
        if one.image in sources:
            raise DataError(
                f"the image {one.image} is annotated twice",
                where=f"{sources[one.image]}, {one.source}",
                instead="each image once, in the train or in the test part",
            )
        sources[one.image] = one.source
    missing = _missing(sources)
    if missing:
        shown = ", ".join(path.name for path in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing):,} of {len(sources):,} annotated images are missing: there is no {shown}{more}"
            f" in {missing[0].parent}",
            where=str(sources[missing[0]]),
            instead="all images that are annotated, unpacked below data.root",
        )
    # Of a larger set only some: what is wrong throughout is found now, the rest when it is decoded.
    for one in annotations[:: -(-len(annotations) // _LOOKED_AT)]:
        found = upright_size(one.image)
        if found is not None and found != tuple(one.size):
            error = wrong_size(one.image, found, one.size)
            raise DataError(error.what, where=f"{one.image}, {one.source}", instead=error.instead)


def _missing(files: Iterable[Path]) -> list[Path]:
    """Return the files that are not there."""
    there: dict[str, Collection[str]] = {}  # of each folder: sooner listed than asked for each file
    missing = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in there:
            there[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else ()
        if name not in there[folder]:
            missing.append(file)
    return missing


def _relative(file: Path, root: Path | None) -> str:
    if root is not None and file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    return file.as_posix()
