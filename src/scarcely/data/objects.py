"""Images with several objects, whose boxes or masks are known: what such data sets share (chapter 8)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, overload

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from scarcely.data.module import DataModule, Protocol, Role
from scarcely.data.samples import Samples
from scarcely.errors import DataError

if TYPE_CHECKING:
    from scarcely.metrics.pointing import Objects

__all__ = ["AnnotatedImage", "ObjectImages"]


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """The annotation of one image.

    Attributes:
        name: of the image, for messages.
        size: (H, W) of the image, in pixels.
        labels: (M,) int64, the class of each object.
        boxes: (M, 4) float32, x0, y0, x1, y1 in pixels from the upper left corner of the image; a box of one
            pixel has x1 = x0 + 1.
        difficult: (M,) bool, marked as hard to recognise.
        masks: gives (M, H, W) bool, made when asked for; None where only boxes are known.
        file: the image; None where the sample is the whole image.
    """

    name: str
    size: tuple[int, int]
    labels: Tensor
    boxes: Tensor
    difficult: Tensor
    masks: Callable[[], Tensor] | None = None
    file: Path | None = None

    def objects(self) -> Objects:
        """Return the objects as the evaluations take them: masks where they are known, else boxes."""
        from scarcely.metrics.pointing import Objects

        masks = self.masks() if self.masks is not None else None
        boxes = self.boxes if masks is None else None
        return Objects(self.size, self.labels, boxes, masks, self.difficult, self.name)

    def largest(self) -> int:
        """Return the class of the largest box that is not marked difficult; -1 where there is none."""
        if self.difficult.all():
            return -1
        spans = self.boxes[:, 2:] - self.boxes[:, :2]
        areas = spans.prod(dim=1).masked_fill(self.difficult, -1)
        return int(self.labels[areas.argmax()])

    def targets(self, num_classes: int) -> Tensor:
        """Return (C,) int8: 1 for a class with an object, -1 if all of them are difficult, 0 for others."""
        found = torch.zeros(num_classes, dtype=torch.int8)
        found[self.labels] = -1
        found[self.labels[~self.difficult]] = 1
        return found


class ObjectImages(DataModule):
    """Base of the data sets whose images show several objects: a subclass defines `read_annotated`.

    A sample is a square of its image; its label is the class of the largest object that is not marked
    difficult (-1 where there is none), for methods that want one class an image. All else is of the whole
    image, in its own pixels, and in the order of `pool`.
    """

    annotated_objects: ClassVar[bool] = True

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self._annotated: dict[str, list[AnnotatedImage]] = {}
        self._chosen: dict[tuple[Role, Protocol], list[AnnotatedImage]] = {}

    def read_annotated(self) -> dict[str, tuple[Samples, list[AnnotatedImage]]]:
        """Return for each part its samples and as many annotations, in the same order; set `classes`.

        Raises:
            DataError: something is missing or unreadable.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read_annotated()")

    def read(self) -> dict[str, Samples]:
        """Return the parts, and keep their annotations."""
        found = self.read_annotated()
        self._annotated = {part: annotated for part, (_, annotated) in found.items()}
        return {part: samples for part, (samples, _) in found.items()}

    def annotated(self, role: Role, protocol: Protocol) -> list[AnnotatedImage]:
        """Return the annotation of each sample of a pool, in its order."""
        parts = self._parts_of(role, protocol)
        if (role, protocol) not in self._chosen:
            chosen: list[AnnotatedImage] = []
            for part in parts:
                keep = torch.ones(len(self.parts[part]), dtype=torch.bool)
                if role in ("labelled", "unlabelled"):
                    keep = self._known(self.parts[part]) == (role == "labelled")
                chosen += [self._annotated[part][row] for row in keep.nonzero().flatten().tolist()]
            self._chosen[role, protocol] = chosen
        return self._chosen[role, protocol]

    def objects(self, role: Role, protocol: Protocol) -> Sequence[Objects]:
        """Return the objects of each sample of a pool, in its order; masks are made when one is taken."""
        return _Lazily(self.annotated(role, protocol))

    def targets(self, role: Role, protocol: Protocol) -> Tensor:
        """Return which classes each image of a pool shows, for training on several labels.

        As in the classification task of PASCAL VOC, an image that shows a class by difficult objects alone
        is no example of it, for or against.

        Returns:
            (N, C) int8: 1 where there is an object of the class, 0 where there is none, and -1 where all of
            them are difficult, which a loss or a score leaves out.
        """
        return torch.stack([one.targets(self.num_classes) for one in self.annotated(role, protocol)])

    def original(self, role: Role, protocol: Protocol, index: int, shorter: int | None = None) -> Tensor:
        """Return one image of a pool whole, in its own proportions.

        Args:
            role: of the pool.
            protocol: likewise.
            index: of the sample in the pool.
            shorter: resize the image so that its shorter side has so many pixels; None for its own size.

        Returns:
            (H, W, 3) uint8.

        Raises:
            DataError: the file cannot be decoded, or has another size than its annotation.
        """
        one = self.annotated(role, protocol)[index]
        image = self.pool(role, protocol).inputs[index] if one.file is None else _decoded(one.file, one.size)
        if shorter is None or shorter == min(one.size):
            return image
        size = [round(side * shorter / min(one.size)) for side in one.size]
        planes = image.permute(2, 0, 1)[None].float()
        resized = interpolate(planes, size=size, mode="bilinear", antialias=True)[0]
        return resized.round().clamp(0, 255).byte().permute(1, 2, 0)

    def fingerprint(self) -> str:
        """Return a hash of the content of all parts and their annotations."""
        digest = hashlib.blake2b(super().fingerprint().encode(), digest_size=16)
        for _, annotated in sorted(self._annotated.items()):
            for one in annotated:
                digest.update(repr((one.size, one.labels.tolist(), one.difficult.tolist())).encode())
                digest.update(one.boxes.numpy().tobytes())
        return digest.hexdigest()


class _Lazily(Sequence["Objects"]):
    def __init__(self, annotated: list[AnnotatedImage]) -> None:
        self._annotated = annotated

    def __len__(self) -> int:
        return len(self._annotated)

    @overload
    def __getitem__(self, index: int) -> Objects: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Objects]: ...
    def __getitem__(self, index: int | slice) -> Objects | Sequence[Objects]:
        if isinstance(index, slice):
            return _Lazily(self._annotated[index])
        return self._annotated[index].objects()


def _decoded(file: Path, size: tuple[int, int]) -> Tensor:
    from scarcely.data.whole import decode_whole, wrong_size

    try:
        image = torch.from_numpy(decode_whole(file))
    except Exception as error:  # decoders raise whatever their parsers raise
        raise DataError(
            f"cannot read the image: {error}", where=str(file), instead="a whole image file"
        ) from error
    if tuple(image.shape[:2]) != tuple(size):
        raise wrong_size(file, (image.shape[0], image.shape[1]), size)
    return image
