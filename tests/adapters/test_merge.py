"""Merged networks against those that run convolutions and adapters apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scarcely.adapters import attach
from scarcely.adapters.layers import DomainNorm
from scarcely.errors import ConfigError
from tests.adapters.networks import NETWORKS, adapted, error, images, lively, resnet26, state

TOLERANCE = {"parallel": 1e-5, "series": 1e-4}
FOLDED = {"resnet26": 13, "torchvision_resnet18": 17, "grouped": 2, "vgg_bn": 3, "vgg": 0}


def modules_run(model, x):
    run = []
    hooks = [
        m.register_forward_hook(lambda m, i, o: run.append(m))
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.BatchNorm2d)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return run


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["parallel", "series"])
@torch.no_grad()
def test_merged_equals_unmerged_and_unmerging_is_exact(network, kind):
    model = lively(attach(NETWORKS[network](), kind, {"a": 3, "b": 4}, source="source")).eval()
    x = images(2, 32)
    for name in model.domains:
        model.set_domain(name)
        expected, before = model(x), state(model)
        model.merge()
        assert error(model(x), expected) <= TOLERANCE[kind]
        model.unmerge()
        assert torch.equal(model(x), expected)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(("network", "folded"), FOLDED.items())
@torch.no_grad()
def test_series_adapters_take_the_batchnorm_after_them_along(network, folded):
    model = attach(NETWORKS[network](), "series", {"a": 3}).eval()
    model.merge()
    assert sum(m.folded for m in model.modules() if isinstance(m, DomainNorm)) == folded
    convs = [m for m in modules_run(model, images(2, 32)) if isinstance(m, nn.Conv2d)]
    assert all(m.kernel_size == (1, 1) for m in convs)  # the others have become fused ones


@pytest.mark.parametrize("kind", ["parallel", "series"])
@torch.no_grad()
def test_a_merged_network_runs_no_adapter(kind):
    model = adapted(kind)
    plain = [m for m in resnet26().modules() if isinstance(m, nn.BatchNorm2d)]
    model.merge()
    norms = [m for m in modules_run(model, images()) if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (len(plain) if kind == "parallel" else 1)  # the last follows no convolution
    assert all(p.grad_fn is None for p in model.parameters())


@torch.no_grad()
def test_series_adapters_without_residual_connection_merge():
    model = adapted("series", residual=False)
    expected = model(images())
    model.merge()
    assert error(model(images()), expected) <= 1e-4


@torch.no_grad()
def test_a_convolution_whose_output_goes_elsewhere_too_keeps_its_batchnorm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.conv(x)
            return self.fc((self.bn(h) + h).mean((2, 3)))

    class Chooses(Net):
        def forward(self, x):
            h = self.conv(x)
            return self.fc((self.bn(h) if x.mean() > -100 else h).mean((2, 3)))  # cannot be traced

    torch.manual_seed(0)
    for net in (Net(), Chooses()):
        model = lively(attach(net, "series", {"a": 2})).eval()
        expected = model(images())
        model.merge()
        assert not model.network.bn.folded
        assert error(model(images()), expected) <= 1e-4


@torch.no_grad()
def test_double_precision_and_channels_last_merge_without_touching_the_weights():
    for kind in ("parallel", "series"):
        model = adapted(kind).double().to(memory_format=torch.channels_last)
        before, expected = state(model), model(images().double())
        model.merge()
        assert error(model(images().double()), expected) < 1e-12
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
        fused = model.network.layer2[0].conv1.fused_weight
        assert fused.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_compressed_adapters_merge():
    model = adapted()
    model.compress(rank=2)
    expected = model(images())
    model.merge()
    assert error(model(images()), expected) <= 1e-5


@pytest.mark.parametrize("kind", ["series", "parallel"])
def test_merging_in_train_mode_is_refused(kind):
    with pytest.raises(ConfigError, match="in train mode"):
        adapted(kind).train().merge()


@pytest.mark.parametrize(
    "conv", [{"kernel_size": 3}, {"kernel_size": 2, "padding": 1}, {"kernel_size": 3, "padding": 2}]
)
def test_a_kernel_without_centre_on_its_pixel_is_refused_in_parallel_only(conv):
    net = nn.Sequential(nn.Conv2d(3, 4, **conv), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = attach(net, "parallel", {"a": 2}, "0").eval()
    assert model(images()).shape == (6, 2)
    with pytest.raises(ConfigError, match="the adapter of 0 cannot be merged"):
        model.merge()
    assert not model.merged
    series = lively(attach(net, "series", {"a": 2}, "0")).eval()
    expected = series(images())
    series.merge()
    assert error(series(images()), expected) <= 1e-4


def test_while_merged_only_what_is_merged_can_run(tmp_path):
    model = adapted()
    model.save(tmp_path / "signs.pt", "signs")
    weights = state(model)
    model.merge()
    expected = model(images())
    model.set_domain("birds")  # already is
    for call in (
        lambda: model.set_domain("signs"),
        lambda: model.domain("signs").__enter__(),
        lambda: model(images(), torch.zeros(6, dtype=torch.int64)),
        model.train,
        model.merge,
        model.compress,
        lambda: model.add_domain("new", 2),
        lambda: model.delete_domain("birds"),
        lambda: model.load(tmp_path / "signs.pt"),
        lambda: model.load_state_dict(weights),
        lambda: nn.Sequential(model).load_state_dict({f"0.{n}": t for n, t in weights.items()}),
    ):
        with pytest.raises(ConfigError, match="the adapters of birds are merged"):
            call()
    assert torch.equal(model.eval()(images()), expected)
    model.unmerge()
    with pytest.raises(ConfigError, match="no adapters are merged"):
        model.unmerge()
    model.train()
