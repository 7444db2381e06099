"""RotNet: which rotation is which label, and that nobody mistakes it for a class."""

from __future__ import annotations

import json

import pytest
import torch

from scarcely.backbones.small import SmallCNN
from scarcely.data.loader import Batch
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.rotnet import RotNet, rotate_all


def rotnet(seed=0) -> RotNet:
    torch.manual_seed(seed)
    return RotNet(SmallCNN(width=4, num_features=8), Optimizer())


def batch_of(n=6, seed=0) -> Batch:
    images = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Batch(torch.arange(n), (images,), torch.full((n,), -1))


def test_label_k_is_k_quarter_turns_counter_clockwise():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    turned, rotation = rotate_all(image.expand(1, 3, 2, 2))
    by_hand = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert rotation.tolist() == [0, 1, 2, 3]
    for channel in range(3):
        assert turned[:, channel].tolist() == by_hand


def test_all_four_rotations_of_each_image_are_in_one_batch():
    images = batch_of(5).views[0]
    turned, rotation = rotate_all(images)
    assert turned.shape == (20, 1, 16, 16)
    assert torch.bincount(rotation).tolist() == [5, 5, 5, 5]
    for k in range(4):
        for image, copy in zip(images, turned[rotation == k], strict=True):
            for _ in range(k):  # a quarter turn: the last column becomes the first row
                image = image.flip(2).mT
            assert torch.equal(copy, image)


def test_the_loss_is_the_cross_entropy_over_the_whole_batch_of_rotations():
    method, batch = rotnet(), batch_of()
    loss = method.training_step(batch, 0)
    turned, rotation = rotate_all(batch.views[0])
    log_p = method.rotation_head(method.backbone(turned)).log_softmax(1)
    by_hand = -sum(log_p[i, int(k)] for i, k in enumerate(rotation)) / 24
    torch.testing.assert_close(loss, by_hand)


def test_nothing_is_named_like_a_class_or_a_plain_accuracy():
    method, batch = rotnet(), batch_of()
    method.training_step(batch, 0)
    method.on_validation_epoch_start()
    method.validation_step(batch, 0)
    method.on_validation_epoch_end()
    names = {*method.recent(1), *method.scores, *method.final_metrics([batch])}
    assert all("rotation" in name for name in names - {"loss"})
    heads = {name.split(".")[0] for name, _ in method.named_parameters()} - {"backbone"}
    assert heads == {"rotation_head"}
    assert method.logits(torch.zeros(1, 8)) is None  # no classifier of the samples: none is predicted
    json.dumps(method.final_metrics([batch]))


def test_the_final_score_counts_each_rotation_once_and_without_augmentation():
    method, batches = rotnet(), [batch_of(6), batch_of(3, seed=1)]
    score = method.final_metrics(batches)["rotation/accuracy"]
    method.eval()
    hits = 0
    for batch in batches:
        turned, rotation = rotate_all(batch.views[0])
        hits += int((method.rotation_head(method.backbone(turned)).argmax(1) == rotation).sum())
    assert score == pytest.approx(hits / 36)
