from __future__ import annotations

import math
from functools import partial
from typing import get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scarcely.errors import ConfigError
from scarcely.functional import pairwise
from scarcely.functional.pairwise import (
    EPSILON,
    cosine_adjacency,
    knn_adjacency,
    l2_adjacency,
    mix_target,
    pairwise_bce,
    rank_adjacency,
    sne_adjacency,
)
from tests.oracles import pairwise as oracle

quick = settings(deadline=None, max_examples=30, derandomize=True)

# Thresholds that no similarity of small integer features can hit: where the formula has a root or an
# exponential, rounding would decide about an exact tie.
LABELERS = {
    "l2": ("l2_adjacency", {"threshold": 5.0}),
    "l2 normalized": ("l2_adjacency", {"threshold": 0.7071, "normalize": True}),
    "cosine": ("cosine_adjacency", {"threshold": 0.6137}),
    "sne": ("sne_adjacency", {"threshold": 0.0517, "temperature": 1.7}),
    "knn": ("knn_adjacency", {"k": 4}),
    "rank": ("rank_adjacency", {"k": 2}),
}
ON_DISTANCES = ["l2", "sne", "knn"]
WITHOUT_KNN = [name for name in LABELERS if name != "knn"]  # which needs k samples


def labeler(name):
    function, arguments = LABELERS[name]
    return partial(getattr(pairwise, function), **arguments)


def literal(name):
    function, arguments = LABELERS[name]
    return partial(getattr(oracle, function), **arguments)


def every_labeler(test):
    return pytest.mark.parametrize("name", LABELERS)(test)


@st.composite
def grid_features(draw, least=5, most=12):
    """Small integers: float32 computes their distances exactly, and many are tied."""
    n, d = draw(st.integers(least, most)), draw(st.integers(2, 4))
    values = draw(st.lists(st.integers(-3, 3), min_size=n * d, max_size=n * d))
    return torch.tensor(values, dtype=torch.float32).reshape(n, d)


