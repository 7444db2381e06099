"""Stages: what is handed over, what is cached and for whom, what results.json says, when training stops."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
import torch

from scarcely import checkpoints, stages
from scarcely import job as job_module
from scarcely.callbacks.history import read_rows
from scarcely.errors import CheckpointError, UserError
from scarcely.job import Job
from scarcely.methods.base import TrainingError
from scarcely.run import execute
from tests import runs
from tests.runs import (
    compose,
    data_of,
    job_of,
    rows_without_times,
    same_weights,
    start_run,
    train_here,
    wait_until,
    weights,
)

RUN = ("pretext=rotnet", "stages.pretext.epochs=1", "epochs=1")


@pytest.fixture(scope="module")
def config():
    return compose(*RUN)


@pytest.fixture(scope="module")
def data(config):
    return data_of(config)


def key_of(job, data, inherited=""):
    return job.key(data.fingerprint(), inherited, "cpu")


def cached(job, root: Path, data) -> stages.Trained:
    return stages.cached_stage(job, root, data, "cpu", key_of(job, data), [])


@pytest.fixture(scope="module")
def pretext(config, data, tmp_path_factory):
    """A pretext that was trained in a cache of its own."""
    root = tmp_path_factory.mktemp("cache")
    return root, cached(job_of(config, data, 0), root, data)


# Hand-over


def test_the_backbone_is_handed_over_bit_for_bit_and_the_head_is_fresh(config, data, pretext):
    _, trained = pretext
    job = job_of(config, data)
    alone = stages.build_method(job, data.input_shape)
    given = stages.build_method(replace(job, inherited=str(trained.weights)), data.input_shape)
    source = weights(trained.weights.parent)
    taken = {n.removeprefix("backbone.") for n in source if n.startswith("backbone.")}
    assert taken == set(given.backbone.state_dict())
    for name, tensor in given.backbone.state_dict().items():
        assert torch.equal(tensor, source[f"backbone.{name}"]), name
    for fresh, other in zip(given.head.parameters(), alone.head.parameters()):
        assert torch.equal(fresh, other)  # the seed's, whatever was inherited
    assert not torch.equal(given.backbone.conv1[0].weight, alone.backbone.conv1[0].weight)
    assert "100% of the network filled" in given.inheritance
    assert "rotation_head" in given.inheritance  # said loudly: not used


def test_training_starts_from_what_was_inherited(config, data, pretext, tmp_path):
    _, trained = pretext
    job = replace(job_of(config, data), inherited=str(trained.weights))
    job.method["optimizer"]["lr"], before = 1e-12, job.method["optimizer"]["lr"]
    try:
        folder = train_here(job, tmp_path / "stage", data)
    finally:
        job.method["optimizer"]["lr"] = before
    source, after = weights(trained.weights.parent), weights(folder)
    for name in (n for n in source if n.startswith("backbone.") and n.endswith("weight")):
        torch.testing.assert_close(after[name], source[name], rtol=0, atol=1e-8)


def test_a_stage_sees_the_views_that_its_method_asks_for(tmp_path, monkeypatch):
    from scarcely.methods.denoising import Denoising

    config = compose("data=two_moons", "fast=true", "stages.pretext.dropout=0.9", base=())
    config["data"]["augmentation"] |= {"dropout": 0.0, "noise": 0.0}
    moons = data_of(config)
    seen = []
    step = Denoising.training_step
    monkeypatch.setattr(
        Denoising, "training_step", lambda m, batch, i: seen.append(batch.views) or step(m, batch, i)
    )
    stages.train(job_of(config, moons, 0), tmp_path, moons, "cpu")
    clean, noisy = (torch.cat(views) for views in zip(*seen))
    assert (clean == 0).float().mean() < 0.01
    assert (noisy == 0).float().mean().item() == pytest.approx(0.9, abs=0.1)


def test_a_checkpoint_of_another_network_is_refused_before_training(data, pretext):
    _, trained = pretext
    wider = compose(*RUN, "backbone.width=6")
    with pytest.raises(CheckpointError, match="another network"):
        stages.build_method(replace(job_of(wider, data), inherited=str(trained.weights)), data.input_shape)


def test_a_whole_method_takes_the_head_too(config, data, tmp_path):
    job = job_of(config, data)
    source = train_here(job, tmp_path / "first", data)
    again = replace(job, inherited=str(source), whole=True, seed=9)
    state = stages.build_method(again, data.input_shape).state_dict()
    assert all(torch.equal(state[n], t) for n, t in weights(source).items())


def test_more_clusters_than_classes_are_a_larger_head_and_a_rectangular_score(config, data, tmp_path):
    folder = train_here(job_of(config, data, num_clusters=13), tmp_path / "stage", data)
    assert weights(folder)["head.weight"].shape[0] == 13
    assert 0 < read_rows(folder / "metrics.csv")[-1]["acc"] <= 1


# The same seed, the same bits


def test_the_initial_weights_and_the_trained_ones_are_a_function_of_the_seed(config, data, tmp_path):
    job = job_of(config, data)
    a = train_here(job, tmp_path / "a", data)
    torch.manual_seed(12345)  # whatever happened before in this process
    b = train_here(job, tmp_path / "b", data_of(config))
    c = train_here(replace(job, seed=1), tmp_path / "c", data)
    assert same_weights(a, b)
    assert rows_without_times(a) == rows_without_times(b)
    first, other = weights(a), weights(c)
    assert all(not torch.equal(first[n], other[n]) for n in first if n.endswith("weight"))


# The cache


def test_a_finished_stage_is_found_and_not_trained_again(config, data, pretext):
    root, trained = pretext
    before = trained.weights.stat().st_mtime_ns
    found = cached(job_of(config, data, 0), root, data_of(config))
    assert (trained.cached, found.cached) == (False, True)
    assert found.weights == trained.weights
    assert found.weights.stat().st_mtime_ns == before
    assert (found.epochs, found.seconds, found.rows) == (1, trained.seconds, trained.rows)
    assert {p.name for p in trained.weights.parent.iterdir()} == {".lock", "metrics.csv", "weights.pt"}


def test_whatever_shapes_the_weights_is_in_the_key(config, data):
    job = job_of(config, data, 0)
    key = key_of(job, data)
    method = {**job.method, "optimizer": {**job.method["optimizer"], "lr": 0.2}}
    augmentation = {**job.data["augmentation"], "padding": 2}
    changed = {
        "seed": replace(job, seed=1),
        "epochs": replace(job, method={**job.method, "epochs": 2}),
        "learning rate": replace(job, method=method),
        "width": replace(job, backbone={**job.backbone, "width": 5}),
        "augmentation": replace(job, data={**job.data, "augmentation": augmentation}),
        "protocol": replace(job, protocol="split"),
        "devices": replace(job, trainer={**job.trainer, "devices": 2}),
        "precision": replace(job, trainer={**job.trainer, "precision": "bf16-mixed"}),
        "fast": replace(job, fast=True),
        "name": replace(job, name="other"),  # all draws depend on it
    }
    keys = {name: key_of(other, data) for name, other in changed.items()}
    keys["content of the data"] = job.key("other", "", "cpu")
    keys["inherited weights"] = job.key(data.fingerprint(), "other", "cpu")
    keys["accelerator"] = job.key(data.fingerprint(), "", "cuda")
    assert key not in keys.values()
    assert len(set(keys.values())) == len(keys)


def test_what_does_not_shape_the_weights_is_not_in_the_key(config, data):
    job = job_of(config, data, 0)
    same = [
        replace(job, inherited="elsewhere.pt"),
        replace(job, min_matched=0.9),
        replace(job, data={**job.data, "root": "/elsewhere", "resident": "host"}),
        replace(job, trainer={**job.trainer, "log_every": 7}),
        replace(job, trainer={**job.trainer, "accelerator": "auto"}),  # which found the same CPU
        replace(job, num_clusters=13),  # a pretext has no clusters
        replace(job, eval_every=3),
        replace(job, method={**job.method, "before": ["x"], "needs": [], "scarce": {}, "by_kind": {}}),
    ]
    assert {key_of(other, data) for other in same} == {key_of(job, data)}
    assert key_of(replace(job_of(config, data), num_clusters=13), data) != key_of(job_of(config, data), data)


@pytest.mark.parametrize(
    "changed",
    [
        "functional/pairwise.py",
        "methods/rotnet.py",
        "data/augment.py",
        "backbones/base.py",
        "seeds.py",
        "checkpoints.py",
    ],
)
def test_a_changed_source_does_not_find_the_old_stage(config, data, tmp_path, monkeypatch, changed):
    copy = tmp_path / "scarcely"
    source = Path(job_module.__file__).parent
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(job_module, "__file__", str(copy / "job.py"))
    job, keys = job_of(config, data, 0), []
    for _ in range(2):
        job_module.source_digest.cache_clear()
        keys.append(key_of(job, data))
        (copy / changed).write_text((copy / changed).read_text() + "\n# another line\n")
    monkeypatch.undo()
    job_module.source_digest.cache_clear()
    assert keys[0] == key_of(job, data)
    assert keys[1] != keys[0]


def longer(config):
    return {**config["plan"][0]["method"], "epochs": 4}


def test_a_stage_that_was_interrupted_goes_on_whoever_asks_for_it(config, data, tmp_path):
    job = job_of(config, data, 0, method=longer(config))
    expected = cached(job, tmp_path / "a", data)
    folder = tmp_path / "b" / "stages" / key_of(job, data)
    process = runs.Process(cache_in_child, config, tmp_path / "b", folder.name, log=tmp_path / "log")
    wait_until(lambda: len(read_rows(folder / "metrics.csv")) >= 2, process)
    process.send(signal.SIGKILL)
    process.wait()
    assert not (folder / "weights.pt").exists()
    written = (folder / "last.ckpt").stat().st_mtime_ns
    trained = cached(job, tmp_path / "b", data)  # no resume=true: the cache is no run
    assert not trained.cached
    assert same_weights(trained.weights.parent, expected.weights.parent)
    assert [r["epoch"] for r in trained.rows] == [0, 1, 2, 3]
    assert written < trained.weights.stat().st_mtime_ns
    assert not (folder / "last.ckpt").exists()


def cache_in_child(config, root, key):
    data = data_of(config)
    job = job_of(config, data, 0, method=longer(config))
    stages.quiet()
    stages.cached_stage(job, root, data, "cpu", key, [])
    return 0


def test_two_runs_at_once_train_a_stage_once(tmp_path):
    settings = ["pretext=rotnet", "stages.pretext.epochs=4", "epochs=1", f"cache_dir={tmp_path / 'cache'}"]
    processes = [start_run(tmp_path / name, *settings) for name in ("a", "b")]
    for process in processes:
        assert process.wait() == 0, process.output
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("a", "b")]
    assert sorted(r["stages"][0]["cached"] for r in results) == [False, True]
    assert len(list((tmp_path / "cache" / "stages").iterdir())) == 1
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_a_run_waits_for_another_that_trains_the_same_stage(config, data, pretext, tmp_path):
    _, trained = pretext
    folder = tmp_path / "stages" / key_of(job_of(config, data, 0, method=longer(config)), data)
    folder.mkdir(parents=True)
    lock = filelock.FileLock(folder / ".lock")
    lock.acquire()
    process = runs.Process(cache_in_child, config, tmp_path, folder.name, log=tmp_path / "log")
    wait_until(lambda: "another run trains the same stage; waiting" in process.output, process)
    shutil.copy(trained.weights, folder)  # the other has finished
    lock.release()
    assert process.wait() == 0, process.output
    assert not (folder / "metrics.csv").exists()  # it trained nothing itself


def test_a_lock_of_a_killed_process_does_not_stay(config, data, tmp_path):
    process = runs.Process(hold_lock, tmp_path / "stages" / "x", log=tmp_path / "log")
    wait_until((tmp_path / "stages" / "x" / "held").exists, process)
    process.send(signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    stages.cached_stage(job_of(config, data, 0), tmp_path, data, "cpu", "x", [])
    assert time.monotonic() - started < 30


def hold_lock(folder):
    folder.mkdir(parents=True)
    filelock.FileLock(folder / ".lock").acquire()
    (folder / "held").touch()
    time.sleep(60)


# Whole runs


def test_without_a_report_nothing_is_drawn_and_all_else_is_there(tmp_path, capsys):
    config = compose("fast=true", "pretext=none", "report=false", f"run_dir={tmp_path / 'run'}")
    execute({**config, "command": ""}, "unused")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"results.json", "predictions.npz", "weights.pt", "config.yaml", "metrics.csv"} <= files
    assert not {"report.html", "figures"} & files
    assert f"run: {tmp_path / 'run'}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def split_run(tmp_path_factory):
    """Two runs in a row with the same pretext: `protocol=split`, 12 clusters for 10 classes, `fast=true`."""
    root = tmp_path_factory.mktemp("split")
    settings = [
        "pretext=rotnet",
        "protocol=split",
        "num_clusters=12",
        "fast=true",
        f"cache_dir={root / 'cache'}",
    ]
    processes = [start_run(root / "first", *settings)]
    processes[0].wait()
    processes.append(start_run(root / "second", *settings))
    for process in processes:
        assert process.wait() == 0, process.output
    return [json.loads((root / name / "results.json").read_text()) for name in ("first", "second")], root


def test_results_json_has_the_fields_that_others_rely_on(split_run):
    (first, second), _ = split_run
    for results in (first, second):
        assert (results["method"], results["data"], results["seed"]) == ("lsdc", "digits", 0)
        assert results["protocol"] == "split"
        assert [s["name"] for s in results["stages"]] == ["pretext", "cluster"]
        assert all(set(s) == {"name", "seconds", "epochs", "cached"} for s in results["stages"])
        assert {"acc", "nmi", "ari", "test/acc", "test/nmi", "test/ari"} <= set(results["metrics"])
        for name, value in results["metrics"].items():
            assert isinstance(value, float)
            assert math.isfinite(value)
            if name.endswith(("acc", "nmi")):
                assert 0 <= value <= 1
        assert results["samples"] == 1438  # the train part
    assert [s["cached"] for s in first["stages"]] == [False, False]
    assert [s["cached"] for s in second["stages"]] == [True, False]
    assert second["stages"][0]["seconds"] == first["stages"][0]["seconds"] > 0
    assert first["metrics"] == second["metrics"]


def test_fast_is_one_epoch_of_two_batches_a_stage(split_run):
    (first, _), root = split_run
    assert [s["epochs"] for s in first["stages"]] == [1, 1]
    rows = read_rows(root / "first" / "metrics.csv")
    assert [(r["stage"], r["epoch"], r["step"]) for r in rows] == [("pretext", 0, 2), ("cluster", 0, 2)]


def test_the_number_of_clusters_may_differ_from_that_of_classes(split_run):
    (first, _), root = split_run
    assert weights(root / "first")["head.weight"].shape[0] == 12
    assert first["metrics"]["clusters/used"] <= 12


def test_without_split_there_is_no_test_score(tmp_path):
    process = start_run(tmp_path / "run", "pretext=none", "fast=true", f"cache_dir={tmp_path}")
    assert process.wait() == 0, process.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["protocol"] == "all"
    assert results["samples"] == 1797
    assert not [name for name in results["metrics"] if name.startswith("test/")]
    assert not (tmp_path / "stages").exists()  # the last stage belongs to its run


def test_what_is_saved_rebuilds_the_network_without_running_code(split_run):
    _, root = split_run
    for path in (root / "first" / "weights.pt", root / "first" / "last.ckpt"):
        checkpoints.load(path)  # weights_only
    content = checkpoints.load(root / "first" / "weights.pt")
    method = stages.build_method(Job(**content["job"]), tuple(content["input_shape"]), inherit=False)
    method.load_state_dict(content["state_dict"])
    assert content["classes"] == [str(i) for i in range(10)]


# A loss that is not finite


def probing(config, data, root, **settings):
    method = {
        "_target_": "tests.runs.Probe",
        "epochs": 3,
        "batch_size": 512,
        "optimizer": {"_target_": "scarcely.methods.optimizer.Optimizer", "lr": 0.01},
        "log": str(root / "steps.txt"),
        **settings,
    }
    return job_of(config, data, name="probe", method=method)


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    config, data, tmp_path, log_every
):
    trainer = {**config["trainer"], "log_every": log_every}
    job = replace(probing(config, data, tmp_path, poison="1.1"), trainer=trainer)
    with pytest.raises(TrainingError) as caught:
        train_here(job, tmp_path / "stage", data)
    assert isinstance(caught.value, UserError)  # one message, exit code 2
    assert "not finite" in caught.value.what
    loader = data.training_loader("train", "all", batch_size=512, views=2, seed=0, stage="probe")
    loader.set_epoch(1)
    batch = list(loader)[1]
    assert "stage probe, epoch 1, step 1 of it" in caught.value.where
    assert str(batch.index[:8].tolist())[:-1] in caught.value.where
    kept = checkpoints.load(tmp_path / "stage" / "last.ckpt")
    assert all(t.isfinite().all() for t in kept["state_dict"].values())
    assert [r["epoch"] for r in read_rows(tmp_path / "stage" / "metrics.csv")] == [0]
    assert not (tmp_path / "stage" / "weights.pt").exists()
    steps = (tmp_path / "steps.txt").read_text().splitlines()
    assert len(steps) == (5 if log_every == 1 else 6)  # at once, or at the end of the epoch
    good = replace(job, method={**job.method, "poison": ""})
    train_here(good, tmp_path / "stage", data)  # from the good checkpoint
    assert [r["epoch"] for r in read_rows(tmp_path / "stage" / "metrics.csv")] == [0, 1, 2]


def test_weights_that_are_not_finite_never_become_a_checkpoint(config, data, tmp_path):
    """The last step of an epoch may break the weights where its loss, computed before, is finite."""
    job = probing(config, data, tmp_path, poison_weights="1.2")
    with pytest.raises(TrainingError, match="weights are not finite") as caught:
        train_here(job, tmp_path / "stage", data)
    assert "head.bias" in caught.value.what
    kept = checkpoints.load(tmp_path / "stage" / "last.ckpt")
    assert kept["epoch"] == 0
    assert all(t.isfinite().all() for t in kept["state_dict"].values())


# Devices


def test_devices_that_do_not_exist_are_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="there are none"):
        stages.accelerator_of({"accelerator": "gpu", "devices": 8})
    assert stages.accelerator_of({"accelerator": "auto", "devices": 1}) == "cpu"
    two = {"accelerator": "cpu", "devices": 2, "sync_batchnorm": False}
    assert stages.accelerator_of(two) == "cpu"
    with pytest.raises(UserError, match="BatchNorm over several processes needs GPUs"):
        stages.accelerator_of(two | {"sync_batchnorm": True})
