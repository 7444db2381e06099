"""The Π-model: two random views of a sample are predicted alike (Laine and Aila, 2017)."""

from __future__ import annotations

from torch import Tensor

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.scarce import Consistency
from scarcely.spec import Literal, NonNegative, PositiveInt


class PiModel(Consistency):
    """Few labelled samples by cross-entropy, all samples by the consistency of two views.

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

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Optimizer,
        consistency: NonNegative = 100.0,
        rampup: NonNegative = 80,
        labelled_batch_size: PositiveInt | None = 31,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(
            backbone, num_classes, optimizer, consistency, rampup, labelled_batch_size, freeze, frozen_bn
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the labelled samples and the consistency of all of them."""
        scores, other = (self(view) for view in batch.views)
        return self.loss(scores, other, batch.labels)
