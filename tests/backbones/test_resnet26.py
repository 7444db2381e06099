"""The ResNet-26 of chapters 3 and 4: sizes, layout, counts of the papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scarcely.adapters import attach
from scarcely.backbones.resnet26 import ResNet26


def convs(net):
    return [m for m in net.modules() if isinstance(m, nn.Conv2d)]


def test_its_convolutions_have_the_weights_of_the_paper():
    net = ResNet26()
    by_hand = 9 * (3 * 32 + 32 * 64 + 7 * 64**2 + 64 * 128 + 7 * 128**2 + 128 * 256 + 7 * 256**2)
    assert sum(m.weight.numel() for m in convs(net)) == by_hand == 5_806_944
    assert len(convs(net)) == 25
    assert all(m.kernel_size == (3, 3) and m.bias is None for m in convs(net))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 26


@pytest.mark.parametrize(
    ("kind", "alphas", "norm_values", "norms"),
    [("parallel", 645_216, 7_744, 26), ("series", 689_152, 14_976, 51), ("bn", 0, 7_744, 26)],
)
def test_a_domain_has_the_parameters_of_the_paper(kind, alphas, norm_values, norms):
    model = attach(ResNet26(), kind, {"aircraft": 100})
    groups = model.parameter_groups()
    assert sum(p.numel() for p in groups.get("adapters", [])) == alphas
    assert sum(p.numel() for p in groups["norms"]) == norm_values
    assert len(groups["norms"]) == 2 * norms  # scale and shift
    assert sum(p.numel() for p in groups["heads"]) == 256 * 100 + 100
    assert "shared" not in groups
    table = model.parameter_table()
    assert table.network == 5_806_944 + 7_744
    assert table.ratio == 1 + (alphas + norm_values) / (5_806_944 + 7_744)


@pytest.mark.parametrize("width", [8, 64])
def test_the_image_is_halved_at_each_stage_and_not_in_the_stem(width):
    net, shapes = ResNet26(width=width).eval(), {}
    for name in ("bn1", *net.block_names):
        getattr(net, name).register_forward_hook(
            lambda m, i, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
    with torch.no_grad():
        features = net(torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, net.num_features) == (1, 4 * width)
    assert shapes == {
        "bn1": (width // 2, 64, 64),
        "layer1": (width, 32, 32),
        "layer2": (2 * width, 16, 16),
        "layer3": (4 * width, 8, 8),
    }


def test_the_stem_has_no_relu_and_the_end_has_batchnorm_and_relu():
    torch.manual_seed(0)
    net = ResNet26(width=4, blocks=1).eval()
    x = torch.randn(2, 3, 8, 8)
    stem = net.stem(x)
    assert stem.min() < 0
    y = net.layer2(net.layer1(stem))
    y = net.layer3[0](y)
    with torch.no_grad():
        net.layer3[1].bias.sub_(0.5)  # then the ReLU has something to cut
    y = torch.relu(net.layer3[1](y))
    torch.testing.assert_close(net(x), y.mean((2, 3)))
    assert (y == 0).any()


def test_the_network_of_half_the_depth_has_two_blocks_a_stage():
    assert len(convs(ResNet26(width=8, blocks=2))) == 1 + 3 * 2 * 2


def test_freezing_all_blocks_leaves_no_gradient_outside():
    net = ResNet26(width=4, blocks=1)
    net.freeze("layer3")
    assert not any(p.requires_grad for p in net.parameters())
    assert not net(torch.randn(2, 3, 8, 8)).requires_grad


def test_odd_sides_go_through():
    assert ResNet26(in_channels=1, width=4, blocks=1).eval()(torch.zeros(1, 1, 17, 13)).shape == (1, 16)
