"""Several shapes on a textured ground, with their boxes and masks: made on the spot, no download."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from scarcely.data.augment import ImageAugmentation
from scarcely.data.objects import AnnotatedImage, ObjectImages
from scarcely.data.samples import Samples
from scarcely.errors import ConfigError
from scarcely.seeds import derive_seed
from scarcely.spec import Annotated, NonNegativeInt, PositiveInt, Range

__all__ = ["LOW_CONTRAST", "SHAPES", "Shapes"]

LOW_CONTRAST = 60.0
"""Distance in RGB of 0 to 255 below which an object hardly differs from the ground that it hides."""

# Shares of the image, a little inside of 2 to 8 %, since shapes are rounded to whole pixels.
_AREAS = (0.022, 0.077)
_CANDIDATES = 64  # places tried for an object before its image is given up
_BATCH = 64  # images laid out together
_COLORED = 16  # pixels in the finest grid of coloured noise; finer noise is grey


def _regular(u: Tensor, v: Tensor, corners: int, inradius: float, sides: int) -> Tensor:
    """Whether points lie inside of at least so many sides of a regular polygon."""
    angles = [2 * math.pi * k / corners for k in range(corners)]
    within = torch.zeros_like(u, dtype=torch.int8)
    for angle in angles:
        within += u * math.cos(angle) + v * math.sin(angle) < inradius
    return within >= sides


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return u * u + v * v < 1 / math.pi


def _ring(u: Tensor, v: Tensor) -> Tensor:
    squared, outer = u * u + v * v, 4 / (3 * math.pi)  # the hole has half the radius
    return (squared < outer) & (squared >= outer / 4)


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) < 0.5


def _cross(u: Tensor, v: Tensor) -> Tensor:
    width = math.sqrt(1 / 5)  # five squares of it
    longer, shorter = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    return (longer < 1.5 * width) & (shorter < width / 2)


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return _regular(u, v, 3, 27**-0.25, 3)


def _star(u: Tensor, v: Tensor) -> Tensor:
    return _regular(u, v, 5, _STAR * math.cos(2 * math.pi / 5), 4)


# Circumradius of the five-pointed star of area 1: its inner corners lie at cos 72° / cos 36° of it.
_STAR = (5 * math.sin(math.pi / 5) * math.cos(2 * math.pi / 5) / math.cos(math.pi / 5)) ** -0.5

SHAPES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "disc": (_disc, math.sqrt(1 / math.pi)),
    "square": (_square, math.sqrt(1 / 2)),
    "triangle": (_triangle, 2 * 27**-0.25),
    "ring": (_ring, math.sqrt(4 / (3 * math.pi))),
    "cross": (_cross, math.sqrt(1 / 2)),
    "star": (_star, _STAR),
}
"""Of each shape of area 1 around the origin: whether points are inside, and its circumradius."""


class Shapes(ObjectImages):
    """Discs, squares, triangles, rings, crosses and stars; what counts is the shape alone.

    The ground is noise at all scales. Each object covers 2 to 8 % of the image, is whole and touches no
    other; colour, texture, size, place and rotation are random. An image shows three different classes at
    least, where it has so many objects. Difficult is an object whose mean colour is closer than
    `LOW_CONTRAST` to that of the ground that it hides.

    The first images are the same whatever their number; train and test part are drawn apart.

    Args:
        augmentation: how views are drawn and normalised.
        image_size: side of the images in pixels.
        train_images: number of images in the train part.
        test_images: number of images in the test part.
        min_objects: fewest objects in an image.
        max_objects: most objects in an image.
        shapes: which ones, keys of `SHAPES`; they are the classes.
        regions: ``masks`` or ``boxes``: what the evaluations see of an object.
        data_seed: of the images; the seed of the run leaves them alone, so that runs can be compared.
        name: short name.
        kind: what one sample is.
        root: not used.
        resident: where inputs are kept (see `DataModule`).

    Raises:
        ConfigError: no such shape, fewer than two or one twice; or more objects at least than at most.
    """

    def __init__(
        self,
        *,
        augmentation: ImageAugmentation,
        image_size: Annotated[int, Range(low=64)] = 128,
        train_images: PositiveInt = 2000,
        test_images: PositiveInt = 500,
        min_objects: Annotated[int, Range(low=1, high=6)] = 3,
        max_objects: Annotated[int, Range(low=1, high=6)] = 5,
        shapes: list[str] | None = None,
        regions: Literal["masks", "boxes"] = "masks",
        data_seed: NonNegativeInt = 0,
        name: str = "shapes",
        kind: Literal["images"] = "images",
        root: None = None,
        resident: Literal["auto", "host", "device"] = "auto",
    ) -> None:
        super().__init__(name=name, kind=kind, augmentation=augmentation, root=root, resident=resident)
        self.image_size = image_size
        self.counts = {"train": train_images, "test": test_images}
        self.min_objects, self.max_objects = min_objects, max_objects
        self.shapes = tuple(SHAPES) if shapes is None else tuple(shapes)
        self.regions = regions
        self.data_seed = data_seed
        if len(set(self.shapes) & set(SHAPES)) < max(2, len(self.shapes)):
            raise ConfigError(
                f"data.shapes is [{', '.join(self.shapes)}]",
                where="data.shapes",
                instead=f"two or more of {', '.join(SHAPES)}, each once; or null for all",
            )
        if min_objects > max_objects:
            raise ConfigError(
                f"at least {min_objects} objects in an image, but at most {max_objects}",
                where="data.min_objects, data.max_objects",
                instead="min_objects no larger than max_objects",
            )

    def read_annotated(self) -> dict[str, tuple[Samples, list[AnnotatedImage]]]:
        """Draw ``train`` and ``test``, images (N, image_size, image_size, 3)."""
        self.classes = self.shapes
        return {part: self._draw(part, count) for part, count in self.counts.items()}

    def _draw(self, part: str, count: int) -> tuple[Samples, list[AnnotatedImage]]:
        generator = torch.Generator().manual_seed(derive_seed(self.data_seed, "shapes", part))
        images: list[Tensor] = []
        annotated: list[AnnotatedImage] = []
        while len(annotated) < count:
            layout = _lay_out(generator, self.shapes, self.min_objects, self.max_objects)
            owner = _rasterize(generator, layout, self.shapes, self.image_size)
            painted, difficult = _paint(generator, owner, self.max_objects)
            images.append(painted)
            for labels, pixels, flags in zip(layout.labels, owner, difficult, strict=True):
                name = f"image {len(annotated)} of the {part} part of {self.name}"
                there = int((labels >= 0).sum())
                annotated.append(
                    AnnotatedImage(
                        name,
                        (self.image_size, self.image_size),
                        labels[:there],
                        _boxes(pixels, there),
                        flags[:there],
                        partial(_masks, pixels, there) if self.regions == "masks" else None,
                    )
                )
        annotated = annotated[:count]
        labels = torch.tensor([one.largest() for one in annotated])
        return Samples(torch.cat(images)[:count].contiguous(), labels), annotated


class _Layout(NamedTuple):
    """Where objects are; of each image the absent ones come last. Lengths are shares of the side."""

    labels: Tensor  # (B, M), -1 for none
    scales: Tensor  # (B, M), root of the area
    centers: Tensor  # (B, M, 2), x and y


def _lay_out(generator: torch.Generator, shapes: tuple[str, ...], fewest: int, most: int) -> _Layout:
    """Draw images in which no two circumscribed circles meet, `_BATCH` of them or fewer."""
    distinct = min(3, len(shapes), most)
    labels = torch.rand(_BATCH, len(shapes), generator=generator).argsort(dim=1)[:, :distinct]
    others = torch.randint(len(shapes), (_BATCH, most - distinct), generator=generator)
    labels = torch.cat([labels, others], dim=1)
    count = torch.randint(fewest, most + 1, (_BATCH, 1), generator=generator)
    labels = labels.masked_fill(torch.arange(most) >= count, -1)

    low, high = (math.log(area) / 2 for area in _AREAS)
    scales = (low + (high - low) * torch.rand(_BATCH, most, generator=generator)).exp()
    circumradii = torch.tensor([SHAPES[shape][1] for shape in shapes])
    radii = (circumradii[labels] * scales).masked_fill(labels < 0, 0)
    # The largest first, while there is room; those that are absent last.
    radii, order = radii.sort(dim=1, descending=True)
    labels, scales = labels.gather(1, order), scales.gather(1, order)

    centers = torch.zeros(_BATCH, most, 2)
    free = torch.ones(_BATCH, dtype=torch.bool)
    for i in range(most):
        radius = radii[:, i, None]
        drawn = torch.rand(_BATCH, _CANDIDATES, 2, generator=generator)
        candidates = radius[..., None] + (1 - 2 * radius[..., None]) * drawn
        apart = torch.cdist(candidates, centers[:, :i]) > radii[:, None, :i] + radius[..., None]
        fits = apart.all(dim=2)
        centers[:, i] = candidates[torch.arange(_BATCH), fits.int().argmax(dim=1)]
        free &= fits.any(dim=1) | (labels[:, i] < 0)
    return _Layout(labels[free], scales[free], centers[free])


def _rasterize(generator: torch.Generator, layout: _Layout, shapes: tuple[str, ...], size: int) -> Tensor:
    """Turn the objects; return (B, size, size) uint8: 0 for the ground, 1 + i for object i."""
    images, objects = layout.labels.shape
    angles = 2 * math.pi * torch.rand(images, objects, generator=generator)
    middle = (torch.arange(size) + 0.5) / size
    inside = torch.zeros(images, objects, size, size, dtype=torch.uint8)
    for label, shape in enumerate(shapes):
        chosen = layout.labels == label
        offsets = middle[:, None] - layout.centers[chosen][:, None]  # (n, size, 2)
        scaled = offsets / layout.scales[chosen][:, None, None]
        x, y = scaled[:, None, :, 0], scaled[:, :, None, 1]
        cos, sin = angles[chosen].cos()[:, None, None], angles[chosen].sin()[:, None, None]
        inside[chosen] = SHAPES[shape][0](cos * x + sin * y, cos * y - sin * x).byte()
    numbers = torch.arange(1, objects + 1, dtype=torch.uint8)
    return (inside * numbers[:, None, None]).sum(dim=1, dtype=torch.uint8)


def _paint(generator: torch.Generator, owner: Tensor, objects: int) -> tuple[Tensor, Tensor]:
    """Return the images (B, H, W, 3) uint8, and which objects (B, M) hardly differ from their ground."""
    images, size, _ = owner.shape
    texture = _texture(generator, images, size)
    base = 64 + 128 * torch.rand(images, 3, 1, 1, generator=generator)
    ground = _to_pixels(base + 40 * texture)
    colors = 255 * torch.rand(images, 3, objects + 1, generator=generator)
    roughness = 30 * torch.rand(images, 1, objects + 1, generator=generator)
    mine = owner.flatten(1).long()[:, None]  # (B, 1, H * W)
    color, rough = (
        values.gather(2, mine.expand(-1, len(values[0]), -1)).unflatten(2, (size, size))
        for values in (colors, roughness)
    )
    # Of another place, and so nothing of the ground goes on in an object.
    drawn = _to_pixels(color + rough * texture.roll((size // 2, size // 2), (2, 3)))
    painted = torch.where(owner[:, None] > 0, drawn, ground)

    differences = (painted.short() - ground.short()).flatten(2).float()
    sums = torch.zeros(images, 3, objects + 1).scatter_add_(2, mine.expand(-1, 3, -1), differences)
    areas = torch.zeros(images, 1, objects + 1).scatter_add_(2, mine, torch.ones(mine.shape))
    contrasts = (sums / areas.clamp(min=1)).norm(dim=1)
    return painted.permute(0, 2, 3, 1), (contrasts < LOW_CONTRAST)[:, 1:]


def _texture(generator: torch.Generator, images: int, size: int) -> Tensor:
    """Return noise (B, 3, size, size): grids of 2, 4, 8, ... pixels, each as strong as it happens to be."""
    sides = [size]
    while sides[-1] > 2:
        sides.append((sides[-1] + 1) // 2)
    field = torch.zeros(images, 3, 1, 1)
    for side in reversed(sides):
        field = interpolate(field, size=(side, side), mode="bilinear", align_corners=False)
        channels = 3 if side <= _COLORED else 1
        grid = torch.randn(images, channels, side, side, generator=generator)
        field += torch.rand(images, 1, 1, 1, generator=generator) * grid
    return field


def _to_pixels(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).byte()


def _masks(owner: Tensor, count: int) -> Tensor:
    return owner == torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None]


def _boxes(owner: Tensor, count: int) -> Tensor:
    masks = _masks(owner, count)
    sides = [masks.any(dim=1).byte(), masks.any(dim=2).byte()]  # columns and rows that an object reaches
    starts = [side.argmax(dim=1) for side in sides]
    ends = [side.shape[1] - side.flip(1).argmax(dim=1) for side in sides]
    return torch.stack([*starts, *ends], dim=1).float()
