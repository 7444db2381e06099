"""The loss of LSD-C, literally: one pair after the other, in double precision."""

from __future__ import annotations

import math

EPSILON = 1e-7


def target(adjacency, i, j, permutations, weights, transposed):
    """Label of the pure sample i and the composite j (eq. 6)."""
    total = 0.0
    for weight, permutation in zip(weights, permutations):
        row, column = (permutation[i], j) if transposed else (i, permutation[j])
        total += float(weight) * float(adjacency[row][column])
    return total


def clustering_loss(adjacency, p, p1, permutations, weights, transposed=False):
    """Binary cross-entropy over all ordered pairs, self-pairs included (eqs. 4 to 6)."""
    n, clusters = p.shape
    total = 0.0
    for i in range(n):
        for j in range(n):
            t = target(adjacency, i, j, permutations, weights, transposed)
            same = sum(p[i, k] * p1[j, k] for k in range(clusters))
            total = total - t * (same + EPSILON).log() - (1 - t) * (1 - same + EPSILON).log()
    return total / n**2


def consistency_loss(p1, p2):
    """Mean squared difference of the predictions of the two composed views."""
    n, clusters = p1.shape
    return sum((p1[i, k] - p2[i, k]) ** 2 for i in range(n) for k in range(clusters)) / (n * clusters)


def rampup(epoch, length):
    return 1.0 if epoch >= length else math.exp(-5 * (1 - epoch / length) ** 2)


def loss(adjacency, p, p1, p2, permutations, weights, epoch, consistency, length, transposed=False):
    """L_clus + ω(t) · L_cons (eqs. 7 and 8)."""
    clustering = clustering_loss(adjacency, p, p1, permutations, weights, transposed)
    return clustering + consistency * rampup(epoch, length) * consistency_loss(p1, p2)
