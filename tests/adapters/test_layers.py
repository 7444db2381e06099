"""Adapted layers against literal ones, by values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scarcely.adapters import attach
from scarcely.adapters.layers import AdaptedConv, Design, Selection
from tests.adapters.networks import lively
from tests.oracles import adapters as oracle
from tests.runs import Process

CONVS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    "stride of many channels": {"in_channels": 16, "kernel_size": 3, "padding": 1, "stride": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2},
    "dilated": {"kernel_size": 3, "padding": (2, 1), "dilation": (2, 1), "stride": (1, 2)},
    "no padding": {"kernel_size": 3, "padding": 0, "stride": 2},
    "much padding": {"kernel_size": 3, "padding": 2},
    "even": {"kernel_size": 2, "padding": 1},
    "1×1": {"kernel_size": 1, "padding": 0},
}


def layer(kind, conv, residual=True, dropout=0.0):
    torch.manual_seed(0)
    conv = nn.Conv2d(**{"in_channels": 4, "out_channels": 6, **conv})
    site = AdaptedConv(conv, Design(kind, residual=residual), dropout, Selection("birds"))
    site.install("birds", site.fresh(1))
    return lively(site.double()).eval()


def literal(site, x, residual=True):
    conv, adapter = site.conv, site.members["birds"]
    shape = (conv.stride, conv.padding, conv.dilation, conv.groups)
    h = oracle.convolve(x, conv.weight, conv.bias, *shape)
    alpha = adapter.alpha.weight
    if adapter.norm is None:
        return h + oracle.centre_tap(x, alpha, conv.kernel_size, *shape)
    norm = adapter.norm
    mean, var = (oracle.batch_statistics(h)) if norm.training else (norm.running_mean, norm.running_var)
    y = oracle.pointwise(oracle.normalise(h, mean, var, norm.weight, norm.bias), alpha, conv.groups)
    return h + y if residual else y


def compare(site, residual=True):
    x = torch.randn(
        2, site.conv.in_channels, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    a, b = (x.clone().requires_grad_() for _ in range(2))
    y, expected = site(a), literal(site, b, residual)
    torch.testing.assert_close(y, expected)
    probe = torch.randn_like(expected)
    parameters = [p for p in site.parameters() if p.requires_grad]
    ours = torch.autograd.grad((y * probe).sum(), [a, *parameters])
    theirs = torch.autograd.grad((expected * probe).sum(), [b, *parameters])
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
def test_a_parallel_adapter_is_added_at_the_centre_of_the_kernel(conv):
    compare(layer("parallel", conv))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("conv", [CONVS["plain"], CONVS["grouped"]], ids=["plain", "grouped"])
def test_a_series_adapter_follows_its_batchnorm(conv, residual, train):
    compare(layer("series", conv, residual).train(train), residual)


def large_stem(channels: int) -> int:
    """Train a strided layer of few channels on photographs."""
    conv = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    site = AdaptedConv(conv, Design("parallel"), 0.0, Selection("birds"))
    site.install("birds", site.fresh(1))
    for _ in range(3):
        x = torch.randn(12, channels, 112, 112).contiguous(memory_format=torch.channels_last)
        site(x).sum().backward()
    return 0


@pytest.mark.parametrize("channels", [3, 15])
def test_the_stem_of_a_large_network_is_trained_without_a_crash(channels, tmp_path):
    process = Process(large_stem, channels, log=tmp_path / "log")
    assert process.wait() == 0, process.output


def test_grouped_adapters_have_the_channels_of_a_group():
    conv = {"kernel_size": 3, "padding": 1, "groups": 2}
    assert layer("parallel", conv).members["birds"].alpha.weight.shape == (6, 2)
    assert layer("series", conv).members["birds"].alpha.weight.shape == (6, 3)


def test_dropout_takes_whole_channels_of_the_adapters_input_in_training_only():
    site = layer("parallel", CONVS["plain"], dropout=0.5)
    x = torch.randn(8, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(site(x[:1]), literal(site, x[:1]))
    added = site.train()(x) - site.conv(x)
    alpha = site.members["birds"].alpha.weight
    # each sample's input solved for again: α has more rows than columns
    channels = (torch.linalg.pinv(alpha) @ added.flatten(2)) / x.flatten(2)
    kept = channels.mean(2).round()
    torch.testing.assert_close(channels, kept[:, :, None].expand_as(channels), rtol=1e-6, atol=1e-6)
    assert set(kept.unique().tolist()) == {0.0, 2.0}  # dropped, or scaled by 1 / (1 − 0.5)


def test_adapters_are_he_normal_by_their_outputs_or_zero():
    net = nn.Sequential(
        nn.Conv2d(200, 100, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(100, 2)
    )
    torch.manual_seed(0)
    alpha = attach(net, "parallel", {"a": 2}).network[0].members["a"].alpha.weight
    assert alpha.std().item() == pytest.approx((2 / 100) ** 0.5, rel=0.02)
    assert alpha.mean().abs().item() < 0.003
    assert not attach(net, "parallel", {"a": 2}, init="zero").network[0].members["a"].alpha.weight.any()


@pytest.mark.parametrize("init", ["he", "zero"])
def test_adapters_of_low_rank_begin_alike_and_can_learn(init):
    net = nn.Sequential(
        nn.Conv2d(200, 100, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(100, 2)
    )
    torch.manual_seed(0)
    model = attach(net, "parallel", {"a": 2}, init=init, rank=20)
    factors = model.network[0].members["a"].alpha
    assert (factors.beta.shape, factors.gamma.shape) == ((100, 20), (200, 20))
    std = (2 / 100) ** 0.5 if init == "he" else 0.0
    assert factors().std().item() == pytest.approx(std, rel=0.1)
    model(torch.randn(2, 200, 4, 4)).square().sum().backward()
    assert any(p.grad.any() for p in factors.parameters())
