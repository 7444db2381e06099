"""Ranking statistics: the loss against a literal one, batches without a group, the head that grows."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.errors import ConfigError
from scarcely.functional import pairwise
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.ranking_statistics import RankingStatistics
from tests.oracles import ranking_statistics as oracle

KNOWN, NEW = 3, 2


class Flat(Backbone):
    """One layer, smooth so that gradients can be compared, with untied positive features."""

    block_names = ("fc",)
    image_input = False

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(6, 7), nn.Softplus())
        self.num_features = 7


def method_of(k=2, seed=0, labeler=None, **changes) -> RankingStatistics:
    torch.manual_seed(seed)
    arguments = {"num_known": KNOWN, "num_new": NEW, "num_classes": KNOWN + NEW, "freeze": 0, "rampup": 4}
    return RankingStatistics(
        Flat(),
        optimizer=Optimizer(),
        labeler=labeler or partial(pairwise.rank_adjacency, k=k),
        **{**arguments, **changes},
    )


def batch_of(labels, seed=0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), 6, generator=g)
    views = (x, x + 0.3 * torch.randn(x.shape, generator=g))
    return Batch(torch.arange(len(labels)), views, torch.tensor(labels))


def at_epoch(monkeypatch, epoch):
    monkeypatch.setattr(RankingStatistics, "current_epoch", property(lambda self: epoch))


MIXED = [0, 3, 1, -1, 4, 2, 3, 4, 0, -1]


@pytest.mark.parametrize("labels", [MIXED, [0, 1, 2, 0], [3, 4, -1, 3], [1], [4]], ids=str)
@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("hidden", [None, 4])
@pytest.mark.parametrize("epoch", [0, 2, 9])
def test_loss_and_gradients_equal_the_literal_ones(monkeypatch, labels, incremental, hidden, epoch):
    if hidden and len(labels) == 1:
        pytest.skip("BatchNorm has no variance of one sample")
    at_epoch(monkeypatch, epoch)
    method = method_of(incremental=incremental, hidden=hidden, self_training=0.7).double()
    batch = batch_of(labels)
    batch = batch._replace(views=tuple(v.double() for v in batch.views))
    slow = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    loss.backward()

    features = [slow.backbone(v) for v in batch.views]
    heads = [[head(f) for f in features] for head in (slow.head, slow.new_head)]
    # the method's heads see x and x̄ in turn: BatchNorm has the statistics of each by itself
    expected = oracle.loss(
        features[0], *heads[0], *heads[1], labels, KNOWN,
        k=2, weight=5.0, length=4, epoch=epoch, self_weight=0.7 if incremental else None,
    )  # fmt: skip
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
    for (name, a), (_, b) in zip(method.named_parameters(), slow.named_parameters(), strict=True):
        grad = torch.zeros_like(a) if a.grad is None else a.grad
        wanted = torch.zeros_like(b) if b.grad is None else b.grad
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_each_switch_takes_its_term_away(monkeypatch):
    at_epoch(monkeypatch, 9)
    names = {}
    for switch in ({}, {"labelled_loss": False}, {"pair_loss": False}, {"consistency": 0.0}):
        method = method_of(**switch)
        loss = method.training_step(batch_of(MIXED), 0)
        names[str(switch)] = method.recent(1)
        parts = {"loss/labelled": 1, "loss/pairs": 1, "loss/consistency": switch.get("consistency", 5.0)}
        present = {name: weight for name, weight in parts.items() if name in names[str(switch)]}
        total = sum(weight * names[str(switch)][name] for name, weight in present.items())
        assert float(loss) == pytest.approx(total, rel=1e-5)
    assert "loss/labelled" not in names["{'labelled_loss': False}"]
    assert "loss/pairs" not in names["{'pair_loss': False}"]


@given(st.lists(st.integers(-1, KNOWN + NEW - 1), min_size=2, max_size=9), st.integers(1, 7), st.booleans())
@settings(deadline=None)
def test_any_mixture_of_samples_has_a_finite_loss_and_gradient(labels, k, incremental):
    method = method_of(k=k, incremental=incremental)
    method.training_step(batch_of(labels), 0).backward()
    assert method._steps[0][0].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_what_is_hidden_is_not_looked_at():
    hidden = [y if 0 <= y < KNOWN else -1 for y in MIXED]
    swapped = [{3: 4, 4: 3}.get(y, y) for y in MIXED]
    gradients = []
    for labels in (MIXED, hidden, swapped):
        method = method_of(incremental=True)
        method.training_step(batch_of(labels), 0).backward()
        gradients.append([p.grad for p in method.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


def test_units_that_are_all_off_and_ties_have_labels():
    method = method_of(k=3)
    with torch.no_grad():
        method.backbone.fc[0].weight.zero_()  # every feature of every sample is the same
    batch = batch_of([3, 4, 4, -1])
    method.training_step(batch, 0)
    assert method.recent(1)["pairs/positive"] == 1.0


@pytest.mark.parametrize("labeler", ["knn", "cosine"])
def test_labelled_samples_are_no_neighbours_of_unlabelled_ones(labeler):
    functions = {
        "knn": partial(pairwise.knn_adjacency, k=3),
        "cosine": partial(pairwise.cosine_adjacency, threshold=0.95),
    }
    seen = []

    def spy(features):
        seen.append((features, functions[labeler](features)))
        return seen[-1][1]

    labels = torch.tensor(MIXED)
    method_of(labeler=spy).training_step(batch_of(MIXED), 0)
    features, adjacency = seen[0]
    new = (labels < 0) | (labels >= KNOWN)
    assert features[~new].isnan().all()
    assert features[new].isfinite().all()
    assert torch.equal(adjacency[new][:, new], functions[labeler](features[new]))
    assert not (adjacency[new][:, ~new]).any()


# The head of the known classes


@pytest.mark.parametrize("hidden", [None, 4])
def test_a_grown_head_keeps_the_known_classes_and_starts_below_them(hidden):
    plain, grown = method_of(hidden=hidden), method_of(seed=1, incremental=True, hidden=hidden)
    last = lambda m: m.head if hidden is None else m.head[-1]  # noqa: E731
    with torch.no_grad():
        last(plain).bias.copy_(torch.tensor([0.5, -2.0, 1.0]))
    fresh = last(grown).weight[KNOWN:].clone()
    grown.adopt(plain.state_dict())
    x = torch.randn(5, 7)
    plain.eval()
    grown.eval()
    torch.testing.assert_close(grown.head(x)[:, :KNOWN], plain.head(x))
    assert torch.equal(last(grown).weight[KNOWN:], fresh)
    assert last(grown).bias[KNOWN:].tolist() == [-3.0, -3.0]
    assert last(grown).weight.requires_grad


@pytest.mark.parametrize("other", [{"num_known": 4}, {"hidden": 5}, {}], ids=["classes", "layers", "none"])
def test_a_head_of_another_kind_is_left_alone(other):
    method = method_of(incremental=True)
    before = copy.deepcopy(method.head.state_dict())
    given = method_of(seed=1, **other).state_dict() if other else {"fc.0.weight": torch.ones(7, 6)}
    method.adopt(given)
    assert all(torch.equal(t, before[n]) for n, t in method.head.state_dict().items())


def test_an_incremental_run_goes_on_from_one_of_its_kind():
    source = method_of(seed=1, incremental=True)
    method = method_of(incremental=True)
    method.adopt(source.state_dict())
    assert torch.equal(method.head.bias, source.head.bias)


def test_joint_scores_are_those_of_a_grown_head_alone():
    x = torch.randn(4, 7)
    assert method_of().joint_logits(x) is None
    assert method_of(incremental=True).joint_logits(x).shape == (4, KNOWN + NEW)
    assert method_of().logits(x).shape == (4, NEW)


def test_one_new_class_is_possible(monkeypatch):
    at_epoch(monkeypatch, 9)
    method = method_of(num_new=1, num_classes=KNOWN + 1, incremental=True)
    loss = method.training_step(batch_of([0, 3, 3, 1, -1]), 0)
    assert loss.isfinite()


def test_k_above_the_number_of_features_is_told_before_training():
    method_of(k=7).check(16)
    with pytest.raises(ConfigError, match="8 top-ranked of 7") as error:
        method_of(k=8).check(16)
    assert error.value.where == "method.labeler.k"


def test_a_share_of_labelled_samples_leaves_room_for_others():
    method_of(labelled_batch_size=15).check(16)
    with pytest.raises(ConfigError, match="leaves no unlabelled samples") as error:
        method_of(labelled_batch_size=16).check(16)
    assert error.value.where == "method.labelled_batch_size"
