"""KCL: the training step against the literal loss."""

from __future__ import annotations

import copy

import pytest
import torch

from scarcely.methods.kcl import KCL
from tests.methods.test_transfer import batch_of, method_of
from tests.oracles import transfer as oracle


@pytest.mark.parametrize(
    "settings", [{}, {"margin": 0.2}, {"threshold": 0.0}, {"threshold": 1.0}, {"hidden": 4}]
)
def test_loss_and_gradients_equal_the_literal_ones(settings):
    method, batch = method_of(KCL, **settings), batch_of()
    exact = copy.deepcopy(method).double()
    similar = method.similarity(batch.views[0], method.threshold)
    loss = method.training_step(batch, 0)
    loss.backward()
    p = exact(batch.views[1].double()).softmax(dim=1)
    expected = oracle.kcl_loss(p, p, similar, method.margin)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    for (name, given), wanted in zip(method.named_parameters(), exact.parameters(), strict=True):
        assert (given.grad is None) == (wanted.grad is None), name
        if given.grad is not None:
            torch.testing.assert_close(given.grad.double(), wanted.grad, rtol=2e-3, atol=2e-5, msg=name)
