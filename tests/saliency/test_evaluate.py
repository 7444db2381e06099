"""Whether maps depend on the class and on the weights."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from scarcely.errors import ConfigError
from scarcely.saliency import (
    attribute,
    cascading_randomization,
    class_sensitivities,
    identity_correlations,
    quantus_explainer,
)
from tests.saliency.networks import batch, toy


def upsampled(m, size=(8, 10)):
    return torch.nn.functional.interpolate(m[:, None], size=size, mode="bilinear")[:, 0]


@pytest.mark.parametrize("meta_lr", [0.0, 0.05])
def test_class_sensitivity_compares_the_most_with_the_least_probable_class(meta_lr):
    model, images = toy().eval(), batch()
    logits = model(images)
    found = class_sensitivities(model, images, ["0", "5"], "norm_grad", meta_lr)
    most = attribute(model, images, logits.argmax(1), ["0", "5"], "norm_grad", meta_lr)
    least = attribute(model, images, logits.argmin(1), ["0", "5"], "norm_grad", meta_lr)
    for layer, correlation in found.items():
        a, b = upsampled(most[layer]), upsampled(least[layer])
        expected = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b)]
        assert correlation.each.tolist() == pytest.approx(expected, abs=1e-6)
        assert correlation.mean == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_the_cascade_goes_from_the_head_down_and_leaves_the_model_alone():
    model, images = toy().train(), batch()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    steps = list(cascading_randomization(model, images, "predicted", ["0", "5"]))
    assert [step.module for step in steps] == ["", "11", "6", "5.body", "3", "1", "0"]
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for layer in ("0", "5"):
        torch.testing.assert_close(steps[0].correlations[layer].each, torch.ones(3).double())
        assert abs(steps[-1].correlations[layer].mean) < 0.9


def test_the_cascade_is_cumulative_and_follows_its_seed():
    model, images = toy(), batch()
    run = [
        list(cascading_randomization(model, images, 1, "0", "norm_grad", modules=["11", "6"], seed=seed))
        for seed in (0, 0, 1)
    ]
    a, b, other = ([step.maps["0"] for step in steps] for steps in run)
    assert len(a) == 3
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not torch.allclose(a[1], other[1])
    only_last = list(cascading_randomization(model, images, 1, "0", "norm_grad", modules=["6"]))
    assert not torch.allclose(a[2], only_last[1].maps["0"])  # whose head is as trained


def test_layers_of_the_same_shape_get_different_weights():
    def conv(seed):
        torch.manual_seed(seed)
        return nn.Conv2d(3, 3, 1, bias=False)

    model = nn.Sequential(conv(0), conv(1), nn.Flatten(), nn.Linear(3 * 8 * 10, 4))
    steps = list(cascading_randomization(model, batch(), 1, "input", "gradient", modules=["0", "1"], seed=3))
    torch.manual_seed(3)
    one = nn.Conv2d(3, 3, 1, bias=False)
    equal = attribute(nn.Sequential(one, one, *model[2:]), batch(), 1, "input", "gradient")["input"]
    assert not torch.allclose(steps[-1].maps["input"], equal)


def test_randomising_nothing_is_refused_and_the_random_state_is_kept():
    with pytest.raises(ConfigError, match="no parameters in 2"):
        list(cascading_randomization(toy(), batch(), 1, "0", modules=["2", "6"]))
    model, images = toy(), batch()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(cascading_randomization(model, images, 1, "0", modules="6"))
    assert torch.equal(torch.rand(1), expected)


def test_the_cascade_keeps_the_class_that_was_predicted_at_first():
    model, images = toy().eval(), batch()
    predicted = list(cascading_randomization(model, images, "predicted", "0", modules="11"))
    given = list(cascading_randomization(model, images, model(images).argmax(1), "0", modules="11"))
    assert torch.equal(predicted[1].maps["0"], given[1].maps["0"])


def test_a_virtual_identity_comes_near_the_real_convolution():
    model, images = toy(), batch()
    found = identity_correlations(model, images, 1, ["0", "3"])
    for layer in ("0", "3"):
        real = attribute(model, images, 1, layer, "norm_grad_conv")[layer]
        virtual = attribute(model, images, 1, layer, "norm_grad")[layer]
        pairs = zip(upsampled(real), upsampled(virtual))
        expected = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in pairs]
        assert found[layer].each.tolist() == pytest.approx(expected, abs=1e-6)


def test_quantus_gets_arrays_of_the_images_size():
    model, images = toy(), batch()
    explain = quantus_explainer("5", "norm_grad")
    found = explain(model, images.numpy(), torch.tensor([0, 1, 2]).numpy(), device="cpu")
    expected = upsampled(attribute(model, images, torch.tensor([0, 1, 2]), "5", "norm_grad")["5"])
    assert found.shape == (3, 1, 8, 10)
    torch.testing.assert_close(torch.from_numpy(found[:, 0]), expected)
