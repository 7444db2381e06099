"""What the methods share that learn from few labels and many unlabelled samples (thesis, chapter 5)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from scarcely.backbones.base import Backbone
from scarcely.data.augment import Augmentation
from scarcely.data.loader import Batch
from scarcely.functional.ramp import sigmoid_rampup
from scarcely.functional.scarce import consistency_mse, labelled_cross_entropy
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import Literal, NonNegative, PositiveInt


class ScarceLabels(Method):
    """A linear classifier on a backbone, scored on the unlabelled samples by the labels that are hidden.

    Args:
        backbone: the network.
        num_classes: K.
        optimizer: optimizer and schedule.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    scored = "pseudo/"
    scored_role = "unlabelled"
    _hits: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Optimizer,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, optimizer, freeze, frozen_bn)
        self.num_classes = num_classes
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.register_buffer("_hits", torch.zeros(2, dtype=torch.int64), persistent=False)

    def augmentation(self, given: Augmentation) -> Augmentation:
        """Return the augmentation of the data with all views random: no pair is labelled by a clean one."""
        random: Any = copy.copy(given)
        random.first_clean = False
        return random

    def logits(self, features: Tensor) -> Tensor:
        """Return class scores (N, K)."""
        return self.head(features)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what is classified right without augmentation, by labels that training does not see."""
        self._hits += self.count_hits(self(batch.views[0]), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Keep the accuracy for the record of the epoch."""
        self.scores = {f"{self.scored}accuracy": self.share_of_all(self._hits)}
        self._hits = torch.zeros_like(self._hits)

    @staticmethod
    def count_hits(scores: Tensor, labels: Tensor) -> Tensor:
        """Return (2,) int64: samples whose known label is predicted, and samples with a known label."""
        known = labels >= 0
        return torch.stack([((scores.argmax(dim=1) == labels) & known).sum(), known.sum()])

    def share_of_all(self, hits: Tensor) -> float:
        """Return hits / counted over all ranks; NaN where nothing was counted."""
        right, counted = self.sum_of_all(hits).tolist()
        return right / counted if counted else float("nan")

    def sum_of_all(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        if self.place.world_size == 1:
            return values
        reduced: Any = self.trainer.strategy.reduce(values.clone(), reduce_op="sum")
        return reduced


class Consistency(ScarceLabels):
    """Few labelled samples by cross-entropy, and two predictions of every sample that shall agree.

    Args:
        backbone: the network.
        num_classes: K.
        optimizer: optimizer and schedule.
        consistency: largest weight of the consistency loss.
        rampup: epochs until it is reached.
        labelled_batch_size: labelled samples in each batch; an epoch goes once through the others.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    views = 2

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Optimizer,
        consistency: NonNegative = 100.0,
        rampup: NonNegative = 5,
        labelled_batch_size: PositiveInt | None = 31,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, num_classes, optimizer, freeze, frozen_bn)
        self.consistency, self.rampup = consistency, rampup
        self.labelled_batch_size = labelled_batch_size

    @property
    def weight(self) -> float:
        """Weight of the consistency in this epoch."""
        return self.consistency * sigmoid_rampup(self.current_epoch, self.rampup)

    def loss(self, scores: Tensor, other: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the labelled samples and the weighted consistency of all; record both.

        Args:
            scores, other: (N, K), two predictions of the same samples; the first learns the labels.
            labels: (N,) int64, -1 where hidden.
        """
        known = (labels >= 0).sum()
        labelled = self.mean_of_all(labelled_cross_entropy(scores, labels) * known, known)
        consistency = consistency_mse(scores, other)
        loss = labelled + self.weight * consistency
        self.record({"loss": loss, "loss/labelled": labelled, "loss/consistency": consistency})
        return loss

    def epoch_metrics(self) -> dict[str, float]:
        """Return the weight of the consistency."""
        return {"rampup": self.weight}
