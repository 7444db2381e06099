"""DTC: its start, its target, its loss, and what an interruption changes: nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from scarcely import stages
from scarcely.backbones.small import MLP
from scarcely.callbacks.history import read_rows
from scarcely.data.loader import Batch
from scarcely.errors import ConfigError
from scarcely.job import Job
from scarcely.methods.base import Place
from scarcely.methods.dtc import DTC, principal_axes
from scarcely.methods.optimizer import Optimizer
from tests.oracles import lsdc
from tests.oracles import transfer as oracle
from tests.runs import (
    TINY,
    compose,
    data_of,
    discovery_jobs,
    rows_without_times,
    same_weights,
    start_ranks,
    train_here,
    weights,
)

SMALL = (
    *(o for o in TINY if not o.startswith("batch_size")),
    "method=dtc",
    "data.labelled_classes=[0,2,4,6,8]",
    "pretext=none",
    "epochs=3",
    "eval_every=1",
    "batch_size=128",
    "stages.supervised.epochs=1",
)


def method_of(seed=0, num_new=3, **changes) -> DTC:
    torch.manual_seed(seed)
    sizes = {"num_known": 3, "num_new": num_new, "num_classes": 3 + num_new, "freeze": 0}
    return DTC(MLP(6, (5, 7)), optimizer=Optimizer(), **{**sizes, **changes})


def blobs(n=90, size=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(3, size, generator=g)[torch.arange(n) % 3] + torch.randn(n, size, generator=g)


# The start


@pytest.mark.parametrize("dim", ["auto", 2, 7, None])
def test_projection_and_centroids_start_as_scikit_learns(dim):
    method, features = method_of(dim=dim), blobs()
    method.start(features)
    size = {"auto": 3, None: 7}.get(dim, dim)
    embedded = features.numpy() if dim is None else PCA(size).fit_transform(features.numpy())
    found = method.projection(features).detach().numpy()
    # a principal axis has no sign
    np.testing.assert_allclose(np.abs(found), np.abs(embedded), rtol=1e-3, atol=1e-4)
    expected = KMeans(3, n_init=20, random_state=0).fit(found).cluster_centers_
    own = method.centroids.detach().numpy()
    distances = np.linalg.norm(own[:, None] - expected, axis=2)
    assert sorted(distances.argmin(axis=1)) == [0, 1, 2]
    np.testing.assert_allclose(distances.min(axis=1), 0, atol=1e-3)


def test_principal_axes_are_orthonormal_and_of_one_sign():
    axes = principal_axes(blobs(), 4)
    torch.testing.assert_close(axes @ axes.mT, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(axes, principal_axes(blobs(), 4))
    assert (axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("features", [torch.zeros(5, 7), torch.ones(1, 7), blobs(2)])
def test_fewer_distinct_samples_than_clusters_start(features):
    method = method_of()
    method.place = Place(seed=1)
    method.start(features)
    assert method.centroids.isfinite().all()
    assert method.logits(features).softmax(dim=1).isfinite().all()


def test_a_projection_to_more_dimensions_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="principal components"):
        method_of(dim=8).check(32)
    method_of(dim=7).check(32)
    many = method_of(num_new=20)  # auto takes what there is
    many.check(32)
    assert many.centroids.shape == (20, 7)


# The loss


@pytest.mark.parametrize("consistency", [0.0, 10.0])
@pytest.mark.parametrize("dim", ["auto", None])
@pytest.mark.parametrize("epoch", [0, 3, 9])
def test_loss_and_gradients_equal_the_literal_ones(consistency, dim, epoch, monkeypatch):
    monkeypatch.setattr(DTC, "current_epoch", property(lambda self: epoch))
    method = method_of(consistency=consistency, dim=dim)
    g = torch.Generator().manual_seed(1)
    views = tuple(torch.randn(6, 6, generator=g) for _ in range(method.views))
    assert len(views) == (2 if consistency else 1)
    with torch.no_grad():
        method.centroids.normal_(generator=g)
    exact = copy.deepcopy(method).double()
    method.target = torch.randn(20, 3, generator=g).softmax(dim=1)
    batch = Batch(torch.tensor([3, 19, 0, 7, 11, 4]), views, torch.full((6,), -1))
    loss = method.training_step(batch, 0)
    loss.backward()
    q = [oracle.student_t(exact.projection(exact.backbone(v.double())), exact.centroids) for v in views]
    expected = oracle.target_divergence(method.target[batch.index].double(), q[-1])
    if consistency:
        expected = expected + consistency * lsdc.rampup(epoch, 5) * lsdc.consistency_loss(*q)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    for (name, given), wanted in zip(method.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(given.grad.double(), wanted.grad, rtol=2e-3, atol=2e-5, msg=name)


# Whole stages


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("dtc")
    config = compose(base=SMALL)
    data = data_of(config)
    jobs = discovery_jobs(config, data, root)
    for job in jobs:
        train_here(job, root / job.name, data)
    return config, data, jobs, root


def test_the_stage_learns_and_loads_again(run):
    _, data, jobs, root = run
    assert [job.name for job in jobs] == ["supervised", "cluster"]
    rows = read_rows(root / "cluster" / "metrics.csv")
    assert len(rows) == 3
    assert {"loss", "loss/target", "loss/consistency", "rampup", "new/acc"} <= rows[-1].keys()
    method = stages.build_method(jobs[-1], data.input_shape, inherit=False)
    method.load_state_dict(weights(root / "cluster"))
    clean = data.evaluation_loader("unlabelled", "split", batch_size=200)
    used = method.predict_all(clean).probabilities.argmax(dim=1).bincount(minlength=5)
    assert (used > 0).all()


def test_the_target_is_that_of_the_weights_at_the_start_of_the_epoch(run, tmp_path, monkeypatch):
    _, data, jobs, _ = run
    seen = []
    step = DTC.training_step

    def watched(self, batch, batch_idx):
        if batch_idx == 0:
            clean = data.evaluation_loader("unlabelled", "split", batch_size=99)
            before = copy.deepcopy(self)
            q = before.predict_all(clean).probabilities
            seen.append((self.target.clone(), oracle.sharpened_target(q.double())))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DTC, "training_step", watched)
    monkeypatch.setattr(DTC, "__deepcopy__", lambda self, memo: _rebuilt(self, jobs[-1], data), raising=False)
    train_here(jobs[-1], tmp_path / "stage", data)
    assert len(seen) == 3
    for given, expected in seen:
        torch.testing.assert_close(given.double(), expected, rtol=1e-3, atol=1e-5)
    assert not torch.equal(seen[0][0], seen[1][0])


def _rebuilt(method, job, data):
    other = stages.build_method(job, data.input_shape, inherit=False)
    other.load_state_dict(method.state_dict())
    return other


@pytest.mark.parametrize("moment", [(0, 1), (1, 0), (2, 3)])
def test_an_interrupted_stage_ends_alike(run, tmp_path, monkeypatch, moment):
    _, data, jobs, root = run
    step = DTC.training_step

    def interrupted(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == moment:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DTC, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_here(jobs[-1], tmp_path / "stage", data)
    train_here(jobs[-1], tmp_path / "stage", data)
    assert same_weights(tmp_path / "stage", root / "cluster")


def test_hidden_labels_shape_nothing_but_scores(run, tmp_path):
    config, _, _, root = run
    other = data_of(config)
    hidden = other.parts["train"].labels >= other.num_known
    other.parts["train"].labels[hidden] = 5 + (other.parts["train"].labels[hidden] - 4) % 5
    for job in discovery_jobs(config, other, tmp_path):
        train_here(job, tmp_path / job.name, other)
        assert same_weights(tmp_path / job.name, root / job.name)


def test_two_processes_train_what_one_trains(run, tmp_path):
    """BatchNorm's statistics are those of a rank's own samples: a frozen backbone in eval mode."""
    _, data, jobs, _ = run
    method = {**jobs[-1].method, "freeze": 4, "frozen_bn": "eval"}
    one = Job(**{**vars(jobs[-1]), "method": method})
    two = Job(**{**vars(one), "trainer": {**one.trainer, "devices": 2}})
    train_here(one, tmp_path / "one", data)
    for process in start_ranks(two, tmp_path / "two"):
        assert process.wait() == 0, process.output
    for a, b in zip(*(rows_without_times(tmp_path / n) for n in ("one", "two")), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4, msg=name)
