"""Losses of KCL, DTC and prototypical networks against literal ones, and what they do at the edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.functional import transfer
from tests.oracles import transfer as oracle


def probabilities(n, k, seed, spread=3.0):
    g = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(n, k, generator=g)).softmax(dim=1)


def compare(fast, literal, *tensors, tolerance=2e-5):
    """The values and the gradients of a float32 loss and of the literal one in double precision."""
    given_ = [t.detach().float().requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    loss, expected = fast(*given_), literal(*exact)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), expected.double(), rtol=tolerance, atol=tolerance)
    loss.backward()
    expected.backward()
    for a, b in zip(given_, exact):
        wanted = torch.zeros_like(b) if b.grad is None else b.grad
        found = torch.zeros_like(a) if a.grad is None else a.grad
        # float32 sums; gradients of logs of small probabilities are large
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=tolerance)


# Similarity


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("classes", [1, 3, 7])
def test_similarity_equals_the_literal_loss(share, classes):
    g = torch.Generator().manual_seed(classes)
    labels = torch.arange(7) % classes  # all of one class, some pairs, no pair
    same = labels[:, None] == labels
    compare(
        lambda x: transfer.similarity_bce(x, same, share),
        lambda x: oracle.similarity_bce(x, same, share),
        3 * torch.randn(7, 7, generator=g),
    )


@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("n", [0, 1])
def test_without_pairs_similarity_is_zero(n, share):
    logits = torch.zeros(n, n, requires_grad=True)
    loss = transfer.similarity_bce(logits, torch.ones(n, n, dtype=torch.bool), share)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_rare_pairs_weigh_as_much_as_their_share():
    same = torch.eye(20, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    logits = torch.zeros(20, 20, requires_grad=True)
    transfer.similarity_bce(logits, same, 0.5).backward()
    positive = logits.grad[0, 1] + logits.grad[1, 0]
    torch.testing.assert_close(-positive, logits.grad.sum() - positive)


def test_certain_pairs_have_a_finite_loss():
    logits = torch.tensor([[0.0, 1e4], [-1e4, 0.0]])
    same = torch.ones(2, 2, dtype=torch.bool)
    assert transfer.similarity_bce(logits, same).item() == pytest.approx(5000)


# KCL


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("n", "m", "k"), [(6, 6, 4), (1, 1, 3), (5, 3, 1), (4, 7, 2)])
def test_kcl_equals_the_literal_loss(n, m, k, margin):
    similar = torch.rand(n, m, generator=torch.Generator().manual_seed(n)) < 0.4
    compare(
        lambda p, q: transfer.kcl_loss(p, q, similar, margin),
        lambda p, q: oracle.kcl_loss(p, q, similar, margin),
        probabilities(n, k, 0),
        probabilities(m, k, 1),
    )


def test_kcl_of_a_batch_with_itself_has_both_directions():
    similar = torch.eye(5, dtype=torch.bool)
    similar[0, 1] = similar[1, 0] = True
    compare(
        lambda p: transfer.kcl_loss(p, p, similar),
        lambda p: oracle.kcl_loss(p, p, similar),
        probabilities(5, 3, 2),
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 6), st.integers(1, 5), st.sampled_from(["none", "all", "some"]), st.integers(0, 999))
def test_kcl_is_finite_at_the_corners_of_the_simplex(n, k, which, seed):
    g = torch.Generator().manual_seed(seed)
    p = torch.nn.functional.one_hot(torch.randint(k, (n,), generator=g), k).float().requires_grad_()
    similar = {"none": 0.0, "all": 1.0, "some": 0.5}[which] > torch.rand(n, n, generator=g)
    loss = transfer.kcl_loss(p, p, similar)
    loss.backward()
    assert loss.isfinite()
    assert loss >= -1e-6
    assert p.grad.isfinite().all()
    apart = p.argmax(1)[:, None] != p.argmax(1)
    if n and torch.equal(similar, ~apart):  # what the labels ask for
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_kcl_gives_the_first_argument_no_gradient():
    p, q = (probabilities(4, 3, s).requires_grad_() for s in (0, 1))
    transfer.kcl_loss(p, q, torch.ones(4, 4, dtype=torch.bool)).backward()
    assert p.grad is None
    assert q.grad.abs().sum() > 0


def test_far_dissimilar_pairs_cost_nothing():
    p = torch.tensor([[0.999, 0.001], [0.001, 0.999]], requires_grad=True)
    loss = transfer.kcl_loss(p, p, torch.eye(2, dtype=torch.bool), margin=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_kcl_wants_a_label_for_each_pair():
    with pytest.raises(ValueError, match="labels"):
        transfer.kcl_loss(probabilities(3, 2, 0), probabilities(3, 2, 0), torch.ones(3, dtype=torch.bool))


# DTC


@pytest.mark.parametrize(("n", "k", "d"), [(6, 3, 4), (1, 1, 1), (5, 1, 2), (1, 4, 3)])
def test_student_t_and_its_target_equal_the_literal_ones(n, k, d):
    g = torch.Generator().manual_seed(n)
    z, centroids = torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)
    target = oracle.sharpened_target(oracle.student_t(z.double(), centroids.double()))
    q = transfer.student_t_logits(z, centroids).softmax(dim=1)
    torch.testing.assert_close(transfer.sharpened_target(q).double(), target, rtol=1e-4, atol=1e-6)
    target = probabilities(n, k, 3)
    compare(
        lambda z, c: transfer.target_divergence(target, transfer.student_t_logits(z, c)),
        lambda z, c: oracle.target_divergence(target.double(), oracle.student_t(z, c)),
        z,
        centroids,
    )


def test_samples_on_a_centroid_and_centroids_on_each_other_have_finite_gradients():
    z = torch.zeros(3, 2, requires_grad=True)
    centroids = torch.zeros(2, 2, requires_grad=True)
    logits = transfer.student_t_logits(z, centroids)
    torch.testing.assert_close(logits, torch.zeros(3, 2))
    transfer.target_divergence(torch.tensor([[1.0, 0.0]] * 3), logits).backward()
    assert not z.grad.any()
    assert not centroids.grad.any()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 999), st.floats(0, 200))
def test_a_target_is_a_distribution_and_sharper(n, k, seed, spread):
    q = probabilities(n, k, seed, spread)  # of 0 and 1 exactly, in the end
    target = transfer.sharpened_target(q)
    assert target.isfinite().all()
    torch.testing.assert_close(target.sum(dim=1), torch.ones(n))
    assert transfer.target_divergence(target, q.log().clamp(min=-1e4)).isfinite()
    if n == 1:  # q² / q
        torch.testing.assert_close(target, q, rtol=1e-4, atol=1e-6)


def test_an_empty_cluster_stays_empty_and_nothing_costs_nothing():
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert torch.equal(transfer.sharpened_target(q), q)
    assert transfer.target_divergence(torch.zeros(0, 2), torch.zeros(0, 2)).item() == 0


# Prototypes


@pytest.mark.parametrize(
    ("support_labels", "query_labels"),
    [
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]),
        ([3, 3, 3, 8], [8, 3, 3]),  # classes of different sizes
        ([0, 0, 1, 1, 0, 0], [0, 1, 0]),  # two groups of one class
        ([0, 1], [0, 5, 1, 1]),  # a class without support does not count
        ([4, 4], [4, 4]),  # one class: nothing to tell apart
        ([1], [1]),
    ],
)
def test_prototypes_equal_the_literal_ones(support_labels, query_labels):
    g = torch.Generator().manual_seed(0)
    s, q = (torch.tensor(labels) for labels in (support_labels, query_labels))
    support, query = torch.randn(len(s), 3, generator=g), torch.randn(len(q), 3, generator=g)
    compare(
        lambda a, b: transfer.prototypical_loss(a, s, b, q)[0],
        lambda a, b: oracle.prototypical_loss(a, s, b, q)[0],
        support,
        query,
    )
    accuracy = transfer.prototypical_loss(support, s, query, q)[1].item()
    assert accuracy == pytest.approx(oracle.prototypical_loss(support, s, query, q)[1])


@pytest.mark.parametrize(("support", "query"), [([], []), ([], [0, 1]), ([0, 1], []), ([0, 0], [1, 2])])
def test_where_no_query_can_be_scored_loss_and_gradient_are_zero(support, query):
    s, q = torch.tensor(support, dtype=torch.int64), torch.tensor(query, dtype=torch.int64)
    a, b = torch.randn(len(s), 3, requires_grad=True), torch.randn(len(q), 3, requires_grad=True)
    loss, accuracy = transfer.prototypical_loss(a, s, b, q)
    loss.backward()
    assert loss.item() == accuracy.item() == 0
    assert all(t.grad is None or not t.grad.any() for t in (a, b))


def test_equal_prototypes_share_the_probability():
    features = torch.zeros(4, 2, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    loss, _ = transfer.prototypical_loss(features, labels, features, labels)
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    assert features.grad.isfinite().all()