def blobs(n=24, d=6, seed=0):
    """Samples around three centres, so that some pairs are connected and some are not."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, d, generator=generator)
    return centres[torch.arange(n) % 3] + 0.4 * torch.randn(n, d, generator=generator)


def probabilities(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)


# Adjacencies


@every_labeler
@pytest.mark.parametrize("seed", range(3))
def test_adjacency_equals_oracle(name, seed):
    features = blobs(seed=seed)
    adjacency = labeler(name)(features)
    assert torch.equal(adjacency, literal(name)(features))
    assert 24 < adjacency.sum() < 24**2, "the case tells connected from unconnected pairs"


@every_labeler
@quick
@given(features=grid_features())
def test_adjacency_equals_oracle_where_values_tie(name, features):
    assert torch.equal(labeler(name)(features), literal(name)(features))


@every_labeler
@quick
@given(features=grid_features())
def test_adjacency_is_a_symmetric_bool_matrix_with_a_true_diagonal(name, features):
    adjacency = labeler(name)(features)
    assert adjacency.dtype == torch.bool
    assert adjacency.shape == (len(features), len(features))
    assert torch.equal(adjacency, adjacency.mT)
    assert adjacency.diagonal().all()


@every_labeler
@quick
@given(features=grid_features(), data=st.data())
def test_permuted_features_give_the_permuted_adjacency(name, features, data):
    order = torch.tensor(data.draw(st.permutations(range(len(features)))))
    assert torch.equal(labeler(name)(features[order]), labeler(name)(features)[order][:, order])


@every_labeler
def test_adjacency_carries_no_gradient(name):
    adjacency = labeler(name)(blobs().requires_grad_())
    assert not adjacency.requires_grad


@every_labeler
def test_adjacency_of_half_precision_features_is_that_of_their_float32_values(name):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        features = blobs().to(dtype)
        assert torch.equal(labeler(name)(features), labeler(name)(features.float()))


@every_labeler
def test_autocast_and_reduced_matmul_precision_change_nothing(name):
    features = blobs(n=64, d=64, seed=3)
    expected = labeler(name)(features)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(labeler(name)(features), expected)
        assert torch.get_float32_matmul_precision() == "medium", "the setting is put back"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", WITHOUT_KNN)
def test_one_sample_is_connected_to_itself(name):
    assert labeler(name)(torch.tensor([[1.0, -2.0]])).tolist() == [[True]]


@pytest.mark.parametrize("name", WITHOUT_KNN)
def test_no_samples_give_an_empty_matrix(name):
    assert labeler(name)(torch.zeros(0, 4)).shape == (0, 0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e3])
@pytest.mark.parametrize(
    ("name", "connected"),
    # All distances are equal: none is strictly below the k-th. SNE shares its mass among 31 others,
    # which is less than the threshold.
    [("l2", True), ("rank", True), ("knn", False), ("sne", False)],
)
def test_identical_samples(name, connected, value):
    adjacency = labeler(name)(torch.full((32, 16), value))
    assert torch.equal(adjacency, torch.ones(32, 32).bool() if connected else torch.eye(32).bool())


def test_zero_features_have_no_direction():
    features = torch.cat([torch.zeros(2, 3), torch.ones(2, 3)])
    expected = torch.block_diag(torch.eye(2), torch.ones(2, 2)).bool()
    assert torch.equal(cosine_adjacency(features, 0.0), expected)


@every_labeler
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_samples_that_are_not_finite_are_alone_and_disturb_nobody(name, value):
    features = blobs()
    features[[0, 7], [3, 2]] = value
    others = torch.isin(torch.arange(24), torch.tensor([0, 7]), invert=True)
    adjacency = labeler(name)(features)
    for broken in (0, 7):
        assert adjacency[broken].nonzero().flatten().tolist() == [broken]
        assert adjacency[:, broken].nonzero().flatten().tolist() == [broken]
    assert torch.equal(adjacency[others][:, others], labeler(name)(features[others]))


@pytest.mark.parametrize("name", ON_DISTANCES)
def test_labels_of_distances_do_not_feel_where_the_origin_is(name):
    # Multiples of 1/64 are exact beside 10⁴ in float32, but the squared norms of such features are not
    # known to better than 8: without centring, all of these distances (below 30) would be noise.
    near = (blobs(d=8) * 64).round() / 64
    far = near + 1e4
    assert torch.equal(far - 1e4, near)
    assert torch.equal(labeler(name)(far), labeler(name)(near))


def test_l2_threshold_is_strict_and_squared():
    line = torch.tensor([[0.0], [2.0], [5.0]])
    assert l2_adjacency(line, 4.0).sum() == 3, "a squared distance of 4 is not below 4"
    assert l2_adjacency(line, 4.001).tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]


def test_normalized_l2_is_cosine():
    features = blobs(seed=5)
    for threshold in (0.1, 0.5, 1.3):
        normalized = l2_adjacency(features, threshold, normalize=True)
        assert torch.equal(normalized, cosine_adjacency(features, 1 - threshold / 2))


def test_cosine_ignores_length():
    features = blobs()
    scales = torch.logspace(-3, 3, len(features))[:, None]
    assert torch.equal(cosine_adjacency(features * scales, 0.6137), cosine_adjacency(features, 0.6137))


def test_cosine_above_one_never_happens():
    # The lengths of these parallel vectors are rounded: unclamped, many cosines come out as 1 + 1e-7.
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(64, 1, generator=generator) * torch.randn(1, 16, generator=generator)
    assert cosine_adjacency(features, 1.0).sum() == 64


def test_sne_neighbours_in_crowds_are_harder_to_connect():
    # Two pairs at distance 1, one of them in a crowd (LSD-C, eq. 2: the harmonic mean of the partitions).
    lonely = torch.tensor([[0.0, 100.0], [1.0, 100.0]])
    crowd = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.5, 0.3], [0.5, -0.3]])
    adjacency = sne_adjacency(torch.cat([lonely, crowd]), threshold=0.5, temperature=1.0)
    assert adjacency[0, 1]
    assert not adjacency[2, 3]


def test_knn_leaves_out_what_ties_with_the_kth():
    # Squared distances of the rows: 0 1 4 9 | 1 0 1 4 | 4 1 0 1 | 9 4 1 0. Third smallest: 4, 1, 1, 4.
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert knn_adjacency(line, 3).int().tolist() == expected


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("broken", [0, 3, 5, 6, 9])
def test_knn_needs_k_finite_samples(broken, normalize):
    features = blobs(n=9)
    features[:broken, 1] = torch.nan
    features[1:broken:2, 2] = torch.inf
    found = knn_adjacency(features, 4, normalize=normalize)
    assert torch.equal(found, oracle.knn_adjacency(features, 4, normalize=normalize))
    assert (found.sum() > 9) == (broken <= 5)


def test_knn_of_20_is_self_and_18_others():
    # Sample 0 is far from a crowd whose members all have nearer neighbours, so it is chosen by none of them.
    line = torch.cat([torch.zeros(1), 100 + torch.arange(40.0)])[:, None]
    assert knn_adjacency(line, 20)[0].nonzero().flatten().tolist() == list(range(19))


@pytest.mark.parametrize("seed", range(5))
def test_knn_by_angle(seed):
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed))
    lengths = torch.rand(12, 1, generator=torch.Generator().manual_seed(seed + 100)) + 0.1
    features = features * lengths
    by_angle = knn_adjacency(features, 4, normalize=True)
    assert torch.equal(by_angle, oracle.knn_adjacency(features, 4, normalize=True))
    assert torch.equal(by_angle, knn_adjacency(features / lengths, 4, normalize=True))
    assert not torch.equal(by_angle, knn_adjacency(features, 4))


def test_a_zero_vector_is_nobodys_neighbour_by_angle():
    features = torch.tensor([[0.0, 0], [1, 0], [2, 0.1], [3, 0.3], [0, 1], [0.1, 2], [0.3, 3], [0, 0]])
    found = knn_adjacency(features, 3, normalize=True)
    assert torch.equal(found, oracle.knn_adjacency(features, 3, normalize=True))
    assert found[0].nonzero().flatten().tolist() == [0]
    assert found[7].nonzero().flatten().tolist() == [7]
    assert found[1, 2]
    assert found[4, 5]


@pytest.mark.parametrize("k", [-1, 0, 1, 2])
def test_knn_refuses_a_k_that_connects_nothing(k):
    with pytest.raises(ConfigError, match="connects nothing"):
        knn_adjacency(blobs(), k)


def test_knn_refuses_a_batch_smaller_than_k():
    assert knn_adjacency(blobs(n=20), 20).shape == (20, 20)
    with pytest.raises(ConfigError, match="batch is too small"):
        knn_adjacency(blobs(n=19), 20)


def test_rank_compares_sets_not_orders():
    features = torch.tensor([[9.0, 5.0, 0.0, 1.0], [5.0, 9.0, 1.0, 0.0], [9.0, 0.0, 5.0, 1.0]])
    assert rank_adjacency(features, 2).int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_rank_takes_raw_values():
    assert not rank_adjacency(torch.tensor([[-9.0, 1.0, 2.0], [9.0, 1.0, 2.0]]), 2)[0, 1]


def test_rank_with_fewer_active_features_than_k_depends_on_which_are_active():
    # After a ReLU most features are zero; which of them fill up the top k must not be luck.
    features = torch.zeros(3, 512)
    features[0, [7, 300]] = torch.tensor([1.0, 2.0])
    features[1, [7, 300]] = torch.tensor([5.0, 3.0])
    features[2, [7, 301]] = 1.0
    assert rank_adjacency(features, 5).int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("k", [0, 7])
def test_rank_refuses_k_beyond_the_features(k):
    with pytest.raises(ConfigError, match="top-ranked of 6 features"):
        rank_adjacency(blobs(d=6), k)


def test_ranges_in_signatures_are_those_at_run_time():
    k_of_knn = get_type_hints(knn_adjacency, include_extras=True)["k"].__metadata__[0]
    assert 3 in k_of_knn
    assert 2 not in k_of_knn
    threshold = get_type_hints(sne_adjacency, include_extras=True)["threshold"].__metadata__[0]
    assert 0 in threshold
    assert 1 not in threshold


# Targets of composite samples


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("as_list", [False, True])
def test_mix_target_equals_oracle(transposed, as_list):
    adjacency = knn_adjacency(blobs(), 4)
    generator = torch.Generator().manual_seed(0)
    permutations = [torch.randperm(24, generator=generator) for _ in range(4)]
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    expected = oracle.mix_target(adjacency, permutations, weights, transposed)
    given_permutations = permutations if as_list else torch.stack(permutations)
    target = mix_target(adjacency, given_permutations, weights, transposed=transposed)
    assert target.dtype == torch.float32
    # Four additions of numbers of at most one round four times.
    torch.testing.assert_close(target.double(), expected, rtol=0, atol=4 * 2**-24)


def test_mix_target_of_figure_3():
    # Composite 1 is made of images 0, 4, 6 and 1; the pure image 0 is like 0, 4 and 1, but not like 6.
    adjacency = torch.eye(8).bool()
    adjacency[0, [1, 4]] = adjacency[[1, 4], 0] = True
    permutations = torch.arange(8).repeat(4, 1)
    permutations[:, 1] = torch.tensor([0, 4, 6, 1])
    target = mix_target(adjacency, permutations, torch.tensor([0.3, 0.25, 0.3, 0.15]))
    assert target[0, 1].item() == pytest.approx(0.7)


def test_identity_permutations_give_back_the_adjacency():
    adjacency = knn_adjacency(blobs(), 4)
    target = mix_target(adjacency, torch.arange(24).repeat(2, 1), torch.tensor([0.25, 0.75]))
    assert torch.equal(target, adjacency.float())


def test_transposed_target_is_the_transpose_for_a_symmetric_adjacency():
    adjacency = knn_adjacency(blobs(), 4)
    permutations = torch.stack(
        [torch.randperm(24, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    )
    weights = torch.tensor([0.6, 0.4])
    target = mix_target(adjacency, permutations, weights)
    assert not torch.equal(target, target.mT), "the case tells rows from columns"
    assert torch.equal(mix_target(adjacency, permutations, weights, transposed=True), target.mT)


@quick
@given(features=grid_features(), data=st.data())
def test_weights_that_sum_to_one_give_probabilities(features, data):
    n = len(features)
    sizes = torch.tensor(data.draw(st.lists(st.integers(0, 100), min_size=1, max_size=4).filter(any)))
    permutations = [torch.tensor(data.draw(st.permutations(range(n)))) for _ in sizes]
    target = mix_target(knn_adjacency(features, 3), permutations, sizes / sizes.sum())
    assert target.min() >= 0
    assert target.max() <= 1 + 2**-22  # rounding


# The loss


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("n", "m", "k"), [(7, 7, 3), (5, 8, 10), (1, 1, 1)])
def test_bce_equals_oracle_with_its_gradient(n, m, k, masked):
    p, q = probabilities(n, k, seed=1), probabilities(m, k, seed=2)
    target = torch.rand(n, m, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    mask = torch.rand(n, m, generator=torch.Generator().manual_seed(4)) < 0.6 if masked else None
    if masked:
        mask[0, 0] = True

    def value_and_gradient(function, dtype):
        a, b = p.to(dtype).requires_grad_(), q.to(dtype).requires_grad_()
        loss = function(a, b, target, mask)
        return loss.detach().double(), *(grad.double() for grad in torch.autograd.grad(loss, (a, b)))

    computed = value_and_gradient(pairwise_bce, torch.float32)
    expected = value_and_gradient(oracle.pairwise_bce, torch.float64)
    # P is known to a few 2⁻²⁴, and loss and gradient magnify that by 1 / (1 − P), which is below 50 here;
    # with k = 1, P is 1 exactly.
    for one, other in zip(computed, expected):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", LABELERS)
def test_composite_loss_equals_oracle(name):
    """Features to labels to mixed targets to loss: eq. 6 with T = Σ w A[:, σ] in a single cross-entropy."""
    features, p, q = blobs(n=12), probabilities(12, 5, seed=1), probabilities(12, 5, seed=2)
    permutations = torch.stack(
        [torch.randperm(12, generator=torch.Generator().manual_seed(s)) for s in range(4)]
    )
    weights = torch.tensor([0.5, 0.25, 0.15, 0.1])
    loss = pairwise_bce(p, q, mix_target(labeler(name)(features), permutations, weights))
    target = oracle.mix_target(literal(name)(features), permutations, weights)
    expected = oracle.pairwise_bce(p.double(), q.double(), target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@quick
@given(n=st.integers(1, 8), m=st.integers(1, 8), k=st.integers(1, 6), data=st.data())
def test_bce_does_not_depend_on_names_of_clusters_order_of_samples_or_side(n, m, k, data):
    p, q = probabilities(n, k, seed=n), probabilities(m, k, seed=m + 100)
    target = (torch.rand(n, m, generator=torch.Generator().manual_seed(k)) < 0.5).float()
    columns = torch.tensor(data.draw(st.permutations(range(k))))
    rows = torch.tensor(data.draw(st.permutations(range(n))))
    others = torch.tensor(data.draw(st.permutations(range(m))))
    loss = pairwise_bce(p, q, target).item()
    same = pytest.approx(loss, rel=1e-5)  # sums in another order round differently
    assert pairwise_bce(p[:, columns], q[:, columns], target).item() == same
    assert pairwise_bce(p[rows], q[others], target[rows][:, others]).item() == same
    assert pairwise_bce(q, p, target.mT).item() == same


def test_bce_of_certain_predictions_is_finite_and_exact():
    p = torch.eye(3).requires_grad_()
    wrong = pairwise_bce(p, torch.eye(3), 1 - torch.eye(3))
    assert wrong.item() == pytest.approx(-math.log(EPSILON), rel=1e-6)
    (gradient,) = torch.autograd.grad(wrong, p)
    assert gradient.isfinite().all()
    right = pairwise_bce(p, torch.eye(3), torch.eye(3).bool())
    assert right.item() == pytest.approx(0, abs=2 * EPSILON)


def test_bce_survives_probabilities_that_sum_to_more_than_one_by_rounding():
    p = torch.tensor([[1 + 2**-22, 0.0]]).requires_grad_()  # unclamped, 1 - P + ε would be negative
    loss = pairwise_bce(p, p, torch.zeros(1, 1))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, p)[0].isfinite().all()


def test_bce_of_an_empty_mask_is_exactly_zero_with_zero_gradient():
    p = probabilities(6, 4).requires_grad_()
    loss = pairwise_bce(p, p, torch.ones(6, 6), torch.zeros(6, 6, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert p.grad.eq(0).all()


def test_bce_of_no_samples_is_zero():
    p = probabilities(4, 3)[:0].requires_grad_()
    loss = pairwise_bce(p, p, torch.zeros(0, 0))
    loss.backward()
    assert loss.item() == 0


def test_full_mask_is_no_mask():
    p, target = probabilities(6, 4), torch.eye(6)
    assert pairwise_bce(p, p, target, torch.ones(6, 6).bool()).item() == pairwise_bce(p, p, target).item()


def test_mask_of_rows_is_the_loss_of_those_rows():
    p, q, target = probabilities(6, 4, seed=1), probabilities(6, 4, seed=2), torch.eye(6)
    rows = torch.tensor([True, False, True, True, False, False])
    masked = pairwise_bce(p, q, target, rows[:, None])
    assert masked.item() == pytest.approx(pairwise_bce(p[rows], q, target[rows]).item(), rel=1e-6)


def test_masked_pairs_give_no_gradient():
    p = probabilities(6, 4).requires_grad_()
    rows = torch.arange(6) < 2
    pairwise_bce(p, p.detach(), torch.eye(6), rows[:, None].expand(6, 6)).backward()
    assert p.grad[2:].eq(0).all()
    assert p.grad[:2].ne(0).all()


def test_bce_is_float32_under_autocast_and_gives_gradients_in_the_input_precision():
    p = probabilities(64, 64).bfloat16().requires_grad_()
    expected = pairwise_bce(p.float(), p.float(), torch.eye(64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pairwise_bce(p, p, torch.eye(64))
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
    loss.backward()
    assert p.grad.dtype == torch.bfloat16


def test_bce_refuses_a_target_of_another_shape():
    with pytest.raises(ValueError, match="shape"):
        pairwise_bce(probabilities(4, 3), probabilities(5, 3), torch.zeros(5, 4))


# Memory


class LargestAllocation(TorchDispatchMode):
    """The largest storage, in bytes, that any operation returned, backward included."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        storages = [x.untyped_storage().nbytes() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.nbytes = max(self.nbytes, *storages, 0)
        return result


@every_labeler
def test_nothing_larger_than_four_matrices_is_ever_allocated(name):
    n, d = 256, 512
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).relu()
    p, q = probabilities(n, 10, seed=1).requires_grad_(), probabilities(n, 10, seed=2).requires_grad_()
    permutations, weights = torch.arange(n).repeat(4, 1), torch.full((4,), 0.25)
    with LargestAllocation() as largest:
        target = mix_target(labeler(name)(features), permutations, weights)
        pairwise_bce(p, q, target, mask=torch.ones(n, n).bool()).backward()
    assert 4 * n * n <= largest.nbytes <= 4 * 4 * n * n


def test_largest_allocation_sees_a_broadcast():
    features = torch.zeros(16, 8)
    with LargestAllocation() as largest:
        (features[:, None] - features).square().sum(dim=2)
    assert largest.nbytes == 4 * 16 * 16 * 8
