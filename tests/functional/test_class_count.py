from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scarcely.errors import ConfigError
from scarcely.functional.class_count import (
    _choose_anchors,
    _compress,
    _distances,
    _judge,
    _Problem,
    _within_standard_error,
    constrained_kmeans,
    estimate_num_new,
    lloyd,
)
from tests.oracles import class_count as oracle

quick = settings(deadline=None, max_examples=40, derandomize=True)


@st.composite
def problems(draw, most=12):
    """Features on a small grid, where many are equal and many distances are tied; labels; K."""
    n, d, k = draw(st.integers(1, most)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    values = draw(st.lists(st.integers(-3, 3), min_size=n * d, max_size=n * d))
    fixed = draw(st.lists(st.integers(-1, k - 1), min_size=n, max_size=n))
    features = torch.tensor(values, dtype=torch.float64).reshape(n, d)
    return features, torch.tensor(fixed), k


def gaussian(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def blobs(num_classes, each=30, d=8, spread=0.6, seed=0):
    """Samples around centres that are far apart, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.one_hot(torch.arange(num_classes), max(d, num_classes)) * 5.0
    classes = torch.arange(num_classes).repeat(each)
    noise = torch.randn(len(classes), centres.shape[1], generator=generator)
    return centres[classes] + spread * noise, classes


def known_and_new(num_known, num_new, **settings):
    features, classes = blobs(num_known + num_new, **settings)
    known = classes < num_known
    return features[known], classes[known], features[~known]


def total(features, clusters):
    return (features - clusters.centroids[clusters.labels]).square().sum().item()


# k-means


@pytest.mark.parametrize("seed", range(8))
def test_lloyd_equals_oracle(seed):
    features, starts = gaussian(30, 3, seed), gaussian(4, 3, seed + 100)
    fixed = torch.full((30,), -1)
    fixed[:9] = torch.tensor([0, 2, 3]).repeat(3)
    clusters = lloyd(features, fixed, starts)
    labels, centroids, inertia = oracle.lloyd(features, fixed, starts)
    assert clusters.labels.tolist() == labels
    torch.testing.assert_close(clusters.centroids, torch.tensor(centroids, dtype=torch.float64))
    assert clusters.inertia == pytest.approx(inertia)


@quick
@given(problem=problems(), seed=st.integers(0, 9))
def test_fixed_samples_stay_and_free_ones_are_in_the_nearest_cluster(problem, seed):
    features, fixed, k = problem
    clusters = constrained_kmeans(features, fixed, k, seed=seed)
    held = fixed >= 0
    assert torch.equal(clusters.labels[held], fixed[held])
    assert clusters.labels.dtype == torch.int64
    assert 0 <= clusters.labels.min() <= clusters.labels.max() < k
    distances = torch.cdist(features, clusters.centroids)
    own = distances.gather(1, clusters.labels[:, None]).squeeze(1)
    # at convergence; a tie between two centroids is rounded either way
    assert (own <= distances.amin(dim=1) + 1e-6)[~held].all()


@quick
@given(problem=problems(), seed=st.integers(0, 9))
def test_centroids_are_means_and_the_inertia_is_theirs(problem, seed):
    features, fixed, k = problem
    clusters = constrained_kmeans(features, fixed, k, seed=seed)
    for label in clusters.labels.unique().tolist():
        mean = features[clusters.labels == label].mean(dim=0)
        torch.testing.assert_close(clusters.centroids[label], mean)
    assert clusters.inertia == pytest.approx(total(features, clusters), abs=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@quick
@given(problem=problems(), data=st.data())
def test_inertia_never_rises(dtype, tolerance, problem, data):
    features, fixed, k = problem
    features = features.to(dtype)
    d = features.shape[1]
    starts = data.draw(st.lists(st.integers(-5, 5), min_size=k * d, max_size=k * d))
    starts = torch.tensor(starts, dtype=dtype).reshape(k, d)
    inertias = [lloyd(features, fixed, starts, max_iterations=i).inertia for i in range(1, 10)]
    for before, after in pairwise(inertias):
        assert after <= before * (1 + tolerance) + tolerance


@quick
@given(seed=st.integers(0, 999), data=st.data())
def test_permuted_samples_get_the_permuted_labels(seed, data):
    features, starts = gaussian(15, 3, seed), gaussian(3, 3, seed + 1000)
    fixed = torch.tensor([0, 1, *[-1] * 13])
    order = torch.tensor(data.draw(st.permutations(range(15))))
    labels = lloyd(features, fixed, starts).labels
    assert torch.equal(lloyd(features[order], fixed[order], starts).labels, labels[order])


@quick
@given(problem=problems(most=6), seed=st.integers(0, 9))
def test_no_clustering_is_better_than_the_best_of_all(problem, seed):
    features, fixed, k = problem
    assume(k <= 3)
    found = constrained_kmeans(features, fixed, k, seed=seed).inertia
    assert found >= oracle.lowest_inertia(features, fixed, k) - 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_separate_clusters_are_found(seed):
    features, classes = blobs(6)
    fixed = torch.where((classes < 2) & (torch.arange(len(classes)) < 90), classes, -1)
    labels = constrained_kmeans(features, fixed, 6, seed=seed, restarts=1).labels
    assert torch.equal(labels[classes < 2], classes[classes < 2])
    pairs = {(a, b) for a, b in zip(classes.tolist(), labels.tolist())}
    assert len(pairs) == 6, "each class is one cluster"


def test_fixed_samples_pull_their_cluster():
    # Without them the gap is between 1 and 4; the fixed sample at 8 belongs to the cluster on the left.
    line = torch.tensor([[0.0], [1.0], [4.0], [8.0]])
    fixed = torch.tensor([0, -1, -1, 0])
    clusters = constrained_kmeans(line, fixed, 2, seed=0, restarts=10)
    assert clusters.labels[[0, 3]].tolist() == [0, 0]
    assert clusters.inertia == pytest.approx(oracle.lowest_inertia(line, fixed, 2))


@quick
@given(problem=problems(), seed=st.integers(0, 9))
def test_as_many_clusters_as_distinct_samples_leave_no_distance(problem, seed):
    features, fixed, _ = problem
    distinct = len(features.unique(dim=0))
    clusters = constrained_kmeans(features, torch.full_like(fixed, -1), distinct + 2, seed=seed)
    assert clusters.inertia == pytest.approx(0, abs=1e-9)
    assert len(clusters.labels.unique()) == distinct


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_samples_are_one_cluster(value, dtype):
    features = torch.full((33, 5), value, dtype=dtype)
    clusters = constrained_kmeans(features, torch.full((33,), -1), 3, seed=0)
    assert len(clusters.labels.unique()) == 1
    assert clusters.inertia == pytest.approx(0, abs=1e-4)
    assert clusters.centroids.isfinite().all()


def test_one_sample():
    one = torch.tensor([[1.0, -2.0]])
    for fixed in (-1, 1):
        clusters = constrained_kmeans(one, torch.tensor([fixed]), 2, seed=0)
        assert clusters.inertia == 0
        assert torch.equal(clusters.centroids[clusters.labels], one)


def test_all_samples_fixed():
    features = gaussian(6, 2)
    fixed = torch.tensor([0, 1, 2, 0, 1, 2])
    clusters = constrained_kmeans(features, fixed, 4, seed=0)
    assert torch.equal(clusters.labels, fixed)
    assert torch.equal(lloyd(features, fixed, gaussian(4, 2)).labels, fixed)


def test_an_empty_cluster_moves_to_the_sample_farthest_from_its_own_centroid():
    line = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    clusters = lloyd(line, torch.full((4,), -1), torch.tensor([[0.0], [100.0]]))
    assert clusters.labels.tolist() == [0, 0, 0, 1]
    assert clusters.centroids.flatten().tolist() == pytest.approx([1, 9])


def test_labels_do_not_feel_where_the_origin_is():
    # Multiples of 1/64 are exact beside 10⁴ in float32, squared norms there only to 8.
    near = (blobs(4)[0] * 64).round() / 64
    fixed = torch.full((len(near),), -1)
    far = near + 1e4
    assert torch.equal(far - 1e4, near)
    starts = near[:4]
    assert torch.equal(lloyd(near, fixed, starts).labels, lloyd(far, fixed, starts + 1e4).labels)


def test_half_precision_is_computed_in_float32():
    features = blobs(3)[0].half()
    fixed = torch.full((len(features),), -1)
    half, single = (constrained_kmeans(f, fixed, 3, seed=0) for f in (features, features.float()))
    assert torch.equal(half.labels, single.labels)
    assert half.inertia == single.inertia


def test_the_seed_decides_and_nothing_else():
    features, fixed = gaussian(40, 2), torch.full((40,), -1)
    before = torch.random.get_rng_state()
    first = constrained_kmeans(features, fixed, 6, seed=3, restarts=1)
    torch.rand(5)
    again = constrained_kmeans(features, fixed, 6, seed=3, restarts=1)
    assert torch.equal(first.labels, again.labels)
    others = [constrained_kmeans(features, fixed, 6, seed=s, restarts=1).inertia for s in range(8)]
    assert len(set(others)) > 1
    torch.random.set_rng_state(before)


def test_more_starts_are_never_worse():
    features, fixed = gaussian(60, 2), torch.full((60,), -1)
    inertias = [constrained_kmeans(features, fixed, 8, seed=1, restarts=r).inertia for r in (1, 3, 9)]
    assert inertias == sorted(inertias, reverse=True)


def test_starts_are_at_the_means_of_fixed_samples_and_at_free_samples():
    features, fixed = gaussian(20, 3), torch.tensor([2] * 4 + [0] * 4 + [-1] * 12)
    problem = _Problem(features, fixed, 5)
    starts = problem.plus_plus(torch.Generator().manual_seed(0)) + problem.origin
    torch.testing.assert_close(starts[2], features[:4].mean(dim=0))
    torch.testing.assert_close(starts[0], features[4:8].mean(dim=0))
    for k in (1, 3, 4):
        assert torch.isclose(features[8:], starts[k]).all(dim=1).sum() == 1


@pytest.mark.parametrize(
    ("features", "fixed", "k"),
    [
        (torch.zeros(0, 2), [], 2),
        (torch.zeros(3, 2), [0, 1], 2),
        (torch.zeros(2, 2), [0, 2], 2),
        (torch.zeros(2, 2), [0, -2], 2),
        (torch.tensor([[0.0], [torch.nan]]), [-1, -1], 2),
    ],
)
def test_problems_that_make_no_sense_are_refused(features, fixed, k):
    with pytest.raises(ValueError):
        constrained_kmeans(features, torch.tensor(fixed).long(), k, seed=0)


# The number of new classes


@quick
@given(data=st.data())
def test_judgement_equals_oracle(data):
    num_classes = data.draw(st.integers(2, 4))
    is_anchor = data.draw(st.lists(st.booleans(), min_size=num_classes, max_size=num_classes))
    assume(0 < sum(is_anchor) < num_classes)
    num_clusters = num_classes + data.draw(st.integers(1, 2))
    labels = list(range(num_classes)) + data.draw(st.lists(st.integers(0, num_classes - 1), max_size=6))
    anywhere = st.integers(0, num_clusters - 1)
    of_labelled = [label if is_anchor[label] else data.draw(anywhere) for label in labels]
    of_unlabelled = data.draw(st.lists(anywhere, min_size=1, max_size=8))
    features = gaussian(len(of_unlabelled), 2, data.draw(st.integers(0, 99)))
    min_share = data.draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    clusters = of_labelled + of_unlabelled
    judged = _judge(
        torch.tensor(clusters),
        torch.tensor(labels),
        torch.tensor(is_anchor),
        _distances(features),
        min_share,
    )
    expected = oracle.judge(clusters, labels, is_anchor, features.tolist(), min_share)
    assert any(judged == pytest.approx(literal) for literal in expected)


@pytest.mark.parametrize(("num_known", "num_new"), [(2, 3), (2, 6), (3, 2), (5, 2), (5, 6)])
def test_separate_classes_are_counted(num_known, num_new):
    for seed in range(2):
        case = known_and_new(num_known, num_new, each=15, seed=seed)
        count = estimate_num_new(*case, range(1, 9), seed=seed)
        assert count.num_new == count.chosen == num_new
        assert num_new in count.plausible
        assert count.anchor_accuracy[num_new - 1] == pytest.approx(1)


def test_classes_of_different_sizes_are_counted():
    labelled, labels, unlabelled = known_and_new(4, 4, each=60)
    classes = torch.arange(len(unlabelled)) % 4
    kept = torch.arange(len(unlabelled)) // 4 < torch.tensor([60, 40, 20, 10])[classes]
    assert estimate_num_new(labelled, labels, unlabelled[kept], range(1, 9), seed=0).num_new == 4


def test_tiny_clusters_are_not_counted():
    labelled, labels, unlabelled = known_and_new(3, 3, each=120)
    outlier = torch.full((1, unlabelled.shape[1]), -40.0)
    count = estimate_num_new(labelled, labels, torch.cat([unlabelled, outlier]), [4], seed=0)
    assert (count.chosen, count.num_new) == (4, 3)
    count = estimate_num_new(labelled, labels, torch.cat([unlabelled, outlier]), [4], seed=0, min_share=0)
    assert (count.chosen, count.num_new) == (4, 4)


def test_candidates_that_rotations_disagree_about_are_as_good_as_the_best():
    scores = np.array([[0.5, 0.5, 0.5], [0.9, 0.5, 0.9], [0.8, 0.8, 0.8], [0.79, 0.79, 0.79]])
    # The third is the best. The second is 0.1/3 behind, ±0.13; the others are behind for certain.
    assert _within_standard_error(scores).tolist() == [1, 2]
    assert _within_standard_error(scores[:, :1]).tolist() == [1], "one rotation disagrees with nobody"


@pytest.mark.parametrize(
    ("num_classes", "share", "most", "ways", "anchors"),
    [
        (2, 0.6, 10, 2, 1),
        (3, 0.6, 10, 3, 2),
        (5, 0.6, 10, 10, 3),
        (5, 0.6, 4, 4, 3),
        (80, 0.6, 10, 10, 48),
        (4, 0.0, 10, 4, 1),
        (4, 1.0, 10, 4, 3),
    ],
)
def test_anchors_are_chosen_in_different_ways(num_classes, share, most, ways, anchors):
    choices = _choose_anchors(num_classes, share, most, torch.Generator().manual_seed(0))
    assert len({tuple(choice.tolist()) for choice in choices}) == len(choices) == ways
    assert all(choice.sum() == anchors for choice in choices)


def test_all_classes_get_their_turn_to_be_validated():
    choices = torch.stack(_choose_anchors(80, 0.6, 10, torch.Generator().manual_seed(0)))
    assert ((~choices).sum(dim=0) == 4).all(), "two fifths of ten"


def test_principal_axes_keep_distances():
    features = torch.cat([gaussian(50, 4), 1e-3 * gaussian(50, 60, seed=1)], dim=1) + 7
    compressed = _compress(features)
    assert compressed.shape == (50, 4)
    torch.testing.assert_close(_distances(compressed), _distances(features), rtol=1e-3, atol=1e-3)
    assert _compress(torch.ones(5, 3)).shape == (5, 1)


def test_length_does_not_matter_to_normalized_features():
    labelled, labels, unlabelled = known_and_new(3, 3)
    length = 10 ** torch.linspace(-1, 1, len(unlabelled))[:, None]
    plain = estimate_num_new(labelled, labels, unlabelled, range(1, 7), seed=0, normalize=True)
    scaled = estimate_num_new(labelled, labels, length * unlabelled, range(1, 7), seed=0, normalize=True)
    assert scaled.num_new == 3
    assert scaled.score == pytest.approx(plain.score, abs=1e-5)


def test_names_of_classes_and_the_order_of_candidates_do_not_matter():
    labelled, labels, unlabelled = known_and_new(3, 3, spread=2.0)
    count = estimate_num_new(labelled, labels, unlabelled, [1, 2, 3, 4, 5], seed=0)
    assert count.candidates == (1, 2, 3, 4, 5)
    assert estimate_num_new(labelled, labels * 7 + 2, unlabelled, [5, 3, 1, 2, 4, 3], seed=0) == count


def test_the_estimate_is_a_function_of_the_arguments():
    case = known_and_new(3, 3, spread=3.0)
    before = torch.random.get_rng_state()
    first = estimate_num_new(*case, range(2, 6), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert estimate_num_new(*case, range(2, 6), seed=1) == first
    assert estimate_num_new(*case, range(2, 6), seed=2).score != first.score
    with pytest.raises(FrozenInstanceError):
        first.num_new = 3


def test_all_curves_have_a_value_for_each_candidate():
    count = estimate_num_new(*known_and_new(3, 3, spread=3.0), range(2, 6), seed=1)
    for curve in (count.anchor_accuracy, count.silhouette, count.score, count.large_clusters):
        assert len(curve) == 4
        assert all(isinstance(value, float) for value in curve)
    assert all(0 <= a <= 1 for a in count.anchor_accuracy)
    assert all(-1 <= s <= 1 for s in count.silhouette)
    assert count.candidates[count.score.index(max(count.score))] in count.plausible
    assert min(count.plausible) <= count.chosen <= max(count.plausible)


def test_large_sets_are_drawn_from():
    case = known_and_new(4, 5, each=400)
    count = estimate_num_new(*case, range(1, 9), seed=0, max_samples=200)
    assert count.num_new == 5
    assert count != estimate_num_new(*case, range(1, 9), seed=1, max_samples=200)


def test_a_rare_known_class_is_not_lost_when_samples_are_drawn():
    labelled, labels, unlabelled = known_and_new(3, 3, each=200)
    kept = (labels > 0) | (torch.arange(len(labels)) < 6)
    assert kept[labels == 0].sum() == 2
    count = estimate_num_new(labelled[kept], labels[kept], unlabelled, range(1, 7), seed=0, max_samples=100)
    assert count.num_new == 3


def test_one_unlabelled_sample_is_one_class():
    labelled, labels, unlabelled = known_and_new(3, 1)
    assert estimate_num_new(labelled, labels, unlabelled[:1], [1], seed=0).num_new == 1


def test_equal_features_are_no_failure():
    count = estimate_num_new(torch.ones(10, 3), torch.arange(10) % 2, torch.ones(10, 3), [1, 2, 3], seed=0)
    assert count.num_new == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"labels": torch.zeros(60).long()}, "1 known class"),
        ({"candidates": []}, "no number"),
        ({"candidates": [2, 61]}, "60 unlabelled samples cannot form 61"),
        ({"candidates": [0, 2]}, "cannot form 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, what):
    labelled, labels, unlabelled = known_and_new(2, 2)
    arguments = {"labelled": labelled, "labels": labels, "unlabelled": unlabelled, "candidates": [2, 3]}
    with pytest.raises(ConfigError, match=what):
        estimate_num_new(**{**arguments, **change}, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": torch.zeros(3).long()},
        {"labels": torch.arange(60) - 1},
        {"unlabelled": torch.zeros(9, 7)},
        {"unlabelled": torch.full((9, 8), torch.nan)},
    ],
)
def test_tensors_that_do_not_fit_are_refused(change):
    labelled, labels, unlabelled = known_and_new(2, 2)
    arguments = {"labelled": labelled, "labels": labels, "unlabelled": unlabelled, **change}
    with pytest.raises(ValueError):
        estimate_num_new(**arguments, candidates=[2], seed=0)
