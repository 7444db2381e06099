"""Put adapters into a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import get_args

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from scarcely.adapters.layers import AdaptedConv, Design, DomainHead, DomainNorm, Selection, Site
from scarcely.adapters.model import AdaptedModel, Kind, require_name
from scarcely.adapters.placement import choose, second_convs
from scarcely.adapters.svd import check_rank
from scarcely.backbones.base import Backbone
from scarcely.errors import ConfigError
from scarcely.spec import Literal, PositiveInt, UnitInterval


def attach(
    model: nn.Module,
    kind: Kind,
    domains: Mapping[str, int],
    where: str | Sequence[str] = "all",
    *,
    source: str | None = None,
    head: str | nn.Linear | None = None,
    dropout: UnitInterval = 0.0,
    init: Literal["he", "zero"] = "he",
    residual: bool = True,
    rank: PositiveInt | None = None,
    train_shared: bool = False,
) -> AdaptedModel:
    """Make one network serve several domains (chapters 3 and 4); the model given is copied.

    Each domain has a BatchNorm of its own in the place of each of the network's, with its affine
    parameters and running statistics to begin with; an adapter at each of the chosen convolutions; and a
    linear classifier. Behind a `Backbone`, which ends in features, the classifiers are added; in
    other networks they take the place of the last linear layer. Everything else is shared, and frozen.

        adapted = attach(resnet18(weights="DEFAULT"), "parallel", {"birds": 200, "signs": 43})
        adapted.set_domain("signs")
        optimizer = SGD(adapted.trainable_parameters(), lr=0.1)

    Args:
        model: any network of convolutions. Blocks that a `Backbone` had frozen are no longer.
        kind: ``series`` or ``parallel`` adapters; ``bn``: BatchNorm and classifiers alone; ``head``:
            classifiers alone.
        domains: names, and how many classes each has. The first is the current domain.
        where: which convolutions get adapters: ``all`` (odd kernels larger than 1×1), ``early``, ``mid``,
            ``late``, ``half``, or globs of names; see `scarcely.adapters.placement.choose`.
        source: name of a domain without adapters: the network as it came, its BatchNorm and classifier.
        head: name of the linear layer that is replaced; or a backbone's classifier, which becomes that of the
            source (without one the source gives features).
        dropout: share of the channels of an adapter's input that is dropped in training, at the second
            convolution of each block only.
        init: α He-normal, or zero: then training begins at the network as it came.
        residual: False: series adapters α(BN(h)) without the residual connection.
        rank: of α = β γᵀ, both trained, from the start; None for matrices of full rank.
        train_shared: leave the shared parameters their gradient.

    Raises:
        ConfigError: the model has adapters already, or nothing that could get any; a domain's name twice or
            one that cannot be; a value out of its range.
    """
    _require_values(kind, dropout, init, rank)
    _require_names(domains, source)
    if any(isinstance(module, Site | AdaptedModel) for module in model.modules()):
        raise ConfigError("the model has adapters already", where="model", instead="add_domain of that model")
    network = copy.deepcopy(model)
    if isinstance(network, Backbone):
        network.freeze(0)  # frozen blocks build no graph, but adapters in them are trained
    network.requires_grad_(train_shared)
    selection = Selection(next(iter(domains), source or ""))
    if kind in ("series", "parallel"):
        _adapt_convs(network, Design(kind, init, residual, rank), where, dropout, selection)
    if kind != "head":
        _separate_norms(network, kind, source, selection)
    classifiers, own = _separate_heads(network, head, selection)
    if source is not None:
        classifiers.install(source, own.requires_grad_(True))
    behind = classifiers if isinstance(network, Backbone) else None
    classes = own.out_features if isinstance(own, nn.Linear) else classifiers.num_features
    adapted = AdaptedModel(network, behind, kind, selection, None if source is None else (source, classes))
    for name, num_classes in domains.items():
        adapted.add_domain(name, num_classes)
    return adapted


def _require_values(kind: str, dropout: float, init: str, rank: int | None) -> None:
    wrong = {
        "kind": (kind, kind in get_args(Kind), "one of " + ", ".join(get_args(Kind))),
        "dropout": (dropout, 0 <= dropout < 1, "at least 0, and below 1"),
        "init": (init, init in ("he", "zero"), "he or zero"),
        "rank": (rank, rank is None or rank >= 1, "at least 1"),
    }
    for name, (value, right, instead) in wrong.items():
        if not right:
            raise ConfigError(f"adapters cannot have {name} {value!r}", where=name, instead=instead)


def _require_names(domains: Mapping[str, int], source: str | None) -> None:
    if not domains and source is None:
        raise ConfigError(
            "there is no domain", where="domains", instead="a name and a number of classes each"
        )
    if source is not None:
        require_name(source)
    if source in domains:
        raise ConfigError(f"{source!r} is the source and a domain", where="domains", instead="another name")


def _adapt_convs(
    network: nn.Module, design: Design, where: str | Sequence[str], dropout: float, selection: Selection
) -> None:
    second = second_convs(network)
    sites: dict[nn.Module, Site] = {}
    for name in choose(network, where):
        conv = network.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        sites[conv] = AdaptedConv(conv, design, dropout if name in second else 0.0, selection)
    if design.rank is not None:
        check_rank(
            design.rank, max(min(site.shape) for site in sites.values() if isinstance(site, AdaptedConv))
        )
    _replace(network, sites)


def _separate_norms(network: nn.Module, kind: Kind, source: str | None, selection: Selection) -> None:
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms and kind == "bn":
        raise ConfigError(
            f"{type(network).__name__} has no BatchNorm that domains could have of their own",
            where="kind",
            instead="series, parallel or head",
        )
    for norm in norms:
        norm.requires_grad_(source is not None)
    _replace(network, {norm: DomainNorm(norm, selection) for norm in norms})


def _separate_heads(
    network: nn.Module, head: str | nn.Linear | None, selection: Selection
) -> tuple[DomainHead, nn.Module]:
    """Return the classifiers' site and the network's own classifier."""
    if isinstance(network, Backbone):
        like = next(network.parameters())
        own = copy.deepcopy(head) if isinstance(head, nn.Linear) else nn.Identity()
        if isinstance(head, str) or (isinstance(own, nn.Linear) and own.in_features != network.num_features):
            raise ConfigError(
                f"a backbone of {network.num_features} features has no head {head}",
                where="head",
                instead=f"the classifier itself, of {network.num_features} features",
            )
        site = DomainHead(network.num_features, True, selection, like)
        return site.train(network.training), own
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    name = next(reversed(linear), "") if head is None else head
    if not isinstance(name, str) or name not in linear:
        raise ConfigError(
            f"{type(network).__name__} has no linear layer {head}"
            if head
            else "there is no classifier to replace",
            where="head",
            instead="the name of a linear layer" + (f", such as {next(reversed(linear))}" if linear else ""),
        )
    own = linear[name]
    site = DomainHead(own.in_features, own.bias is not None, selection, own.weight)
    _replace(network, {own: site.train(own.training)})
    return site, own


def _replace(network: nn.Module, sites: Mapping[nn.Module, Site]) -> None:
    """Put sites in the place of modules, wherever in the network these occur."""
    places = [
        (parent, name, child)
        for parent in network.modules()
        if not isinstance(parent, Site)
        for name, child in parent._modules.items()
        if child is not None and child in sites
    ]
    for parent, name, child in places:
        setattr(parent, name, sites[child])
