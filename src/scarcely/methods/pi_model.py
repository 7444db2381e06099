"""The Π-model: two random views of a sample are predicted alike (Laine and Aila, 2017)."""

from __future__ import annotations

from torch import Tensor

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.functional.ramp import sigmoid_rampup
from scarcely.functional.scarce import consistency_mse, labelled_cross_entropy
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.scarce import ScarceLabels
from scarcely.spec import Literal, NonNegative, PositiveInt


class PiModel(ScarceLabels):
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

    views = 2

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
        super().__init__(backbone, num_classes, optimizer, freeze, frozen_bn)
        self.consistency, self.rampup = consistency, rampup
        self.labelled_batch_size = labelled_batch_size

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the labelled samples and the consistency of all of them."""
        scores, other = (self(view) for view in batch.views)
        labelled = labelled_cross_entropy(scores, batch.labels)
        consistency = consistency_mse(scores, other)
        loss = labelled + self.weight * consistency
        self.record({"loss": loss, "loss/labelled": labelled, "loss/consistency": consistency})
        return loss

    @property
    def weight(self) -> float:
        """Weight of the consistency in this epoch."""
        return self.consistency * sigmoid_rampup(self.current_epoch, self.rampup)

    def epoch_metrics(self) -> dict[str, float]:
        """Return the weight of the consistency."""
        return {"rampup": self.weight}
