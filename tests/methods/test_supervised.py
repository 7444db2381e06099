"""Supervised classification where some, or all, labels are missing."""

from __future__ import annotations

import pytest
import torch

from scarcely.backbones.small import MLP
from scarcely.data.loader import Batch
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.supervised import Supervised


def supervised(**settings) -> Supervised:
    torch.manual_seed(0)
    return Supervised(MLP(6, (8,)), num_classes=3, optimizer=Optimizer(), **settings)


def batch_of(labels) -> Batch:
    x = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1))
    return Batch(torch.arange(len(labels)), (x,), torch.tensor(labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_unlabelled_samples_change_neither_loss_nor_gradient(smoothing):
    mixed, labelled = batch_of([0, -1, 2, 1, -1]), torch.tensor([0, 2, 3])
    alone = Batch(labelled, (mixed.views[0][labelled],), mixed.labels[labelled])
    methods = [supervised(label_smoothing=smoothing) for _ in range(2)]
    losses = [m.training_step(b, 0) for m, b in zip(methods, (mixed, alone))]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for a, b in zip(*(m.parameters() for m in methods)):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(*(torch.tensor(m.recent(1)["accuracy"]) for m in methods))


def test_the_loss_is_the_mean_cross_entropy():
    method, batch = supervised(), batch_of([0, 2, 1, -1])
    p = method(batch.views[0]).softmax(1)
    by_hand = -(p[0, 0].log() + p[1, 2].log() + p[2, 1].log()) / 3
    torch.testing.assert_close(method.training_step(batch, 0), by_hand)


def test_a_batch_without_labels_gives_zero_and_no_gradient():
    method = supervised()
    loss = method.training_step(batch_of([-1, -1, -1]), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.abs().max() == 0 for p in method.parameters())
    method.training_step(batch_of([0, 1]), 1)
    assert 0 <= method.recent(2)["accuracy"] <= 1  # the batch without any does not count


def test_validation_ignores_what_has_no_label():
    method, batch = supervised(), batch_of([0, -1, 2, 1, -1])
    predicted = method(batch.views[0]).argmax(1)
    method.on_validation_epoch_start()
    method.validation_step(batch, 0)
    method.on_validation_epoch_end()
    by_hand = sum(int(predicted[i] == batch.labels[i]) for i in (0, 2, 3)) / 3
    assert method.scores["clean_accuracy"] == pytest.approx(by_hand)


def test_one_class_can_be_learnt():
    method = Supervised(MLP(6, (8,)), num_classes=1, optimizer=Optimizer())
    assert method.training_step(batch_of([0, -1, 0]), 0).item() == 0
    method.validation_step(batch_of([0, -1, 0]), 0)
    method.on_validation_epoch_end()
    assert method.scores["clean_accuracy"] == 1


@pytest.mark.parametrize("freeze", [1, "fc1"])
def test_a_frozen_backbone_leaves_the_head_to_train(freeze):
    method = supervised(freeze=freeze)
    method.training_step(batch_of([0, 1, 2]), 0).backward()
    assert {n for n, p in method.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}
