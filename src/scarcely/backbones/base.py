"""What every backbone promises: images in, one feature vector a sample out, blocks known by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scarcely.errors import ConfigError


class Backbone(nn.Module):
    """A stem, a sequence of named blocks and a pooling that gives ``(N, num_features)``.

    A subclass assigns each block as an attribute, names them in order in ``block_names`` and
    sets ``num_features``. Freezing counts blocks from the input, the stem included with the
    first: ``freeze(3)`` and ``freeze("layer3")`` are the same for a ResNet.
    """

    block_names: tuple[str, ...] = ()
    num_features: int = 0
    image_input = True

    def __init__(self) -> None:
        super().__init__()
        self.num_frozen = 0
        self.frozen_bn = "train"

    def stem(self, x: Tensor) -> Tensor:
        """Whatever precedes the first named block."""
        return x

    def pool(self, x: Tensor) -> Tensor:
        """Global average pooling, ``(N, C, H, W)`` to ``(N, C)``, any height and width."""
        return x.mean(dim=(2, 3)) if x.dim() == 4 else x

    def forward(self, x: Tensor) -> Tensor:
        """Return features ``(N, num_features)``; frozen blocks run without building a graph."""
        grad = torch.is_grad_enabled()
        with torch.set_grad_enabled(grad and self.num_frozen == 0):
            x = self.stem(x)
            for name in self.block_names[: self.num_frozen]:
                x = getattr(self, name)(x)
        for name in self.block_names[self.num_frozen :]:
            x = getattr(self, name)(x)
        return self.pool(x)

    def freeze(self, until: int | str, bn: str = "train") -> None:
        """Take the gradient from the first blocks.

        Args:
            until: number of blocks, or the name of the last frozen one; 0 freezes nothing.
            bn: ``train`` leaves frozen BatchNorm layers in train mode (batch statistics, running
                statistics move, as in the authors' code); ``eval`` uses their running statistics.

        Raises:
            ConfigError: no such block, or all blocks frozen more than once over.
        """
        if isinstance(until, str):
            if until not in self.block_names:
                raise ConfigError(
                    f"there is no block named {until!r}",
                    where="freeze",
                    instead="one of " + ", ".join(self.block_names),
                )
            until = self.block_names.index(until) + 1
        if not 0 <= until <= len(self.block_names):
            raise ConfigError(
                f"cannot freeze {until} blocks: this network has {len(self.block_names)}",
                where="freeze",
                instead=f"0 to {len(self.block_names)}, or a name of {', '.join(self.block_names)}",
            )
        self.num_frozen, self.frozen_bn = until, bn
        trainable = set(self.block_names[until:])
        for name, parameter in self.named_parameters():
            block = name.split(".", 1)[0]
            parameter.requires_grad_(until == 0 or block in trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Set train or eval mode; frozen blocks stay in eval mode under ``frozen_bn='eval'``."""
        super().train(mode)
        if mode and self.num_frozen and self.frozen_bn == "eval":
            trainable = {
                id(m) for n in self.block_names[self.num_frozen :] for m in getattr(self, n).modules()
            }
            for module in self.modules():
                if module is not self and id(module) not in trainable:
                    module.training = False
        return self


def he_initialise(module: nn.Module) -> None:
    """He initialisation for convolutions and linear layers followed by ReLU (He et al., 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
