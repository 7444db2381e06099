"""k-means on raw inputs or on features: the baseline of every clustering table."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scarcely.backbones.base import Backbone
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.seeds import derive_seed
from scarcely.spec import Literal, PositiveInt

LARGE = 20_000  # samples from which on mini-batches replace full passes


class KMeans(Method):
    """k-means with k-means++ starts; the best of several by inertia (scikit-learn).

    Args:
        backbone: the network whose features are clustered.
        num_clusters: K.
        space: ``raw`` inputs, ``features`` of the backbone, or ``auto``: features where a
            pretext or a checkpoint gives them, raw inputs otherwise.
        restarts: number of starts.
        input_shape: (D,) or (C, H, W).
        inherited: whether the backbone holds trained weights.
    """

    centroids: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_clusters: int,
        input_shape: tuple[int, ...],
        inherited: bool = False,
        space: Literal["auto", "raw", "features"] = "auto",
        restarts: PositiveInt = 10,
    ) -> None:
        super().__init__(backbone, Optimizer())
        self.num_clusters, self.restarts = num_clusters, restarts
        self.raw = space == "raw" or (space == "auto" and not inherited)
        size = math.prod(input_shape) if self.raw else backbone.num_features
        self.register_buffer("centroids", torch.zeros(num_clusters, size))

    def prepare(self, batches: Any) -> None:
        """Fit the centroids on the features of all training samples."""
        predictions = self.predict_all(batches)
        centroids = fit_kmeans(
            predictions.features.numpy(),
            self.num_clusters,
            seed=derive_seed(self.place.seed, self.place.stage, "kmeans"),
            restarts=self.restarts,
        )
        self.centroids = torch.from_numpy(centroids).to(self.centroids)

    def features(self, x: Tensor) -> Tensor:
        """Return the raw inputs, flattened, or the features of the backbone: (N, D)."""
        return x.flatten(1) if self.raw else self.backbone(x)

    def logits(self, features: Tensor) -> Tensor:
        """Return minus the squared distances to the centroids, (N, K)."""
        return -torch.cdist(features.float(), self.centroids).square()


def fit_kmeans(features: Any, num_clusters: int, *, seed: int, restarts: int = 10) -> Any:
    """Return k-means centroids (K, D) float32 of features (N, D): k-means++ starts, lowest inertia.

    From 20,000 samples on, mini-batches replace full passes.
    """
    from sklearn.cluster import KMeans as FullKMeans
    from sklearn.cluster import MiniBatchKMeans

    settings = {"n_clusters": num_clusters, "n_init": restarts, "random_state": seed % 2**32}
    if len(features) >= LARGE:
        fitted = MiniBatchKMeans(batch_size=4096, **settings).fit(features)
    else:
        fitted = FullKMeans(**settings).fit(features)
    return fitted.cluster_centers_.astype("float32")
