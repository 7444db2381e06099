"""Classification with several labels an image: the networks whose saliency chapter 8 looks at."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.metrics.precision import AveragePrecision
from scarcely.spec import Literal


class Multilabel(Method):
    """A linear classifier, and for each class the binary cross-entropy of its sigmoid.

    A class that an image shows by difficult objects alone counts in neither the loss nor the scores
    (`ObjectImages.targets`).

    Args:
        backbone: the network.
        num_classes: number of classes.
        optimizer: optimizer and schedule.
        freeze: last block that is not trained; 0 trains all.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    views = 1
    learns_targets = True

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Optimizer,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, optimizer, freeze, frozen_bn)
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.precision = AveragePrecision()

    def logits(self, features: Tensor) -> Tensor:
        """Return class scores (N, C) of features (N, D)."""
        return self.head(features)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the probability that an image shows each class, (N, C), of scores (N, C)."""
        return scores.float().sigmoid()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean binary cross-entropy of the entries that count."""
        targets = self.targets[batch.index]
        counted = (targets >= 0).float()
        scores = self(batch.views[0]).float()
        losses = F.binary_cross_entropy_with_logits(scores, targets.clamp(min=0).float(), reduction="none")
        loss = self.mean_of_all((losses * counted).sum(), counted.sum())
        self.precision.update(scores.detach(), targets)
        self.record({"loss": loss})
        return loss

    def epoch_metrics(self) -> dict[str, float]:
        """Return the mean average precision of the scores that the steps of the epoch gave."""
        found = float(self.precision.compute().nanmean())
        self.precision.reset()
        return {"map": found}
