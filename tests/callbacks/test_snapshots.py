"""Snapshots show the network as it was, survive a kill, and leave the training alone."""

from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from scarcely import checkpoints, stages
from scarcely.callbacks.history import read_rows
from scarcely.callbacks.snapshots import Snapshots
from scarcely.data.loader import DeviceLoader
from scarcely.job import Job
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

# Frozen BatchNorm in eval mode: the mode of single modules must come back too.
SETTINGS = ("method=ranking_statistics", "epochs=3", "freeze=1", "frozen_bn=eval")
COUNT = 40


def job_and_data(*overrides):
    names = ("freeze", "frozen_bn")
    given = [f"method.{o}" if o.startswith(names) else o for o in (*SETTINGS, *overrides)]
    config = compose(*given)
    data = data_of(config)
    job = job_of(config, data, num_known=data.num_known, num_new=data.num_new, num_clusters=data.num_new)
    return replace(job, snapshots=COUNT), data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    job, data = job_and_data()
    return job, data, train_here(job, tmp_path_factory.mktemp("stage"), data)


def snapshots_of(folder):
    with np.load(folder / "snapshots.npz", allow_pickle=False) as archive:
        return dict(archive)


def features_by(method, data, index):
    samples = data.pool("unlabelled", "split").select(torch.from_numpy(index))
    loader = DeviceLoader.evaluation(samples, data.augmentation, batch_size=512)
    return method.predict_all(loader, lambda _: None).features.numpy()


def test_the_start_the_middle_and_the_end_are_kept_of_the_same_unlabelled_samples(trained):
    job, data, folder = trained
    kept = snapshots_of(folder)
    assert kept["epochs"].tolist() == [0, 1, 3]
    assert kept["features"].shape == (3, COUNT, 16)
    assert kept["features"].dtype == np.float32
    assert len(set(kept["index"].tolist())) == COUNT
    assert kept["index"].max() < len(data.pool("unlabelled", job.protocol))
    start = stages.build_method(job, data.input_shape)
    end = stages.build_method(job, data.input_shape, inherit=False)
    end.load_state_dict(weights(folder))
    np.testing.assert_allclose(kept["features"][0], features_by(start, data, kept["index"]), atol=1e-5)
    np.testing.assert_allclose(kept["features"][2], features_by(end, data, kept["index"]), atol=1e-5)
    assert np.abs(kept["features"][1] - kept["features"][0]).max() > 1e-2
    assert np.abs(kept["features"][2] - kept["features"][1]).max() > 1e-2


def test_the_training_is_the_same_bit_for_bit_without_them(trained, tmp_path):
    job, data, folder = trained
    without = train_here(replace(job, snapshots=0), tmp_path / "without", data)
    assert same_weights(folder, without)
    assert rows_without_times(folder) == rows_without_times(without)
    assert not (without / "snapshots.npz").exists()


def test_they_are_no_part_of_what_names_a_stage(trained):
    job, _, _ = trained
    assert job.key("data", "before", "cpu") == replace(job, snapshots=0).key("data", "before", "cpu")


@pytest.mark.parametrize(("epochs", "moments"), [(1, [0, 1]), (2, [0, 1, 2])])
def test_short_stages_have_fewer_moments(tmp_path, epochs, moments):
    job, data = job_and_data(f"epochs={epochs}")
    folder = train_here(replace(job, snapshots=10**6), tmp_path / "stage", data)
    kept = snapshots_of(folder)
    assert kept["epochs"].tolist() == moments
    np.testing.assert_array_equal(kept["index"], np.arange(len(data.pool("unlabelled", job.protocol))))


RUN = (
    *("method=ranking_statistics", "epochs=8", "stages.supervised.epochs=1", f"embedding_size={COUNT}"),
    "seed=1",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted")
    process = start_run(root / "run", *RUN, f"cache_dir={root / 'cache'}")
    assert process.wait() == 0, process.output
    return snapshots_of(root / "run")


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [2, 6], ids=["before the middle", "after it"])
def test_a_killed_run_ends_with_the_snapshots_of_one_that_was_not(uninterrupted, tmp_path, epochs):
    settings = (*RUN, f"cache_dir={tmp_path / 'cache'}", "resume=true")
    folder = tmp_path / "run"
    process = start_run(folder, *settings)

    def rows():
        return [row for row in read_rows(folder / "metrics.csv") if row["stage"] == "joint"]

    wait_until(lambda: len(rows()) >= epochs and (folder / "last.ckpt").exists(), process)
    process.send(signal.SIGKILL)
    process.wait()
    if (folder / "results.json").exists():
        pytest.skip("the run was faster than the signal")
    process = start_run(folder, *settings)
    assert process.wait() == 0, process.output
    kept = snapshots_of(folder)
    assert kept["epochs"].tolist() == [0, 4, 8]
    for name, array in uninterrupted.items():
        np.testing.assert_array_equal(kept[name], array, err_msg=name)


class Stage:
    """What the callback asks of a trainer that goes on from a checkpoint."""

    is_global_zero = True

    def __init__(self, epoch):
        self.current_epoch = epoch


def callback_on(path, data, **changes):
    settings = {"count": COUNT, "epochs": 8, "seed": 0} | changes
    return Snapshots(path, data.pool("unlabelled", "split"), data.augmentation, **settings)


def test_going_on_keeps_what_came_before_and_nothing_of_other_samples(trained, tmp_path):
    _, data, _ = trained
    path = tmp_path / "snapshots.npz"
    first = callback_on(path, data)
    first.kept = {epoch: np.full((COUNT, 2), epoch, dtype=np.float32) for epoch in (0, 4, 8)}
    first._write()
    for epoch, kept in ((0, []), (3, [0]), (4, [0, 4]), (7, [0, 4])):
        again = callback_on(path, data)
        again.on_train_start(Stage(epoch), None)
        assert sorted(again.kept) == kept, epoch
    other = callback_on(path, data, seed=1)
    other.on_train_start(Stage(5), None)
    assert other.kept == {}
    path.write_bytes(b"PK cut off")
    again.on_train_start(Stage(5), None)
    assert again.kept == {}


def test_other_ranks_write_nothing(trained, tmp_path):
    _, data, _ = trained
    callback = callback_on(tmp_path / "snapshots.npz", data)
    second = Stage(0)
    second.is_global_zero = False
    callback.on_train_start(second, None)
    callback.on_train_epoch_start(second, None)
    assert not (tmp_path / "snapshots.npz").exists()


def test_a_run_keeps_them_in_its_last_stage_alone(uninterrupted):
    assert uninterrupted["epochs"].tolist() == [0, 4, 8]
    assert uninterrupted["features"].shape[1] == COUNT


def test_old_weights_files_rebuild_their_network(trained):
    """Those of a run before there were snapshots say nothing of them."""
    job, _, folder = trained
    content = checkpoints.load(folder / "weights.pt")
    del content["job"]["snapshots"]
    assert Job(**content["job"]) == replace(job, snapshots=0)
