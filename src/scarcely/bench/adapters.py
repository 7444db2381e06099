"""Networks of several domains: mixed batches against those of one domain, merged adapters against none."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from scarcely.adapters import AdaptedModel, attach
from scarcely.backbones.resnet26 import ResNet26
from scarcely.bench.rows import Row, Settings, apart, require_agreement, take_turns

DOMAINS, PIXELS = 8, 64
MOST_OF_MIXING = 1.5  # times a batch of one domain
MOST_OF_MERGED = 1.05  # times the plain network: nothing, but for what a clock can tell apart


@torch.no_grad()
def measure(settings: Settings, threads: int) -> list[Row]:
    """Compare forward passes of ResNet-26 in eval mode, of adapters in parallel and in series."""
    torch.manual_seed(0)
    plain = ResNet26(width=settings.width).to(settings.device).eval()
    images = torch.randn(settings.batch, 3, PIXELS, PIXELS, device=settings.device)
    domains = torch.arange(settings.batch) % DOMAINS
    if settings.device == "cuda":
        plain = plain.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    rows = []
    for kind in ("parallel", "series"):
        model = attach(plain, kind, {f"domain{i}": 10 for i in range(DOMAINS)})
        shared: dict[str, Any] = {"measure": "adapters", "threads": threads, "device": settings.device}
        rows.append(
            Row.of_times(
                *take_turns(partial(model, images, domains), partial(model, images), settings),
                least=1 / MOST_OF_MIXING,
                name=f"mixed batch of {DOMAINS} domains, {kind} adapters",
                difference=require_agreement(_mixing_error(model, images, domains), 1e-3, "a mixed batch"),
                note=f"at most {MOST_OF_MIXING:g} times one domain",
                **shared,
            )
        )
        unmerged = model(images)
        model.merge()
        difference = require_agreement(apart(model(images), unmerged), 1e-4, "a merged network")
        rows.append(
            Row.of_times(
                *take_turns(partial(model, images), partial(plain, images), settings),
                least=1 / MOST_OF_MERGED,
                name=f"merged {kind} adapters",
                difference=difference,
                note="against the network without adapters",
                **shared,
            )
        )
    return rows


def _mixing_error(model: AdaptedModel, images: torch.Tensor, domains: torch.Tensor) -> float:
    mixed = model(images, domains)
    errors = []
    for index, name in enumerate(model.domains):
        rows = (domains == index).to(images.device)
        if rows.any():
            with model.domain(name):
                errors.append(apart(mixed[rows], model(images[rows])))
    return max(errors)
