"""One domain's file: what is in it, and into which networks it goes."""

from __future__ import annotations

import json

import pytest
import torch

from scarcely.adapters import attach
from scarcely.errors import CheckpointError, ConfigError
from tests.adapters.networks import NETWORKS, adapted, images, lively, resnet26, state
from tests.adapters.test_domains import logits


@pytest.mark.parametrize("kind", ["series", "parallel", "bn", "head"])
def test_a_domain_goes_into_another_network_of_the_same_weights(kind, tmp_path):
    model = adapted(kind)
    model.save(tmp_path / "signs.pt", "signs")
    expected = logits(model, images())["signs"]
    other = attach(resnet26(), kind, {"mine": 4}).eval()
    mine = other(images())
    assert other.load(tmp_path / "signs.pt") == "signs"
    assert other.load(tmp_path / "signs.pt", "again") == "again"
    assert (other.domains, other.current, other.num_classes("signs")) == (
        ("mine", "signs", "again"),
        "mine",
        3,
    )
    found = logits(other, images())
    assert torch.equal(found["signs"], expected)
    assert torch.equal(found["again"], expected)
    assert torch.equal(found["mine"], mine)
    other.set_domain("signs")
    assert all(p.requires_grad for p in other.trainable_parameters())


def test_a_domain_of_the_same_name_is_replaced(tmp_path):
    model = adapted()
    before = logits(model, images())
    model.save(tmp_path / "birds.pt", "birds")
    model.train()(images())
    model.load(tmp_path / "birds.pt")
    after = logits(model.eval(), images())
    assert model.domains == ("birds", "signs", "digits")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_file_has_a_readable_config_and_loads_without_code(tmp_path):
    model = adapted("series")
    model.save(tmp_path / "signs.pt", "signs")
    content = torch.load(tmp_path / "signs.pt", weights_only=True)
    config = content["config"]
    assert (config["domain"], config["num_classes"], config["kind"]) == ("signs", 3, "series")
    assert config["layers"]["layer1.0.conv1"] == "adapter 8×8 of a 3×3 convolution"
    assert config["layers"]["bn1"] == "BatchNorm(4)"
    json.dumps(config)
    own = {n: t for n, t in state(model).items() if ".members.signs." in n}
    assert len(content["tensors"]) == len(own)  # statistics too, and nothing of others
    assert content["tensors"]["bn1.running_var"].shape == (4,)


def test_safetensors_holds_the_same(tmp_path):
    model = adapted()
    if not has_safetensors():
        with pytest.raises(ConfigError, match="safetensors is not installed"):
            model.save(tmp_path / "signs.safetensors", "signs")
        return
    model.compress()
    model.save(tmp_path / "signs.safetensors", "signs")
    expected = logits(model, images())["signs"]
    assert model.load(tmp_path / "signs.safetensors", "other") == "other"
    assert torch.equal(logits(model, images())["other"], expected)


def has_safetensors():
    try:
        import safetensors  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("joint", [True, False])
def test_compressed_domains_keep_their_factors(joint, tmp_path):
    model = adapted()
    model.compress(joint=joint)
    expected = logits(model, images())["signs"]
    model.save(tmp_path / "signs.pt", "signs")
    fresh = attach(resnet26(), "parallel", {"a": 2}).eval()
    for target in (model, fresh):
        target.load(tmp_path / "signs.pt", "other")
        assert torch.equal(logits(target, images())["other"], expected)
        beta = target.network.conv1.members["other"].alpha.beta
        assert beta.requires_grad == (not joint)
    shared = (
        model.network.conv1.members["other"].alpha.beta is model.network.conv1.members["birds"].alpha.beta
    )
    assert shared == joint


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: adapted("series"), "it has kind: parallel, where this network has kind: series"),
        (
            lambda: adapted(where="mid"),
            "conv1: adapter 4×3 of a 3×3 convolution, where this network has bn1: Batch",
        ),
        (
            lambda: attach(resnet26(width=16), "parallel", {"a": 2}),
            "conv1: adapter 4×3 .* has conv1: adapter 8×3",
        ),
        (
            lambda: attach(resnet26(blocks=1), "parallel", {"a": 2}),
            "has layer1.1.conv1: .* has layer2.0.conv1:",
        ),
        (lambda: attach(NETWORKS["vgg_bn"](), "parallel", {"a": 2}), "has conv1: .* has features.0:"),
    ],
)
def test_another_architecture_is_refused_by_its_first_layer_that_differs(other, message, tmp_path):
    adapted().save(tmp_path / "signs.pt", "signs")
    model = lively(other())
    before = state(model)
    with pytest.raises(CheckpointError, match=message):
        model.load(tmp_path / "signs.pt")
    assert state(model).keys() == before.keys()


def test_missing_foreign_and_damaged_files_are_refused(tmp_path):
    model = adapted()
    model.save(tmp_path / "signs.pt", "signs")
    content = torch.load(tmp_path / "signs.pt", weights_only=True)
    whole = (tmp_path / "signs.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pt")
    torch.save(model, tmp_path / "code.pt")
    del content["tensors"]["conv1.alpha.weight"]
    torch.save(content, tmp_path / "lacks.pt")
    before = state(model)
    for name, message in [
        ("none.pt", "there is no file"),
        ("cut.pt", "is not the file of a domain"),
        ("foreign.pt", "is not the file of a domain"),
        ("code.pt", "is not the file of a domain"),
        ("lacks.pt", "does not hold what it says of conv1"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            model.load(tmp_path / name)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_the_source_is_the_network_and_no_file(tmp_path):
    model = adapted(source="source")
    model.save(tmp_path / "signs.pt", "signs")
    with pytest.raises(ConfigError, match="source is the network itself"):
        model.save(tmp_path / "source.pt", "source")
    with pytest.raises(ConfigError, match="source is the network itself"):
        model.load(tmp_path / "signs.pt", "source")
    with pytest.raises(ConfigError, match="there is no domain 'sings'"):
        model.save(tmp_path / "sings.pt", "sings")
    with pytest.raises(ConfigError, match=r"'a\.b' cannot be the name"):
        model.load(tmp_path / "signs.pt", "a.b")
