"""LSD-C: the loss against a literal one, what gets a gradient, what the composed views share."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from scarcely.backbones.base import Backbone
from scarcely.backbones.small import SmallCNN
from scarcely.data.loader import Batch
from scarcely.functional import compose, pairwise
from scarcely.methods.lsdc import LSDC
from scarcely.methods.optimizer import Optimizer
from tests.oracles import lsdc as oracle
from tests.oracles import pairwise as literal

# thresholds at which some pairs of the batch below are connected and some are not, in both spaces
LABELERS = {
    "knn": ("knn_adjacency", {"k": 4}),
    "sne": ("sne_adjacency", {"threshold": 0.113, "temperature": 0.71}),
    "cosine": ("cosine_adjacency", {"threshold": 0.93}),
    "l2": ("l2_adjacency", {"threshold": 0.55}),
}
N, CLUSTERS, EPOCH = 8, 3, 7


class TinyNet(Backbone):
    """Two blocks with BatchNorm, few numbers: the literal loss is slow."""

    block_names = ("conv", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 5), nn.BatchNorm1d(5))
        self.num_features = 5


def lsdc(labeler="knn", seed=0, net=TinyNet, **settings) -> LSDC:
    torch.manual_seed(seed)
    function, arguments = LABELERS[labeler]
    settings = {"freeze": 0, "consistency": 5.0, "rampup": 10, **settings}
    return LSDC(
        net(),
        num_clusters=CLUSTERS,
        num_classes=CLUSTERS,
        optimizer=Optimizer(),
        labeler=partial(getattr(pairwise, function), **arguments),
        **settings,
    )


def batch_of(n=N, size=6, channels=1, seed=0) -> Batch:
    """Three noisy views of images around three prototypes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLUSTERS
    images = torch.randn(CLUSTERS, channels, size, size, generator=g)[labels]
    views = tuple(images + 0.3 * torch.randn(images.shape, generator=g) for _ in range(3))
    return Batch(torch.arange(n), views, labels)


@pytest.fixture
def in_epoch(monkeypatch):
    """Set the epoch of a method that no trainer drives."""

    def setting(epoch):
        monkeypatch.setattr(LSDC, "current_epoch", property(lambda self: epoch))

    return setting


def expected_loss(method, batch, epoch, labeler, space, consistency, rampup, transposed):
    """The literal loss of a copy of the method in double precision, its graph intact."""
    x, *others = batch.views
    if method.composition == "none":
        composed, (permutations, weights) = others, ([range(len(x))], [1.0])
    else:
        function = {"ricap": compose.ricap, "mixup": compose.mixup}[method.composition]
        composed, (permutations, weights) = function(others, method.draw("compose", 0), beta=method.beta)
    features = method.backbone(x.double())
    logits = method.head(features)
    p, p1, p2 = (
        v.softmax(1) for v in (logits, *(method.head(method.backbone(c.double())) for c in composed))
    )
    name, arguments = LABELERS[labeler]
    adjacency = getattr(literal, name)((features if space == "features" else logits).detach(), **arguments)
    assert N < adjacency.sum() < N * N, "a labeler that connects nothing, or all, tests nothing"
    return oracle.loss(adjacency, p, p1, p2, permutations, weights, epoch, consistency, rampup, transposed)


@pytest.mark.parametrize("labeler", LABELERS)
@pytest.mark.parametrize("composition", ["ricap", "mixup", "none"])
@pytest.mark.parametrize("space", ["features", "prediction"])
def test_loss_and_gradients_equal_the_literal_ones(labeler, composition, space, in_epoch):
    in_epoch(EPOCH)
    _compare(labeler, composition, space)


@pytest.mark.parametrize("composition", ["ricap", "mixup"])
@pytest.mark.parametrize(
    "settings",
    [{"mix_transposed": True}, {"consistency": 0.0}, {"hidden": 7}, {"rampup": 0}, {"beta": 3.0}],
    ids=lambda settings: "-".join(settings),
)
def test_each_option_equals_the_literal_loss(composition, settings, in_epoch):
    in_epoch(EPOCH)
    _compare("knn", composition, "features", **settings)


