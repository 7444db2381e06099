"""One map from those of several layers: the resolution of the early ones, the classes of the late ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from scarcely.errors import ConfigError
from scarcely.metrics.sensitivity import is_constant, resize


def combine(
    maps: Mapping[str, Tensor],
    size: tuple[int, int],
    weights: Mapping[str, float],
    how: Literal["sum", "product"] = "sum",
) -> Tensor:
    """Combine the maps of several layers: Σ_j γ_j m_j, or Π_j m_j^γ_j (section 4.2 of the paper).

    Each map of each sample is resized bilinearly, then scaled to [0, 1]. One that is constant, or not finite,
    says nothing: it is zero in a sum, and left out of a product (which is one where all are).

    Args:
        maps: {layer: (N, h, w)}.
        size: (H, W) of the result.
        weights: {layer: γ} of all these layers at least, not negative; normalised to sum 1 over them.
        how: ``sum`` or ``product``.

    Returns:
        (N, H, W) float32, in [0, 1].

    Raises:
        ConfigError: no map, a layer without a weight, a negative weight, all weights zero, another ``how``.
    """
    if how not in ("sum", "product"):
        raise ConfigError(f"maps are not combined by {how!r}", where="how", instead="sum or product")
    shares = _shares(list(maps), weights)
    result: Tensor | None = None
    for layer, share in shares.items():
        known = ~is_constant(maps[layer])[:, None, None]
        scaled = _unit_range(resize(maps[layer], size))
        if how == "sum":
            term = share * torch.where(known, scaled, 0)
            result = term if result is None else result + term
        else:
            term = torch.where(known, scaled**share, 1)
            result = term if result is None else result * term
    assert result is not None
    return result


def _unit_range(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def _shares(layers: list[str], weights: Mapping[str, float]) -> dict[str, float]:
    missing = [layer for layer in layers if layer not in weights]
    if missing or not layers:
        raise ConfigError(
            f"there is no weight for {', '.join(missing)}" if missing else "there are no maps to combine",
            where="weights" if missing else "maps",
            instead=f"a weight for each of {', '.join(layers)}" if missing else "the map of a layer at least",
        )
    total = sum(weights[layer] for layer in layers)
    if not all(weights[layer] >= 0 for layer in layers) or not 0 < total < float("inf"):
        raise ConfigError(
            f"these weights cannot be shares: {', '.join(f'{layer} {weights[layer]:g}' for layer in layers)}",
            where="weights",
            instead="finite weights that are not negative, and not all zero",
        )
    return {layer: weights[layer] / total for layer in layers}
