"""Switching, training and mixing domains; what each domain keeps to itself."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from scarcely.adapters import attach
from scarcely.errors import ConfigError
from tests.adapters.networks import DOMAINS, NETWORKS, adapted, error, images, lively, resnet26, state

KINDS = ["series", "parallel", "bn", "head"]


def logits(model, x):
    """Of each domain."""
    found = {}
    for name in model.domains:
        with model.domain(name), torch.no_grad():
            found[name] = model(x)
    return found


def owner(name, model):
    """The domain that an entry of the state dict belongs to."""
    return next((d for d in model.domains if f".members.{d}." in name), None)


@pytest.mark.parametrize("kind", KINDS)
def test_training_one_domain_leaves_everything_of_the_others_bit_for_bit(kind):
    torch.manual_seed(0)
    options = {"source": "source", "head": nn.Linear(16, 4), "dropout": 0.2}
    model = attach(resnet26(width=4, blocks=1), kind, {"birds": 5, "signs": 3}, **options)
    x = images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)  # all of them
    for step, name in enumerate(["birds", "signs", "signs", "birds", "source", "signs"]):
        model.eval()
        before, outputs = state(model), logits(model, x)
        model.train().set_domain(name)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
        after = logits(model.eval(), x)
        for other in set(model.domains) - {name}:
            assert torch.equal(after[other], outputs[other]), (step, other)
        assert not torch.equal(after[name], outputs[name])
        changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
        mine = {
            key for key in changed if owner(key, model) == name or (name == "source" and "original" in key)
        }
        assert changed == mine


def test_switching_changes_no_gradient_and_no_mode():
    model = adapted().train()
    frozen = model.trainable_parameters()[0].requires_grad_(False)
    next(model.network.layer1.modules()).eval()
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    for name in ("signs", "digits", "birds"):
        model.set_domain(name)
    with model.domain("signs"):
        assert model.current == "signs"
    assert model.current == "birds"
    assert flags == ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()])
    assert not any(p is frozen for p in model.trainable_parameters())


def test_the_context_ends_after_an_exception_and_in_the_domain_before():
    model = adapted()
    with pytest.raises(RuntimeError), model.domain("signs"), model.domain("digits"):
        raise RuntimeError
    assert model.current == "birds"


def test_groups_are_of_the_current_domain_and_complete():
    model = adapted("series")
    with model.domain("signs"):
        groups = model.parameter_groups()
    signs = {name: p for name, p in model.named_parameters() if ".members.signs." in name}
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in signs.values()}
    named = {
        kind: {n for n, p in signs.items() if any(p is q for q in group)} for kind, group in groups.items()
    }
    assert all(".alpha." in n for n in named["adapters"])
    assert named["heads"] == {"head.members.signs.weight", "head.members.signs.bias"}
    assert sum(".norm." in n for n in named["norms"]) == 2 * 13  # inside of the adapters


# Batches of several domains


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", [False, True])
def test_a_mixed_batch_is_what_each_domain_makes_of_its_samples(kind, train):
    torch.manual_seed(0)
    net = lively(resnet26(width=4, blocks=1))
    model = attach(net, kind, DOMAINS, source="source", head=nn.Linear(16, 4))
    model = lively(model).train(train).double()
    x, domains = images(9).double(), torch.tensor([1, 3, 1, 0, 3, 3, 1, 0, 1])
    apart = copy.deepcopy(model)
    y = model(x, domains)
    assert y.shape == (9, 10)
    probe = torch.randn_like(y)
    y[y.isfinite()].mul(probe[y.isfinite()]).sum().backward()
    for index, name in enumerate(apart.domains):
        rows = domains == index
        if rows.any():
            with apart.domain(name):
                expected = apart(x[rows])
            width = expected.shape[1]
            torch.testing.assert_close(y[rows][:, :width], expected)
            assert (y[rows][:, width:] == -torch.inf).all()
            (expected * probe[rows][:, :width]).sum().backward()
    for (name, p), q in zip(model.named_parameters(), apart.parameters()):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)
    for name, tensor in model.state_dict().items():  # running statistics, too
        torch.testing.assert_close(tensor, apart.state_dict()[name])


def test_absent_domains_keep_their_state_and_get_no_gradient():
    model = adapted("series").train()
    before = state(model)
    model(images(4), torch.tensor([0, 2, 2, 0])).logsumexp(1).sum().backward()
    signs = [p for n, p in model.named_parameters() if ".signs." in n]
    assert all(p.grad is None for p in signs)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if ".signs." in n)
    present = [p for n, p in model.named_parameters() if ".digits." in n]
    assert all(p.grad.isfinite().all() for p in present)


def test_the_shared_convolutions_see_the_whole_batch_once():
    model, seen = adapted(), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    model(images(6), torch.tensor([2, 0, 1, 1, 0, 2]))
    assert seen == [6] * 13


def test_mixing_needs_one_index_an_image():
    model = adapted()
    for domains, message in [
        (torch.zeros(5, dtype=torch.int64), r"shape \(5,\) for 6 images"),
        (torch.zeros(6), "torch.float32"),
        (torch.tensor([0, 1, 2, 3, 0, 0]), "there is no domain 3"),
        (torch.tensor([0, -1, 2, 0, 0, 0]), "there is no domain -1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            model(images(6), domains)
    with pytest.raises(ConfigError, match="for 0 images"):
        model(images(0), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(model(images(6)), model(images(6)))  # and one domain runs as before


@pytest.mark.parametrize("network", ["grouped", "vgg", "densenet"])
def test_any_network_takes_mixed_batches(network):
    model = lively(attach(NETWORKS[network](), "parallel", {"a": 2, "b": 4})).eval()
    x = images(3, 32)
    y = model(x, torch.tensor([1, 0, 1]))
    torch.testing.assert_close(y[1:2, :2], model(x[1:2]), rtol=1e-4, atol=1e-5)
    with model.domain("b"):
        torch.testing.assert_close(y[::2], model(x[::2]), rtol=1e-4, atol=1e-5)


# Adding and deleting


def test_a_new_domain_begins_with_the_networks_batchnorm():
    net = resnet26()
    model = attach(net, "parallel", {"a": 2})
    model.train()(images())  # moves statistics of "a" alone
    model.add_domain("b", 3)
    assert (model.domains, model.current) == (("a", "b"), "a")
    new = {n: t for n, t in model.state_dict().items() if ".members.b." in n and "bn" in n}
    original = net.state_dict()
    assert all(
        torch.equal(t, original[n.removeprefix("network.").replace("members.b.", "")]) for n, t in new.items()
    )
    assert len(new) == 5 * 13
    with model.domain("b"):
        assert all(p.requires_grad for p in model.trainable_parameters())
        assert len(model.trainable_parameters()) == 13 + 2 * 14 + 2


@pytest.mark.parametrize("fresh", [False, True])
def test_a_domain_like_another_begins_with_its_state(fresh):
    model = adapted("series")
    model.add_domain("flowers", 5, like="signs", fresh_adapters=fresh)
    before = state(model)
    entries = {n: t for n, t in model.state_dict().items() if ".members.flowers." in n}
    for name, tensor in entries.items():
        same = torch.equal(tensor, before[name.replace("flowers", "signs")])
        assert same == (not name.startswith("head") and not (fresh and ".alpha." in name)), name
    signs = logits(model, images())["signs"]
    with torch.no_grad():
        for p in (p for n, p in model.named_parameters() if ".members.flowers." in n):
            p.add_(1)  # a copy, not the same
    assert torch.equal(logits(model, images())["signs"], signs)


def test_deleting_takes_everything_of_the_domain_and_nothing_else():
    model = adapted(source="source")
    before = logits(model, images())
    model.delete_domain("signs")
    assert not any("signs" in name for name in model.state_dict())
    after = logits(model, images())
    assert list(after) == ["source", "birds", "digits"]
    assert all(torch.equal(after[name], before[name]) for name in after)
    model.delete_domain("birds")  # was the current one
    assert model.current == "source"
    model.delete_domain("source")
    assert model.current == "digits"
    assert not any(p.requires_grad for p in model.shared_parameters())
    model.add_domain("again", 2)
    with pytest.raises(ConfigError, match="'birds'"):
        model.delete_domain("birds")


def test_names_that_are_taken_unknown_or_impossible_are_refused():
    model = adapted()
    for call, message in [
        (lambda: model.add_domain("signs", 3), "there is a domain 'signs' already"),
        (lambda: model.add_domain("a.b", 3), "cannot be the name"),
        (lambda: model.add_domain("new", 0), "has 0 classes"),
        (lambda: model.add_domain("new", 3, like="sings"), "there is no domain 'sings'"),
        (lambda: model.set_domain("sings"), "there is no domain 'sings'"),
        (lambda: model.domain("sings").__enter__(), "there is no domain 'sings'"),
        (lambda: model.num_classes("sings"), "there is no domain 'sings'"),
        (lambda: attach(resnet26(), "bn", {"a": 2}).delete_domain("a"), "a is the only domain"),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()
    assert model.domains == ("birds", "signs", "digits")


# Counting


def test_the_table_counts_every_parameter_once():
    for kind in KINDS:
        model = adapted(kind, source="source")
        table = model.parameter_table()
        assert sum(row.total for row in table.rows) == sum(p.numel() for p in model.parameters())
        assert [row.name for row in table.rows] == ["shared", *model.domains]
        assert table.network == sum(p.numel() for p in resnet26().parameters())
        trainable = {row.name: row.trainable for row in table.rows}
        for name in model.domains:
            with model.domain(name):
                assert trainable[name] == sum(p.numel() for p in model.trainable_parameters())
        assert trainable["shared"] == 0
        heads = sum(row.head for row in table.rows)
        assert table.ratio == (sum(p.numel() for p in model.parameters()) - heads) / table.network
        assert all(name in str(table) for name in model.domains)
    assert attach(resnet26(), "head", {"a": 2, "b": 9}).parameter_table().ratio == 1


# What modules can do


def test_the_state_dict_goes_round():
    model = adapted("series", source="s")
    other = attach(resnet26(), "series", DOMAINS, source="s").eval()
    other.load_state_dict(model.state_dict())
    one, two = logits(model, images()), logits(other, images())
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_a_current_domain_of_their_own(duplicate):
    model = adapted()
    other = duplicate(model)
    other.set_domain("signs")
    assert model.current == "birds"
    assert other(images()).shape == (6, 3)
    assert torch.equal(model(images()), logits(other, images())["birds"])


@pytest.mark.slow  # to load the compiler
def test_a_domain_compiles_as_one_graph():
    model = adapted("series")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert error(compiled(images()), model(images())) < 1e-6
    model.set_domain("signs")
    assert error(compiled(images()), model(images())) < 1e-6


@pytest.mark.parametrize("kind", ["series", "parallel"])
def test_channels_last_goes_through(kind):
    model = adapted(kind)
    x, domains = images(), torch.tensor([0, 1, 2, 2, 1, 0])
    expected = model(x), model(x, domains)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    seen = []
    model.network.layer2.register_forward_hook(lambda m, i, o: seen.append(o))
    found = model(x), model(x, domains)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in seen)
