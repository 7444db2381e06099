from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from scarcely.functional.clustering import (
    adjusted_rand_index,
    clustering_accuracy,
    confusion_counts,
    hungarian,
    normalized_mutual_information,
    order_by_assignment,
)
from tests.oracles import clustering as oracle

quick = settings(deadline=None, max_examples=30, derandomize=True)


@st.composite
def partitions(draw, least_label=0):
    """Labels, clusters, and how many there may be of each."""
    num_classes, num_clusters = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    pair = st.tuples(st.integers(least_label, num_classes - 1), st.integers(0, num_clusters - 1))
    labels, clusters = zip(*draw(st.lists(pair, min_size=1, max_size=20)))
    return labels, clusters, num_classes, num_clusters


def count(labels, clusters, num_classes, num_clusters):
    return confusion_counts(torch.tensor(labels), torch.tensor(clusters), num_classes, num_clusters)


@quick
@given(case=partitions(least_label=-1))
def test_counts_equal_oracle(case):
    counts = count(*case)
    assert counts.dtype == torch.int64
    assert counts.tolist() == oracle.confusion_counts(*case)


def test_counts_of_nothing_are_zero():
    assert confusion_counts(torch.zeros(0).long(), torch.zeros(0).long(), 2, 3).tolist() == [[0] * 3] * 2


@pytest.mark.parametrize(("label", "cluster"), [(2, 0), (0, 3), (-1, 3)])
def test_labels_and_clusters_beyond_their_number_are_refused(label, cluster):
    with pytest.raises(IndexError):
        count([label], [cluster], 2, 3)


def test_counts_refuse_labels_and_clusters_of_different_samples():
    with pytest.raises(ValueError, match="labels"):
        count([0], [0, 0, 0], 2, 3)


@quick
@given(case=partitions())
def test_accuracy_equals_the_best_of_all_assignments(case):
    assert clustering_accuracy(count(*case)) == pytest.approx(oracle.accuracy(*case), abs=1e-12)


@quick
@given(case=partitions())
def test_assignment_is_one_to_one_and_as_large_as_possible(case):
    _, _, num_classes, num_clusters = case
    assignment = hungarian(count(*case))
    assert assignment.shape == (num_clusters,)
    assigned = assignment[assignment >= 0]
    assert len(assigned) == len(set(assigned)) == min(num_classes, num_clusters)
    assert set(assigned) <= set(range(num_classes))


def test_hungarian_is_not_greedy():
    # Greedy would take the 10 and be left with 0: 10 in all instead of 18.
    assert hungarian(torch.tensor([[10, 9], [9, 0]])).tolist() == [1, 0]


def test_clusters_left_over_have_no_class_and_come_last():
    counts = torch.tensor([[0, 1, 7, 0], [5, 2, 0, 0]])
    assert hungarian(counts).tolist() == [1, -1, 0, -1]
    assert order_by_assignment(counts).tolist() == [2, 0, 1, 3]


@quick
@given(case=partitions())
def test_order_puts_the_matched_counts_on_the_diagonal(case):
    counts = count(*case)
    order = order_by_assignment(counts)
    assert sorted(order) == list(range(counts.shape[1]))
    if counts.shape[0] <= counts.shape[1]:
        matched = counts[:, order].diagonal().sum().item() / counts.sum().item()
        assert matched == pytest.approx(clustering_accuracy(counts))


def test_fewer_clusters_than_classes_come_in_the_order_of_their_classes():
    assert order_by_assignment(torch.tensor([[0, 9], [0, 0], [9, 0]])).tolist() == [1, 0]


@quick
@given(case=partitions())
def test_nmi_and_ari_equal_oracle_and_scikit_learn(case):
    labels, clusters, *_ = case
    counts = count(*case)
    for score, literal, reference in (
        (
            normalized_mutual_information,
            oracle.normalized_mutual_information,
            metrics.normalized_mutual_info_score,
        ),
        (adjusted_rand_index, oracle.adjusted_rand_index, metrics.adjusted_rand_score),
    ):
        assert score(counts) == pytest.approx(literal(labels, clusters), abs=1e-10)
        assert score(counts) == pytest.approx(reference(labels, clusters), abs=1e-10)


@pytest.mark.parametrize(
    ("labels", "clusters"),
    [
        ([0], [0]),
        ([0, 0, 0], [0, 0, 0]),
        ([0, 0, 0], [0, 1, 2]),
        ([0, 1, 2], [0, 0, 0]),
        ([0, 1, 2], [2, 0, 1]),
        ([0, 0, 1, 1], [0, 1, 0, 1]),
    ],
)
def test_limits_are_those_of_scikit_learn(labels, clusters):
    counts = count(labels, clusters, 4, 5)
    nmi, ari = normalized_mutual_information(counts), adjusted_rand_index(counts)
    assert nmi == pytest.approx(metrics.normalized_mutual_info_score(labels, clusters), abs=1e-10)
    assert ari == pytest.approx(metrics.adjusted_rand_score(labels, clusters), abs=1e-10)


def test_no_samples():
    empty = torch.zeros(3, 3, dtype=torch.int64)
    assert math.isnan(clustering_accuracy(empty))
    assert normalized_mutual_information(empty) == metrics.normalized_mutual_info_score([], []) == 1
    assert adjusted_rand_index(empty) == metrics.adjusted_rand_score([], []) == 1


def test_scores_equal_scikit_learn_on_large_counts():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 100_000)
    clusters = np.where(rng.random(100_000) < 0.6, labels, rng.integers(0, 12, 100_000))
    counts = count(labels, clusters, 10, 12)
    nmi, ari = normalized_mutual_information(counts), adjusted_rand_index(counts)
    assert nmi == pytest.approx(metrics.normalized_mutual_info_score(labels, clusters), abs=1e-10)
    assert ari == pytest.approx(metrics.adjusted_rand_score(labels, clusters), abs=1e-10)


def test_ten_million_samples_do_not_overflow():
    # NMI depends on shares alone, and so does ARI up to 1/n: compare with counts a thousandth of the size.
    counts = torch.tensor([[4, 1, 0], [1, 3, 1], [0, 0, 5]]) * 1000
    many = counts * 1000
    assert many.sum() > 10**7
    assert normalized_mutual_information(many) == pytest.approx(
        normalized_mutual_information(counts), abs=1e-12
    )
    assert adjusted_rand_index(many) == pytest.approx(adjusted_rand_index(counts), abs=1e-3)
    perfect = torch.eye(2, dtype=torch.int64) * 10**7
    assert adjusted_rand_index(perfect) == 1
    assert clustering_accuracy(perfect) == 1


@quick
@given(case=partitions(), data=st.data())
def test_scores_do_not_depend_on_the_names_of_clusters(case, data):
    counts = count(*case).numpy()
    renamed = counts[:, data.draw(st.permutations(range(counts.shape[1])))]
    for score in (clustering_accuracy, normalized_mutual_information, adjusted_rand_index):
        assert score(renamed) == pytest.approx(score(counts), abs=1e-12)
