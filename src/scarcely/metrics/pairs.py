"""How good the pairwise labels of a batch are, by the true classes: for the record alone."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_quality(adjacency: Tensor, labels: Tensor, counted: Tensor | None = None) -> dict[str, Tensor]:
    """Return the share of positive pairs, their precision and their recall, self-pairs left out.

    Args:
        adjacency: (N, N) bool, the diagonal true.
        labels: (N,) int64 true classes, -1 unknown.
        counted: (N,) bool, the samples whose pairs count. All of them by default.

    Returns:
        ``pairs/positive`` over all pairs of two samples that count; ``pairs/precision`` over the
        positive ones whose two classes are known, ``pairs/recall`` over those of one known class.
        A share of nothing is NaN.
    """
    return pair_shares(pair_counts(adjacency, labels, counted))


def pair_counts(adjacency: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the counts that `pair_shares` divides, (5,) int64, which may be summed over batches."""
    off_diagonal = ~torch.eye(len(adjacency), dtype=torch.bool, device=adjacency.device)
    pairs = off_diagonal if counted is None else off_diagonal & counted[:, None] & counted
    known = labels >= 0
    positive = adjacency & pairs
    judged = pairs & known[:, None] & known
    same = judged & (labels[:, None] == labels)
    return torch.stack([m.sum() for m in (positive, pairs, positive & same, positive & judged, same)])


def pair_shares(counts: Tensor) -> dict[str, Tensor]:
    """Return what `pair_quality` does, from the sums of `pair_counts`."""
    positive, pairs, correct, judged, same = counts
    return {
        "pairs/positive": positive / pairs,
        "pairs/precision": correct / judged,
        "pairs/recall": correct / same,
    }
