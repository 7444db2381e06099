"""End-to-end training: one network on all domains in turn, everything in it (chapter 3, section 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scarcely import checkpoints
from scarcely.adapters import AdaptedModel, attach
from scarcely.backbones.base import Backbone
from scarcely.data.together import Turn
from scarcely.methods.adapted import SOURCE, TARGET
from scarcely.methods.adapters import Adapters
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import PositiveInt

_MEMBERS = ".members."
_DESIGN = ("kind", "where", "residual", "init", "dropout")


class RoundRobin(Method):
    """Cross-entropy on one batch of each domain in turn; a step moves the shared convolutions, and what
    belongs to the domain of its batch.

    All else has no gradient in that step, so that neither momentum nor weight decay moves it. The source is
    one of the domains; as a module it is the source's network.

    Args:
        backbone: the network.
        optimizer: optimizer and schedule; its weight decay is that of the shared convolutions.
        adapters: settings of the stage whose adapters these are (see `AdaptedMethod`), the weight decay of
            the adapters by domain.
        domain_classes: classes of each domain.
        source_domain: the one that the network comes from; None for no such domain.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: Optimizer,
        adapters: dict[str, Any],
        domain_classes: dict[str, PositiveInt],
        source_domain: str | None = None,
    ) -> None:
        super().__init__(backbone, optimizer)
        self.adapters, self.domains, self.source = adapters, tuple(domain_classes), source_domain
        design: dict[str, Any] = {key: adapters[key] for key in _DESIGN if key in adapters}
        design |= {"domains": domain_classes, "train_shared": True}
        if source_domain is not None and not adapters.get("source_with_adapters"):
            head = nn.Linear(backbone.num_features, domain_classes[source_domain])
            others = {name: count for name, count in domain_classes.items() if name != source_domain}
            design |= {"domains": others, "source": source_domain, "head": head}
        self.backbone: AdaptedModel = attach(backbone, **design)  # type: ignore[assignment]
        self.backbone.set_domain(source_domain or self.domains[0])

    def take(
        self, tensors: Mapping[str, Tensor], *, source: str, least: float, where: str
    ) -> checkpoints.Match:
        """Start from what `together` made."""
        return checkpoints.fill(self, tensors, source=source, least=1.0, where=where)

    def features(self, x: Tensor) -> Tensor:
        """Return (N, D) features of normalised inputs, by the network of the source."""
        return self.backbone.network(x)

    def logits(self, features: Tensor) -> Tensor:
        """Return scores (N, C) of the source's classes."""
        assert self.backbone.head is not None
        return self.backbone.head(features)

    def training_step(self, batch: Turn, batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch of one domain."""
        name, (_, views, labels, _) = batch
        with self.backbone.domain(name):
            scores = self.backbone(views[0]).float()
        count = (labels >= 0).sum().clamp(min=1)
        loss = F.cross_entropy(scores, labels, ignore_index=-1, reduction="sum") / count
        nothing = torch.full_like(loss, torch.nan)  # left out of the mean over the epoch
        losses = {f"domain/{other}/loss": loss if other == name else nothing for other in self.domains}
        accuracy = (scores.argmax(dim=1) == labels).sum() / count
        self.record({"loss": loss, "accuracy": accuracy, **losses})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer over everything; of each domain every kind has its own weight decay."""
        groups = [(self.backbone.shared_parameters(), self.optimizer.weight_decay)]
        for name in self.domains:
            decays = {
                "adapters": self.adapters["decay"][name],
                "norms": self.adapters["norm_decay"],
                "heads": self.adapters["head_decay"],
            }
            with self.backbone.domain(name):
                own = self.backbone.parameter_groups()
            groups += [(own[kind], decay) for kind, decay in decays.items() if kind in own]
        return self.optimizer.build_groups(groups, scaled=self.place.scaled)


class FinalPass(Adapters):
    """The adapters of one domain once more, beside convolutions that a round robin has moved.

    The settings are those of `AdaptedMethod`.
    """

    def take(
        self, tensors: Mapping[str, Tensor], *, source: str, least: float, where: str
    ) -> checkpoints.Match:
        """Start from what `apart` made of the round robin, which has trained the source's classifier too."""
        found = checkpoints.fill(self, tensors, source=source, least=1.0, where=where)
        self.source_known.fill_(self.num_source > 0)
        return found


def together(states: Mapping[str, Mapping[str, Tensor]], source: str | None) -> dict[str, Tensor]:
    """Put what each domain has of its own into one network.

    Args:
        states: state dict of the `Adapters` of each domain, all with the same convolutions.
        source: name of the domain that the network comes from.

    Returns:
        The state dict of their `RoundRobin`.
    """
    result: dict[str, Tensor] = {}
    for domain, state in states.items():
        roles = {TARGET: domain} if source is None else {TARGET: domain, SOURCE: source}
        for name, tensor in _renamed(state, roles).items():
            result.setdefault(name, tensor)
    return result


def apart(state: Mapping[str, Tensor], domain: str, source: str | None) -> dict[str, Tensor]:
    """Return the state dict of the `Adapters` of one domain out of that of a `RoundRobin`."""
    return _renamed(state, {domain: TARGET} if source is None else {domain: TARGET, source: SOURCE})


def source_alone(state: Mapping[str, Tensor], stage: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the network of the source out of a `RoundRobin`, as its own stage names the weights.

    Args:
        state: of the round robin.
        stage: of that stage, `Supervised` or `Adapters`; what is in no module of it stays.
        source: the domain.
    """
    own = apart(state, source, None)
    result = {name: tensor for name, tensor in stage.items() if "." not in name}
    for name in stage.keys() - result.keys():
        above, _, last = name.rpartition(".")
        inside = above.replace("backbone", "backbone.network", 1)
        head = above.replace("head", f"backbone.head{_MEMBERS}{TARGET}", 1)
        places = [name, f"{head}.{last}", *(f"{inside}{site}.{last}" for site in ("", ".conv", ".original"))]
        result[name] = own[next(place for place in places if place in own)]
    return result


def _renamed(state: Mapping[str, Tensor], roles: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename the domains, and leave out the others."""
    result = {}
    for name, tensor in state.items():
        site, found, inside = name.partition(_MEMBERS)
        domain, _, rest = inside.partition(".")
        if not found:
            result[name] = tensor
        elif domain in roles:
            result[f"{site}{_MEMBERS}{roles[domain]}.{rest}"] = tensor
    return result
