"""The scores of a saliency run, read from its flat metrics (chapter 8, sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

META = "-meta"  # behind the name of a method: the same with meta-saliency
_COMBINED = "combined-"
_EVALUATIONS = ("pointing", "sensitivity", "meta", "randomization", "identity")
_SUBSETS = ("all", "difficult", "all_stderr", "difficult_stderr")


@dataclass(frozen=True)
class Score:
    """Pointing game of one kind of map.

    Attributes:
        where: its layer, or how layers were combined, ``product-accuracy``.
        all: share of hits in [0, 1]; None where it is not known, as all others.
        difficult: the same of the difficult subset.
        all_stderr: standard error of ``all``.
        difficult_stderr: that of ``difficult``.
    """

    where: str
    all: float | None = None
    difficult: float | None = None
    all_stderr: float | None = None
    difficult_stderr: float | None = None


@dataclass
class Pointing:
    """Pointing game of one method.

    Attributes:
        method: its name; with meta-saliency ``NAME-meta``.
        layers: score of each layer.
        combined: score of each combination of layers, by its name: ``product-accuracy``.
    """

    method: str
    layers: dict[str, Score] = field(default_factory=dict)
    combined: dict[str, Score] = field(default_factory=dict)

    @property
    def best_layer(self) -> Score | None:
        """The layer with the highest score on all images."""
        return _best(self.layers.values())

    @property
    def best_combined(self) -> Score | None:
        """The combination with the highest score on all images."""
        return _best(self.combined.values())


def _best(scores: Iterable[Score | None]) -> Score | None:
    known = [score for score in scores if score is not None and score.all is not None]
    return max(known, key=lambda score: score.all or 0.0, default=None)


def best_layer(rows: Iterable[Pointing]) -> tuple[str, Score] | None:
    """Return the method and the score of the best single layer of all."""
    found = [(row.method, row.best_layer) for row in rows]
    return _best_of(found)


def best_combined(rows: Iterable[Pointing]) -> tuple[str, Score] | None:
    """Return the method and the score of the best combination of all."""
    return _best_of([(row.method, row.best_combined) for row in rows])


def _best_of(found: Iterable[tuple[str, Score | None]]) -> tuple[str, Score] | None:
    known = [(method, score) for method, score in found if score is not None]
    return max(known, key=lambda pair: pair[1].all or 0.0, default=None)


def shown_module(name: object) -> str:
    """Shorten the name of a module for a figure: the networks of this project are all behind ``backbone``."""
    return str(name).removeprefix("backbone.")


def is_saliency(metrics: Mapping[str, Any]) -> bool:
    """Whether metrics are those of a saliency run."""
    return any(is_saliency_metric(key) for key in metrics)


def is_saliency_metric(key: str) -> bool:
    """Whether a metric is one of a saliency run."""
    return key.split("/")[0] in _EVALUATIONS and "/" in key


def pointing_rows(metrics: Mapping[str, Any]) -> list[Pointing]:
    """Arrange the pointing game by method, in the order in which methods and layers come.

    Methods that no figure is known of are left out; the centre is none of them, see `center`.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in metrics.items():
        match key.split("/"):
            case ["pointing", method, where, subset] if subset in _SUBSETS and _number(value):
                found.setdefault(method, {}).setdefault(where, {})[subset] = float(value)
    rows = []
    for method, places in found.items():
        row = Pointing(method)
        for where, scores in places.items():
            name = where.removeprefix(_COMBINED)
            (row.combined if where.startswith(_COMBINED) else row.layers)[name] = Score(name, **scores)
        rows.append(row)
    return rows


def judged(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the few scores that saliency runs are judged by.

    The pointing game on all pairs: of the centre, and of each method at the layer and with the combination
    of layers whose mean over the runs is best.

    Args:
        runs: metrics of each; none of other runs.
    """
    values: dict[str, list[float]] = {}
    for key, value in ((key, value) for metrics in runs for key, value in metrics.items()):
        if key.startswith("pointing/") and _number(value):
            values.setdefault(key, []).append(float(value))
    metrics = {key: sum(each) / len(each) for key, each in values.items()}
    found = ["pointing/center/all"] if center(metrics).all is not None else []
    for row in pointing_rows(metrics):
        best = (row.best_layer, ""), (row.best_combined, _COMBINED)
        found += [f"pointing/{row.method}/{kind}{score.where}/all" for score, kind in best if score]
    return found


def center(metrics: Mapping[str, Any]) -> Score:
    """Return the pointing game of the centre of each image."""
    known = {
        subset: float(metrics[f"pointing/center/{subset}"])
        for subset in _SUBSETS
        if _number(metrics.get(f"pointing/center/{subset}"))
    }
    return Score("center", **known)


def by_layer(metrics: Mapping[str, Any], evaluation: str) -> dict[str, dict[str, float]]:
    """Return ``sensitivity``, ``meta`` or ``randomization`` as {method: {layer: value}}."""
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        match key.split("/"):
            case [word, method, layer] if word == evaluation and _number(value):
                found.setdefault(method, {})[layer] = float(value)
    return found


def identities(metrics: Mapping[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    """Return of each layer the correlation of virtual identity and real convolution, and the difference of
    their pointing games."""
    layers = dict.fromkeys(key.split("/")[1] for key in metrics if key.startswith("identity/"))
    return {
        layer: (_known(metrics, f"identity/{layer}"), _known(metrics, f"identity/{layer}/pointing"))
        for layer in layers
    }


def _known(metrics: Mapping[str, Any], key: str) -> float | None:
    return float(metrics[key]) if _number(metrics.get(key)) else None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
