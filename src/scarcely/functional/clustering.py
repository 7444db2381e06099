"""How well clusters match classes, from their confusion counts.

Counts are an int64 matrix (classes, clusters): they add up over batches and ranks, and every score here
is a function of them alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Counts = Tensor | np.ndarray


def confusion_counts(labels: Tensor, clusters: Tensor, num_classes: int, num_clusters: int) -> Tensor:
    """Count the samples of each class in each cluster, on their device and without waiting for it.

    Args:
        labels: (n,) int64, from 0; −1 for a sample without a label, which is not counted.
        clusters: (n,) int64, from 0.
        num_classes: C.
        num_clusters: K.

    Returns:
        Int64 (C, K).

    Raises:
        ValueError: there are more labels than clusters, or fewer.
        IndexError: a label is C or more, or a cluster K or more (on the CPU; a device asserts).
    """
    if labels.shape != clusters.shape:
        raise ValueError(f"{tuple(labels.shape)} labels for {tuple(clusters.shape)} clusters")
    counts = torch.zeros(num_classes + 1, num_clusters, dtype=torch.int64, device=labels.device)
    # Row 0 collects what has no label: to select the others, the host would have to know their number.
    counts.index_put_((labels + 1, clusters), counts.new_ones(()), accumulate=True)
    return counts[1:]


def hungarian(counts: Counts) -> np.ndarray:
    """Assign clusters to classes one to one, so that most samples are in their class's cluster.

    Args:
        counts: (C, K).

    Returns:
        Int64 (K,), the class of each cluster; −1 for a cluster left over (if K > C).
    """
    from scipy.optimize import linear_sum_assignment

    counts = _on_host(counts)
    classes, clusters = linear_sum_assignment(counts, maximize=True)
    assignment = np.full(counts.shape[1], -1)
    assignment[clusters] = classes
    return assignment


def order_by_assignment(counts: Counts) -> np.ndarray:
    """The order of the clusters that puts the counts matched by :func:`hungarian` on the diagonal.

    Args:
        counts: (C, K). With K < C, the clusters come in the order of their classes.

    Returns:
        Int64 (K,), so that ``counts[:, order]`` is the matrix to show; clusters left over come last.
    """
    assignment = hungarian(counts)
    left_over = assignment < 0
    return np.lexsort((assignment, left_over))


def clustering_accuracy(counts: Counts) -> float:
    """The share of samples in their class's cluster, under the best assignment (LSD-C, eq. 9).

    Args:
        counts: (C, K).

    Returns:
        Accuracy in [0, 1]; NaN without samples.
    """
    counts = _on_host(counts)
    assignment = hungarian(counts)
    (matched,) = np.nonzero(assignment >= 0)
    total = counts.sum()
    return float(counts[assignment[matched], matched].sum() / total) if total else float("nan")


def normalized_mutual_information(counts: Counts) -> float:
    """Mutual information of classes and clusters, over the arithmetic mean of their entropies.

    Args:
        counts: (C, K).

    Returns:
        NMI in [0, 1]; 1 if all samples are of one class and in one cluster.
    """
    counts = _on_host(counts)
    joint = counts / max(counts.sum(), 1)
    classes, clusters = joint.sum(axis=1), joint.sum(axis=0)
    mean_entropy = (_entropy(classes) + _entropy(clusters)) / 2
    if mean_entropy == 0:
        return 1.0
    present = joint > 0
    information = joint[present] * np.log(joint[present] / np.outer(classes, clusters)[present])
    return float(np.clip(information.sum() / mean_entropy, 0, 1))


def adjusted_rand_index(counts: Counts) -> float:
    """Agreement of classes and clusters on pairs of samples, adjusted for chance (Hubert and Arabie, 1985).

    Args:
        counts: (C, K).

    Returns:
        ARI, at most 1; 0 is expected of random clusters.
    """
    counts = _on_host(counts)
    # Python's integers: numbers of pairs of pairs outgrow 64 bits from 10⁵ samples on.
    together = _pairs(counts)
    same_class, same_cluster = _pairs(counts.sum(axis=1)), _pairs(counts.sum(axis=0))
    every = _pairs(counts.sum())
    # (together − expected) / (mean − expected), multiplied by every: both sides of the fraction stay exact.
    above_chance = together * every - same_class * same_cluster
    best_above_chance = (same_class + same_cluster) * every - 2 * same_class * same_cluster
    return 2 * above_chance / best_above_chance if best_above_chance else 1.0


def _on_host(counts: Counts) -> np.ndarray:
    return counts.cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)


def _entropy(probabilities: np.ndarray) -> float:
    present = probabilities[probabilities > 0]
    return float(-(present * np.log(present)).sum())


def _pairs(sizes: np.ndarray) -> int:
    """The number of unordered pairs within groups of these sizes."""
    return int((sizes * (sizes - 1) // 2).sum())
