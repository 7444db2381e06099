"""Which networks take adapters, where, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scarcely.adapters import attach
from scarcely.adapters.layers import AdaptedConv
from scarcely.backbones.resnet26 import ResNet26
from scarcely.backbones.small import MLP
from scarcely.errors import ConfigError
from tests.adapters.networks import NETWORKS, adapted, error, images, resnet26, state


def placed(model):
    return [name for name, site in model.sites.items() if isinstance(site, AdaptedConv)]


def stages(names):
    return [name.split(".")[0] for name in names]


@pytest.mark.parametrize("network", ["resnet26", "grouped", "vgg_bn", "densenet"])
@pytest.mark.parametrize("kind", ["series", "parallel"])
def test_with_adapters_of_zeros_a_domain_has_the_features_of_the_network(network, kind):
    net = NETWORKS[network]().eval()
    x = images(2, 32)
    if network == "resnet26":
        net.head = torch.nn.Linear(net.num_features, 4)  # the source's
        expected = net.head(net(x))
        model = attach(net, kind, {"a": 4}, source="source", head=net.head, init="zero")
    else:
        expected = net(x)
        model = attach(net, kind, {"a": 4}, source="source", init="zero")
    with model.domain("source"):
        assert torch.equal(model(x), expected)
    heads = next(site for site in model.sites.values() if hasattr(site, "num_features")).members
    heads["a"].load_state_dict(heads["source"].state_dict())
    assert error(model(x), expected) == 0


def test_the_network_given_stays_as_it_is():
    net = resnet26()
    before, modules = state(net), [type(m) for m in net.modules()]
    model = attach(net, "parallel", {"a": 2}, source="source")
    model.train()(images()).sum().backward()
    assert [type(m) for m in net.modules()] == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_only_what_belongs_to_the_domain_has_a_gradient():
    model = adapted("series")
    model.train()(images()).sum().backward()
    with_gradient = {id(p) for p in model.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in model.trainable_parameters()}
    assert [p for group in model.parameter_groups().values() for p in group] == model.trainable_parameters()


def test_shared_weights_can_be_trained_too():
    model = adapted(train_shared=True)
    model.train()(images()).sum().backward()
    convs = [m.conv.weight for m in model.modules() if isinstance(m, AdaptedConv)]
    shared = model.parameter_groups()["shared"]
    assert {id(p) for p in convs} == {id(p) for p in shared}
    assert all(p.grad.any() for p in shared)


def test_a_backbone_that_was_frozen_lets_its_first_adapters_learn():
    net = resnet26()
    net.freeze("layer2", bn="eval")
    model = attach(net, "parallel", {"a": 2})
    model.train()(images()).sum().backward()
    assert model.network.conv1.members["a"].alpha.weight.grad.any()


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_network_is_kept(mode):
    model = attach(resnet26().train(mode), "series", {"a": 2}, source="b")
    assert all(module.training == mode for module in model.modules())


def test_with_heads_alone_the_features_stay_those_of_the_network():
    net, x = resnet26().eval(), images()
    model = attach(net, "head", {"a": 2, "b": 3}).train()
    features = net(x)
    torch.testing.assert_close(model(x), model.head.members["a"](features))
    assert model.train().parameter_groups().keys() == {"heads"}
    assert torch.equal(model(x), model.eval()(x))


# Placement


def test_every_3x3_convolution_has_an_adapter_by_default():
    model = attach(ResNet26(width=4), "parallel", {"a": 2})
    assert len(placed(model)) == 25
    assert placed(model)[0] == "conv1"


def test_early_mid_and_late_are_the_stages_and_share_out_all():
    parts = {where: placed(adapted(where=where)) for where in ("early", "mid", "late")}
    assert {where: set(stages(names)) for where, names in parts.items()} == {
        "early": {"conv1", "layer1"},
        "mid": {"layer2"},
        "late": {"layer3"},
    }
    assert [name for names in parts.values() for name in names] == placed(adapted())


def test_four_stages_of_torchvision_are_two_one_and_one():
    net = NETWORKS["torchvision_resnet18"]()
    parts = {w: set(stages(placed(attach(net, "parallel", {"a": 2}, w)))) for w in ("early", "mid", "late")}
    assert parts == {"early": {"conv1", "layer1", "layer2"}, "mid": {"layer3"}, "late": {"layer4"}}


def test_without_stages_thirds_of_the_convolutions_are_taken():
    net = NETWORKS["vgg"]()
    parts = [placed(attach(net, "parallel", {"a": 2}, w)) for w in ("early", "mid", "late")]
    assert parts == [["features.0"], ["features.3"], ["features.5"]]


def test_half_is_the_second_convolution_of_each_block():
    names = placed(adapted(where="half"))
    assert names == [f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in (0, 1)]
    assert placed(attach(NETWORKS["vgg"](), "parallel", {"a": 2}, "half")) == ["features.3"]


def test_dropout_is_at_the_second_convolution_of_each_block():
    sites = {n: s for n, s in adapted(dropout=0.5).sites.items() if isinstance(s, AdaptedConv)}
    assert {n for n, s in sites.items() if s.dropout} == {n for n in sites if n.endswith("conv2")}
    assert {s.dropout for s in sites.values()} == {0.0, 0.5}


def test_convolutions_can_be_named():
    assert placed(adapted(where="layer1.0.conv1")) == ["layer1.0.conv1"]
    assert placed(adapted(where=["layer[12].0.*", "conv1"])) == ["conv1"] + [
        f"layer{s}.0.conv{c}" for s in (1, 2) for c in (1, 2)
    ]
    pointwise = "layer2.0.downsample.0"  # 1×1, and not chosen otherwise
    assert placed(attach(NETWORKS["torchvision_resnet18"](), "parallel", {"a": 2}, pointwise)) == [pointwise]


def test_a_convolution_in_two_places_is_one_in_both():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.Flatten(), nn.Linear(48, 2))
    model = attach(net, "parallel", {"a": 2})
    assert model.network[0] is model.network[2]
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    assert len(placed(model)) == 1


# Heads


def test_the_last_linear_layer_is_replaced_or_the_one_named():
    net = NETWORKS["vgg"]()
    assert list(attach(net, "parallel", {"a": 2}).sites)[-1] == "classifier.3"
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 5))
    model = attach(net, "parallel", {"a": 5}, head="2")
    assert model(torch.randn(1, 3, 4, 4)).shape == (1, 5)
    assert list(model.sites) == ["0", "2"]


def test_a_source_without_classifier_gives_features():
    net = resnet26().eval()
    model = attach(net, "parallel", {"a": 2}, source="source")
    assert (model.domains, model.current) == (("source", "a"), "a")
    model.set_domain("source")
    assert torch.equal(model(images()), net(images()))
    assert model.num_classes("source") == net.num_features


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "paralell"}, "cannot have kind 'paralell'"),
        ({"init": "ones"}, "cannot have init 'ones'"),
        ({"dropout": 1.0}, "cannot have dropout 1.0"),
        ({"rank": 0}, "cannot have rank 0"),
        ({"rank": 33}, "cannot have rank 33: their full rank is 32"),
        ({"domains": {}}, "there is no domain"),
        ({"domains": {"a.b": 3}}, "'a.b' cannot be the name"),
        ({"domains": {"": 3}}, "'' cannot be the name"),
        ({"domains": {"items": 3}}, "'items' cannot be the name"),
        ({"domains": {"a": 0}}, "'a' has 0 classes"),
        ({"domains": {"a": 2.5}}, "'a' has 2.5 classes"),
        ({"source": "a"}, "'a' is the source and a domain"),
        ({"where": "conv9"}, "no convolution is called conv9"),
        ({"where": ["conv1", "nothing*"]}, r"no convolution is called nothing\*"),
        ({"where": []}, "no convolution for adapters"),
        ({"head": "fc"}, "has no head fc"),
        ({"head": nn.Linear(3, 2)}, "a backbone of 32 features has no head"),
    ],
)
def test_wrong_values_are_refused_by_name(options, message):
    options = {"kind": "parallel", "domains": {"a": 2}} | options
    with pytest.raises(ConfigError, match=message):
        attach(resnet26(), **options)


@pytest.mark.parametrize(
    ("net", "kind", "message"),
    [
        (MLP(4, (3, 2)), "series", "MLP has no convolution for adapters"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(3, 2)), "parallel", "Sequential has no convolution"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Linear(3, 2)), "bn", "Sequential has no BatchNorm"),
        (nn.Sequential(nn.Conv2d(3, 3, 3)), "head", "there is no classifier to replace"),
    ],
)
def test_networks_without_the_place_for_it_are_refused(net, kind, message):
    with pytest.raises(ConfigError, match=message):
        attach(net, kind, {"a": 2})


def test_adapters_cannot_be_attached_twice():
    model = adapted()
    for twice in (model, model.network):
        with pytest.raises(ConfigError, match="has adapters already"):
            attach(twice, "parallel", {"c": 2})
