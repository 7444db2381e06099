"""Losses for few labels beside many unlabelled samples (thesis, chapter 5)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scarcely.spec import Annotated, Range


def pseudo_label_loss(scores: Tensor, targets: Tensor, previous: Tensor) -> Tensor:
    """Loss of phase two: half pseudo-labels, half temporal consistency (algorithm 1, line 9; section 3.2).

    ½ CE(y_i, p_i) + ½ KL(p_i^{t−1} ‖ p_i^t) of each sample, averaged; CE alone for samples that have no
    prediction of the previous epoch.

    Args:
        scores: (N, K) logits, of which p^t is the softmax.
        targets: (N, K) pseudo-labels, one-hot or soft, rows summing to one.
        previous: (N, K) p^{t−1}; a row of zeros where there is none.

    Returns:
        Float32 scalar. No gradient flows into `targets` and `previous`.
    """
    log_p = F.log_softmax(scores.float(), dim=1)
    targets, previous = targets.detach().float(), previous.detach().float()
    fit = -(targets * log_p).sum(dim=1)
    change = (torch.special.xlogy(previous, previous) - previous * log_p).sum(dim=1)
    seen = previous.sum(dim=1) > 0
    return torch.where(seen, 0.5 * fit + 0.5 * change, fit).mean()


def consistency_mse(scores: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of two predictions, over classes and samples (Mean Teacher, Π-model).

    Args:
        scores, other: (N, K) logits of the same samples; gradients flow into both unless detached.

    Returns:
        Float32 scalar.
    """
    return F.mse_loss(scores.float().softmax(dim=1), other.float().softmax(dim=1))


def labelled_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the samples whose label is known, averaged over them; 0 if there are none.

    Args:
        scores: (N, K) logits.
        labels: (N,) int64, negative where unknown.
    """
    known = labels >= 0
    total = F.cross_entropy(scores.float(), labels.where(known, -1), ignore_index=-1, reduction="sum")
    return total / known.sum().clamp(min=1)


def average_decay(step: int, decay: Annotated[float, Range(low=0, high=1)]) -> float:
    """Decay of an average of weights after a step: min(1 − 1/(step + 1), decay), the true mean at the start.

    Args:
        step: number of steps taken, from 1.
        decay: its limit.
    """
    return min(1 - 1 / (step + 1), decay)


def random_part(count: int, fraction: Annotated[float, Range(above=0, high=1)], seed: int) -> Tensor:
    """Draw a part of the samples without replacement (section 3.3).

    Args:
        count: N.
        fraction: share of them; at least one is drawn.
        seed: of the draw.

    Returns:
        (round(fraction · N),) int64 positions, ascending.
    """
    size = max(1, round(fraction * count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:size].sort().values
