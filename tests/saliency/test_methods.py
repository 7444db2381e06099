"""Every method against a literal one: per-layer backward passes, explicit outer products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scarcely.errors import ConfigError
from scarcely.saliency import METHODS, ExtractAggregate, IntegratedGradients, SmoothGrad, attribute
from tests.oracles import saliency as oracle
from tests.saliency.networks import CLASSES, batch, toy

TARGETS = [2, 0, 3]
LAYERS = [-1, *range(9)]  # all that have spatial positions; the pooled one has a single one


def name(layer):
    return "input" if layer < 0 else str(layer)


def compare(found, expected, tolerance=1e-5):
    """Relative to the largest value of each map."""
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    for one, wanted in zip(found.double(), expected):
        assert (one - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert expected.abs().max() > 0


def literal(net, images, layer, read):
    """The maps of ``read(a, g)``, sample by sample."""
    net = oracle.plain(net)
    return torch.stack(
        [
            read(*oracle.activation_and_gradient(net, image.double(), target, layer))
            for image, target in zip(images, TARGETS)
        ]
    )


def read_conv(net, image_to_entry, layer, aggregate):
    """NormGrad of the layer's own weights needs its input too."""
    net_ = oracle.plain(net)
    maps = []
    for image, target in zip(image_to_entry, TARGETS):
        entry = net_[:layer](image[None].double()).detach()[0]
        _, g = oracle.activation_and_gradient(net_, image.double(), target, layer)
        maps.append(oracle.real_conv(net_[layer], entry, g, aggregate))
    return torch.stack(maps)


PLAIN = {
    "gradient": lambda a, g: oracle.bias(a, g, "max_abs"),
    "gradient_sum": lambda a, g: oracle.bias(a, g, "sum"),
    "linear_approximation": lambda a, g: oracle.scaling(a, g, "sum"),
    "grad_cam": oracle.grad_cam,
    "cam": oracle.weighted_by_sum_of_gradient,
    "norm_grad": lambda a, g: oracle.conv(a, g, "norm"),
    "selective_norm_grad": lambda a, g: oracle.scaling(a, g, "positive_norm"),
}


@pytest.mark.parametrize("method", PLAIN)
def test_a_method_without_rules_equals_the_literal_one_at_every_layer(method):
    net, images = toy(), batch()
    maps = attribute(net, images, torch.tensor(TARGETS), ["input", "?"], method)
    assert list(maps) == [name(layer) for layer in range(-1, 10)]
    for layer in LAYERS:
        compare(maps[name(layer)], literal(net, images, layer, PLAIN[method]))


@pytest.mark.parametrize("aggregate", oracle.AGGREGATES)
@pytest.mark.parametrize(("extract", "kernel"), [("bias", 1), ("scaling", 1), ("conv", 1), ("conv", 3)])
def test_extract_and_aggregate_combine_freely(extract, kernel, aggregate):
    net, images = toy(1), batch(1)
    method = ExtractAggregate(extract, aggregate, kernel_size=kernel)
    maps = attribute(net, images, torch.tensor(TARGETS), ["0", "5"], method)
    extra = (kernel,) if extract == "conv" else ()
    for layer in (0, 5):
        expected = literal(net, images, layer, lambda a, g: getattr(oracle, extract)(a, g, aggregate, *extra))
        compare(maps[name(layer)], expected)


@pytest.mark.parametrize("aggregate", oracle.AGGREGATES)
def test_real_convolutions_contribute_with_their_own_geometry(aggregate):
    net, images = toy(2), batch(2)
    maps = attribute(
        net, images, torch.tensor(TARGETS), ["0", "3", "6"], ExtractAggregate("conv", aggregate, real=True)
    )
    for layer in (0, 3, 6):
        compare(maps[name(layer)], read_conv(net, images, layer, aggregate))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(1, 2)),
        nn.Conv2d(3, 4, 3, padding="valid", stride=3),
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect", groups=3),
        nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="circular"),
        nn.Conv2d(3, 3, 5, padding=2, groups=3, stride=(2, 1), padding_mode="replicate"),
    ],
    ids=str,
)
def test_every_padding_is_followed(conv):
    torch.manual_seed(0)
    net = nn.Sequential(
        conv,
        nn.ReLU(inplace=True),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * conv.out_channels, 4),
    )
    images = batch()
    expected = read_conv(net, images, 0, "norm")
    compare(attribute(net, images, torch.tensor(TARGETS), "0", "norm_grad_conv")["0"], expected)


