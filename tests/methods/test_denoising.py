"""The denoising autoencoder: what is dropped, what is reconstructed, how the decoder mirrors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scarcely.backbones.small import MLP, SmallCNN
from scarcely.config.signature import mismatch, signature_of
from scarcely.data.augment import ImageAugmentation, VectorAugmentation
from scarcely.data.loader import Batch
from scarcely.methods.denoising import Denoising
from scarcely.methods.optimizer import Optimizer


def test_the_decoder_mirrors_a_fully_connected_encoder():
    method = Denoising(MLP(20, (7, 6, 11)), Optimizer(), (20,))
    shapes = [(m.in_features, m.out_features) for m in method.decoder if isinstance(m, nn.Linear)]
    assert shapes == [(11, 6), (6, 7), (7, 20)]
    assert isinstance(method.decoder[-1], nn.Linear)  # the data may be negative


def test_vectors_are_reconstructed_clean_from_the_second_view():
    torch.manual_seed(0)
    method = Denoising(MLP(12, (5, 4)), Optimizer(), (12,))
    clean = torch.randn(9, 12)
    noisy = clean * (torch.rand(9, 12) > 0.2)
    loss = method.training_step(Batch(torch.arange(9), (clean, noisy), torch.zeros(9).long()), 0)
    output = method.decoder(method.backbone(noisy))
    torch.testing.assert_close(loss, sum((output - clean).flatten() ** 2) / (9 * 12))


def test_pixels_are_dropped_where_views_have_no_dropout_of_their_own():
    torch.manual_seed(0)
    method = Denoising(SmallCNN(width=2, num_features=4), Optimizer(), (1, 16, 16), dropout=0.4)
    clean = torch.rand(50, 1, 16, 16) + 1
    seen = []
    method.backbone.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    loss = method.training_step(Batch(torch.arange(50), (clean, clean), torch.zeros(50).long()), 0)
    dropped = seen[0] == 0
    assert dropped.float().mean().item() == pytest.approx(0.4, abs=0.02)  # 12,800 pixels: 4 sigma
    torch.testing.assert_close(seen[0][~dropped], clean[~dropped] / 0.6)
    assert loss.isfinite()


def test_vectors_are_corrupted_as_the_stage_says():
    method = Denoising(MLP(12, (5, 4)), Optimizer(), (12,), dropout=0.7)
    augmentation = method.augmentation(VectorAugmentation(dropout=0.1, first_clean=False))
    inputs = torch.ones(500, 12)
    params = augmentation.draw(torch.Generator().manual_seed(0), 500, method.views, (12,))
    clean, noisy = augmentation.apply(inputs, params, method.views)
    assert torch.equal(clean, inputs)
    assert (noisy == 0).float().mean().item() == pytest.approx(0.7, abs=0.03)  # 6,000 entries: 5 sigma
    noise = Denoising(MLP(2, (5, 4)), Optimizer(), (2,), dropout=0).augmentation(
        VectorAugmentation(0.3, 0.05)
    )
    assert (noise.dropout, noise.noise) == (0, 0.05), "the noise of the data stays"


def test_images_are_reconstructed_as_the_data_augment_them():
    torch.manual_seed(0)
    method = Denoising(SmallCNN(width=2, num_features=4), Optimizer(), (1, 16, 16), dropout=0.4)
    crops = ImageAugmentation(mean=[0.5], std=[0.5], padding=1, first_clean=True)
    assert method.augmentation(crops) is crops
    clean, cropped = torch.rand(2, 50, 1, 16, 16) + 1
    seen = []
    method.backbone.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    method.training_step(Batch(torch.arange(50), (clean, cropped), torch.zeros(50).long()), 0)
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], cropped[kept] / 0.6)


def test_the_final_score_is_the_error_on_clean_inputs():
    torch.manual_seed(0)
    method = Denoising(MLP(12, (5, 4)), Optimizer(), (12,))
    batches = [Batch(torch.arange(n), (torch.randn(n, 12),) * 2, torch.zeros(n).long()) for n in (4, 1)]
    x = torch.cat([b.views[0] for b in batches])
    mse = (method.decoder(method.backbone(x)) - x).square().mean().item()
    assert method.final_metrics(batches)["reconstruction/mse"] == pytest.approx(mse, rel=1e-6)


@pytest.mark.parametrize(("dropout", "possible"), [(0.0, True), (0.99, True), (1, False), (-0.1, False)])
def test_the_range_of_the_dropout_is_known_before_a_run(dropout, possible):
    hint = signature_of("scarcely.methods.denoising.Denoising").parameters["dropout"].annotation
    assert bool(mismatch(dropout, hint)) != possible
