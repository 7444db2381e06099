"""What all methods share that discover new classes beside known ones (thesis, chapter 6).

Samples of known classes have labels from 0 to C_l − 1. All others are unlabelled: their labels, where
there are any, are −1 or the hidden truth from C_l on, and serve scores alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.metrics import ClusterAccuracy
from scarcely.spec import Literal


class Discovery(Method):
    """A stage that clusters the unlabelled samples into C_u new classes.

    ``logits`` scores the new classes alone. A subclass that can tell old and new classes apart
    defines ``joint_logits`` too; for the others the run trains a linear classifier on top.

    Args:
        backbone: the network.
        num_known: C_l.
        num_new: C_u, the clusters.
        num_classes: known and true new classes together, for the scores alone.
        optimizer: optimizer and schedule.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    scored = "new/"

    def __init__(
        self,
        backbone: Backbone,
        num_known: int,
        num_new: int,
        num_classes: int,
        optimizer: Optimizer,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, optimizer, freeze, frozen_bn)
        self.num_known, self.num_new = num_known, num_new
        hidden = num_classes - num_known
        self.metric = ClusterAccuracy(num_new, hidden) if hidden > 0 else None

    def is_new(self, labels: Tensor) -> Tensor:
        """Return which samples are unlabelled, bool of the shape of the labels."""
        return (labels < 0) | (labels >= self.num_known)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the unlabelled samples of one batch."""
        if self.metric is not None:
            hidden = (batch.labels - self.num_known).clamp(min=-1)
            self.metric.update(self(batch.views[0]), hidden)


def unlabelled_only(features: Tensor, new: Tensor) -> Tensor:
    """Return features (N, D) in which labelled samples are NaN: no labeler connects those to another."""
    return features.detach().masked_fill(~new[:, None], torch.nan)
