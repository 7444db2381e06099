"""The net for Omniglot: sizes of chapter 6, features that keep their place."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from scarcely.backbones.omniglot import OmniglotNet
from scarcely.errors import ConfigError


def test_it_has_the_parameters_counted_by_hand():
    channels = [1, 64, 128, 256, 256]
    wanted = sum(9 * before * after + 2 * after for before, after in pairwise(channels))
    assert sum(p.numel() for p in OmniglotNet().parameters()) == wanted
    assert all(m.bias is None for m in OmniglotNet().modules() if isinstance(m, nn.Conv2d))


def test_32_pixels_become_2_by_2_by_256_features():
    net, x = OmniglotNet(), torch.zeros(2, 1, 32, 32)
    shapes = []
    for name in net.block_names:
        x = getattr(net, name)(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (256, 2, 2)]
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 1024)
    assert net.num_features == 1024


@pytest.mark.parametrize("size", [16, 31, 32, 47, 105])
def test_features_follow_size_and_width(size):
    net = OmniglotNet(in_channels=3, image_size=size, width=2)
    features = net(torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (3, net.num_features)
    assert features.min() >= 0, "ranking statistics take values after a ReLU as magnitudes"


def test_places_are_told_apart():
    net = OmniglotNet(width=2).eval()
    left = torch.zeros(1, 1, 32, 32)
    left[..., 4:12, 4:12] = 1
    right = left.flip(3)
    assert not torch.allclose(net(left).sort().values, torch.zeros(1, net.num_features))
    assert not torch.allclose(net(left), net(right), atol=1e-3)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ConfigError, match="15 pixels"):
        OmniglotNet(image_size=15)


@pytest.mark.parametrize("until", ["conv3", 3])
def test_it_freezes_by_block(until):
    net = OmniglotNet(width=2)
    net.freeze(until)
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad} == {"conv4"}
