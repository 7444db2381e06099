"""How well known and new classes are told apart, from confusion counts (thesis, chapter 6, table 4)."""

from __future__ import annotations

import numpy as np

from scarcely.functional.clustering import Counts, clustering_accuracy, hungarian


def old_new_scores(counts: Counts, num_known: int) -> dict[str, float]:
    """Return the accuracies of old and new classes, where any prediction may be given to any sample.

    Args:
        counts: (C, K) int, classes in rows, known ones first; column k < C_l is the prediction of the
            known class k, all others are clusters. Predictions are not restricted to their own group.
        num_known: C_l.

    Returns:
        For ``old``, ``new`` and ``all``: ``/acc``, for which each group is assigned by itself (Hungarian;
        ``all`` is the mean over the samples of both), and ``/acc_joint``, for which all classes are
        assigned once, together. ``old/accuracy`` has no assignment: the share of the samples of known
        classes that are called by their name. A group without samples is NaN.
    """
    counts = np.asarray(counts, dtype=np.int64)
    groups = {"old": slice(None, num_known), "new": slice(num_known, None), "all": slice(None)}
    totals = {name: int(counts[rows].sum()) for name, rows in groups.items()}
    own = {name: clustering_accuracy(counts[rows]) for name, rows in groups.items() if name != "all"}
    parts = [own[name] * totals[name] for name in own if totals[name]]
    own["all"] = sum(parts) / totals["all"] if parts else float("nan")

    class_of = hungarian(counts)
    matched = np.zeros(len(counts), dtype=np.int64)
    columns = np.flatnonzero(class_of >= 0)
    matched[class_of[columns]] = counts[class_of[columns], columns]
    named = np.diagonal(counts)[:num_known].sum()
    scores = {f"{name}/acc": value for name, value in own.items()}
    scores |= {
        f"{name}/acc_joint": _share(matched[rows].sum(), totals[name]) for name, rows in groups.items()
    }
    return scores | {"old/accuracy": _share(named, totals["old"])}


def _share(part: int, whole: int) -> float:
    return float(part) / whole if whole else float("nan")
