"""Plain supervised classification: the ceiling, the floor and the source network."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.methods.base import Method, mlp_head
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import Literal, PositiveInt, UnitInterval


class Supervised(Method):
    """Cross-entropy on the labels.

    Args:
        backbone: the network.
        num_classes: number of classes.
        optimizer: optimizer and schedule.
        label_smoothing: share of the target spread over all classes.
        hidden: size of a hidden layer of the head; null for a linear head.
        head_norm: BatchNorm in the hidden layer, as in the heads of chapter 6.
        freeze: last block that is not trained; 0 trains all.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Optimizer,
        label_smoothing: UnitInterval = 0.0,
        hidden: PositiveInt | None = None,
        head_norm: bool = False,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, optimizer, freeze, frozen_bn)
        self.head = mlp_head(backbone.num_features, num_classes, hidden, norm=head_norm)
        self.label_smoothing = label_smoothing
        # the metric refuses one class, to which a data set's known ones may come down
        self.accuracy = MulticlassAccuracy(max(2, num_classes), average="micro", ignore_index=-1)

    def logits(self, features: Tensor) -> Tensor:
        """Return class scores (N, C) of features (N, D)."""
        return self.head(features)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the labelled samples; zero where a batch has none."""
        scores = self(batch.views[0]).float()
        known = batch.labels >= 0
        losses = F.cross_entropy(
            scores, batch.labels, ignore_index=-1, label_smoothing=self.label_smoothing, reduction="sum"
        )
        loss = losses / known.sum().clamp(min=1)
        hits = (scores.argmax(dim=1) == batch.labels) & known
        self.record({"loss": loss, "accuracy": hits.sum() / known.sum()})
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what is classified right without augmentation."""
        self.accuracy.update(self(batch.views[0]).argmax(dim=1), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Keep the accuracy for the record of the epoch."""
        self.scores = {"clean_accuracy": float(self.accuracy.compute())}
        self.accuracy.reset()

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.accuracy.reset()
