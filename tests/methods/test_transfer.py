"""What KCL and MCL share: the frozen network that labels the pairs, and whole runs with it."""

from __future__ import annotations

import copy

import pytest
import torch

from scarcely import stages
from scarcely.backbones.small import MLP
from scarcely.callbacks.history import read_rows
from scarcely.config.compose import compose_run
from scarcely.data.loader import Batch
from scarcely.errors import CheckpointError, ConfigError
from scarcely.job import Job
from scarcely.methods.kcl import KCL
from scarcely.methods.mcl import MCL
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.similarity import Similarity
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

METHODS = {"kcl": KCL, "mcl": MCL}
SMALL = (
    *(o for o in TINY if not o.startswith("batch_size")),
    "data.labelled_classes=[0,2,4,6,8]",
    "pretext=none",
    "epochs=2",
    "batch_size=128",
    "stages.supervised.epochs=1",
    "stages.similarity.epochs=1",
    "method.threshold=0.5",
)


def method_of(kind=KCL, seed=0, adopted=True, **changes):
    torch.manual_seed(seed)
    sizes = {"num_known": 3, "num_new": 2, "num_classes": 5, "freeze": 0}
    method = kind(MLP(6, (5, 7)), optimizer=Optimizer(), **{**sizes, **changes})
    if adopted:
        method.adopt(similarity_weights())
    return method


def similarity_weights(seed=5):
    torch.manual_seed(seed)
    source = Similarity(MLP(6, (5, 7)), Optimizer())
    source.pair_head.norm.running_mean.normal_()
    return {name: t.clone() for name, t in source.state_dict().items()}


def batch_of(n=9, seed=1) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    views = (x, x + 0.3 * torch.randn(n, 6, generator=g))
    return Batch(torch.arange(n), views, 3 + torch.arange(n) % 2)


def test_the_labels_are_those_of_the_similarity_stage():
    method, batch = method_of(), batch_of()
    source = Similarity(MLP(6, (5, 7)), Optimizer())
    source.load_state_dict(similarity_weights())
    source.eval()
    method.train()
    probabilities = source.pair_head(source.backbone(batch.views[0])).sigmoid()
    off = ~torch.eye(9, dtype=torch.bool)
    for threshold in (0.0, 0.3, 0.5, 0.9, 1.0):
        found = method.similarity(batch.views[0], threshold)
        assert torch.equal(found[off], (probabilities > threshold)[off])
        assert found.diagonal().all()


@pytest.mark.parametrize("kind", METHODS.values())
def test_the_frozen_network_never_changes(kind):
    method = method_of(kind)
    optimizer = method.configure_optimizers()
    before = copy.deepcopy(method.similarity.state_dict())
    start = copy.deepcopy(method.backbone.state_dict())
    method.train()
    for step in range(3):
        optimizer.zero_grad()
        method.training_step(batch_of(seed=step), step).backward()
        optimizer.step()
    assert not method.similarity.training
    assert not method.similarity.pair_head.norm.training
    assert all(torch.equal(before[n], t) for n, t in method.similarity.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in method.similarity.parameters())
    assert any(not torch.equal(start[n], t) for n, t in method.backbone.state_dict().items())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained.isdisjoint(id(p) for p in method.similarity.parameters())


def test_a_finished_run_hands_on_its_own_similarity_network():
    finished = method_of(seed=1)
    with torch.no_grad():
        for p in finished.backbone.parameters():
            p.add_(1.0)  # has been trained
    method = method_of(MCL, seed=2, adopted=False)
    taken = method.adopt(finished.state_dict())
    wanted = finished.similarity.state_dict()
    assert all(torch.equal(wanted[n], t) for n, t in method.similarity.state_dict().items())
    assert set(taken) == {f"similarity.{n}" for n in wanted}


@pytest.mark.parametrize("lost", ["pair_head.bias", "backbone.fc1.0.weight", "shape"])
def test_another_checkpoint_is_refused(lost):
    tensors = similarity_weights()
    if lost == "shape":
        tensors["pair_head.norm.weight"] = torch.ones(4)
    else:
        del tensors[lost]
    with pytest.raises(CheckpointError, match="which samples are of one class"):
        method_of(adopted=False).adopt(tensors)


