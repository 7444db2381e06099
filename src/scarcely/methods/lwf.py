"""Learning without forgetting (Li and Hoiem, 2016), the rival of chapter 3's tables 1 and 2."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.errors import ConfigError
from scarcely.functional.domains import distillation
from scarcely.methods.domains import DomainMethod
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import NonNegative, Positive


class LwF(DomainMethod):
    """Fine-tuning that keeps what the old network says of the new images, as its source classifier says it.

    The old network is a copy that is never trained. The source's classifier is trained too.

    Args:
        backbone: the network.
        num_classes: of the domain.
        num_source: classes of the source domain.
        optimizer: optimizer and schedule; a high or a low learning rate trades what is learnt for what is
            forgotten (table 2).
        distillation: weight of the distillation.
        temperature: of its softmax.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_source: int,
        optimizer: Optimizer,
        distillation: NonNegative = 1.0,
        temperature: Positive = 2.0,
    ) -> None:
        super().__init__(backbone, num_classes, num_source, optimizer)
        self.distillation, self.temperature = distillation, temperature
        self.head = nn.Linear(backbone.num_features, num_classes)
        if self.source_head is not None:
            self.source_head.requires_grad_(True)
        self.old_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.old_head = copy.deepcopy(self.source_head)
        if self.old_head is not None:
            self.old_head.requires_grad_(False)
        self.train()

    def adopt(self, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Let the old network be the one that training starts from.

        Raises:
            ConfigError: it has no classifier of the source, whose answers are to be kept.
        """
        taken = super().adopt(tensors)
        if not self.source_known:
            raise self._no_source()
        self.old_backbone.load_state_dict(self.backbone.state_dict())
        self.old_head = copy.deepcopy(self.source_head)
        if self.old_head is not None:
            self.old_head.requires_grad_(False)
        return taken

    def check(self, batch_size: int) -> None:
        """Look for the classifier of the source.

        Raises:
            ConfigError: there will be none.
        """
        super().check(batch_size)
        if self.source_head is None:
            raise self._no_source()

    def _no_source(self) -> ConfigError:
        return ConfigError(
            "lwf keeps the answers of the source's classifier, and there is none",
            where="method, data.source",
            instead="a source domain that is trained here, or ckpt=RUN of method=supervised on it",
        )

    def logits(self, features: Tensor) -> Tensor:
        """Return class scores (N, C)."""
        return self.head(features)

    def train(self, mode: bool = True) -> LwF:
        """Set the mode; the old network stays in eval mode."""
        super().train(mode)
        self.old_backbone.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the new classes and the distillation of the old ones."""
        x = batch.views[0]
        features = self.features(x)
        assert self.source_head is not None
        assert self.old_head is not None
        with torch.no_grad():
            old = self.old_head(self.old_backbone(x))
        record = self.classified(self.head(features), batch.labels)
        record["loss/distillation"] = distillation(self.source_head(features), old, self.temperature)
        record["loss"] = record["loss"] + self.distillation * record["loss/distillation"]
        self.record(record)
        return record["loss"]
