"""Types with ranges for constructor arguments.

A component states the type and the range of each argument once, in its signature. The
configuration check reads them from the source file, without importing torch, and compares
them with the composed configuration before anything is built:

    def knn_adjacency(features: Tensor, k: Annotated[int, Range(3)]) -> Tensor: ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

__all__ = [
    "Annotated",
    "Literal",
    "NonNegative",
    "NonNegativeInt",
    "Positive",
    "PositiveInt",
    "Range",
    "UnitInterval",
]


@dataclass(frozen=True)
class Range:
    """An interval of numbers; ``above`` and ``below`` are strict bounds, ``low`` and ``high`` are not."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        parts = []
        if self.low is not None:
            parts.append(f"at least {self.low:g}")
        if self.above is not None:
            parts.append(f"above {self.above:g}")
        if self.high is not None:
            parts.append(f"at most {self.high:g}")
        if self.below is not None:
            parts.append(f"below {self.below:g}")
        return " and ".join(parts) or "any number"


PositiveInt = Annotated[int, Range(low=1)]
NonNegativeInt = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(low=0)]
UnitInterval = Annotated[float, Range(low=0, high=1)]
