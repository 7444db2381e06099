"""Scarcely: learning image representations when the data is awkward.

`fit`, `fit_predict`, `Clusterer`, `Discoverer` and `Classifier` are the framework in scikit-learn's manner
(docs/api.md); `scarcely.saliency` and `scarcely.adapters` work on any network. All of them are imported when
they are first asked for: ``import scarcely`` itself imports nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scarcely import adapters, saliency
    from scarcely.api import Classifier, Clusterer, Discoverer, fit, fit_predict

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "Clusterer",
    "Discoverer",
    "__version__",
    "adapters",
    "fit",
    "fit_predict",
    "saliency",
]


def __getattr__(name: str) -> Any:
    if name in ("adapters", "saliency"):
        return import_module(f"scarcely.{name}")
    if name in __all__:
        return getattr(import_module("scarcely.api"), name)
    raise AttributeError(f"module 'scarcely' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
