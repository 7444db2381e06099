"""The pointing game: does the most salient pixel lie on the object?

Sources: Zhang et al. ("Top-down Neural Attention by Excitation Backprop", 2016) and appendix A of "There and
Back Again: Revisiting Backpropagation Saliency Methods" (Rebuffi, Fong, Ji and Vedaldi, 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from scarcely.errors import DataError
from scarcely.metrics.sensitivity import is_constant, resize
from scarcely.spec import NonNegative, PositiveInt

# Of the image, which the annotations of a class stay below in the difficult subset (appendix A).
DIFFICULT_SHARE = 0.25
# Annotations in fractions of a pixel overshoot their image by a little.
OVERSHOOT = 1.0


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image: boxes or masks.

    Attributes:
        size: (H, W) of the image, in pixels.
        labels: (B,) int64 classes.
        boxes: (B, 4), x0, y0, x1, y1 in pixels from the upper left corner of the image; x1 and y1 are
            where the box ends: a box of one pixel has x1 = x0 + 1.
        masks: bool (B, H, W), instead of boxes.
        difficult: bool (B,), marked as hard to recognise; none by default.
        name: of the image, for messages.

    Raises:
        DataError: a box that is empty or more than a pixel outside the image, a mask of another size, not one
            annotation a label, neither boxes nor masks.
    """

    size: tuple[int, int]
    labels: Tensor
    boxes: Tensor | None = None
    masks: Tensor | None = None
    difficult: Tensor | None = None
    name: str = "an image"

    def __post_init__(self) -> None:
        if (self.boxes is None) == (self.masks is None):
            raise DataError("objects have either boxes or masks", where=self.name)
        for what, given in (("boxes", self.boxes), ("masks", self.masks), ("flags", self.difficult)):
            if given is not None and len(given) != len(self.labels):
                raise DataError(
                    f"{len(self.labels)} labels have {len(given)} {what}",
                    where=self.name,
                    instead="one for each label",
                )
        if self.masks is not None and tuple(self.masks.shape[1:]) != tuple(self.size):
            raise DataError(
                f"the masks are {self.masks.shape[1]} x {self.masks.shape[2]} pixels, "
                f"the image {self.size[0]} x {self.size[1]} (height x width)",
                where=self.name,
                instead="masks of the image's size",
            )
        if self.boxes is not None:
            self._check(self.boxes)

    def _check(self, boxes: Tensor) -> None:
        height, width = self.size
        for box in boxes.tolist():
            x0, y0, x1, y1 = box
            spans = (x0, x1, width), (y0, y1, height)
            if not all(_inside(*span) for span in spans):
                raise DataError(
                    f"the box {tuple(box)} is empty or outside its image of {width} x {height} pixels",
                    where=self.name,
                    instead=f"x0 < x1 from 0 to {width}, y0 < y1 from 0 to {height}",
                )

    def classes(self) -> list[int]:
        """The classes to point at: those with an object that is not marked difficult."""
        if self.difficult is None:
            return sorted(set(self.labels.tolist()))
        return sorted(set(self.labels[~self.difficult.bool()].tolist()))

    def region(self, label: int) -> Tensor:
        """Return bool (H, W): all objects of a class, difficult ones too."""
        chosen = self.labels == label
        if self.masks is not None:
            return self.masks[chosen].bool().any(dim=0)
        region = torch.zeros(self.size, dtype=torch.bool)
        assert self.boxes is not None
        for x0, y0, x1, y1 in self.boxes[chosen].tolist():
            region[_pixels(y0, y1, self.size[0]), _pixels(x0, x1, self.size[1])] = True
        return region


