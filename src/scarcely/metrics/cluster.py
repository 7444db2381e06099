"""Clustering scores that add up over batches and ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from scarcely.functional.clustering import (
    adjusted_rand_index,
    clustering_accuracy,
    confusion_counts,
    normalized_mutual_information,
)
from scarcely.spec import PositiveInt


class ClusterAccuracy(Metric):
    """Accuracy under the Hungarian assignment (LSD-C, eq. 9), with NMI and ARI.

    Its state is the confusion counts, int64 (num_classes, num_clusters), summed over ranks.

    Args:
        num_clusters: K.
        num_classes: C; may differ from K. Samples in a cluster without a class are errors.
        **kwargs: as for any torchmetrics ``Metric``.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    _counts: Tensor

    def __init__(self, num_clusters: PositiveInt, num_classes: PositiveInt, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_clusters, self.num_classes = num_clusters, num_classes
        zeros = torch.zeros(num_classes, num_clusters, dtype=torch.int64)
        self.add_state("_counts", zeros, dist_reduce_fx="sum")
        self._total = zeros

    def update(self, clusters: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            clusters: (n,) int64, or (n, K) scores, of which the largest decides.
            labels: (n,) int64; samples labelled −1 are ignored.

        Raises:
            ValueError: there are scores for another number of clusters.
        """
        if clusters.ndim == 2:
            if clusters.shape[1] != self.num_clusters:
                raise ValueError(f"scores for {clusters.shape[1]} clusters, not for {self.num_clusters}")
            clusters = clusters.argmax(dim=1)
        self._counts += confusion_counts(labels, clusters, self.num_classes, self.num_clusters)

    def compute(self) -> dict[str, Tensor]:
        """``acc``, ``nmi`` and ``ari``, float32 scalars; NaN if no sample had a label."""
        # Here, and only here, the state is the sum over ranks.
        self._total = self._counts.clone()
        counts = self._total.cpu()
        labelled = bool(counts.any())
        scores = {
            "acc": clustering_accuracy(counts),
            "nmi": normalized_mutual_information(counts) if labelled else torch.nan,
            "ari": adjusted_rand_index(counts) if labelled else torch.nan,
        }
        return {name: torch.tensor(score, device=self.device) for name, score in scores.items()}

    @property
    def counts(self) -> Tensor:
        """The confusion counts of all ranks together, int64 (C, K).

        Computes first if something was counted since (then every rank has to take part).
        """
        self.compute()
        return self._total