def test_without_a_similarity_stage_nothing_is_trained(tmp_path):
    """The check refuses it before; this is for what is built without it."""
    config = compose_run([*SMALL[:-3], SMALL[-1], "method=kcl", "method.before=[pretext]", "method.freeze=0"])
    data = data_of(config)
    (job,) = discovery_jobs(config, data, tmp_path)
    with pytest.raises(ConfigError, match="similarity stage"):
        train_here(job, tmp_path / "cluster", data)


@pytest.mark.parametrize("kind", METHODS.values())
@pytest.mark.parametrize("n", [1, 2])
def test_tiny_batches_train(kind, n):
    method = method_of(kind)
    method.eval()  # BatchNorm has nothing to say of one sample
    loss = method.training_step(batch_of(n), 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_the_record_holds_the_quality_of_the_labels():
    method = method_of()
    method.training_step(batch_of(), 0)
    assert set(method.recent(1)) == {"loss", "pairs/positive", "pairs/precision", "pairs/recall"}


# Whole stages


@pytest.fixture(scope="module", params=METHODS)
def run(request, tmp_path_factory):
    """All stages of a run on tiny digits: the configuration, the data, the jobs and the folder."""
    root = tmp_path_factory.mktemp(request.param)
    config = compose(f"method={request.param}", base=SMALL)
    data = data_of(config)
    jobs = discovery_jobs(config, data, root)
    for job in jobs:
        train_here(job, root / job.name, data)
    return config, data, jobs, root


def test_each_stage_takes_over_from_the_one_before(run):
    _, data, jobs, root = run
    assert [job.name for job in jobs] == ["supervised", "similarity", "cluster"]
    similarity, cluster = weights(root / "similarity"), weights(root / "cluster")
    frozen = {n.removeprefix("similarity."): t for n, t in cluster.items() if n.startswith("similarity.")}
    assert frozen.keys() == similarity.keys()
    assert all(torch.equal(similarity[n], t) for n, t in frozen.items())
    start = stages.build_method(jobs[-1], data.input_shape).backbone.state_dict()
    assert all(torch.equal(similarity[f"backbone.{n}"], t) for n, t in start.items())
    assert any(not torch.equal(cluster[f"backbone.{n}"], t) for n, t in start.items())
    rows = read_rows(root / "cluster" / "metrics.csv")
    assert len(rows) == 2
    assert {"loss", "new/acc", "pairs/positive", "pairs/precision", "pairs/recall"} <= rows[-1].keys()
    again = stages.build_method(jobs[-1], data.input_shape, inherit=False)
    again.load_state_dict(cluster)


def test_hidden_labels_shape_nothing_but_scores(run, tmp_path):
    """The classes to discover trade their labels, in all stages: the weights are the same bits."""
    config, _, _, root = run
    other = data_of(config)
    hidden = other.parts["train"].labels >= other.num_known
    other.parts["train"].labels[hidden] = 5 + (other.parts["train"].labels[hidden] - 4) % 5
    for job in discovery_jobs(config, other, tmp_path):
        train_here(job, tmp_path / job.name, other)
        assert same_weights(tmp_path / job.name, root / job.name)


def test_an_interrupted_stage_ends_alike(run, tmp_path, monkeypatch):
    _, data, jobs, root = run
    step = METHODS[jobs[-1].method["name"]].training_step

    def interrupted(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 1):
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(METHODS[jobs[-1].method["name"]], "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_here(jobs[-1], tmp_path / "stage", data)
    train_here(jobs[-1], tmp_path / "stage", data)
    assert same_weights(tmp_path / "stage", root / "cluster")


def test_two_processes_train_what_one_trains(run, tmp_path):
    """With global pairs; only the head, since BatchNorm's statistics are those of a rank's own samples."""
    _, data, jobs, _ = run
    # SGD: Adam makes a step of the same size of a gradient that is nothing but rounding
    sgd = {**jobs[-1].method["optimizer"], "name": "sgd", "lr": 0.1}
    fixed = {"freeze": 4, "frozen_bn": "eval", "optimizer": sgd}
    two = {**jobs[-1].trainer, "devices": 2}
    one = Job(**{**vars(jobs[-1]), "method": {**jobs[-1].method, **fixed}})
    many = Job(**{**vars(one), "method": {**one.method, "pairs": "global"}, "trainer": two})
    train_here(one, tmp_path / "one", data)
    for process in start_ranks(many, tmp_path / "two"):
        assert process.wait() == 0, process.output
    for a, b in zip(*(rows_without_times(tmp_path / n) for n in ("one", "two")), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["pairs/positive"] == pytest.approx(b["pairs/positive"], abs=1e-6)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)
