"""The quality of pairwise labels, against a loop over all pairs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scarcely.metrics.pairs import pair_quality


def by_loops(adjacency, labels, counted):
    n = len(labels)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j and counted[i] and counted[j]]
    positive = [(i, j) for i, j in pairs if adjacency[i][j]]
    judged = [(i, j) for i, j in positive if labels[i] >= 0 and labels[j] >= 0]
    same = [(i, j) for i, j in pairs if labels[i] == labels[j] >= 0]
    correct = [pair for pair in judged if pair in same]
    share = lambda part, whole: len(part) / len(whole) if whole else math.nan  # noqa: E731
    return [share(positive, pairs), share(correct, judged), share(correct, same)]


@given(st.integers(1, 7), st.integers(0, 10_000), st.booleans())
def test_shares_are_those_of_a_loop_over_all_pairs(n, seed, some):
    g = torch.Generator().manual_seed(seed)
    adjacency = torch.rand(n, n, generator=g) < 0.5
    adjacency = (adjacency | adjacency.mT).fill_diagonal_(True)
    labels = torch.randint(-1, 3, (n,), generator=g)
    counted = torch.rand(n, generator=g) < 0.6 if some else torch.ones(n, dtype=torch.bool)
    quality = pair_quality(adjacency, labels, counted if some else None)
    expected = by_loops(adjacency.tolist(), labels.tolist(), counted.tolist())
    assert list(quality) == ["pairs/positive", "pairs/precision", "pairs/recall"]
    assert [float(q) for q in quality.values()] == pytest.approx(expected, nan_ok=True)
