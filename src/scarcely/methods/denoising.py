"""Denoising autoencoder, the pretext for vectors (Vincent et al., 2010; DEC; LSD-C for Reuters)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.data.augment import Augmentation, VectorAugmentation
from scarcely.data.loader import Batch
from scarcely.errors import ConfigError
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import Annotated, Range


class Denoising(Method):
    """Reconstruct the clean input from one with a part of its entries dropped.

    The decoder mirrors a fully connected backbone; for a convolutional one it is one linear
    layer from the features to the pixels.

    Args:
        backbone: the encoder.
        optimizer: optimizer and schedule.
        input_shape: (D,) or (C, H, W).
        dropout: share of the entries that are dropped; the views of a clustering that follows may
            lack another share (``data.augmentation.dropout``).
    """

    views = 2  # of vectors the first is clean and the second corrupted

    def __init__(
        self,
        backbone: Backbone,
        optimizer: Optimizer,
        input_shape: tuple[int, ...],
        dropout: Annotated[float, Range(low=0, below=1)] = 0.2,
    ) -> None:
        super().__init__(backbone, optimizer)
        size = 1
        for side in input_shape:
            size *= side
        widths = _linear_widths(backbone)
        if widths and widths[0] != size:
            raise ConfigError(
                f"the network takes {widths[0]} numbers and the data have {size}", where="backbone"
            )
        layers: list[nn.Module] = []
        mirrored = widths[::-1] if widths else [backbone.num_features, size]
        for i in range(len(mirrored) - 1):
            layers += [nn.Linear(mirrored[i], mirrored[i + 1]), nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*layers[:-1])
        self.dropout = dropout

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean squared error of the reconstruction."""
        clean, noisy = batch.views
        if clean.dim() == 4:  # of images the first view may not be augmented; normalised, zero is the mean
            clean = noisy
            noisy = F.dropout(clean, self.dropout)
        loss = F.mse_loss(self.decoder(self.backbone(noisy)).float(), clean.flatten(1).float())
        self.record({"loss": loss})
        return loss

    def augmentation(self, given: Augmentation) -> Augmentation:
        """Return the data's own for images; for vectors a clean view and one with this stage's dropout."""
        if isinstance(given, VectorAugmentation):
            return VectorAugmentation(self.dropout, noise=given.noise, first_clean=True)
        return given

    @torch.no_grad()
    def final_metrics(self, batches: Any) -> dict[str, float]:
        """Return the mean squared error of clean inputs."""
        self.eval()
        total, count = 0.0, 0
        for batch in batches:
            x = batch.views[0]
            total += float(F.mse_loss(self.decoder(self.backbone(x)).float(), x.flatten(1), reduction="sum"))
            count += x.numel()
        return {"reconstruction/mse": total / count}


def _linear_widths(backbone: nn.Module) -> list[int]:
    if any(isinstance(m, nn.Conv2d) for m in backbone.modules()):
        return []
    layers = [m for m in backbone.modules() if isinstance(m, nn.Linear)]
    return [layers[0].in_features, *[m.out_features for m in layers]]
