"""Pairwise labels and their loss, literally: one pair after the other, in double precision."""

from __future__ import annotations

import math

import torch


def squared_distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b))


def unit(a):
    norm = math.sqrt(sum(x * x for x in a))
    return [x / norm if norm > 0 else 0.0 for x in a]


def adjacency(features, connected):
    """``connected(i, j, rows)`` for every pair, and every sample with itself."""
    rows = features.double().tolist()
    everyone = range(len(rows))
    return torch.tensor(
        [[i == j or bool(connected(i, j, rows)) for j in everyone] for i in everyone], dtype=torch.bool
    )


def l2_adjacency(features, threshold, normalize=False):
    def connected(i, j, rows):
        a, b = (unit(rows[i]), unit(rows[j])) if normalize else (rows[i], rows[j])
        return squared_distance(a, b) < threshold

    return adjacency(features, connected)


def cosine_adjacency(features, threshold):
    def connected(i, j, rows):
        return sum(x * y for x, y in zip(unit(rows[i]), unit(rows[j]))) > threshold

    return adjacency(features, connected)


def sne_adjacency(features, threshold, temperature):
    def affinity(i, j, rows):
        return math.exp(-squared_distance(rows[i], rows[j]) / temperature**2)

    def conditional(j, i, rows):
        """p_{j|i}, LSD-C eq. 1."""
        partition = sum(affinity(i, k, rows) for k in range(len(rows)) if k != i)
        return affinity(i, j, rows) / partition

    def connected(i, j, rows):
        return i != j and (conditional(j, i, rows) + conditional(i, j, rows)) / 2 > threshold

    return adjacency(features, connected)


def knn_adjacency(features, k, normalize=False):
    """Nearer than the k-th; nobody where that is no number, and never what is none itself."""

    def is_neighbour(j, i, rows):
        distances = [squared_distance(rows[i], row) for row in rows]
        if normalize:
            distances = [2 - 2 * sum(x * y for x, y in zip(unit(rows[i]), unit(row))) for row in rows]
            distances[i] = 0
        finite = [all(map(math.isfinite, row)) for row in rows]
        distances = [d if a and finite[i] else math.inf for d, a in zip(distances, finite)]
        kth = sorted(distances)[k - 1]
        return math.isfinite(kth) and distances[j] < kth

    def connected(i, j, rows):
        return is_neighbour(j, i, rows) or is_neighbour(i, j, rows)

    return adjacency(features, connected)


def rank_adjacency(features, k):
    def top(row):
        return set(sorted(range(len(row)), key=lambda d: (-row[d], d))[:k])

    def connected(i, j, rows):
        return top(rows[i]) == top(rows[j])

    return adjacency(features, connected)


def mix_target(adjacency, permutations, weights, transposed=False):
    n = len(adjacency)
    target = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            for weight, permutation in zip(weights, permutations):
                row, column = (permutation[i], j) if transposed else (i, permutation[j])
                target[i, j] += float(weight) * float(adjacency[row, column])
    return target


def pairwise_bce(p, q, target, mask=None, epsilon=1e-7):
    """Differentiable in p and q, in their own precision."""
    terms = []
    for i in range(len(p)):
        for j in range(len(q)):
            if mask is not None and not mask[i, j]:
                continue
            same = sum(p[i, k] * q[j, k] for k in range(p.shape[1])).clamp(0, 1)
            t = float(target[i, j])
            terms.append(-(t * torch.log(same + epsilon) + (1 - t) * torch.log(1 - same + epsilon)))
    return sum(terms) / len(terms)
