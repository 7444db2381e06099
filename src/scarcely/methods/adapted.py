"""What the methods share that give each domain adapters beside the convolutions of all (chapters 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scarcely import checkpoints
from scarcely.adapters import AdaptedModel, attach
from scarcely.backbones.base import Backbone
from scarcely.methods.domains import DomainMethod
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import Literal, NonNegative, UnitInterval

TARGET, SOURCE = "target", "source"  # the domain that is trained, and the one that its network comes from


class AdaptedMethod(DomainMethod):
    """A network with the adapters, the BatchNorm and the classifier of one domain, and those of the source.

    ``backbone`` is the adapted network. Only what belongs to the domain is trained, unless ``shared``: then
    all of it is.

    Args:
        backbone: the network.
        num_classes: of the domain.
        num_source: classes of the source; 0 without one.
        optimizer: optimizer and schedule; its weight decay is that of the shared convolutions.
        kind: ``series`` or ``parallel`` adapters, ``bn`` or ``head`` for none.
        where: convolutions that get adapters (see `scarcely.adapters.attach`).
        residual: False: series adapters without the residual connection.
        init: of α, He-normal or zero.
        dropout: of the adapters' input, at the second convolutions.
        decay: weight decay of the adapters.
        norm_decay: of BatchNorm.
        head_decay: of the classifier.
        shared: train the convolutions too: the source with its adapters, or every domain from scratch.
        source_with_adapters: the network that it starts from was trained with adapters of its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_source: int,
        optimizer: Optimizer,
        kind: Literal["series", "parallel", "bn", "head"] = "parallel",
        where: str | Sequence[str] = "all",
        residual: bool = True,
        init: Literal["he", "zero"] = "he",
        dropout: UnitInterval = 0.0,
        decay: NonNegative = 5e-4,
        norm_decay: NonNegative = 5e-4,
        head_decay: NonNegative = 5e-4,
        shared: bool = False,
        source_with_adapters: bool = False,
    ) -> None:
        super().__init__(backbone, num_classes, 0, optimizer)
        self.num_features, self.num_classes, self.num_source = backbone.num_features, num_classes, num_source
        self.decays = {"adapters": decay, "norms": norm_decay, "heads": head_decay}
        self.source_with_adapters = source_with_adapters
        self._design: dict[str, Any] = {"kind": kind, "where": where, "residual": residual, "init": init}
        self._design |= {"dropout": dropout, "train_shared": shared}
        self._plain = [backbone]  # in a list: no part of this module
        self.backbone: Any = self._attached(nn.Linear(self.num_features, max(1, num_source)))
        self._freeze_others()

    def _attached(self, source_head: nn.Linear) -> AdaptedModel:
        """Return a copy of the plain network with adapters, for the domain and for the source."""
        domains = {TARGET: self.num_classes}
        if not self.num_source:
            return attach(self._plain[0], domains=domains, **self._design)
        if self.source_with_adapters:
            return attach(self._plain[0], domains=domains | {SOURCE: self.num_source}, **self._design)
        return attach(self._plain[0], domains=domains, source=SOURCE, head=source_head, **self._design)

    def _freeze_others(self) -> None:
        """Take the gradient from what the source has of its own: several devices wait for every gradient."""
        own = {id(p) for group in self.backbone.parameter_groups().values() for p in group}
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(id(parameter) in own)

    def take(
        self, tensors: Mapping[str, Tensor], *, source: str, least: float, where: str
    ) -> checkpoints.Match:
        """Start from the network of the source: its convolutions and BatchNorm; adapters are new."""
        if not (self.source_with_adapters and self.num_source):
            found = checkpoints.fill(self._plain[0], tensors, source=source, least=least, where=where)
            head = nn.Linear(self.num_features, max(1, self.num_source))
            if self.fill_source(head, tensors):
                found.unexpected = [name for name in found.unexpected if not name.startswith("head.")]
            self.backbone = self._attached(head)
            self._freeze_others()
            return found
        renamed = {name.replace(f".{TARGET}.", f".{SOURCE}."): t for name, t in tensors.items()}
        found = checkpoints.fill(self.backbone, renamed, source=source, least=least, where=where)
        self.backbone.delete_domain(TARGET)
        self.backbone.add_domain(TARGET, self.num_classes, like=SOURCE, fresh_adapters=True)
        self.backbone.set_domain(TARGET)
        self._freeze_others()
        self.source_known.fill_(True)
        found.missing = [
            name for name in found.missing if f".{TARGET}." not in name
        ]  # new, as they should be
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores (N, C) of the domain."""
        return self.backbone(x)

    def features(self, x: Tensor) -> Tensor:
        """Return (N, D) features of normalised inputs."""
        return self.backbone.network(x)

    def logits(self, features: Tensor) -> Tensor:
        """Return class scores (N, C)."""
        return self.backbone.head(features)

    def source_logits(self, x: Tensor) -> Tensor | None:
        """Return scores of the source's classes: nothing of it was trained."""
        if not self.num_source or not bool(self.source_known):
            return None
        with self.backbone.domain(SOURCE):
            return self.backbone(x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer over what the domain trains, each kind with its own weight decay."""
        groups = self.backbone.parameter_groups()
        return self.optimizer.build_groups(
            [
                (parameters, self.decays.get(kind, self.optimizer.weight_decay))
                for kind, parameters in groups.items()
            ],
            scaled=self.place.scaled,
        )

    def own_parameters(self) -> int:
        """Return how many parameters the domain has for itself, its classifier left out."""
        groups = self.backbone.parameter_groups()
        return sum(p.numel() for kind, group in groups.items() if kind != "heads" for p in group)
