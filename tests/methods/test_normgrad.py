"""The module that makes the maps: each method's are its own, however passes are shared."""

from __future__ import annotations

from typing import get_args

import pytest
import pytorch_lightning as pl
import torch

from scarcely.errors import ConfigError
from scarcely.methods.normgrad import Explained, MethodName, NormGrad
from scarcely.metrics.sensitivity import resize
from scarcely.saliency import METHODS, attribute, combine
from tests.saliency.networks import batch, toy

TARGETS = torch.tensor([0, 3, 1])
PLAIN = ["gradient", "linear_approximation", "grad_cam", "norm_grad"]


def module_of(**settings) -> NormGrad:
    given = {
        "methods": [*PLAIN, "guided_backprop", "norm_grad_conv"],
        "layers": ["input", "3", "5"],
        "meta_methods": ["linear_approximation", "grad_cam", "guided_backprop"],
        "weights": ["uniform", "linear"],
        "how": ["product", "sum"],
        "meta_lr": 0.05,
    }
    module = NormGrad(toy().eval(), **{**given, **settings})
    module.layer_weights = {"uniform": dict.fromkeys(module.layers, 1.0)}
    module.layer_weights["linear"] = {layer: k / 2 for k, layer in enumerate(module.layers)}
    return module


def test_the_methods_of_the_signature_are_those_there_are():
    assert set(get_args(MethodName)) == set(METHODS)


@pytest.mark.parametrize("loss", ["auto", "cross_entropy", "binary_cross_entropy"])
def test_shared_passes_change_no_map(loss):
    module, images = module_of(meta_loss=loss), batch()
    loss = "cross_entropy" if loss == "auto" else loss
    found = module.maps(images, TARGETS, module.names)
    assert tuple(found) == module.names
    for name, maps in found.items():
        lr = 0.05 if name.endswith("-meta") else 0.0
        layers = module.layers_of(name)
        expected = attribute(module.classifier, images, TARGETS, layers, name.removesuffix("-meta"), lr, loss)
        assert list(maps) == list(expected)
        for layer in maps:
            torch.testing.assert_close(maps[layer], expected[layer], rtol=1e-5, atol=1e-7)


def test_methods_that_read_the_same_pass_cost_one():
    module, calls = module_of(methods=PLAIN, meta_methods=[]), []
    module.classifier.register_forward_hook(lambda *_: calls.append(1))
    module.maps(batch(), TARGETS, module.names)
    assert len(calls) == 1


def test_a_method_has_maps_where_it_suits_the_layer():
    module = module_of(methods=["norm_grad_conv", "excitation_backprop", "gradient"], meta_methods=[])
    assert module.layers_of("norm_grad_conv") == ("3",)
    assert module.layers_of("excitation_backprop") == ("3", "5")
    assert module.layers_of("gradient-meta") == ("input", "3", "5")


def test_layers_are_combined_every_way_in_the_order_of_the_weightings():
    module, images = module_of(), batch()
    maps = module.maps(images, TARGETS, ["norm_grad"])["norm_grad"]
    combined = module.combined(maps, (8, 10))
    assert tuple(combined) == module.weightings
    assert module.weightings == ("product-uniform", "sum-uniform", "product-linear", "sum-linear")
    expected = combine(maps, (8, 10), module.layer_weights["linear"], "product")
    assert torch.equal(combined["product-linear"], expected)


def test_a_prediction_is_the_chosen_map_of_the_size_of_the_image():
    module = module_of(layers=["3", "5"])
    trainer = pl.Trainer(inference_mode=False, logger=False, accelerator="cpu", enable_progress_bar=False)
    maps = module.maps(batch(), TARGETS, ["norm_grad"])["norm_grad"]
    module.shown = ("norm_grad", "5")
    (found,) = trainer.predict(module, _OneBatch())
    assert torch.equal(found, resize(maps["5"], (8, 10)))
    module.shown = ("norm_grad", "combined-sum-uniform")
    (found,) = trainer.predict(module, _OneBatch())
    assert torch.equal(found, module.combined(maps, (8, 10))["sum-uniform"])
    module.shown = ("norm_grad", "combined-sum-accuracy")
    with pytest.raises(ConfigError, match="no map"):
        module.predict_step(next(iter(_OneBatch())))


class _OneBatch:
    def __len__(self):
        return 1

    def __iter__(self):
        yield Explained(batch(), TARGETS)


def test_most_and_least_probable_are_of_the_classes_alone():
    module = module_of()
    logits = module.classifier(batch())
    most, least = module.most_and_least(batch(), [1, 3])
    for row, m, n in zip(logits, most.tolist(), least.tolist(), strict=True):
        assert {m, n} == {1, 3}
        assert row[m] > row[n]
