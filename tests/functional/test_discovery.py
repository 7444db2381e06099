"""Accuracies of old and new classes, against a search through all assignments."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcely.functional.discovery import old_new_scores


def assignments(classes, clusters):
    """Every one-to-one assignment of as many classes to clusters as there can be."""
    if clusters >= classes:
        return [dict(enumerate(p)) for p in itertools.permutations(range(clusters), classes)]
    return [
        {c: k for k, c in enumerate(chosen)} for chosen in itertools.permutations(range(classes), clusters)
    ]


def best(counts):
    """The assignment with most samples on it, and their number."""
    hits = lambda a: sum(int(counts[c][k]) for c, k in a.items())  # noqa: E731
    return max(((hits(a), a) for a in assignments(*counts.shape)), key=lambda pair: pair[0])


@given(st.integers(0, 3), st.integers(0, 2), st.integers(1, 4), st.integers(0, 10_000))
def test_scores_are_those_of_the_best_of_all_assignments(known, new, extra, seed):
    classes, predictions = known + new, known + extra
    if not classes:
        return
    counts = np.random.default_rng(seed).integers(0, 9, (classes, predictions))
    scores = old_new_scores(counts, known)
    total = counts.sum()
    own = [best(counts[:known])[0] if known else 0, best(counts[known:])[0] if new else 0]
    sums = [counts[:known].sum(), counts[known:].sum()]
    share = lambda part, whole: part / whole if whole else math.nan  # noqa: E731
    assert scores["old/acc"] == pytest.approx(share(own[0], sums[0]), nan_ok=True)
    assert scores["new/acc"] == pytest.approx(share(own[1], sums[1]), nan_ok=True)
    assert scores["all/acc"] == pytest.approx(share(sum(own), total), nan_ok=True)
    assert scores["all/acc_joint"] == pytest.approx(share(best(counts)[0], total), nan_ok=True)
    parts = scores["old/acc_joint"], scores["new/acc_joint"]
    joint = sum(p * s for p, s in zip(parts, sums) if s)
    assert joint == pytest.approx(best(counts)[0])
    named = sum(counts[c, c] for c in range(known))
    assert scores["old/accuracy"] == pytest.approx(share(named, sums[0]), nan_ok=True)


def test_the_three_kinds_differ_where_they_should():
    # old 0 and 1 are called each other's name; new 2 is called old 0 half of the time
    counts = [[0, 10, 0], [10, 0, 0], [5, 0, 5]]
    scores = old_new_scores(np.array(counts), 2)
    assert scores["old/accuracy"] == 0.0
    assert scores["old/acc"] == scores["old/acc_joint"] == 1.0
    assert scores["new/acc"] == scores["new/acc_joint"] == 0.5
    assert scores["all/acc"] == pytest.approx(25 / 30)


def test_a_group_that_takes_anothers_cluster_loses_it_jointly():
    counts = np.array([[9, 1], [10, 0]])  # the new class is mistaken for the old one
    scores = old_new_scores(counts, 1)
    assert (scores["new/acc"], scores["old/acc"]) == (1.0, 0.9)
    assert (scores["new/acc_joint"], scores["old/acc_joint"]) == (1.0, 0.1)
    assert scores["all/acc_joint"] == pytest.approx(11 / 20)
