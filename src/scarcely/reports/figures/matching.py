"""Who is matched to whom: clusters brought beside their classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scarcely.reports.evidence import confusion_counts
from scarcely.reports.figures import style


class Matching(NamedTuple):
    """Clusters brought beside their classes.

    Attributes:
        rows: (C,) order of the classes: those with a cluster first, in their own order.
        columns: (K,) order of the clusters, so that matched pairs lie on the diagonal; left-over
            clusters come last, the largest first.
        class_of: (K,) class of each cluster, -1 for one left over.
        identity: the "clusters" are the predictions of a classifier, nothing was matched.
        named: how many of the first "clusters" are such predictions while the others were matched.
    """

    rows: np.ndarray
    columns: np.ndarray
    class_of: np.ndarray
    identity: bool = False
    named: int = 0

    def right(self, counts: np.ndarray) -> int:
        """Count the samples on the diagonal: those in the cluster of their class."""
        matched = np.flatnonzero(self.class_of >= 0)
        return int(counts[self.class_of[matched], matched].sum())


def match_clusters(counts: np.ndarray, *, identity: bool = False) -> Matching:
    """Match clusters and classes one to one so that most samples agree (Hungarian algorithm).

    Args:
        counts: (C, K) confusion counts.
        identity: columns are classes already (a classifier): keep them where they are.
    """
    num_classes, num_clusters = counts.shape
    class_of = np.full(num_clusters, -1)
    if identity:
        paired = np.arange(min(num_classes, num_clusters))
        class_of[paired] = paired
    else:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(counts, maximize=True)
        class_of[columns] = rows
    cluster_of = np.full(num_classes, -1)
    matched = np.flatnonzero(class_of >= 0)
    cluster_of[class_of[matched]] = matched
    row_order = np.concatenate([np.flatnonzero(cluster_of >= 0), np.flatnonzero(cluster_of < 0)])
    left_over = np.flatnonzero(class_of < 0)
    left_over = left_over[np.argsort(-counts[:, left_over].sum(axis=0), kind="stable")]
    diagonal = cluster_of[row_order]
    return Matching(row_order, np.concatenate([diagonal[diagonal >= 0], left_over]), class_of, identity)


def match_old_new(counts: np.ndarray, num_known: int) -> Matching:
    """Keep the predictions of known classes where they are, and match the clusters to the new classes.

    Args:
        counts: (C, K) confusion counts; the first rows and columns are the known classes.
        num_known: how many these are.
    """
    new = match_clusters(counts[num_known:, num_known:])
    known = np.arange(num_known)
    return Matching(
        rows=np.concatenate([known, num_known + new.rows]),
        columns=np.concatenate([known, num_known + new.columns]),
        class_of=np.concatenate([known, np.where(new.class_of >= 0, num_known + new.class_of, -1)]),
        named=num_known,
    )


class Groups(NamedTuple):
    """Predictions sorted out for one bar or one row a cluster."""

    labels: np.ndarray  # (N,)
    counts: np.ndarray  # (C, K)
    sizes: np.ndarray  # (K,)
    order: np.ndarray  # (K,) as on the diagonal; the largest first where nothing is labelled
    class_of: np.ndarray  # (K,) all -1 where nothing is labelled
    word: str  # what a prediction is called

    @property
    def known(self) -> bool:
        """Whether any sample has a class."""
        return bool(self.counts.sum())

    @property
    def few(self) -> bool:
        """Whether every class in every bar can be told apart."""
        return max(self.counts.shape) <= style.MANY


def group_predictions(
    predicted: np.ndarray,
    labels: np.ndarray | None,
    num_classes: int,
    num_clusters: int,
    matching: Matching | None,
) -> Groups:
    """Sort predictions out by cluster.

    Args:
        predicted: (N,) clusters, -1 for none.
        labels: (N,) classes, -1 unknown, or None.
        num_classes: C.
        num_clusters: K.
        matching: of the clusters, found here if not given.
    """
    labels = np.full(len(predicted), -1) if labels is None else np.asarray(labels)
    counts = confusion_counts(labels, predicted, num_classes, num_clusters)
    sizes = np.bincount(predicted[predicted >= 0], minlength=counts.shape[1])
    if counts.sum():
        matching = matching or match_clusters(counts)
    elif matching is None or not matching.identity:
        by_size, nobody = np.argsort(-sizes, kind="stable"), np.full(len(sizes), -1)
        return Groups(labels, counts, sizes, by_size, nobody, "cluster")
    word = "class" if matching.identity else "cluster"
    return Groups(labels, counts, sizes, matching.columns, matching.class_of, word)
