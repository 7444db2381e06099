"""What adapters cost, as tables that print themselves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParameterRow:
    """Parameters of one domain, or of what all share.

    Attributes:
        name: the domain; ``shared`` for the rest.
        adapters, norms, head, other: how many parameters of each kind.
        trainable: how many of all these get a gradient.
    """

    name: str
    adapters: int
    norms: int
    head: int
    other: int
    trainable: int

    @property
    def total(self) -> int:
        """Return the sum of all kinds."""
        return self.adapters + self.norms + self.head + self.other


@dataclass(frozen=True)
class ParameterTable:
    """Parameters of a network with its domains.

    Attributes:
        rows: what is shared, then each domain.
        network: parameters of the network as it came, its classifier left out.
        ratio: all parameters as a multiple of ``network``, classifiers left out.
    """

    rows: tuple[ParameterRow, ...]
    network: int

    @property
    def ratio(self) -> float:
        """Return how many times one network all of it is."""
        return sum(row.total - row.head for row in self.rows) / self.network

    def __str__(self) -> str:
        heading = ("", "adapters", "norms", "head", "other", "total", "trainable")
        cells = [
            (r.name, *(f"{n:,}" for n in (r.adapters, r.norms, r.head, r.other, r.total, r.trainable)))
            for r in self.rows
        ]
        return _aligned([heading, *cells]) + f"\n{self.ratio:.3f} × one network, classifiers left out"


@dataclass(frozen=True)
class LayerCompression:
    """What the compression did to one layer.

    Attributes:
        layer: name of the convolution.
        domains: those whose adapters were factored together.
        rank, full_rank: of the factors, and the largest possible.
        before, after: parameters of these adapters.
        error: Σ_t ‖α_t − β γ_tᵀ‖², the sum of the squared singular values left out.
        energy: share of Σσ² that is kept.
    """

    layer: str
    domains: tuple[str, ...]
    rank: int
    full_rank: int
    before: int
    after: int
    error: float
    energy: float


@dataclass(frozen=True)
class Compression:
    """What the compression did to the network.

    Attributes:
        layers: one entry a layer, a layer and domain if they were compressed apart.
        before, after: parameters of all adapters.
        error: sum of the layers' errors.
    """

    layers: tuple[LayerCompression, ...]

    @property
    def before(self) -> int:
        """Return the parameters of all adapters before."""
        return sum(layer.before for layer in self.layers)

    @property
    def after(self) -> int:
        """Return the parameters of all adapters after."""
        return sum(layer.after for layer in self.layers)

    @property
    def error(self) -> float:
        """Return the sum of the layers' errors."""
        return sum(layer.error for layer in self.layers)

    def __str__(self) -> str:
        rows = [
            (
                layer.layer if len(layer.domains) > 1 else f"{layer.layer} ({layer.domains[0]})",
                f"{layer.rank} of {layer.full_rank}",
                f"{layer.before:,}",
                f"{layer.after:,}",
                f"{layer.error:.3g}",
                f"{layer.energy:.1%}",
            )
            for layer in self.layers
        ]
        heading = ("layer", "rank", "before", "after", "error", "energy")
        share = f"\n{self.before:,} → {self.after:,} parameters ({self.after / self.before:.0%})"
        return _aligned([heading, *rows]) + share


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    )