def test_contributions_of_real_layers_add_up_to_the_gradients_of_their_weights():
    net, images = toy().eval(), batch()
    net(images).gather(1, torch.tensor(TARGETS)[:, None]).sum().backward()
    target = torch.tensor(TARGETS)
    scaling = attribute(net, images, target, "1", ExtractAggregate("scaling", "sum", real=True))["1"]
    torch.testing.assert_close(scaling.sum(), net[1].weight.grad.sum())
    bias = attribute(net, images, target, ["1", "3"], ExtractAggregate("bias", "sum", real=True))
    for layer in (1, 3):
        torch.testing.assert_close(bias[str(layer)].sum(), net[layer].bias.grad.sum())
    conv = attribute(net, images, target, ["0", "3", "6"], ExtractAggregate("conv", "sum", real=True))
    for layer in (0, 3, 6):
        torch.testing.assert_close(conv[str(layer)].sum(), net[layer].weight.grad.sum(), rtol=1e-4, atol=1e-5)


def test_cam_shows_the_classifiers_weights():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES)
    )
    images = batch()
    features = net[:2](images)
    expected = torch.stack([(net[4].weight[t][:, None, None] * f).sum(0) for t, f in zip(TARGETS, features)])
    compare(attribute(net, images, torch.tensor(TARGETS), "1", "cam")["1"], expected.detach().double())


@pytest.mark.parametrize(
    ("method", "rule"), [("guided_backprop", oracle.guided), ("deconvnet", oracle.deconv)]
)
def test_rules_for_relus_equal_the_literal_ones(method, rule):
    torch.manual_seed(1)
    net = nn.Sequential(*(module for i, module in enumerate(toy(3)) if i != 5))  # whose ReLUs are hidden
    images = batch(3)
    maps = attribute(net, images, torch.tensor(TARGETS), ["input", "[0-7]"], method)
    copy = oracle.plain(net)
    for layer in range(-1, 7):
        signals = [
            oracle.signal(copy, image.double(), target, layer, rule) for image, target in zip(images, TARGETS)
        ]
        compare(maps[name(layer)], torch.stack([s.abs().amax(0) for s in signals]))


class Functional(nn.Module):
    def __init__(self, relu):
        super().__init__()
        self.relu = relu

    def forward(self, x):
        return self.relu(x)


def in_place(x):
    torch.relu_(x)
    return x


@pytest.mark.parametrize(
    "relu",
    [torch.relu, torch.nn.functional.relu, lambda x: x.relu(), in_place, lambda x: x.relu_(), nn.ReLU6()],
)
@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet", "excitation_backprop", "gradient"])
def test_rules_hold_however_relu_is_called(relu, method):
    net = toy()
    by_hand = nn.Sequential(*(Functional(relu) if isinstance(m, nn.ReLU) else m for m in net))
    images = batch()
    expected = attribute(net, images, torch.tensor(TARGETS), ["0", "1", "3", "5"], method)
    found = attribute(by_hand, images, torch.tensor(TARGETS), ["0", "1", "3", "5"], method)
    for layer, wanted in expected.items():
        torch.testing.assert_close(found[layer], wanted)


@pytest.mark.parametrize("contrastive", [False, True])
def test_excitation_equals_the_literal_one_above_the_image(contrastive):
    net, images = toy(4), batch(4)
    copy = oracle.plain(net)
    method = "contrastive_excitation_backprop" if contrastive else "excitation_backprop"
    layers = [2, 4, 5, 7, 8]
    maps = attribute(net, images, torch.tensor(TARGETS), [str(i) for i in layers], method)
    for layer in layers:
        p = [
            oracle.excitation(copy, image.double(), target, layer, contrastive).sum(0)
            for image, target in zip(images, TARGETS)
        ]
        expected = torch.stack(p).clamp(min=0) if contrastive else torch.stack(p)
        compare(maps[str(layer)], expected)


def test_excitation_is_a_probability_at_every_layer():
    maps = attribute(toy(), batch(), "predicted", ["4", "5", "7", "8"], "excitation_backprop")
    for m in maps.values():
        assert (m >= 0).all()
        torch.testing.assert_close(m.sum(dim=(1, 2)), torch.ones(3))


def test_excitation_does_not_go_down_to_the_image():
    with pytest.raises(ConfigError, match="above the image"):
        attribute(toy(), batch(), 0, ["input", "4"], "excitation_backprop")


