"""The pictures of a run: one function a figure, arrays in, a matplotlib ``Figure`` out.

Figures are made with matplotlib's object API. Nothing goes through pyplot, so nothing is shared: they
can be drawn in a thread, and none needs to be closed. Text from outside (class names, stages) is shown
as it is, never read as a formula. Where there is nothing to show a function returns None, or a figure
that says so; each says which.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcely.reports import table
from scarcely.reports.evidence import Evidence
from scarcely.reports.figures import style
from scarcely.reports.figures.confusions import confident_confusion, confusion
from scarcely.reports.figures.discovery import OldNew, class_count, evolution, old_and_new
from scarcely.reports.figures.domains import domain_accuracies, domain_curves
from scarcely.reports.figures.embeddings import embedding
from scarcely.reports.figures.matching import match_clusters, match_old_new
from scarcely.reports.figures.montages import montage
from scarcely.reports.figures.pair_graphs import connections
from scarcely.reports.figures.saliency import (
    combined_sheets,
    contrast_sheets,
    map_sheets,
    overlay,
    randomization_sheets,
)
from scarcely.reports.figures.saliency_charts import (
    epoch_curves,
    pointing_game,
    randomization_curves,
    sensitivity_bars,
    weight_curves,
)
from scarcely.reports.figures.scarce import calibration, phases, switched
from scarcely.reports.figures.sizes import cluster_sizes
from scarcely.reports.figures.style import headline, palette, plain, to_png
from scarcely.reports.figures.training import curves, pseudo_labels
from scarcely.reports.saliency_scores import pointing_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "OldNew",
    "build_figures",
    "calibration",
    "class_count",
    "cluster_sizes",
    "combined_sheets",
    "confident_confusion",
    "confusion",
    "connections",
    "contrast_sheets",
    "curves",
    "domain_accuracies",
    "domain_curves",
    "embedding",
    "epoch_curves",
    "evolution",
    "headline",
    "map_sheets",
    "match_clusters",
    "match_old_new",
    "montage",
    "old_and_new",
    "old_new_of",
    "overlay",
    "palette",
    "phases",
    "plain",
    "pointing_game",
    "pseudo_labels",
    "randomization_curves",
    "randomization_sheets",
    "sensitivity_bars",
    "switched",
    "to_png",
    "weight_curves",
]

log = logging.getLogger(__name__)


def build_figures(evidence: Evidence, *, seed: int | None = None) -> dict[str, Figure]:
    """Make every figure that a run has evidence for, the most telling first.

    A figure that fails is replaced by one that says why, with the traceback in the log: hours of
    training are not lost to a picture.

    Args:
        evidence: what the run left behind.
        seed: of the embedding; the run's own if not given.

    Returns:
        Figures by name, which is also the stem of their file: ``confusion``, ``confident``,
        ``test-confusion``, ``phases``, ``calibration``, ``class-count``, ``sizes``, ``montage`` (then
        ``montage-2`` and on), ``switched``, ``embedding``, ``evolution``, ``old-new``, ``pairs``,
        ``domains``, ``curves``; of a saliency run ``pointing``, ``maps``, ``combined``, ``layer-weights``,
        ``sensitivity``, ``contrast``, ``randomization``, ``randomization-maps``, ``meta-epochs``; only those
        that there are.
    """
    if seed is None:
        given = evidence.results.get("seed")
        seed = given if isinstance(given, int) else 0
    identity = evidence.kind == "classification"
    discovery = bool(evidence.old_classes)
    word = "Classes" if identity else "Clusters of the new classes" if discovery else "Clusters and classes"
    classes, clusters = evidence.classes, evidence.num_clusters
    predicted, confidence, labels = evidence.predicted, evidence.confidence, evidence.labels
    counts = evidence.counts
    matching = None if counts is None else match_clusters(counts, identity=identity)
    if identity and matching is None:  # nothing to compare with, yet predictions have names
        matching = match_clusters(np.zeros((len(classes), max(clusters, len(classes)))), identity=True)
    figures: dict[str, Figure] = {}

    def add(name: str, make: Callable[..., Figure | list[Figure] | None], *args: Any, **options: Any) -> None:
        try:
            made = make(*args, **options)
        except Exception as error:
            log.warning("The figure '%s' could not be drawn.", name, exc_info=True)
            made = style.note(name, style.safe(f"could not be drawn: {type(error).__name__}: {error}", 100))
        pages = made if isinstance(made, list) else [] if made is None else [made]
        for page, figure in enumerate(pages, start=1):
            figures[name if page == 1 else f"{name}-{page}"] = figure

    if counts is not None:
        whose = f"{word} of the unlabelled samples" if evidence.scarce else word
        add("confusion", confusion, counts, classes, whose, matching=matching)
        if confidence is not None:
            known = (predicted, confidence, labels, classes, clusters)
            add("confident", confident_confusion, *known, matching=matching)
    if evidence.test is not None:
        unseen = np.asarray(evidence.test["counts"])
        both = match_old_new(unseen, len(evidence.old_classes)) if discovery else None
        title = f"{'Old and new classes' if discovery else word} of the test split"
        names = evidence.test.get("classes", classes)
        add("test-confusion", confusion, unseen, names, title, matching=both, identity=identity)
    add("phases", phases, evidence.history)
    if evidence.test_confidence is not None and evidence.test_correct is not None:
        ece = (evidence.results.get("metrics") or {}).get("test/ece")
        add("calibration", calibration, evidence.test_confidence, evidence.test_correct, ece)
    if evidence.results.get("class_count"):
        add("class-count", class_count, evidence.results["class_count"], len(classes))
    if predicted is not None:
        add("sizes", cluster_sizes, predicted, labels, classes, clusters, matching=matching)
        if evidence.images is not None:
            shown = (evidence.images, predicted, confidence, clusters, labels, classes)
            add("montage", montage, *shown, matching=matching, maps=_montage_maps(evidence))
            if evidence.switched_in is not None:
                relabelled = (evidence.images, evidence.switched_in, predicted, confidence, labels, classes)
                add("switched", switched, *relabelled)
    if evidence.features is not None:
        index = evidence.feature_index
        subset = [None if array is None else np.asarray(array)[index] for array in (labels, predicted)]
        features = (evidence.features, *subset, classes, clusters)
        add("embedding", embedding, *features, matching=matching, seed=seed)
    if evidence.snapshots is not None:
        kept = evidence.snapshots
        subset = [
            None if array is None else np.asarray(array)[kept["index"]] for array in (labels, predicted)
        ]
        add("evolution", evolution, kept["features"], kept["epochs"], *subset, classes, seed=seed)
    together = old_new_of(evidence)
    if together is not None:
        add("old-new", old_and_new, {"": together}, seed=seed)
    add("pairs", pseudo_labels, evidence.history)
    if domains := evidence.results.get("domains"):
        add("domains", _domains, evidence.results)
        add("curves", domain_curves, evidence.history, [row["name"] for row in domains])
    else:
        add("curves", curves, evidence.history)
    for name, make in _saliency_figures(evidence).items():
        add(name, make)
    return figures


def _montage_maps(evidence: Evidence) -> dict[int, np.ndarray] | None:
    if evidence.montage_index is None or evidence.montage_maps is None:
        return None
    return dict(zip(map(int, evidence.montage_index), evidence.montage_maps, strict=True))


def _saliency_figures(evidence: Evidence) -> dict[str, Callable[[], Figure | list[Figure] | None]]:
    """Return what draws each figure of a saliency run; of any other, nothing."""
    if evidence.kind != "saliency":
        return {}
    metrics, found, maps = evidence.results.get("metrics") or {}, evidence.saliency, evidence.maps
    methods, layers = found.get("methods") or [], found.get("layers") or []
    entries = found.get("randomization") or []
    preferred = {row.method: row.best_layer.where for row in pointing_rows(metrics) if row.best_layer}
    return {
        "pointing": lambda: pointing_game(metrics),
        "maps": lambda: map_sheets(maps, methods, layers),
        "combined": lambda: combined_sheets(maps, methods, found.get("weightings") or []),
        "layer-weights": lambda: weight_curves(found.get("layer_weights") or {}),
        "sensitivity": lambda: sensitivity_bars(metrics),
        "contrast": lambda: contrast_sheets(maps, methods, layers),
        "randomization": lambda: randomization_curves(entries),
        "randomization-maps": lambda: randomization_sheets(maps, entries, preferred),
        "meta-epochs": lambda: epoch_curves(found.get("epochs") or []),
    }


def _domains(results: Mapping[str, Any]) -> Figure:
    source, points = table.source_domain(results), table.domain_points(results)
    return domain_accuracies(results["domains"], source, results.get("max_errors"), points)


def old_new_of(evidence: Evidence) -> OldNew | None:
    """Return the features of known and of new classes that a run kept; None if it has not both."""
    old, new = evidence.old_features, evidence.features
    if old is None or new is None or not len(old) or not len(new):
        return None
    hidden = np.full(len(new), -1)
    if evidence.labels is not None:
        hidden = np.asarray(evidence.labels)[evidence.feature_index]
    known = np.asarray(evidence.old_labels)
    return OldNew(old, known, new, hidden, evidence.old_classes, evidence.classes)
