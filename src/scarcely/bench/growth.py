"""How time grows with the number of samples, of clusters and of domains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from scarcely.adapters import attach
from scarcely.backbones.resnet26 import ResNet26
from scarcely.bench.adapters import PIXELS
from scarcely.bench.pairs import PairInputs, loss_of_matrix
from scarcely.bench.rows import Row, Settings, Spread, take_turns
from scarcely.functional.pairwise import knn_adjacency

TIMES = 4  # as many samples, clusters, domains
FEW_DOMAINS = 8


def measure(settings: Settings, threads: int) -> list[Row]:
    """Compare a large problem with a small one, times what the large one should cost of it."""
    n, d, k = settings.samples, settings.features, settings.clusters
    shared: dict[str, Any] = {"measure": "growth", "threads": threads, "device": settings.device}

    def row(large: Callable[[], Any], small: Callable[[], Any], factor: int, name: str) -> Row:
        large(), small()  # warm both
        slow, fast = take_turns(large, small, settings)
        expected = Spread(fast.median * factor, fast.low * factor, fast.high * factor)
        return Row.of_times(slow, expected, name=name, **shared)

    def labels_and_loss(inputs: PairInputs) -> None:
        knn_adjacency(inputs.features, settings.k)
        loss_of_matrix(inputs)

    few, many = (PairInputs.make(count, d, k, settings.device) for count in (n, TIMES * n))
    more = PairInputs.make(n, d, TIMES * k, settings.device)
    return [
        row(
            partial(labels_and_loss, many),
            partial(labels_and_loss, few),
            TIMES**2,
            f"kNN labels, loss and gradient, N = {TIMES * n}; plain: {TIMES**2} times N = {n}",
        ),
        row(
            partial(loss_of_matrix, more),
            partial(loss_of_matrix, few),
            TIMES,
            f"loss and gradient, N = {n}, K = {TIMES * k}; plain: {TIMES} times K = {k}",
        ),
        row(
            *_mixed_batches(settings),
            1,
            f"mixed batch of {TIMES * FEW_DOMAINS} domains, parallel adapters; plain: {FEW_DOMAINS} domains",
        ),
    ]


def _mixed_batches(settings: Settings) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return forward passes of one batch that is of many domains, and of few."""
    torch.manual_seed(0)
    network = ResNet26(width=settings.width).to(settings.device).eval()
    images = torch.randn(settings.batch, 3, PIXELS, PIXELS, device=settings.device)
    programs = []
    for count in (TIMES * FEW_DOMAINS, FEW_DOMAINS):
        model = attach(network, "parallel", {f"domain{i}": 10 for i in range(count)})
        domains = torch.arange(settings.batch) % count
        programs.append(torch.no_grad()(partial(model, images, domains)))
    return programs[0], programs[1]
