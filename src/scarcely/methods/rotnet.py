"""RotNet: learn features by predicting rotations (Gidaris, Singh, Komodakis, 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer

NUM_ROTATIONS = 4


def rotate_all(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four rotations of each image and which rotation each is.

    Args:
        images: (N, C, S, S), square.

    Returns:
        images (4N, C, S, S), all of rotation 0 first, and ``rotation`` (4N,) int64: k means
        k·90° counter-clockwise. These are no class labels.
    """
    turned = [torch.rot90(images, k, dims=(2, 3)) for k in range(NUM_ROTATIONS)]
    rotation = torch.arange(NUM_ROTATIONS, device=images.device).repeat_interleave(len(images))
    out = torch.cat(turned)
    return out.contiguous(memory_format=torch.channels_last), rotation


class RotNet(Method):
    """Classify which of four rotations an image has; all four of a crop are in one batch.

    Args:
        backbone: the network to pretrain.
        optimizer: optimizer and schedule.
    """

    views = 1

    def __init__(self, backbone: Backbone, optimizer: Optimizer) -> None:
        super().__init__(backbone, optimizer)
        self.rotation_head = nn.Linear(backbone.num_features, NUM_ROTATIONS)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the rotations."""
        images, rotation = rotate_all(batch.views[0])
        scores = self.rotation_head(self.backbone(images)).float()
        loss = F.cross_entropy(scores, rotation)
        self.record({"loss": loss, "rotation/accuracy": (scores.argmax(dim=1) == rotation).float().mean()})
        return loss

    @torch.no_grad()
    def final_metrics(self, batches: Any) -> dict[str, float]:
        """Return the accuracy of the rotations without augmentation."""
        self.eval()
        self._correct = torch.zeros(2, device=self.device)
        for i, batch in enumerate(batches):
            self.validation_step(batch, i)
        return {"rotation/accuracy": float(self._correct[0] / self._correct[1])}

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self._correct = torch.zeros(2, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the rotations that are recognised without augmentation."""
        images, rotation = rotate_all(batch.views[0])
        hits = (self.rotation_head(self.backbone(images)).argmax(dim=1) == rotation).float()
        self._correct += torch.stack([hits.sum(), torch.ones_like(hits).sum()])

    def on_validation_epoch_end(self) -> None:
        """Keep the accuracy for the record of the epoch."""
        counts = self._correct
        if self.place.world_size > 1:
            counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        self.scores = {"rotation/clean_accuracy": float(counts[0] / counts[1])}
