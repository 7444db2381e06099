"""Optimizer and learning-rate schedule of a stage, as one value of the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from scarcely.spec import Annotated, Literal, NonNegative, Positive, PositiveInt, Range

Share = Annotated[float, Range(above=0, below=1)]


@dataclass
class Optimizer:
    """SGD or Adam with a learning rate that is a function of the epoch alone.

    So no scheduler has a state to save, and an interrupted run cannot drift.

    Args:
        name: ``sgd``, ``adam`` or ``adamw``.
        lr: learning rate at the start, for the global batch.
        momentum: of SGD.
        nesterov: Nesterov momentum.
        weight_decay: L2 penalty (decoupled for ``adamw``).
        schedule: ``multistep`` multiplies by ``gamma`` at each milestone; ``cosine`` falls to 0.
        milestones: epochs of the drops; those below 1 are shares of all epochs.
        gamma: factor of a drop.
        warmup: epochs of linear warm-up.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.1
    momentum: Annotated[float, Range(low=0, below=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 5e-4
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    milestones: list[PositiveInt | Share] = field(default_factory=list)
    gamma: Annotated[float, Range(above=0, high=1)] = 0.1
    warmup: NonNegative = 0.0

    def build(self, parameters: Iterable[nn.Parameter], *, scaled: bool = False) -> torch.optim.Optimizer:
        """Return the optimizer over the parameters that require a gradient."""
        return self.build_groups([(parameters, self.weight_decay)], scaled=scaled)

    def build_groups(
        self, groups: Iterable[tuple[Iterable[nn.Parameter], float]], *, scaled: bool = False
    ) -> torch.optim.Optimizer:
        """Return the optimizer over groups of parameters, each with a weight decay of its own.

        Args:
            groups: parameters and the weight decay of each group.
            scaled: gradients are scaled against underflow (``16-mixed``), and a step in which they overflow
                is left out.
        """
        trained: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.requires_grad], "weight_decay": decay}
            for parameters, decay in groups
        ]
        # the fused update is one kernel; on the CPU only for float32 parameters, which ours are
        all_of_them = [p for group in trained for p in group["params"]]
        fused = all(p.is_floating_point() and p.device.type in ("cuda", "cpu") for p in all_of_them)
        # Fused SGD writes the momentum of a step that is to be left out, up to torch 2.15 at least: in the
        # first step into memory that nobody has set. Nor could gradients be clipped before a fused step.
        fused = fused and not scaled
        if self.name == "sgd":
            nesterov = self.nesterov and self.momentum > 0
            return torch.optim.SGD(
                trained, lr=self.lr, momentum=self.momentum, nesterov=nesterov, fused=fused
            )
        adam = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return adam(trained, lr=self.lr, fused=fused)

    def lr_at(self, epoch: int, epochs: int) -> float:
        """Return the learning rate of an epoch (from 0) of a stage of ``epochs``."""
        if epoch < self.warmup:
            return self.lr * (epoch + 1) / (self.warmup + 1)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / max(1, epochs)))
        if self.schedule == "multistep":
            drops = (round(m * epochs) if m < 1 else m for m in self.milestones)
            return self.lr * self.gamma ** sum(epoch >= drop for drop in drops)
        return self.lr
