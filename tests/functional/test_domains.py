"""Distillation equals its formula; it is smallest where nothing was forgotten."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.functional.domains import distillation
from tests.oracles import domains as oracle


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 5),
    classes=st.integers(1, 6),
    temperature=st.floats(0.5, 8),
    seed=st.integers(0, 999),
)
def test_distillation_equals_its_formula_with_its_gradient(samples, classes, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    old = 3 * torch.randn(samples, classes, generator=generator)
    ours, theirs = scores.float().requires_grad_(), scores.clone().requires_grad_()
    found, expected = distillation(ours, old, temperature), oracle.distillation(theirs, old, temperature)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


def test_it_is_least_at_the_old_answers_and_gives_them_no_gradient():
    old = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = old.detach().clone().requires_grad_()
    loss = distillation(scores, old)
    loss.backward()
    assert old.grad is None
    assert scores.grad.abs().max() < 1e-6
    assert loss < distillation(scores.detach() + torch.tensor([1.0, 0, 0]), old)
