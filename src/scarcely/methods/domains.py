"""What the methods share that train the network of one domain further on another (chapters 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import Literal


class DomainMethod(Method):
    """Cross-entropy on one domain, by a network that comes from a source domain.

    Args:
        backbone: the network.
        num_classes: of the domain.
        num_source: classes of the source domain, whose classifier is kept as it was; 0 if it is not known.
        optimizer: optimizer and schedule.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    source_known: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_source: int,
        optimizer: Optimizer,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, optimizer, freeze, frozen_bn)
        self.source_head = nn.Linear(backbone.num_features, num_source) if num_source else None
        if self.source_head is not None:
            self.source_head.requires_grad_(False)
        # whether it is the source's, or random: a checkpoint may have had none
        self.register_buffer("source_known", torch.tensor(False))
        # the metric refuses one class
        self.accuracy = MulticlassAccuracy(max(2, num_classes), average="micro", ignore_index=-1)

    def adopt(self, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Keep the classifier of the source, to see what of it is forgotten."""
        if self.source_head is None or not self.fill_source(self.source_head, tensors):
            return ()
        return ("head.weight", "head.bias")

    def fill_source(self, head: nn.Linear, tensors: Mapping[str, Tensor]) -> bool:
        """Fill a classifier with that of the source, if it is among the tensors; remember whether it was."""
        own = head.state_dict()
        found = {name: tensors[f"head.{name}"] for name in own if f"head.{name}" in tensors}
        known = all(name in found and found[name].shape == tensor.shape for name, tensor in own.items())
        self.source_known.fill_(known)
        if known:
            head.load_state_dict(found)
        return known

    def source_logits(self, x: Tensor) -> Tensor | None:
        """Return scores of the source domain's classes, by the network as it is now; None without them."""
        known = self.source_head is not None and bool(self.source_known)
        return self.source_head(self.features(x)) if known and self.source_head is not None else None

    def own_parameters(self) -> int:
        """Return how many parameters a domain has for itself, its classifier left out."""
        return sum(p.numel() for p in self.backbone.parameters() if p.requires_grad)

    def common_parameters(self) -> int:
        """Return how many parameters all domains share beside the network."""
        return 0

    def classified(self, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss of class scores (N, C) and their accuracy, for the record."""
        scores, count = scores.float(), (labels >= 0).sum().clamp(min=1)
        loss = F.cross_entropy(scores, labels, ignore_index=-1, reduction="sum") / count
        return {"loss": loss, "accuracy": (scores.argmax(dim=1) == labels).sum() / count}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        record = self.classified(self(batch.views[0]), batch.labels)
        self.record(record)
        return record["loss"]

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.accuracy.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what is classified right without augmentation."""
        self.accuracy.update(self(batch.views[0]).argmax(dim=1), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Keep the accuracy for the record of the epoch."""
        self.scores = {"clean_accuracy": float(self.accuracy.compute())}
        self.accuracy.reset()
