"""Scores of the papers. Each is imported when it is asked for: torchmetrics takes seconds to import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scarcely.metrics.cluster import ClusterAccuracy as ClusterAccuracy
    from scarcely.metrics.decathlon import MAX_ERRORS as MAX_ERRORS
    from scarcely.metrics.decathlon import decathlon_score as decathlon_score
    from scarcely.metrics.decathlon import max_errors_of as max_errors_of
    from scarcely.metrics.pointing import Objects as Objects
    from scarcely.metrics.pointing import PointingGame as PointingGame
    from scarcely.metrics.sensitivity import Correlation as Correlation
    from scarcely.metrics.sensitivity import class_sensitivity as class_sensitivity

_HOME = {
    "ClusterAccuracy": "scarcely.metrics.cluster",
    "Correlation": "scarcely.metrics.sensitivity",
    "MAX_ERRORS": "scarcely.metrics.decathlon",
    "Objects": "scarcely.metrics.pointing",
    "PointingGame": "scarcely.metrics.pointing",
    "class_sensitivity": "scarcely.metrics.sensitivity",
    "decathlon_score": "scarcely.metrics.decathlon",
    "max_errors_of": "scarcely.metrics.decathlon",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
