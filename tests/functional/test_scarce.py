"""Losses of chapter 5 equal their literal oracles, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.functional import scarce
from tests.oracles import scarce as oracle

SIZES = {"samples": st.integers(1, 7), "classes": st.integers(1, 5), "seed": st.integers(0, 10**6)}


def numbers(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_with_gradient(ours, literal, *inputs):
    a = [x.float().requires_grad_() for x in inputs]
    b = [x.clone().requires_grad_() for x in inputs]
    first, second = ours(*a), literal(*b)
    torch.testing.assert_close(first.double(), second, rtol=1e-5, atol=1e-6)
    if second.requires_grad:
        for x, y in zip(torch.autograd.grad(first, a), torch.autograd.grad(second, b), strict=True):
            torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**SIZES, hard=st.booleans(), unseen=st.sampled_from(["none", "some", "all"]), zeros=st.booleans())
def test_pseudo_label_loss(samples, classes, seed, hard, unseen, zeros):
    scores = numbers(seed, samples, classes)
    targets = numbers(seed + 1, samples, classes).softmax(dim=1)
    if hard:
        targets = torch.nn.functional.one_hot(targets.argmax(dim=1), classes).double()
    previous = numbers(seed + 2, samples, classes).softmax(dim=1)
    if zeros and classes > 1:  # a class that was ruled out
        previous[:, 0] = 0
        previous = previous / previous.sum(dim=1, keepdim=True)
    if unseen != "none":
        previous[:: 1 if unseen == "all" else 2] = 0
    same_with_gradient(
        lambda s: scarce.pseudo_label_loss(s, targets.float(), previous.float()),
        lambda s: oracle.pseudo_label_loss(s, targets, previous),
        scores,
    )


def test_the_loss_is_least_where_the_prediction_is_the_target_and_stays():
    p = torch.tensor([[0.7, 0.2, 0.1]])
    scores = p.log().requires_grad_()
    (gradient,) = torch.autograd.grad(scarce.pseudo_label_loss(scores, p, p), scores)
    torch.testing.assert_close(gradient, torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_nothing_flows_into_labels_and_earlier_predictions():
    scores, targets, previous = (torch.rand(3, 2).softmax(dim=1).requires_grad_() for _ in range(3))
    scarce.pseudo_label_loss(scores, targets, previous).backward()
    assert targets.grad is None
    assert previous.grad is None
    assert scores.grad.abs().sum() > 0


def test_sure_predictions_have_finite_losses():
    scores = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], dtype=torch.bfloat16).requires_grad_()
    wrong = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    loss = scarce.pseudo_label_loss(scores, wrong, wrong)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(**SIZES)
def test_consistency_mse(samples, classes, seed):
    scores, other = numbers(seed, samples, classes), numbers(seed + 1, samples, classes)
    same_with_gradient(scarce.consistency_mse, oracle.consistency_mse, scores, other)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(**SIZES, data=st.data())
def test_labelled_cross_entropy(samples, classes, seed, data):
    labels = data.draw(st.lists(st.integers(-3, classes - 1), min_size=samples, max_size=samples))
    same_with_gradient(
        lambda s: scarce.labelled_cross_entropy(s, torch.tensor(labels)),
        lambda s: oracle.labelled_cross_entropy(s, labels),
        numbers(seed, samples, classes),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(trajectory=st.lists(st.floats(-10, 10), min_size=2, max_size=12), decay=st.floats(0, 1))
def test_average_decay(trajectory, decay):
    teacher, found = trajectory[0], []
    for step, student in enumerate(trajectory[1:], start=1):
        teacher += (1 - scarce.average_decay(step, decay)) * (student - teacher)
        found.append(teacher)
    assert found == pytest.approx(oracle.weight_average(trajectory, decay))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(count=st.integers(1, 50), fraction=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_a_random_part_has_the_asked_share_and_no_sample_twice(count, fraction, seed):
    rows = scarce.random_part(count, fraction, seed)
    assert len(rows) == max(1, round(fraction * count))
    assert len(rows.unique()) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < count
    assert torch.equal(rows, scarce.random_part(count, fraction, seed))


def test_parts_of_other_seeds_are_others():
    parts = {tuple(scarce.random_part(30, 2 / 3, seed).tolist()) for seed in range(20)}
    assert len(parts) == 20
    assert {len(part) for part in parts} == {20}
