"""Pairwise labels and their loss, against loops over all pairs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from scarcely.bench.rows import Row, Settings, Spread, apart, require_agreement, take_turns, wait_for
from scarcely.functional.pairwise import (
    EPSILON,
    cosine_adjacency,
    knn_adjacency,
    l2_adjacency,
    pairwise_bce,
    rank_adjacency,
    sne_adjacency,
)

LEAST_SPEEDUP = 100.0
RANKS, RANK_SAMPLES, RANK_SPEEDUP = 5, 128, 50.0  # ranking statistics: k, batch


@dataclass
class PairInputs:
    """What pairwise labels and losses are computed from.

    Attributes:
        features: (N, D), tight clusters, so that all labelers find something to connect.
        p_scores, q_scores: (N, K) logits, leaves.
        target: (N, N) in [0, 1], labels mixed with those of a permutation.
    """

    features: Tensor
    p_scores: Tensor
    q_scores: Tensor
    target: Tensor

    @classmethod
    def make(cls, samples: int, features: int, clusters: int, device: str) -> PairInputs:
        """Draw them, the same on every device."""
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        centres = F.normalize(normal(clusters, features), dim=1)
        members = torch.arange(samples) % clusters
        # squared distances of about 0.1 within a cluster and 2 between: no pair is near a threshold
        noise = normal(samples, features) * math.sqrt(0.05 / features)
        scores = [normal(samples, clusters).to(device).requires_grad_() for _ in range(2)]
        target = (members[:, None] == members).float()
        target = torch.lerp(target, target[:, torch.randperm(samples, generator=generator)], 0.3)
        return cls((centres[members] + noise).to(device), scores[0], scores[1], target.to(device))

    def probabilities(self) -> tuple[Tensor, Tensor]:
        """Return p and q, (N, K), and forget the gradients of their scores."""
        self.p_scores.grad = self.q_scores.grad = None
        return self.p_scores.softmax(dim=1), self.q_scores.softmax(dim=1)


def measure(settings: Settings, threads: int) -> list[Row]:
    """Compare labels by each labeler, the loss with its gradient, and the largest allocation."""
    n, device = settings.samples, settings.device
    inputs = PairInputs.make(n, settings.features, settings.clusters, device)
    shared: dict[str, Any] = {"measure": "pairs", "threads": threads, "device": device}
    labelers = labelers_of(n, min(settings.k, n))
    rows = []
    for name, (labeler, enumeration) in labelers.items():
        ours, plain = partial(labeler, inputs.features), partial(enumeration, inputs.features)
        wrong = (ours().cpu() != torch.tensor(plain())).float().mean().item()
        rows.append(
            Row.of_times(
                *take_turns(ours, plain, settings),
                least=LEAST_SPEEDUP,
                name=f"{name} labels, N = {n}, D = {settings.features}",
                # equal but for a distance that rounds to the other side of the k-th
                difference=require_agreement(wrong, 1e-3, f"{name} labels"),
                **shared,
            )
        )
    ranked = inputs.features[:RANK_SAMPLES]
    ours, plain = partial(rank_adjacency, ranked, RANKS), partial(enumerate_ranks, ranked, RANKS)
    wrong = (ours().cpu() != torch.tensor(plain())).float().mean().item()
    rows.append(
        Row.of_times(
            *take_turns(ours, plain, settings),
            least=RANK_SPEEDUP,
            name=f"rank labels, N = {len(ranked)}, D = {settings.features}",
            difference=require_agreement(wrong, 0.0, "rank labels"),  # the features have no ties
            **shared,
        )
    )
    losses = partial(loss_of_matrix, inputs), partial(loss_of_enumeration, inputs)
    difference = require_agreement(gradients_apart(inputs, *losses), 1e-4, "pairwise loss")
    rows.append(
        Row.of_times(
            *take_turns(*losses, settings),
            least=LEAST_SPEEDUP,
            name=f"loss and gradient, N = {n}, K = {settings.clusters}",
            difference=difference,
            **shared,
        )
    )

    def all_of_it() -> None:
        for labeler, _ in labelers.values():
            labeler(inputs.features)
        loss_of_matrix(inputs)

    def all_as_rows() -> None:
        squared_distances_of_rows(inputs.features)
        loss_of_rows(*inputs.probabilities(), inputs.target).backward()

    most, limit = largest_allocation(all_of_it, device), 4 * n * n * 4
    plain_most = largest_allocation(all_as_rows, device)
    rows.append(
        Row(
            name=f"largest allocation, N = {n}",
            unit="bytes",
            ours=Spread.of([most]),
            plain=Spread.of([plain_most]),
            ratio=plain_most / most,
            target=f"at most {limit / 1024:,.0f} KiB",
            met=most <= limit,
            note="target: 4 N² floats",
            **shared,
        )
    )
    return rows


Labeler = Callable[[Tensor], Tensor]
Enumeration = Callable[[Tensor], list[list[bool]]]


def labelers_of(samples: int, k: int) -> dict[str, tuple[Labeler, Enumeration]]:
    """Return the four labelers and the loops that give the same labels."""
    near = 1 / samples  # SNE similarity of samples that are all equally far from each other
    return {
        "l2": (partial(l2_adjacency, threshold=1.0), partial(enumerate_l2, threshold=1.0)),
        "cosine": (partial(cosine_adjacency, threshold=0.5), partial(enumerate_cosine, threshold=0.5)),
        "sne": (
            partial(sne_adjacency, threshold=near, temperature=1.0),
            partial(enumerate_sne, threshold=near, temperature=1.0),
        ),
        "knn": (partial(knn_adjacency, k=k), partial(enumerate_knn, k=k)),
    }


# -- one pair after the other ---------------------------------------------------------------------


def enumerate_l2(features: Tensor, threshold: float) -> list[list[bool]]:
    """Squared distance below a threshold: (N, D) to N lists of N."""
    distances = _enumerated_distances(features)
    return [[i == j or d < threshold for j, d in enumerate(row)] for i, row in enumerate(distances)]


def enumerate_cosine(features: Tensor, threshold: float) -> list[list[bool]]:
    """Cosine above a threshold; each sample is brought to unit length once, not for each of its pairs."""
    units = [f / f.norm() for f in features.unbind()]
    return [
        [i == j or torch.dot(a, b).item() > threshold for j, b in enumerate(units)]
        for i, a in enumerate(units)
    ]


def enumerate_sne(features: Tensor, threshold: float, temperature: float) -> list[list[bool]]:
    """Symmetric SNE similarity above a threshold (LSD-C, eqs. 1 and 2)."""
    distances = _enumerated_distances(features)
    everyone = range(len(distances))
    near = [[math.exp(-d / temperature**2) for d in row] for row in distances]
    totals = [sum(near[i][j] for j in everyone if j != i) for i in everyone]
    return [
        [i == j or (near[i][j] / totals[i] + near[j][i] / totals[j]) / 2 > threshold for j in everyone]
        for i in everyone
    ]


def enumerate_knn(features: Tensor, k: int) -> list[list[bool]]:
    """Nearer than the k-th nearest of either sample."""
    distances = _enumerated_distances(features)
    everyone = range(len(distances))
    reach = [sorted(row)[k - 1] for row in distances]
    return [
        [i == j or distances[i][j] < reach[i] or distances[j][i] < reach[j] for j in everyone]
        for i in everyone
    ]


@torch.no_grad()
def enumerate_ranks(features: Tensor, k: int) -> list[list[bool]]:
    """The same k largest features (ranking statistics, eq. 2); each sample is sorted once."""
    tops = [f.sort(descending=True).indices[:k].sort().values for f in features.unbind()]
    return [[torch.equal(a, b) for b in tops] for a in tops]


@torch.no_grad()
def _enumerated_distances(features: Tensor) -> list[list[float]]:
    rows = features.unbind()
    return [[(a - b).square().sum().item() for b in rows] for a in rows]


def loss_of_enumeration(inputs: PairInputs) -> Tensor:
    """Return the pairwise loss (LSD-C, eqs. 4 to 6), its gradients left in the scores."""
    p, q = inputs.probabilities()
    target = inputs.target.tolist()
    terms = []
    for p_i, row in zip(p.unbind(), target, strict=True):
        for q_j, t in zip(q.unbind(), row, strict=True):
            same = torch.dot(p_i, q_j).clamp(0, 1)
            terms.append(-(t * torch.log(same + EPSILON) + (1 - t) * torch.log(1 - same + EPSILON)))
    loss = torch.stack(terms).mean()
    loss.backward()
    return loss.detach()


def loss_of_matrix(inputs: PairInputs) -> Tensor:
    """Return the same by the project's function."""
    loss = pairwise_bce(*inputs.probabilities(), inputs.target)
    loss.backward()
    return loss.detach()


