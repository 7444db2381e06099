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
    off_diagonal = ~torch.eye(len(adjacency), dtype=torch.bool, device=adjacency.device)
    pairs = off_diagonal if counted is None else off_diagonal & counted[:, None] & counted
    known = labels >= 0
    positive = adjacency & pairs
    judged = pairs & known[:, None] & known
    same = judged & (labels[:, None] == labels)
    correct = (positive & same).sum()
    return {
        "pairs/positive": positive.sum() / pairs.sum(),
        "pairs/precision": correct / (positive & judged).sum(),
        "pairs/recall": correct / same.sum(),
    }