def _compare(labeler, composition, space, **settings):
    method, batch = lsdc(labeler, composition=composition, space=space, **settings), batch_of()
    exact = copy.deepcopy(method).double()
    loss = method.training_step(batch, 0)
    loss.backward()
    expected = expected_loss(
        exact, batch, EPOCH, labeler, space, method.consistency, method.rampup, method.mix_transposed
    )
    expected.backward()
    assert loss.dtype == torch.float32
    # float32 forwards against float64 ones: a few 1e-6 after BatchNorm
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, given), wanted in zip(method.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(given.grad.double(), wanted.grad, rtol=2e-3, atol=2e-5, msg=name)


def test_the_weight_of_the_consistency_follows_the_epoch(in_epoch):
    method, batch = lsdc(composition="none"), batch_of()
    losses = []
    for epoch in (0, 9, 10, 500):
        in_epoch(epoch)
        losses.append(method.training_step(batch, 0).item())
        recorded = dict(zip(method._names, method._steps[-1].tolist(), strict=True))
        weight = 5.0 * oracle.rampup(epoch, 10)
        parts = recorded["loss/clustering"] + weight * recorded["loss/consistency"]
        assert losses[-1] == pytest.approx(parts, rel=1e-6)
        assert method.epoch_metrics() == {"rampup": pytest.approx(weight)}
    assert losses[0] < losses[1] < losses[2] == losses[3]


@pytest.mark.parametrize(("consistency", "third"), [(5.0, True), (0.0, False)])
def test_gradients_reach_both_predictions_and_not_the_labels(consistency, third, in_epoch):
    in_epoch(EPOCH)
    method = lsdc("l2", composition="none", consistency=consistency)
    seen = []
    labeler = method.labeler

    def spy(features):
        seen.append(features)
        return labeler(features)

    method.labeler = spy
    batch = batch_of()
    for view in batch.views:
        view.requires_grad_()
    method.training_step(batch, 0).backward()
    x, x1, x2 = (view.grad is not None and bool(view.grad.abs().sum() > 0) for view in batch.views)
    assert x
    assert x1
    assert x2 == third
    assert not seen[0].requires_grad


def test_features_label_in_feature_space_and_logits_in_prediction_space():
    sizes = {}
    for space in ("features", "prediction"):
        method = lsdc(space=space)
        labeler = method.labeler
        method.labeler = lambda f, labeler=labeler, space=space: sizes.update({space: f.shape}) or labeler(f)
        method.training_step(batch_of(), 0)
    assert sizes == {"features": (N, 5), "prediction": (N, CLUSTERS)}


# What is frozen


@pytest.mark.parametrize("until", [3, "conv3"])
def test_frozen_blocks_get_no_gradient_and_build_no_graph(until):
    method = lsdc(net=partial(SmallCNN, width=4, num_features=8), freeze=until)
    graphs = {}
    for name in method.backbone.block_names:
        getattr(method.backbone, name).register_forward_hook(
            lambda m, i, out, name=name: graphs.update({name: out.grad_fn is not None})
        )
    batch = batch_of(size=16)
    for view in batch.views:  # not even where somebody asks for the gradient of the input
        view.requires_grad_()
    method.training_step(batch, 0).backward()
    assert graphs == {"conv1": False, "conv2": False, "conv3": False, "fc": True}
    for name, parameter in method.named_parameters():
        frozen = name.startswith("backbone.conv")
        assert parameter.requires_grad != frozen
        assert (parameter.grad is None) == frozen, name
    trained = {id(p) for group in method.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for p in method.parameters() if p.requires_grad}


@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("eval", False)])
def test_frozen_batchnorm_moves_its_statistics_in_train_mode_only(mode, moves):
    method = lsdc(net=partial(SmallCNN, width=4, num_features=8), freeze=3, frozen_bn=mode)
    method.train()
    before = {n: b.clone() for n, b in method.backbone.named_buffers()}
    method.training_step(batch_of(size=16), 0)
    for name, buffer in method.backbone.named_buffers():
        moved = not torch.equal(buffer, before[name])
        assert moved == (moves or name.startswith("fc")), name
    method.eval()
    method.train()
    assert method.backbone.conv1[1].training == (mode == "train")
    assert method.backbone.fc[2].training


# Views


def test_three_forwards_keep_their_batchnorm_statistics_apart():
    method, batch = lsdc(composition="none"), batch_of()
    expected = copy.deepcopy(method.backbone)
    sizes = []
    method.backbone.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    method.training_step(batch, 0)
    assert sizes == [N, N, N]
    for view in batch.views:
        expected(view)
    assert method.backbone.conv[1].num_batches_tracked == 3
    for given, wanted in zip(method.backbone.buffers(), expected.buffers(), strict=True):
        assert torch.equal(given, wanted)


def coded_views(n=N, size=8):
    """Two views whose channels tell which sample, row and column a pixel is from."""
    sample = torch.arange(n).view(n, 1, 1).expand(n, size, size)
    row = torch.arange(size).view(1, size, 1).expand(n, size, size)
    view = torch.stack([sample, row, row.mT], dim=1).float()
    return [view, view.clone()]


def test_composed_views_share_boxes_permutations_and_weights_but_no_offsets():
    method = lsdc(composition="ricap")
    different = 0
    for step in range(20):
        (c1, c2), (permutations, weights) = method.compose_views(coded_views(), step)
        assert torch.equal(c1[:, 0], c2[:, 0])  # which sample is where: boxes and permutations
        different += not torch.equal(c1[:, 1:], c2[:, 1:])  # which part of it: offsets
        for j in range(N):
            share = torch.zeros(N).index_add_(0, permutations[:, j], weights)
            counted = torch.bincount(c1[j, 0].flatten().long(), minlength=N) / 64
            torch.testing.assert_close(counted, share)
    # a patch as large as the image has one place only, and Beta(0.3, 0.3) likes the edges
    assert different > 5


def test_mixup_mixes_both_views_alike():
    method = lsdc(composition="mixup")
    (c1, c2), (permutations, weights) = method.compose_views(coded_views(), 0)
    assert torch.equal(c1, c2)
    assert torch.equal(permutations[0], torch.arange(N))
    assert weights.sum().item() == pytest.approx(1)


def test_each_step_and_epoch_composes_anew_and_again_the_same(in_epoch):
    def drawn(epoch, step):
        in_epoch(epoch)
        return lsdc(composition="mixup").compose_views(coded_views(), step)[0][0]

    assert torch.equal(drawn(3, 5), drawn(3, 5))
    assert not torch.equal(drawn(3, 5), drawn(3, 6))
    assert not torch.equal(drawn(3, 5), drawn(4, 5))


# The record


def test_without_labels_a_step_has_a_loss_and_no_precision():
    method, batch = lsdc(), batch_of()
    loss = method.training_step(batch._replace(labels=torch.full((N,), -1)), 0)
    assert loss.isfinite()
    summary = method.recent(1)
    assert summary["pairs/precision"] != summary["pairs/precision"]
    assert {"loss", "loss/clustering", "loss/consistency", "pairs/positive"} < set(summary)
