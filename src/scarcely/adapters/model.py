"""A network of several domains: which of them runs, what belongs to each, merging, compressing, files."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scarcely.adapters.domain_file import DomainFile
from scarcely.adapters.folding import followers
from scarcely.adapters.layers import (
    AdaptedConv,
    Adapter,
    Dense,
    DomainHead,
    DomainNorm,
    LowRank,
    Selection,
    Site,
)
from scarcely.adapters.svd import Decomposition, check_rank
from scarcely.adapters.tables import Compression, LayerCompression, ParameterRow, ParameterTable
from scarcely.errors import CheckpointError, ConfigError
from scarcely.spec import Literal, Positive, PositiveInt

Kind = Literal["series", "parallel", "bn", "head"]
S = TypeVar("S", bound=Site)
HEAD = "head"  # name of the classifier that was put behind a network without one


class AdaptedModel(nn.Module):
    """A network whose convolutions are shared by several domains; `attach` makes it.

    Called with images it runs the current domain. The convolutions are frozen, unless they were to be
    trained; everything of a domain has a gradient if it took part. Which domain is current changes
    neither ``requires_grad`` nor the mode of anything.

    Attributes:
        network: the network; some of its layers are now a `Site`.
        head: classifiers behind a network that has none itself.
        kind: what a domain has of its own.
        source: the domain that is the network as it came.
        merged: the current domain's adapters are in the weights of the convolutions.
    """

    def __init__(
        self,
        network: nn.Module,
        head: DomainHead | None,
        kind: Kind,
        selection: Selection,
        source: tuple[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.head, self.kind, self.selection = network, head, kind, selection
        self.source = None if source is None else source[0]
        self.merged = False
        self._classes: dict[str, int] = {} if source is None else dict([source])
        self.training = network.training
        self._quiet_shared_norms()

    # -- which domain runs ------------------------------------------------------------------------

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the names, in the order of their indices in a mixed batch; the source is the first."""
        return tuple(self._classes)

    @property
    def current(self) -> str:
        """Return the name of the current domain."""
        return self.selection.current

    @property
    def num_features(self) -> int:
        """Return the features that the classifiers take."""
        return next(head.num_features for head in self._sites_of(DomainHead).values())

    def num_classes(self, name: str) -> int:
        """Return the classes of a domain.

        Raises:
            ConfigError: no such domain.
        """
        self._require(name)
        return self._classes[name]

    def set_domain(self, name: str) -> None:
        """Make a domain the current one.

        Raises:
            ConfigError: no such domain, or another one is merged.
        """
        self._require(name)
        if name != self.current:
            self._require_unmerged("another domain cannot be run")
        self.selection.current = name

    @contextmanager
    def domain(self, name: str) -> Iterator[AdaptedModel]:
        """Make a domain the current one within a ``with`` block.

        Raises:
            ConfigError: no such domain, or another one is merged.
        """
        before = self.current
        self.set_domain(name)
        try:
            yield self
        finally:
            if before in self._classes:
                self.set_domain(before)

    def forward(self, x: Tensor, domains: Tensor | None = None) -> Tensor:
        """Return the logits of the current domain, or of a batch of several domains.

        The convolutions run once on the whole batch, what belongs to a domain once on its samples; in train
        mode these give the domain's batch statistics.

        Args:
            x: images (N, C, H, W).
            domains: (N,), int64, each sample's index in `domains`. On the host nothing has to wait for the
                device. None: all samples are of the current domain.

        Returns:
            (N, classes); with ``domains`` as many columns as the domain with the most classes has, and −inf
            in those that a sample's domain has not.

        Raises:
            ConfigError: an index that no domain has, or another number of them; or adapters are merged.
        """
        if domains is None:
            return self._classify(x)
        self._require_unmerged("a batch of several domains cannot be run")
        order, self.selection.parts = self._sorted(domains, len(x))
        self.selection.classes = max(self._classes.values())
        try:
            order = order.to(x.device)
            logits = self._classify(x.index_select(0, order))
        finally:
            self.selection.parts = None
        return logits.index_select(0, order.argsort())

    def _classify(self, x: Tensor) -> Tensor:
        y = self.network(x)
        return y if self.head is None else self.head(y)

    def _sorted(self, domains: Tensor, samples: int) -> tuple[Tensor, list[tuple[str, slice]]]:
        """Return the order that brings each domain's samples together, and the rows of those that occur."""
        names = self.domains
        indices = domains.cpu()
        if indices.shape != (samples,) or indices.dtype != torch.int64 or samples == 0:
            raise ConfigError(
                f"domains are {indices.dtype} of shape {tuple(indices.shape)} for {samples} images",
                where="domains",
                instead="one int64 index an image, and at least one image",
            )
        low, high = indices.min().item(), indices.max().item()
        if low < 0 or high >= len(names):
            raise ConfigError(
                f"there is no domain {low if low < 0 else high}",
                where="domains",
                instead=f"0 to {len(names) - 1}",
            )
        counts = torch.bincount(indices, minlength=len(names))
        ends = counts.cumsum(0).tolist()
        rows = zip(names, [0, *ends], ends)
        return indices.argsort(stable=True), [(name, slice(a, b)) for name, a, b in rows if b > a]

    def train(self, mode: bool = True) -> AdaptedModel:
        """Set train or eval mode; BatchNorm that all domains share (``kind="head"``) stays in eval mode.

        Raises:
            ConfigError: train mode while adapters are merged.
        """
        if mode:
            self._require_unmerged("a merged network cannot be trained")
        super().train(mode)
        self._quiet_shared_norms()
        return self

    def _quiet_shared_norms(self) -> None:
        """Keep a domain's training from moving the statistics that all the others use."""
        if self.kind == "head":
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    # -- which domains there are ------------------------------------------------------------------

    def add_domain(
        self, name: str, num_classes: PositiveInt, like: str | None = None, fresh_adapters: bool = False
    ) -> None:
        """Add a domain; the current one stays the current one.

        Its BatchNorm are copies of the network's own, its adapters and its classifier are new.

        Args:
            name: of the domain, without dots.
            num_classes: of its classifier.
            like: a domain whose BatchNorm and adapters are copied instead.
            fresh_adapters: copy only the BatchNorm of that domain.

        Raises:
            ConfigError: a name that is taken or cannot be one, no classes, no domain ``like``, or adapters
                are merged.
        """
        self._require_unmerged("a domain cannot be added")
        self._require_new(name)
        _require_classes(name, num_classes)
        if like is not None:
            self._require(like)
        members: dict[str, nn.Module] = {path: site.fresh(num_classes) for path, site in self.sites.items()}
        if like is not None:
            members |= self._copies(like, fresh_adapters)
        self._install(name, num_classes, members)

    def _copies(self, like: str, fresh_adapters: bool) -> dict[str, nn.Module]:
        copies: dict[str, nn.Module] = {}
        for path, site in self.sites.items():
            member = site.member(like)
            if isinstance(site, DomainNorm) and member is not None:
                copies[path] = copy.deepcopy(member)
            elif isinstance(site, AdaptedConv) and isinstance(member, Adapter):
                copies[path] = member.duplicate()
                if fresh_adapters:
                    copies[path].alpha = site.fresh_alpha()
        return copies

    def delete_domain(self, name: str) -> None:
        """Delete a domain; if it is the current one, the first that remains becomes it.

        Raises:
            ConfigError: no such domain, it is the only one, or adapters are merged.
        """
        self._require_unmerged("a domain cannot be deleted")
        self._require(name)
        if len(self._classes) == 1:
            raise ConfigError(f"{name} is the only domain", where="domain", instead="add another one before")
        for site in self.sites.values():
            if name in site.members:
                del site.members[name]
        del self._classes[name]
        if name == self.source:
            self.source = None
            for norm in self._sites_of(DomainNorm).values():
                norm.original.requires_grad_(False)
        if name == self.current:
            self.set_domain(self.domains[0])

    @property
    def sites(self) -> dict[str, Site]:
        """Return the layers that hold something of each domain, by name and in the network's order."""
        sites = {path: module for path, module in self.network.named_modules() if isinstance(module, Site)}
        return sites if self.head is None else {**sites, HEAD: self.head}

    def _sites_of(self, kind: type[S]) -> dict[str, S]:
        return {path: site for path, site in self.sites.items() if isinstance(site, kind)}

    def _install(self, name: str, num_classes: int, members: Mapping[str, nn.Module]) -> None:
        for path, site in self.sites.items():
            site.install(name, members[path])
        self._classes[name] = num_classes

    def _require(self, name: str) -> None:
        if name not in self._classes:
            raise ConfigError(
                f"there is no domain {name!r}", where="domain", instead="one of " + ", ".join(self.domains)
            )

    def _require_new(self, name: str) -> None:
        require_name(name)
        if name in self._classes:
            raise ConfigError(f"there is a domain {name!r} already", where="domain", instead="another name")

    def _require_unmerged(self, what: str) -> None:
        if self.merged:
            raise ConfigError(
                f"{what}: the adapters of {self.current} are merged",
                where="merge",
                instead="unmerge() before",
            )

    # -- parameters -------------------------------------------------------------------------------

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters that the current domain uses, those of each kind apart.

        Returns:
            ``adapters``, ``norms`` (those inside series adapters too), ``heads`` and ``shared``, which are
            the convolutions if they are trained; a kind that has none is left out.
        """
        groups = {**self._own(self.current), "shared": self.shared_parameters()}
        trainable = {kind: [p for p in group if p.requires_grad] for kind, group in groups.items()}
        return {kind: group for kind, group in trainable.items() if group}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters that the current domain uses, as one list."""
        return [parameter for group in self.parameter_groups().values() for parameter in group]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that belong to no domain."""
        owned = {id(p) for name in self.domains for group in self._own(name).values() for p in group}
        return [p for p in self.parameters() if id(p) not in owned]

    def parameter_table(self) -> ParameterTable:
        """Count the parameters of each domain and of all of them together."""
        shared = self.shared_parameters()
        factors = sum(p.numel() for p in self._common_factors())
        rows = [
            ParameterRow(
                "shared",
                adapters=factors,
                norms=0,
                head=0,
                other=sum(p.numel() for p in shared) - factors,
                trainable=sum(p.numel() for p in shared if p.requires_grad),
            )
        ]
        for name in self.domains:
            own = self._own(name)
            count = {kind: sum(p.numel() for p in group) for kind, group in own.items()}
            trainable = sum(p.numel() for group in own.values() for p in group if p.requires_grad)
            rows.append(
                ParameterRow(name, count["adapters"], count["norms"], count["heads"], 0, trainable=trainable)
            )
        norms = [norm.original for norm in self._sites_of(DomainNorm).values()]
        original = {id(p): p for p in [*shared, *(p for norm in norms for p in norm.parameters())]}
        return ParameterTable(tuple(rows), sum(p.numel() for p in original.values()) - factors)

    def _own(self, name: str) -> dict[str, list[nn.Parameter]]:
        own: dict[str, list[nn.Parameter]] = {"adapters": [], "norms": [], "heads": []}
        for site in self.sites.values():
            member = site.member(name)
            if isinstance(site, DomainHead) and member is not None:
                own["heads"] += member.parameters()
            elif isinstance(site, DomainNorm) and (member is not None or name == self.source):
                own["norms"] += site.of(name).parameters()
            elif isinstance(member, Adapter):
                alpha = member.alpha
                own["adapters"] += [alpha.gamma] if _is_joint(alpha) else list(alpha.parameters())
                own["norms"] += member.norm.parameters() if member.norm is not None else []
        return own

    def _common_factors(self) -> list[nn.Parameter]:
        """Return each β that domains share, once."""
        adapters = [m for site in self._sites_of(AdaptedConv).values() for m in site.members.values()]
        alphas = [adapter.alpha for adapter in adapters if isinstance(adapter, Adapter)]
        return list({id(alpha.beta): alpha.beta for alpha in alphas if _is_joint(alpha)}.values())

    # -- merging ----------------------------------------------------------------------------------

    @torch.no_grad()
    def merge(self) -> None:
        """Compute convolutions that do what those of the current domain do together with their adapters.

        Parallel adapters are added to the centre of the kernels. Of series adapters α and its BatchNorm
        go into the convolution and its bias, and the domain's BatchNorm too where it follows. The network
        then takes no longer than the one that came. The shared weights stay as they are, so that `unmerge`
        is exact, and a state_dict is that of the network not merged.

        Raises:
            ConfigError: in train mode, merged already, or a parallel adapter on an even kernel or one whose
                padding is not 'same'.
        """
        self._require_unmerged("adapters cannot be merged twice")
        if self.training:
            raise ConfigError(
                "adapters cannot be merged in train mode: batch statistics are no part of the weights",
                where="merge",
                instead="eval() before",
            )
        name = self.current
        adapted = {path: conv for path, conv in self._sites_of(AdaptedConv).items() if name in conv.members}
        for path, conv in adapted.items():
            conv.require_centre(path)
        following = followers(self.network) if self.kind == "series" and adapted else {}
        for conv in adapted.values():
            norm = following.get(conv)
            conv.fuse(name, None if norm is None else norm.of(name))
            if norm is not None:
                norm.folded = True
        self.merged = True

    def unmerge(self) -> None:
        """Run convolutions and adapters apart again, with the weights that they had, bit for bit.

        Raises:
            ConfigError: nothing is merged.
        """
        if not self.merged:
            raise ConfigError("no adapters are merged", where="unmerge", instead="merge() before")
        for conv in self._sites_of(AdaptedConv).values():
            conv.release()
        for norm in self._sites_of(DomainNorm).values():
            norm.folded = False
        self.merged = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._require_unmerged("weights cannot be loaded")  # or they would differ from the merged ones
        super()._load_from_state_dict(*args, **kwargs)

    # -- compression ------------------------------------------------------------------------------

    def compress(
        self,
        rank: PositiveInt | None = None,
        fraction: Positive | None = None,
        energy: Positive | None = None,
        joint: bool = True,
    ) -> Compression:
        """Replace the adapters of all domains by factors of low rank (chapter 4, section 3.4).

        Jointly, α_t ≈ β γ_tᵀ with one frozen β a layer; apart, each domain has a β of its own, which is
        trained like γ. What is trained afterwards are new parameters: make the optimizer anew. Without
        a size the rank is half of a layer's C_in or C_out, whichever is smaller, and at least 1. A domain
        added later has full adapters, unless it is ``like`` one of these.

        Args:
            rank: K of every layer; a layer with a smaller full rank keeps all of it.
            fraction: of each layer's full rank, min(C_out, T·C_in), above 0 and at most 1, which is exact.
            energy: share of each layer's Σσ² to keep at least, above 0 and at most 1.
            joint: factor all domains' adapters together.

        Returns:
            Parameters before and after, and the error, of each layer.

        Raises:
            ConfigError: no adapters, more than one size, a size out of its range, or adapters are merged.
        """
        self._require_unmerged("adapters cannot be compressed")
        _require_size(rank, fraction, energy)
        stacks = self._stacks(joint)
        if not stacks:
            raise ConfigError(
                "no domain has adapters to compress", where="compress", instead="series or parallel adapters"
            )
        parts = [Decomposition.of([adapter.alpha() for adapter in adapters]) for _, _, adapters in stacks]
        if rank is not None:
            check_rank(rank, max(part.full_rank for part in parts))
        report = []
        for (path, names, adapters), part in zip(stacks, parts):
            chosen = min(rank, part.full_rank) if rank is not None else part.rank_of(fraction, energy)
            report.append(_compress_layer(path, names, adapters, part, chosen, joint))
        return Compression(tuple(report))

    def _stacks(self, joint: bool) -> list[tuple[str, tuple[str, ...], list[Adapter]]]:
        """Return layer, domains and adapters of each factorisation."""
        stacks: list[tuple[str, tuple[str, ...], list[Adapter]]] = []
        for path, conv in self._sites_of(AdaptedConv).items():
            own = {name: member for name, member in conv.members.items() if isinstance(member, Adapter)}
            if joint and own:
                stacks.append((path, tuple(own), list(own.values())))
            else:
                stacks += [(path, (name,), [adapter]) for name, adapter in own.items()]
        return stacks

    # -- files ------------------------------------------------------------------------------------

    def save(self, path: str | Path, domain: str) -> None:
        """Save one domain: adapters, BatchNorm with its statistics, classifier, and a readable config.

        A name that ends in ``.safetensors`` gives such a file; else one of torch that loads with
        ``weights_only=True``.

        Raises:
            ConfigError: no such domain, the source (it is the network itself), or no package safetensors.
            WriteError: the file cannot be written.
        """
        self._require(domain)
        if domain == self.source:
            raise ConfigError(
                f"{domain} is the network itself, not a domain beside it",
                where="domain",
                instead="the state_dict of the network, or one of "
                + ", ".join(name for name in self.domains if name != domain),
            )
        self._file_of(domain).write(path)

    def load(self, path: str | Path, name: str | None = None) -> str:
        """Add the domain of a file, or replace the one of that name; the current one stays the current one.

        Args:
            path: a file that `save` has written.
            name: what the domain is called here; None for its name in the file.

        Returns:
            The name.

        Raises:
            CheckpointError: no such file, not a domain's, or of another architecture.
            ConfigError: adapters are merged, a name that cannot be one, or no package safetensors.
        """
        self._require_unmerged("a domain cannot be loaded")
        file = DomainFile.read(path)
        name = file.domain if name is None else name
        require_name(name)
        if name == self.source:
            raise ConfigError(f"{name} is the network itself", where="name", instead="another name")
        self._require_same_architecture(file, path)
        members = {}
        for site_path, site in self.sites.items():
            prefix = f"{site_path}."
            tensors = {key[len(prefix) :]: t for key, t in file.tensors.items() if key.startswith(prefix)}
            member = site.fresh(file.num_classes)
            try:
                if isinstance(member, Adapter) and isinstance(site, AdaptedConv):
                    member.alpha = _read_alpha(tensors, site, file.joint)
                member.load_state_dict(tensors)
            except (RuntimeError, KeyError) as error:
                raise CheckpointError(
                    f"{path} does not hold what it says of {site_path}",
                    where=str(path),
                    instead="a file that save(path, domain) has written",
                ) from error
            members[site_path] = member
        self._install(name, file.num_classes, members)
        return name

    def _file_of(self, domain: str) -> DomainFile:
        tensors = {
            f"{path}.{key}": tensor
            for path, site in self.sites.items()
            if domain in site.members
            for key, tensor in site.members[domain].state_dict().items()
        }
        layers = {path: site.signature() for path, site in self.sites.items()}
        adapters = [conv.members[domain] for conv in self._sites_of(AdaptedConv).values()]
        joint = any(isinstance(a, Adapter) and _is_joint(a.alpha) for a in adapters)
        return DomainFile(domain, self._classes[domain], self.kind, self._residual, joint, layers, tensors)

    @property
    def _residual(self) -> bool:
        return all(conv.design.residual for conv in self._sites_of(AdaptedConv).values())

    def _require_same_architecture(self, file: DomainFile, path: str | Path) -> None:
        theirs: list[tuple[str, str]] = [("kind", file.kind), ("residual", str(file.residual))]
        ours = [("kind", str(self.kind)), ("residual", str(self._residual))]
        theirs += file.layers.items()
        ours += [(name, site.signature()) for name, site in self.sites.items()]
        for their, our in zip_longest(theirs, ours):
            if their != our:
                here, there = (": ".join(layer) if layer else "nothing more" for layer in (our, their))
                raise CheckpointError(
                    f"{path} is of another architecture: it has {there}, where this network has {here}",
                    where=str(path),
                    instead="a network and adapters (kind, where) like those that it was saved from",
                )


def require_name(name: str) -> None:
    """Refuse a name that no domain can have.

    Raises:
        ConfigError: it is empty, has a dot, or is a word of torch's ModuleDict, such as ``items``.
    """
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ConfigError(
            f"{name!r} cannot be the name of a domain",
            where="domains",
            instead="a word without dots that is no method of torch's ModuleDict",
        )


def _require_classes(name: str, num_classes: int) -> None:
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ConfigError(
            f"domain {name!r} has {num_classes!r} classes", where="domains", instead="a number of at least 1"
        )


def _require_size(rank: int | None, fraction: float | None, energy: float | None) -> None:
    given = {"rank": rank, "fraction": fraction, "energy": energy}
    given = {key: value for key, value in given.items() if value is not None}
    if len(given) > 1:
        raise ConfigError(
            "the size was given as " + " and as ".join(given), where="compress", instead="one of them"
        )
    for key in given.keys() & {"fraction", "energy"}:
        if not 0 < (given[key] or 0) <= 1:
            raise ConfigError(f"{key} is {given[key]}", where=key, instead="above 0, and at most 1")


def _is_joint(alpha: nn.Module) -> TypeGuard[LowRank]:
    return isinstance(alpha, LowRank) and alpha.shared


def _compress_layer(
    path: str,
    names: tuple[str, ...],
    adapters: Sequence[Adapter],
    part: Decomposition,
    rank: int,
    joint: bool,
) -> LayerCompression:
    before = sum(p.numel() for p in {id(p): p for a in adapters for p in a.alpha.parameters()}.values())
    beta, gammas = part.factors(rank)
    common = nn.Parameter(beta, requires_grad=False) if joint else beta
    for adapter, gamma in zip(adapters, gammas):
        adapter.alpha = LowRank(common, gamma, shared=joint).train(adapter.training)
    after = beta.numel() + sum(gamma.numel() for gamma in gammas)
    return LayerCompression(
        path, names, rank, part.full_rank, before, after, part.error(rank), part.energy(rank)
    )


def _read_alpha(tensors: Mapping[str, Tensor], site: AdaptedConv, joint: bool) -> Dense | LowRank:
    """Return what fits α in a file: a matrix, or factors, with the other domains' β where it is equal.

    Raises:
        KeyError: there is no α.
        RuntimeError: it is of another shape.
    """
    like = site.conv.weight
    rows, columns = site.shape
    if "alpha.weight" in tensors:
        return Dense(like.new_empty(rows, columns))
    beta = tensors["alpha.beta"].to(like)
    rank = beta.shape[-1]
    if not joint:
        return LowRank(like.new_empty(rows, rank), like.new_empty(columns, rank))
    alphas = [member.alpha for member in site.members.values() if isinstance(member, Adapter)]
    common = [a.beta for a in alphas if isinstance(a, LowRank) and a.shared and torch.equal(a.beta, beta)]
    return LowRank(common[0] if common else like.new_empty(rows, rank), like.new_empty(columns, rank), joint)
