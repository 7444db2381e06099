"""DTC: deep transfer clustering (Han, Vedaldi and Zisserman, 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch, DeviceLoader
from scarcely.errors import ConfigError
from scarcely.functional.class_count import constrained_kmeans
from scarcely.functional.ramp import sigmoid_rampup
from scarcely.functional.transfer import sharpened_target, student_t_logits, target_divergence
from scarcely.methods.discovery import Discovery
from scarcely.methods.optimizer import Optimizer
from scarcely.seeds import derive_seed
from scarcely.spec import Literal, NonNegative, PositiveInt


class DTC(Discovery):
    """Draw features to centroids, by a target that sharpens what the network says of them.

    Centroids start by k-means on the features of the unlabelled samples, after a linear projection that
    starts by PCA. At the start of each epoch the network looks at all unlabelled samples without
    augmentation; the sharpened assignments are the target of this epoch (DEC). So start and target are
    functions of the weights that an epoch begins with, and an interrupted run has them again.

    Args:
        backbone: features, from the supervised stage, the warm-up on the known classes.
        num_known: C_l.
        num_new: C_u.
        num_classes: known and true new classes together, for the scores alone.
        optimizer: optimizer and schedule.
        dim: size of the projection; ``auto``: C_u, as the authors; null: none, the features themselves.
        restarts: number of k-means++ starts.
        consistency: λ of the ramp-up on the squared difference of the assignments of two views; 0: one
            view and no such term.
        rampup: T, epochs of the ramp-up.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_known: int,
        num_new: int,
        num_classes: int,
        optimizer: Optimizer,
        dim: PositiveInt | Literal["auto"] | None = "auto",
        restarts: PositiveInt = 20,
        consistency: NonNegative = 10.0,
        rampup: NonNegative = 5,
        freeze: int | str = 3,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, num_known, num_new, num_classes, optimizer, freeze, frozen_bn)
        size = backbone.num_features
        dim = min(num_new, size) if dim == "auto" else dim
        self.projection = nn.Identity() if dim is None else nn.Linear(size, int(dim))
        self.centroids = nn.Parameter(torch.zeros(num_new, size if dim is None else int(dim)))
        self.restarts, self.consistency, self.rampup = restarts, consistency, rampup
        self.views = 2 if consistency else 1
        self.target = torch.zeros(0, num_new)  # by position in the samples; no checkpoint needs it

    def check(self, batch_size: int) -> None:
        """Look whether the features can be projected.

        Raises:
            ConfigError: they have fewer dimensions than the projection.
        """
        super().check(batch_size)
        size = self.backbone.num_features
        if self.centroids.shape[1] > size:
            raise ConfigError(
                f"{size} features have no {self.centroids.shape[1]} principal components",
                where="method.dim",
                instead=f"1 to {size}, auto, or null",
            )

    def logits(self, features: Tensor) -> Tensor:
        """Return scores (N, C_u) whose softmax is the assignment q to the new classes."""
        return student_t_logits(self.projection(features), self.centroids)

    def on_train_epoch_start(self) -> None:
        """Start in the first epoch; renew the target."""
        super().on_train_epoch_start()
        loader: Any = self.trainer.train_dataloader
        clean = DeviceLoader.evaluation(
            loader.samples,
            loader.augmentation,
            batch_size=2 * loader.batch_size,
            device=loader.device,
            resident=loader.resident,
        )
        # the ranks, each with BatchNorm statistics of its own, follow the first, whose checkpoint is kept
        agreed = self.trainer.strategy.broadcast if self.place.world_size > 1 else lambda found: found
        if self.current_epoch == 0:
            self.start(agreed(self.predict_all(clean, lambda _: None).features))
        q = agreed(self.predict_all(clean).probabilities)
        assert q is not None
        self.target = sharpened_target(q).to(self.device)

    @torch.no_grad()
    def start(self, features: Tensor) -> None:
        """Set projection and centroids by PCA and k-means of the features (M, D) of unlabelled samples."""
        if isinstance(self.projection, nn.Linear):
            mean = features.double().mean(dim=0)
            axes = principal_axes(features, len(self.projection.weight))
            self.projection.weight.copy_(axes)
            self.projection.bias.copy_(-axes @ mean)
            features = ((features.double() - mean) @ axes.mT).float()
        found = constrained_kmeans(
            features,
            torch.full((len(features),), -1),
            self.num_new,
            seed=derive_seed(self.place.seed, self.place.stage, "kmeans"),
            restarts=self.restarts,
        )
        self.centroids.copy_(found.centroids)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return KL(p‖q) + ω(t)·L_MSE of one batch."""
        logits = [self(view) for view in batch.views]
        # the last view is augmented also where the first is not: of the image as it is the target was made
        divergence = target_divergence(self.target[batch.index], logits[-1])
        scalars = {"loss/target": divergence}
        loss = divergence
        if self.consistency:
            q, q2 = (scores.softmax(dim=1) for scores in logits)
            scalars["loss/consistency"] = F.mse_loss(q, q2)
            loss = loss + self.weight * scalars["loss/consistency"]
        self.record({"loss": loss, **scalars})
        return loss

    @property
    def weight(self) -> float:
        """ω(t), the weight of the consistency in this epoch."""
        return self.consistency * sigmoid_rampup(self.current_epoch, self.rampup)

    def epoch_metrics(self) -> dict[str, float]:
        """Return the weight of the consistency."""
        return {"rampup": self.weight} if self.consistency else {}


def principal_axes(features: Tensor, count: int) -> Tensor:
    """Return the directions (count, D) float64 of the largest variance of features (M, D), largest first.

    Of the two signs an axis has, the one that makes its largest component positive.
    """
    centred = features.double() - features.double().mean(dim=0)
    axes = torch.linalg.eigh(centred.mT @ centred).eigenvectors.mT.flip(0)[:count]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return axes * largest.sign()