class PointingGame(Metric):
    """Share of objects that the most salient pixel falls on, averaged over classes.

    Each map is of one class in one image. A hit is on the union of the class's objects, or strictly closer
    to it than the tolerance. In the ``difficult`` subset the objects of the class together cover less than a
    quarter of the image, and it shows another class too. A class that is marked difficult throughout does
    not count. Pointing at the centre of each image is scored along.

    Args:
        num_classes: C.
        tolerance: pixels of the original image.
        **kwargs: as for any torchmetrics ``Metric``.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    _hits: Tensor
    _pairs: Tensor
    _skipped: Tensor

    def __init__(self, num_classes: PositiveInt, tolerance: NonNegative = 15.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.tolerance = num_classes, tolerance
        # (all or difficult, map or centre, class) and (all or difficult, class)
        self.add_state("_hits", torch.zeros(2, 2, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("_pairs", torch.zeros(2, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("_skipped", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Tensor, classes: Tensor | Sequence[int], objects: Sequence[Objects]) -> None:
        """Point.

        Args:
            maps: (P, h, w); each is resized to its image, and its first largest pixel counts (of a map
                that is constant or not finite, the first).
            classes: (P,), the class that each map explains.
            objects: P annotations, one a map: those of its image.

        Raises:
            DataError: a class is out of range or not among the image's objects.
            ValueError: not as many maps, classes and annotations.
        """
        for saliency, label, image in zip(maps, map(int, classes), objects, strict=True):
            if not 0 <= label < self.num_classes or label not in image.labels.tolist():
                raise DataError(
                    f"no object of class {label} is annotated",
                    where=image.name,
                    instead=f"one of {sorted(set(image.labels.tolist()))}, below {self.num_classes}",
                )
            if label not in image.classes():
                self._skipped += 1
                continue
            region = image.region(label).cpu()
            height, width = image.size
            # Resizing would ripple a constant map, and rounding choose the pixel.
            says = not is_constant(saliency[None]).item()
            brightest = int(resize(saliency[None], image.size).argmax()) if says else 0
            points = torch.tensor(
                [
                    near(region, divmod(brightest, width), self.tolerance),
                    near(region, (height // 2, width // 2), self.tolerance),
                ]
            ).to(self._hits)
            several = len(set(image.labels.tolist())) > 1
            difficult = several and region.float().mean().item() < DIFFICULT_SHARE
            for subset in (0, 1) if difficult else (0,):
                self._hits[subset, :, label] += points
                self._pairs[subset, label] += 1

    def compute(self) -> dict[str, Tensor]:
        """The scores, float32 scalars in [0, 1].

        ``all`` and ``difficult``, each also of the image's centre (``center/…``) and with its standard error
        (``stderr/…``, of the mean over classes, binomial in each class); NaN if nothing was counted.
        ``pairs/all`` and ``pairs/difficult`` are the numbers of maps that were counted, ``skipped`` that of
        maps of classes that are marked difficult throughout.
        """
        scores: dict[str, Tensor] = {"skipped": self._skipped.float()}
        for subset, name in enumerate(("all", "difficult")):
            seen = self._pairs[subset] > 0
            pairs = self._pairs[subset, seen].float()
            scores[f"pairs/{name}"] = pairs.sum()
            hit, center = self._hits[subset][:, seen] / pairs
            scores[name], scores[f"center/{name}"] = hit.mean(), center.mean()
            scores[f"stderr/{name}"] = (hit * (1 - hit) / pairs).sum().sqrt() / len(pairs)
        return scores


def near(region: Tensor, point: tuple[int, int], tolerance: float) -> bool:
    """Whether a pixel (row, column) is in a region, bool (H, W), or strictly closer than the tolerance."""
    row, column = point
    if region[row, column]:
        return True
    reach = math.ceil(tolerance)
    top, left = max(row - reach, 0), max(column - reach, 0)
    rows, columns = region[top : row + reach + 1, left : column + reach + 1].nonzero(as_tuple=True)
    squared = (rows + top - row) ** 2 + (columns + left - column) ** 2
    return bool((squared < tolerance**2).any())


def _inside(start: float, end: float, length: int) -> bool:
    """Whether an interval is neither empty nor off an axis, but for what rounding may add."""
    return -OVERSHOOT <= start < end <= length + OVERSHOOT and start < length and end > 0


def _pixels(start: float, end: float, length: int) -> slice:
    """The pixels whose centre lies in an interval; one where there is none."""
    first = min(max(math.ceil(start - 0.5), 0), length - 1)
    return slice(first, max(min(math.ceil(end - 0.5), length), first + 1))