def test_smooth_grad_averages_the_gradients_of_noisy_images():
    net, images = toy(), batch()
    maps = attribute(net, images, torch.tensor(TARGETS), ["input", "3"], SmoothGrad(3, noise=0.2, seed=7))
    generator = torch.Generator().manual_seed(7)
    copy = oracle.plain(net)
    noises = [torch.empty_like(images).normal_(generator=generator) for _ in range(3)]
    for layer in (-1, 3):
        expected = []
        for i, (image, target) in enumerate(zip(images, TARGETS)):
            deviation = 0.2 * (image.max() - image.min())
            noisy = [(image + deviation * noise[i]).double() for noise in noises]
            total = sum(oracle.activation_and_gradient(copy, x, target, layer)[1] for x in noisy)
            expected.append((total / 3).abs().amax(0))
        compare(maps[name(layer)], torch.stack(expected))


def test_integrated_gradients_equal_the_literal_ones_and_sum_to_the_gain():
    net, images = toy(), batch()
    layers = [-1, 0, 3, 8]
    maps = attribute(
        net, images, torch.tensor(TARGETS), [name(layer) for layer in layers], IntegratedGradients(4)
    )
    copy = oracle.plain(net)
    for layer in layers:
        expected = [
            oracle.integrated_gradients(copy, image.double(), target, layer, 4)
            for image, target in zip(images, TARGETS)
        ]
        compare(maps[name(layer)], torch.stack(expected))
    fine = attribute(net, images, torch.tensor(TARGETS), ["input", "3", "7"], IntegratedGradients(100))
    with torch.no_grad():
        gain = (copy(images.double()) - copy(0 * images.double())).gather(1, torch.tensor(TARGETS)[:, None])
    for m in fine.values():
        torch.testing.assert_close(m.sum(dim=(1, 2)).double(), gain[:, 0], rtol=0.02, atol=0.02)


def test_passes_of_one_map_explain_one_class():
    net, images = toy(), batch()
    predicted = net.eval()(images).argmax(1)
    for method in ("smooth_grad", IntegratedGradients(2)):
        found = attribute(net, images, "predicted", "3", method)["3"]
        assert torch.equal(found, attribute(net, images, predicted, "3", method)["3"])


def test_names_and_choices_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="no saliency method 'norm_gard'"):
        attribute(toy(), batch(), 0, "3", "norm_gard")
    with pytest.raises(ConfigError, match="no aggregate"):
        ExtractAggregate("bias", "mean")
    with pytest.raises(ConfigError, match="no extract"):
        ExtractAggregate("weight", "sum")
    with pytest.raises(ConfigError, match="2 x 2 kernel"):
        ExtractAggregate("conv", "norm", kernel_size=2)


@pytest.mark.parametrize("layer", ["input", "2"])
def test_real_weights_are_those_of_layers_that_have_them(layer):
    with pytest.raises(ConfigError, match="convolution of its own"):
        attribute(toy(), batch(), 0, layer, "norm_grad_conv")
    with pytest.raises(ConfigError, match="scaling of its own"):
        attribute(toy(), batch(), 0, layer, ExtractAggregate("scaling", "sum", real=True))


class SameConv(nn.Conv2d):
    """A convolution that pads by itself, as networks ported from TensorFlow have them."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def test_a_convolution_that_pads_by_itself_has_no_map_of_its_own():
    net = nn.Sequential(SameConv(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ConfigError, match=r"'0' \(SameConv\) does not have the padding that it says"):
        attribute(net, batch(), 0, "0", "norm_grad_conv")
    assert attribute(net, batch(), 0, "0", "norm_grad")["0"].any()


def test_every_named_method_gives_finite_maps():
    for method in METHODS:
        maps = attribute(toy(), batch(), 1, ["0", "6"], method)
        assert all(m.isfinite().all() and m.any() for m in maps.values())


def test_a_relu6_is_flat_above_six_for_guided_backprop():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6(), nn.Flatten(), nn.Linear(3, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
    image = torch.tensor([-4.0, 3.0, 8.0]).view(1, 1, 1, 3)
    assert attribute(net, image, 0, "0", "guided_backprop")["0"].flatten().tolist() == [0, 1, 0]
    assert attribute(net, image, 0, "0", "deconvnet")["0"].flatten().tolist() == [1, 1, 1]
