"""The learning rate of an epoch against torch's schedulers, and what is optimised."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from scarcely.methods.optimizer import Optimizer


def of_torch(make, epochs, lr):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("milestones", [[60, 120, 160], [140, 180], [1], [], [5, 5]])
@pytest.mark.parametrize("gamma", [0.1, 0.2, 1.0])
def test_multistep_is_torchs(milestones, gamma):
    ours = Optimizer(lr=0.3, schedule="multistep", milestones=milestones, gamma=gamma)
    expected = of_torch(lambda o: lr_scheduler.MultiStepLR(o, milestones, gamma), 200, 0.3)
    assert [ours.lr_at(e, 200) for e in range(200)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epochs", [1, 2, 30, 200])
def test_cosine_is_torchs(epochs):
    ours = Optimizer(lr=0.05, schedule="cosine")
    expected = of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=epochs), epochs, 0.05)
    assert [ours.lr_at(e, epochs) for e in range(epochs)] == pytest.approx(expected, rel=1e-6)


def test_constant_stays_and_warmup_climbs_in_equal_steps_from_above_zero():
    ours = Optimizer(lr=0.4, schedule="constant", warmup=3)
    assert [ours.lr_at(e, 10) for e in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_only_what_requires_a_gradient_is_optimised(name):
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    optimizer = Optimizer(name=name, lr=1e-2).build(net.parameters())
    before = [p.clone() for p in net.parameters()]
    net(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, net.parameters())]
    assert changed == [False, False, True, True]


def test_sgd_is_the_plain_formula_with_and_without_nesterov():
    for nesterov in (False, True):
        weight = nn.Parameter(torch.tensor([2.0]))
        optimizer = Optimizer(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov).build([weight])
        w, velocity = 2.0, 0.0
        for gradient in (1.0, -0.5, 0.25):
            weight.grad = torch.tensor([gradient])
            optimizer.step()
            g = gradient + 0.01 * w
            velocity = 0.9 * velocity + g
            w -= 0.1 * (g + 0.9 * velocity if nesterov else velocity)
            assert weight.item() == pytest.approx(w, rel=1e-6)


def test_nesterov_without_momentum_is_plain_sgd():
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = Optimizer(lr=0.5, momentum=0.0, nesterov=True, weight_decay=0.0).build([weight])
    weight.grad = torch.tensor([1.0])
    optimizer.step()
    assert weight.item() == pytest.approx(0.5)


def test_adam_couples_its_weight_decay_and_adamw_does_not():
    def after_one_step(name):
        weight = nn.Parameter(torch.tensor([2.0]))
        optimizer = Optimizer(name=name, lr=0.1, weight_decay=0.25).build([weight])
        weight.grad = torch.tensor([0.0])
        optimizer.step()
        return weight.item()

    assert after_one_step("adam") == pytest.approx(2 - 0.1, abs=1e-6)  # the decay alone is normalised to 1
    assert after_one_step("adamw") == pytest.approx(2 * (1 - 0.1 * 0.25), abs=1e-6)


def test_drops_may_be_shares_of_the_epochs():
    optimizer = Optimizer(lr=1.0, milestones=[0.667, 0.834])
    rates = [optimizer.lr_at(epoch, 120) for epoch in range(120)]
    assert rates == pytest.approx([1.0] * 80 + [0.1] * 20 + [0.01] * 20)  # the schedule of chapters 3 and 4
    assert [optimizer.lr_at(epoch, 6) for epoch in range(6)] == pytest.approx([1, 1, 1, 1, 0.1, 0.01])


def test_each_group_has_its_own_weight_decay_and_no_other():
    decays = (0.0, 0.5, 0.25)
    weights = [nn.Parameter(torch.tensor([2.0])) for _ in decays]
    groups = [([weight], decay) for weight, decay in zip(weights, decays, strict=True)]
    optimizer = Optimizer(lr=0.1, momentum=0.0, weight_decay=9.0).build_groups(groups)
    for weight in weights:
        weight.grad = torch.tensor([0.0])
    optimizer.step()
    for weight, decay in zip(weights, decays, strict=True):
        assert weight.item() == pytest.approx(2 * (1 - 0.1 * decay))
