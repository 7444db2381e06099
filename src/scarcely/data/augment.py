"""Random views of a batch, in two halves: what is random is drawn on the CPU, the rest is arithmetic.

`draw` is called for the whole batch of all devices, and its result is sliced: neither the number of
devices nor the kind of device changes what an image looks like in a given step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from scarcely.errors import ConfigError
from scarcely.functional.views import (
    check_padding,
    crop_flip,
    denormalize,
    draw_warps,
    draw_windows,
    normalize,
    warp,
)
from scarcely.spec import Annotated, NonNegative, NonNegativeInt, PositiveInt, Range

__all__ = ["Augmentation", "ImageAugmentation", "VectorAugmentation"]


class Augmentation(Protocol):
    """How views are made of inputs."""

    def check(self, shape: Sequence[int]) -> None:
        """Raise ConfigError if inputs of this shape, (H, W, C) or (D,), cannot be augmented."""

    def draw(
        self, generator: torch.Generator, count: int, views: int, shape: Sequence[int]
    ) -> dict[str, Tensor]:
        """Draw everything random for `count` inputs: CPU tensors with `count` as first dimension."""

    def apply(self, inputs: Tensor, params: dict[str, Tensor], views: int) -> tuple[Tensor, ...]:
        """Return the views, with the drawn tensors on the device of the inputs."""

    def clean(self, inputs: Tensor) -> Tensor:
        """Return the inputs as a network sees them, with nothing random."""


class ImageAugmentation:
    """Random crop of the padded image, horizontal flip, rotation, shear and scale, each view on its own.

    Args:
        mean: mean of each channel, for values in [0, 1]; None where the data set fills it in (`replaced`).
        std: standard deviation of each channel, above 0; likewise.
        padding: pixels added on every side before cropping; 0 for none.
        pad_mode: what is added: black, or the image reflected at its edge.
        flip: mirror half of the views.
        degrees: rotate by up to so many, either way.
        shear: shear along the rows by up to so many degrees, either way.
        scale: enlarge, or make smaller, by up to this share.
        first_clean: of several views leave the first as it is: the one that pairwise labels come
            from. A single view is always augmented.
        crop: side of the square views, cut out at random, and at the centre where nothing shall be
            random; None for the size of the image.

    Raises:
        ConfigError: `mean` and `std` do not fit together.
    """

    def __init__(
        self,
        mean: list[float] | None,
        std: list[float] | None,
        padding: NonNegativeInt = 0,
        pad_mode: Literal["zero", "reflect"] = "reflect",
        flip: bool = False,
        degrees: Annotated[float, Range(low=0, high=180)] = 0.0,
        shear: Annotated[float, Range(low=0, high=89.9)] = 0.0,
        scale: Annotated[float, Range(low=0, high=0.99)] = 0.0,
        first_clean: bool = False,
        crop: PositiveInt | None = None,
    ) -> None:
        self.mean = tuple(float(value) for value in mean or ())
        self.std = tuple(float(value) for value in std or ())
        if len(self.mean) != len(self.std) or [] in (mean, std):
            raise ConfigError(
                f"mean has {len(self.mean)} channels, std {len(self.std)}",
                where="data.augmentation",
                instead="one value a channel in each",
            )
        if min(self.std, default=1) <= 0:
            raise ConfigError(f"std must be above 0, not {min(self.std):g}", where="data.augmentation.std")
        if padding < 0:
            raise ConfigError(f"padding must be at least 0, not {padding}", where="data.augmentation.padding")
        for name, value, limit in (("degrees", degrees, 180), ("shear", shear, 89.9), ("scale", scale, 0.99)):
            if not 0 <= value <= limit:
                raise ConfigError(
                    f"{name} must be between 0 and {limit}, not {value:g}", where=f"data.augmentation.{name}"
                )
        if pad_mode not in ("zero", "reflect"):
            raise ConfigError(
                f"unknown pad_mode {pad_mode!r}",
                where="data.augmentation.pad_mode",
                instead="zero or reflect",
            )
        self.padding = padding
        self.pad_mode: Literal["zero", "reflect"] = pad_mode
        self.flip = flip
        self.degrees, self.shear, self.scale = degrees, shear, scale
        self._black = tuple(-m / s for m, s in zip(self.mean, self.std))
        self.first_clean = first_clean
        self.crop = crop

    def replaced(self, **settings: Any) -> ImageAugmentation:
        """Return an augmentation with some settings replaced."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return type(self)(**{**own, "mean": self.mean or None, "std": self.std or None, **settings})

    def view_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the (H, W, C) of a view of images of `shape` (H, W, C)."""
        height, width, channels = shape
        return (height, width, channels) if self.crop is None else (self.crop, self.crop, channels)

    def check(self, shape: Sequence[int]) -> None:
        """Check the channels and the padding against images of `shape` (H, W, C).

        Raises:
            ConfigError: no images, another number of channels than `mean` has, images too small
                to reflect or to cut from, or a crop of images that are no squares.
        """
        if len(shape) != 3:
            raise ConfigError(
                f"crops and flips need images, not vectors of {tuple(shape)}",
                where="data.augmentation",
                instead="scarcely.data.augment.VectorAugmentation",
            )
        height, width, channels = shape
        if channels != len(self.mean):
            raise ConfigError(
                f"the images have {channels} channels, data.augmentation.mean has {len(self.mean)}",
                where="data.augmentation.mean",
                instead=f"{channels} values in mean and in std",
            )
        check_padding(height, width, self.padding, self.pad_mode)
        if self.crop is not None and not (self.crop <= height == width):
            raise ConfigError(
                f"no square of {self.crop} pixels is cut from images of {height}x{width}",
                where="data.augmentation.crop",
                instead=f"at most {min(height, width)}, from images that are squares",
            )

    def draw(
        self, generator: torch.Generator, count: int, views: int, shape: Sequence[int]
    ) -> dict[str, Tensor]:
        """Draw the windows (count, V, 3) and warps (count, V, 2, 2) of the V views that are changed.

        What is not random is left out.
        """
        changed = views - _clean_views(self.first_clean, views)
        params = {}
        room = shape[0] - self.view_shape(shape)[0]
        if self.padding or self.flip or room:
            params["windows"] = draw_windows(count, changed, self.padding, self.flip, generator, room)
        if self.degrees or self.shear or self.scale:
            params["warps"] = draw_warps(count, changed, self.degrees, self.shear, self.scale, generator)
        return params

    def apply(self, inputs: Tensor, params: dict[str, Tensor], views: int) -> tuple[Tensor, ...]:
        """Cut, flip, normalise and warp: (n, H, W, C) uint8 to V views (n, C, H, W) float32, channels_last.

        Where nothing is random all views are one and the same tensor.
        """
        if not params:
            return (self.clean(inputs),) * views
        clean = _clean_views(self.first_clean, views)
        if "windows" in params:
            crops = crop_flip(inputs, params["windows"], self.padding, self.pad_mode, self.flip, self.crop)
        else:
            crops = inputs.expand(views - clean, *inputs.shape)
        changed = normalize(crops, self.mean, self.std)
        if "warps" in params:
            warps = params["warps"].transpose(0, 1).flatten(0, 1)
            warped = warp(changed.flatten(0, 1), warps, self.pad_mode, self._black)
            changed = warped.unflatten(0, changed.shape[:2])
        return (self.clean(inputs),) * clean + changed.unbind(0)

    def clean(self, inputs: Tensor) -> Tensor:
        """Normalise the image, or its centre: (n, H, W, C) uint8 to (n, C, H, W) float32, channels_last."""
        return normalize(self._centre(inputs), self.mean, self.std)

    def _centre(self, inputs: Tensor) -> Tensor:
        height, width, _ = self.view_shape(inputs.shape[1:])
        top, left = (inputs.shape[1] - height) // 2, (inputs.shape[2] - width) // 2
        return inputs[:, top : top + height, left : left + width]

    def invert(self, views: Tensor) -> Tensor:
        """Undo the normalisation, for pictures: (n, C, H, W) floats to (n, H, W, C) uint8."""
        return denormalize(views, self.mean, self.std)


class VectorAugmentation:
    """Dropout of inputs and Gaussian noise, for vectors (LSD-C, section 4: 20 % dropout on Reuters).

    Args:
        dropout: fraction of the entries set to zero. The others are divided by one minus that, as
            torch's dropout does, so that a layer sees sums of the same size with and without it:
            clean and corrupted views pass through the same network.
        noise: standard deviation of the noise added, in units of the data.
        first_clean: of several views leave the first as it is (the one that labels come from). A
            single view is always augmented.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        dropout: Annotated[float, Range(low=0, below=1)] = 0.0,
        noise: NonNegative = 0.0,
        first_clean: bool = True,
    ) -> None:
        if not 0 <= dropout < 1:
            raise ConfigError(
                f"dropout must be at least 0 and below 1, not {dropout:g}", where="data.augmentation.dropout"
            )
        if noise < 0:
            raise ConfigError(f"noise must be at least 0, not {noise:g}", where="data.augmentation.noise")
        self.dropout = dropout
        self.noise = noise
        self.first_clean = first_clean

    def check(self, shape: Sequence[int]) -> None:
        """Refuse anything but vectors.

        Raises:
            ConfigError: `shape` is not (D,).
        """
        if len(shape) != 1:
            raise ConfigError(
                f"input dropout and noise need vectors, not images of {tuple(shape)}",
                where="data.augmentation",
                instead="scarcely.data.augment.ImageAugmentation",
            )

    def draw(
        self, generator: torch.Generator, count: int, views: int, shape: Sequence[int]
    ) -> dict[str, Tensor]:
        """Draw the masks (count, V, D) bool and the noise (count, V, D) of the V views that are changed."""
        size = (count, views - _clean_views(self.first_clean, views), *shape)
        params: dict[str, Tensor] = {}
        if self.dropout:
            params["keep"] = _bernoulli(1 - self.dropout, size, generator)
        if self.noise:
            params["noise"] = torch.randn(size, generator=generator)
        return params

    def apply(self, inputs: Tensor, params: dict[str, Tensor], views: int) -> tuple[Tensor, ...]:
        """Return V views (n, D) of the inputs (n, D); views without change are the inputs themselves."""
        clean = _clean_views(self.first_clean, views) if params else views
        changed = []
        for view in range(views - clean):
            x = inputs
            if "keep" in params:
                x = (x * params["keep"][:, view]).mul_(1 / (1 - self.dropout))
            if "noise" in params:
                x = torch.add(x, params["noise"][:, view], alpha=self.noise)
            changed.append(x)
        return (inputs,) * clean + tuple(changed)

    def clean(self, inputs: Tensor) -> Tensor:
        """Return the inputs themselves."""
        return inputs


def _clean_views(first_clean: bool, views: int) -> int:
    return int(first_clean and views > 1)


def _bernoulli(probability: float, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw True with a probability, to 1 in 65,536.

    Each 64-bit number gives four decisions: `Tensor.bernoulli_` takes five times as long, which for
    a batch of 2,000-dimensional vectors is longer than the training step on a GPU.
    """
    total = math.prod(size)
    words = torch.empty(-(-total // 4), dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator)
    threshold = min(round(probability * 2**16), 2**16 - 1) - 2**15
    return (words.view(torch.int16)[:total] < threshold).view(size)
