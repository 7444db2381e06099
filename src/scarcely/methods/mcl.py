"""MCL: multi-class classification without multi-class labels (Hsu, Lv, Schlosser, Odom and Kira, 2019)."""

from __future__ import annotations

from torch import Tensor

from scarcely.functional.pairwise import pairwise_bce
from scarcely.methods.transfer import TransferClustering


class MCL(TransferClustering):
    """Binary cross-entropy on p·pᵀ, the probability that two samples are of one class."""

    def pair_loss(self, p: Tensor, q: Tensor, similar: Tensor) -> Tensor:
        """Return the mean over all ordered pairs."""
        return pairwise_bce(p, q, similar)
