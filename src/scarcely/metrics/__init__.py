"""Scores of the papers. Each is imported when it is asked for: torchmetrics takes seconds to import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scarcely.metrics.cluster import ClusterAccuracy as ClusterAccuracy

_HOME = {
    "ClusterAccuracy": "scarcely.metrics.cluster",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
