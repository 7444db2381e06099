"""Compression of a network's adapters: sizes, errors, what is trained afterwards."""

from __future__ import annotations

import pytest
import torch

from scarcely.adapters import attach
from scarcely.adapters.layers import AdaptedConv
from scarcely.errors import ConfigError
from tests.adapters.networks import NETWORKS, adapted, error, images, lively, resnet26
from tests.adapters.test_domains import logits
from tests.oracles import adapters as oracle


def alphas(model):
    return {
        path: [member.alpha().detach().clone() for member in site.members.values()]
        for path, site in model.sites.items()
        if isinstance(site, AdaptedConv)
    }


@pytest.mark.parametrize("network", ["resnet26", "grouped", "vgg_bn"])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("size", [{"fraction": 1}, {"energy": 1}], ids=["fraction", "energy"])
def test_at_full_rank_the_outputs_are_those_before(network, joint, size):
    model = lively(attach(NETWORKS[network](), "parallel", {"a": 3, "b": 4}, source="source")).eval()
    before = logits(model, images(2, 32))
    report = model.compress(**size, joint=joint)
    after = logits(model, images(2, 32))
    assert all(error(after[name], before[name]) < 1e-5 for name in before)
    assert torch.equal(after["source"], before["source"])
    if "fraction" in size:
        assert all(layer.rank == layer.full_rank and layer.error == 0 for layer in report.layers)


@pytest.mark.parametrize("kind", ["series", "parallel"])
@pytest.mark.parametrize("joint", [True, False])
def test_the_report_says_what_was_lost_and_saved(kind, joint):
    model = adapted(kind)
    before = alphas(model)
    report = model.compress(energy=0.7, joint=joint)
    after = alphas(model)
    kept = {p for site in model.modules() if isinstance(site, AdaptedConv) for p in site.members.parameters()}
    norms = {p for site in model.modules() if isinstance(site, AdaptedConv)
             for m in site.members.values() if m.norm is not None for p in m.norm.parameters()}  # fmt: skip
    assert report.before == sum(a.numel() for layer in before.values() for a in layer)
    assert report.after == sum(p.numel() for p in kept - norms)  # a common β once
    lost = sum(oracle.squared_distance(before[path], after[path]) for path in before)
    assert report.error == pytest.approx(lost, rel=1e-4)
    assert all(layer.energy >= 0.7 for layer in report.layers)
    assert len(report.layers) == 13 * (1 if joint else 3)
    assert all(layer.layer in str(report) for layer in report.layers)


def test_by_default_the_rank_is_half_of_the_smaller_side():
    report = adapted().compress()
    ranks = {layer.layer: layer.rank for layer in report.layers}
    assert ranks["conv1"] == 1  # 3 channels to 4
    assert ranks["layer1.0.conv1"] == 2  # 4 to 8
    assert ranks["layer3.1.conv2"] == 16  # 32 to 32
    square = next(layer for layer in report.layers if layer.layer == "layer3.1.conv2")
    assert square.after / square.before == (3 * 32 * 16 + 32 * 16) / (3 * 32**2)  # (TCK + CK) / TC²


def test_joint_factors_have_one_frozen_beta_and_the_rest_learns():
    model = adapted()
    model.compress()
    members = model.network.layer2[0].conv1.members
    beta = members["birds"].alpha.beta
    assert all(member.alpha.beta is beta for member in members.values())
    assert not beta.requires_grad
    before = logits(model, images())
    groups = model.parameter_groups()
    assert sum(p is members["birds"].alpha.gamma for p in groups["adapters"]) == 1
    assert len(groups["adapters"]) == 13
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model.train()(images()).square().sum().backward()
    optimizer.step()
    after = logits(model.eval(), images())
    assert not torch.equal(after["birds"], before["birds"])
    assert all(torch.equal(after[name], before[name]) for name in ("signs", "digits"))


def test_factors_of_a_domain_alone_are_both_trained():
    model = adapted()
    model.compress(joint=False)
    assert len(model.parameter_groups()["adapters"]) == 2 * 13
    betas = {id(m.alpha.beta) for m in model.network.layer2[0].conv1.members.values()}
    assert len(betas) == 3


def test_a_rank_larger_than_that_of_a_layer_keeps_all_of_it():
    model = adapted()
    report = model.compress(rank=32)
    assert {layer.rank for layer in report.layers if layer.layer.startswith("layer3")} == {32}
    assert next(layer for layer in report.layers if layer.layer == "conv1").rank == 4


def test_the_table_counts_a_common_beta_once():
    model = adapted(source="source")
    network = model.parameter_table().network
    report = model.compress()
    table = model.parameter_table()
    assert table.network == network
    assert sum(row.adapters for row in table.rows) == report.after
    assert sum(row.total for row in table.rows) == sum(p.numel() for p in model.parameters())


def test_domains_added_later_can_share_the_factors_of_others():
    model = adapted()
    model.compress()
    model.add_domain("new", 2)
    model.add_domain("copy", 2, like="signs")
    members = model.network.conv1.members
    assert members["copy"].alpha.beta is members["signs"].alpha.beta
    assert members["copy"].alpha.gamma is not members["signs"].alpha.gamma
    assert hasattr(members["new"].alpha, "weight")
    assert len(model.compress().layers[0].domains) == 5  # and again


def test_a_compressed_network_mixes_and_goes_through_its_state_dict():
    model = adapted()
    model.compress(rank=2)
    y = model(images(3), torch.tensor([2, 0, 2]))
    with model.domain("digits"):
        torch.testing.assert_close(y[::2], model(images(3)[::2]), rtol=1e-4, atol=1e-5)
    other = adapted()
    other.compress(rank=2)
    with torch.no_grad():
        other.network.conv1.members["birds"].alpha.gamma.zero_()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images()), model(images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "cannot have rank 0: their full rank is 32"),
        ({"rank": 33}, "cannot have rank 33: their full rank is 32"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"energy": -1.0}, "energy is -1.0"),
        ({"rank": 2, "energy": 0.5}, "given as rank and as energy"),
    ],
)
def test_sizes_out_of_their_range_are_refused_and_nothing_changes(options, message):
    model = adapted()
    with pytest.raises(ConfigError, match=message):
        model.compress(**options)
    assert all(hasattr(m.alpha, "weight") for m in model.network.conv1.members.values())


@pytest.mark.parametrize("kind", ["bn", "head"])
def test_without_adapters_there_is_nothing_to_compress(kind):
    with pytest.raises(ConfigError, match="no domain has adapters"):
        attach(resnet26(), kind, {"a": 2}).compress()