def gradients_apart(inputs: PairInputs, ours: Callable[[], Tensor], plain: Callable[[], Tensor]) -> float:
    """Return the largest relative difference of losses and gradients."""
    results = []
    for program in (ours, plain):
        loss = program()
        results.append([loss, inputs.p_scores.grad, inputs.q_scores.grad])
    return max(apart(a, b) for a, b in zip(*results, strict=True))


# -- all pairs as the rows of a matrix ------------------------------------------------------------


def pairs_as_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat a and b, (N, K), until row i N + j of one is a_i and of the other b_j: twice (N², K)."""
    return a.repeat_interleave(len(b), dim=0), b.repeat(len(a), 1)


def squared_distances_of_rows(features: Tensor) -> Tensor:
    """(N, N) squared distances, by way of (N², D)."""
    first, second = pairs_as_rows(features, features)
    return (first - second).square().sum(dim=1).view(len(features), len(features))


def loss_of_rows(p: Tensor, q: Tensor, target: Tensor) -> Tensor:
    """The pairwise loss, by way of (N², K)."""
    first, second = pairs_as_rows(p, q)
    same, t = (first * second).sum(dim=1).clamp(0, 1), target.flatten()
    return -(t * (same + EPSILON).log() + (1 - t) * (1 - same + EPSILON).log()).mean()


# -- memory ---------------------------------------------------------------------------------------


def largest_allocation(program: Callable[[], Any], device: str) -> int:
    """Return the bytes of the largest block that a program asks torch's allocator for, once it is warm.

    The profiler also sees what operators allocate for themselves, not their results alone.
    """
    program()
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=True) as profiled:
        program()
        wait_for(device)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return max(event["args"]["Bytes"] for event in events if event.get("name") == "[memory]")
