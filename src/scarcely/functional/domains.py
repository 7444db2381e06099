"""Losses for several domains (chapters 3 and 4)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from scarcely.spec import Positive


def distillation(scores: Tensor, old: Tensor, temperature: Positive = 2.0) -> Tensor:
    """Cross-entropy of two softened predictions, averaged over the samples (Li and Hoiem, 2016, eq. 2).

    −T² Σ_k softmax(old / T)_k log softmax(scores / T)_k; T² keeps the size of the gradient (Hinton et al.,
    2015).

    Args:
        scores: (N, K) logits of the network in training.
        old: (N, K) logits to be kept; no gradient flows into them.
        temperature: T.

    Returns:
        Float32 scalar.
    """
    target = (old.detach().float() / temperature).softmax(dim=1)
    log_p = F.log_softmax(scores.float() / temperature, dim=1)
    return -(temperature**2) * (target * log_p).sum(dim=1).mean()
