"""The same maps by captum, and ours called by Quantus; both are optional."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scarcely.saliency import IntegratedGradients, attribute, quantus_explainer
from tests.saliency.networks import CLASSES, batch, toy

pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting backward hooks on ReLU", "ignore:Input Tensor 0 did not already require gradients"
)
TARGETS = torch.tensor([2, 0, 3])
LAYERS = ["2", "4", "5", "7"]


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.relu = body, nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.body(x))


@pytest.fixture
def net():
    """A network that captum can follow: every ReLU a module, and none in place."""
    network = toy().eval()
    network[5] = Residual(network[5].body)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network


@pytest.fixture
def captum():
    return pytest.importorskip("captum.attr")


@pytest.mark.parametrize("layer", LAYERS)
def test_linear_approximation_is_gradient_times_activation(net, captum, layer):
    theirs = captum.LayerGradientXActivation(net, net.get_submodule(layer)).attribute(batch(), TARGETS)
    ours = attribute(net, batch(), TARGETS, layer, "linear_approximation")[layer]
    torch.testing.assert_close(ours, theirs.sum(1))


@pytest.mark.parametrize("layer", LAYERS)
def test_grad_cam_is_that_of_captum(net, captum, layer):
    grad_cam = captum.LayerGradCam(net, net.get_submodule(layer))
    theirs = grad_cam.attribute(batch(), TARGETS, relu_attributions=True)
    ours = attribute(net, batch(), TARGETS, layer, "grad_cam")[layer]
    torch.testing.assert_close(ours, theirs[:, 0])


@pytest.mark.parametrize(
    ("method", "name"), [("guided_backprop", "GuidedBackprop"), ("deconvnet", "Deconvolution")]
)
def test_rules_for_relus_are_those_of_captum(net, captum, method, name):
    theirs = getattr(captum, name)(net).attribute(batch(), TARGETS)
    ours = attribute(net, batch(), TARGETS, "input", method)["input"]
    torch.testing.assert_close(ours, theirs.abs().amax(1))


def test_the_gradient_is_captums_saliency(net, captum):
    theirs = captum.Saliency(net).attribute(batch(), TARGETS)
    ours = attribute(net, batch(), TARGETS, "input", "gradient")["input"]
    torch.testing.assert_close(ours, theirs.amax(1))


def test_integrated_gradients_are_those_of_captum(net, captum):
    theirs = captum.IntegratedGradients(net).attribute(
        batch(), target=TARGETS, n_steps=9, method="riemann_trapezoid"
    )
    ours = attribute(net, batch(), TARGETS, "input", IntegratedGradients(steps=8))["input"]
    # captum gives each of the nine ends of its eight steps a ninth of the way
    torch.testing.assert_close(ours, theirs.sum(1) * 9 / 8)


def test_quantus_plays_its_pointing_game_with_our_maps(net):
    quantus = pytest.importorskip("quantus")
    images, targets = batch(n=8), torch.arange(8) % CLASSES
    regions = np.random.default_rng(0).random((8, 1, 8, 10)) < 0.5
    game = quantus.PointingGame(disable_warnings=True, normalise=False, abs=False)
    hits = game(
        model=net,
        x_batch=images.numpy(),
        y_batch=targets.numpy(),
        s_batch=regions,
        explain_func=quantus_explainer("5", "norm_grad"),
        device="cpu",
    )
    maps = quantus_explainer("5", "norm_grad")(net, images, targets)
    expected = [r.flat[m.argmax()] for r, m in zip(regions, maps)]
    assert 0 < sum(expected) < 8
    assert [bool(hit) for hit in hits] == [bool(hit) for hit in expected]


def test_quantus_randomises_the_model_and_asks_again(net):
    quantus = pytest.importorskip("quantus")
    test = quantus.MPRT(disable_warnings=True, return_average_correlation=True)
    scores = test(
        model=net,
        x_batch=batch(n=4).numpy(),
        y_batch=np.arange(4) % CLASSES,
        explain_func=quantus_explainer("5", "selective_norm_grad"),
        device="cpu",
    )
    assert len(scores) == 4
    assert all(-1 <= score < 0.999 for score in scores)  # maps of random weights are others
