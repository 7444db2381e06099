"""Adapters of all domains compressed by one SVD a layer, then trained again (chapter 4, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scarcely import checkpoints
from scarcely.adapters import Compression
from scarcely.adapters.layers import AdaptedConv, LowRank
from scarcely.adapters.svd import Decomposition, check_rank
from scarcely.adapters.tables import LayerCompression
from scarcely.backbones.base import Backbone
from scarcely.errors import ConfigError
from scarcely.methods.adapted import TARGET, AdaptedMethod
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import Annotated, NonNegative, PositiveInt, Range, UnitInterval

_ALPHA = f".members.{TARGET}.alpha"


class SVDAdapters(AdaptedMethod):
    """Parallel adapters α ≈ β γᵀ, of which β is one for all domains and stays, and γ is trained.

    `join` makes them of the adapters that every domain was trained with before.

    Args:
        backbone: the network.
        num_classes: of the domain.
        num_source: classes of the source; 0 without one.
        optimizer: optimizer and schedule.
        rank: K of each layer; a layer with a smaller full rank keeps all of it. Without any of the three it
            is half of C_in or C_out, whichever is smaller.
        fraction: of each layer's full rank.
        energy: share of each layer's Σσ² to be kept at least.
        joint: one β for all domains; False: each domain has its own, which is trained too.
        ranks: K of every layer, as `join` found them; None before that.
        where, dropout, decay, norm_decay, head_decay: as the adapters had them (see `AdaptedMethod`).
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_source: int,
        optimizer: Optimizer,
        rank: PositiveInt | None = None,
        fraction: Annotated[float, Range(above=0, high=1)] | None = None,
        energy: Annotated[float, Range(above=0, high=1)] | None = None,
        joint: bool = True,
        ranks: dict[str, PositiveInt] | None = None,
        where: str | Sequence[str] = "all",
        dropout: UnitInterval = 0.0,
        decay: NonNegative = 5e-4,
        norm_decay: NonNegative = 5e-4,
        head_decay: NonNegative = 5e-4,
    ) -> None:
        super().__init__(
            *(backbone, num_classes, num_source, optimizer),
            where=where,
            dropout=dropout,
            decay=decay,
            norm_decay=norm_decay,
            head_decay=head_decay,
        )
        sizes = {"rank": rank, "fraction": fraction, "energy": energy}
        given = [name for name, size in sizes.items() if size is not None]
        if len(given) > 1:
            raise ConfigError(
                f"the size of the adapters was given as {' and as '.join(given)}",
                where=", ".join(f"method.{name}" for name in given),
                instead="one of them",
            )
        if rank is not None:
            check_rank(rank, max(min(site.shape) for site in self._sites().values()))
        for name, site in self._sites().items():
            rows, columns = site.shape
            k = ranks[name] if ranks else max(1, min(rows, columns) // 2)
            adapter: Any = site.members[TARGET]
            adapter.alpha = LowRank(torch.zeros(rows, k), torch.zeros(columns, k), shared=joint)

    def _sites(self) -> dict[str, AdaptedConv]:
        modules = self.backbone.named_modules()
        return {name: module for name, module in modules if isinstance(module, AdaptedConv)}

    def take(
        self, tensors: Mapping[str, Tensor], *, source: str, least: float, where: str
    ) -> checkpoints.Match:
        """Start from what `join` made: a domain as it was trained, with factors in place of its adapters."""
        return checkpoints.fill(self, tensors, source=source, least=1.0, where=where)

    def common_parameters(self) -> int:
        """Return how many parameters all domains share beside the network: those of β."""
        adapters: list[Any] = [site.members[TARGET] for site in self._sites().values()]
        return sum(adapter.alpha.beta.numel() for adapter in adapters if adapter.alpha.shared)

    @classmethod
    def join(
        cls, states: Mapping[str, Mapping[str, Tensor]], method: Mapping[str, Any]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], str]:
        """Compress the adapters of all domains.

        Args:
            states: state dict of each domain's `Adapters`.
            method: settings of this stage.

        Returns:
            The state dicts to go on from, further settings of the stage, and a table of what was saved.
        """
        joint = method.get("joint", True)
        together = [tuple(states)] if joint else [(name,) for name in states]
        result = {name: dict(state) for name, state in states.items()}
        ranks: dict[str, int] = {}
        report = []
        for key in [key for key in next(iter(states.values())) if key.endswith(f"{_ALPHA}.weight")]:
            layer = key.removesuffix(f"{_ALPHA}.weight").removeprefix("backbone.")
            parts = [Decomposition.of([states[name][key] for name in names]) for names in together]
            if method.get("rank") is not None:
                ranks[layer] = min(int(method["rank"]), *(part.full_rank for part in parts))
            else:  # one number for all domains, also where they are compressed apart
                ranks[layer] = max(
                    part.rank_of(method.get("fraction"), method.get("energy")) for part in parts
                )
            for names, part in zip(together, parts, strict=True):
                beta, gammas = part.factors(ranks[layer])
                for name, gamma in zip(names, gammas, strict=True):
                    del result[name][key]
                    result[name] |= {
                        key.replace("alpha.weight", "alpha.beta"): beta,
                        key.replace("alpha.weight", "alpha.gamma"): gamma,
                    }
                before = sum(states[name][key].numel() for name in names)
                after = beta.numel() + sum(gamma.numel() for gamma in gammas)
                kept = (part.error(ranks[layer]), part.energy(ranks[layer]))
                report.append(
                    LayerCompression(layer, names, ranks[layer], part.full_rank, before, after, *kept)
                )
        return result, {"ranks": ranks}, str(Compression(tuple(report)))
