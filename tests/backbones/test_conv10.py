"""The ten-layer network of temporal ensembling: its table, its sizes, its dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scarcely.backbones.conv10 import Conv10
from scarcely.errors import ConfigError


def convolutions(net):
    return [m for m in net.modules() if isinstance(m, nn.Conv2d)]


def test_it_has_the_parameters_counted_by_hand():
    block1 = 9 * (3 * 128 + 2 * 128 * 128)
    block2 = 9 * (128 * 256 + 2 * 256 * 256)
    block3 = 9 * 256 * 512 + 512 * 256 + 256 * 128
    scale_and_shift = 2 * (3 * 128 + 3 * 256 + 512 + 256 + 128)
    assert block1 + block2 + block3 + scale_and_shift == 3_120_512
    assert sum(p.numel() for p in Conv10().parameters()) == 3_120_512  # no bias, no head


def test_its_nine_convolutions_are_those_of_the_table():
    net = Conv10()
    assert [(m.in_channels, m.out_channels, m.kernel_size[0], m.padding[0]) for m in convolutions(net)] == [
        (3, 128, 3, 1), (128, 128, 3, 1), (128, 128, 3, 1),
        (128, 256, 3, 1), (256, 256, 3, 1), (256, 256, 3, 1),
        (256, 512, 3, 0), (512, 256, 1, 0), (256, 128, 1, 0),
    ]  # fmt: skip
    assert all(m.bias is None for m in convolutions(net))
    for kind in (nn.BatchNorm2d, nn.LeakyReLU):
        assert sum(isinstance(m, kind) for m in net.modules()) == 9
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.1}
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_blocks_have_the_shapes_of_the_table():
    net, x = Conv10().eval(), torch.zeros(2, 3, 32, 32)
    shapes = []
    with torch.no_grad():
        for name in net.block_names:
            x = getattr(net, name)(x)
            shapes.append(tuple(x.shape[1:]))
        assert shapes == [(128, 16, 16), (256, 8, 8), (128, 6, 6)]
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 128)
    assert net.num_features == 128


def test_pooling_before_the_leaky_relu_is_the_same_function():
    torch.manual_seed(0)
    block = Conv10(width=3).eval().block1
    x = torch.randn(2, 3, 8, 8)
    *first, conv, norm, pool, relu, dropout = block
    y = nn.Sequential(*first)(x)
    torch.testing.assert_close(block(x), dropout(pool(relu(norm(conv(y))))))


@pytest.mark.parametrize("size", [12, 15, 28, 32, 96])
def test_features_follow_the_width_and_not_the_size(size):
    net = Conv10(in_channels=1, image_size=size, width=4)
    assert net(torch.zeros(2, 1, size, size)).shape == (2, 4)
    assert net.num_features == 4


@pytest.mark.parametrize("size", [11, 8, 1])
def test_images_that_are_too_small_are_refused(size):
    with pytest.raises(ConfigError, match=f"{size} pixels") as error:
        Conv10(image_size=size)
    assert "at least 12" in error.value.instead


def test_dropout_is_for_training():
    torch.manual_seed(0)
    net = Conv10(width=4)
    x = torch.randn(2, 3, 12, 12)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    still = Conv10(width=4, dropout=0.0)
    assert torch.equal(still(x), still(x))


@pytest.mark.parametrize("until", [2, "block2"])
def test_the_first_two_blocks_freeze(until):
    torch.manual_seed(0)
    net = Conv10(width=4)
    net.freeze(until)
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"block3"}
    net(torch.randn(2, 3, 12, 12)).sum().backward()
    assert {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None} == {"block3"}


def test_frozen_blocks_in_eval_mode_drop_nothing():
    torch.manual_seed(0)
    net = Conv10(width=4)
    net.freeze(2, bn="eval")
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(net(x), net(x))
