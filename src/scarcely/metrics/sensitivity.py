"""Correlation of saliency maps, and with it how much a method cares for the class that it explains.

Source: "There and Back Again: Revisiting Backpropagation Saliency Methods" (Rebuffi, Fong, Ji and Vedaldi,
2020), section 4.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Differences below this share of a map's largest value are rounding, and resizing makes more of it.
ROUNDING = 1e-6


class Correlation(NamedTuple):
    """Rank correlations of pairs of maps.

    Attributes:
        mean: over the images where it is defined; NaN if there are none.
        undefined: number of images where it is not: a map is constant or not finite.
        each: (N,) float64, NaN where undefined.
    """

    mean: float
    undefined: int
    each: Tensor

    @classmethod
    def of(cls, each: Tensor) -> Correlation:
        """Summarise the correlations of single images, such as those of several batches."""
        defined = ~each.isnan()
        return cls(each[defined].mean().item(), int((~defined).sum()), each)


def class_sensitivity(most: Tensor, least: Tensor, size: tuple[int, int] | None = None) -> Correlation:
    """Correlate the maps of the most probable class with those of the least probable one (section 4.3).

    Zero is best: the class that is not in the image has nothing to show where the other one is.

    Args:
        most: (N, h, w), maps of the most probable class of each image.
        least: (N, h, w), of the least probable one.
        size: (H, W) of the input, to which the maps are resized first.

    Returns:
        Spearman's ρ, averaged over the images; undefined ones are counted apart.
    """
    return correlate(most, least, size)


def correlate(a: Tensor, b: Tensor, size: tuple[int, int] | None = None) -> Correlation:
    """Return Spearman's ρ of the maps a and b, (N, h, w) each, resized to a common size if one is given."""
    undefined = is_constant(a) | is_constant(b)
    if size is not None:
        a, b = resize(a, size), resize(b, size)
    each = spearman(a.flatten(1), b.flatten(1))
    return Correlation.of(torch.where(undefined, torch.nan, each))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of each row; equal values share their mean rank.

    Args:
        a: (N, P).
        b: (N, P).

    Returns:
        (N,) float64; NaN where a row is constant or not finite.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"rows of {tuple(a.shape)} and of {tuple(b.shape)} do not pair up")
    ranks = [_ranks(x) for x in (a, b)]
    x, y = (r - r.mean(dim=1, keepdim=True) for r in ranks)
    # 0 / 0 is NaN: the rank correlation of what is constant.
    rho = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
    finite = a.isfinite().all(1) & b.isfinite().all(1)
    return torch.where(finite, rho.clamp(-1, 1), torch.nan)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, h, w) maps to (N, H, W), bilinearly, in float32."""
    resized = F.interpolate(maps.float()[:, None], size=tuple(size), mode="bilinear", align_corners=False)
    return resized[:, 0]


def is_constant(maps: Tensor) -> Tensor:
    """Return (N,) bool: whether a map, (N, h, w), says nothing: constant up to rounding, or not finite."""
    flat = maps.float().flatten(1)
    low, high = flat.aminmax(dim=1)
    span = high - low
    # span > … is false for what is not finite
    return ~((span > ROUNDING * torch.maximum(low.abs(), high.abs())) & span.isfinite())


def _ranks(x: Tensor) -> Tensor:
    """Float64 (N, P), from 1."""
    x = x.contiguous()
    ordered = x.sort(dim=1).values
    below = torch.searchsorted(ordered, x)
    up_to = torch.searchsorted(ordered, x, right=True)
    return (below + up_to + 1).double() / 2
