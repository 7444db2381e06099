"""Interruption: a run killed at any moment ends, once resumed, as one that was never interrupted."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from scarcely import checkpoints
from scarcely.callbacks.history import read_rows
from scarcely.folder import RunFolder
from tests.runs import (
    compose,
    data_of,
    job_of,
    rows_without_times,
    same_predictions,
    same_weights,
    start_run,
    train_here,
    wait_until,
    weights,
)

EPOCHS = 8
RUN = (
    "pretext=rotnet",
    f"stages.pretext.epochs={EPOCHS}",
    f"epochs={EPOCHS}",
    "method.composition=ricap",
    "eval_every=2",
    "seed=4",
)


def settings(root: Path) -> list[str]:
    return [*RUN, f"cache_dir={root / 'cache'}"]


def pretext_folder(root: Path) -> Path | None:
    return next(iter((root / "cache" / "stages").glob("*")), None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    process = start_run(root / "run", *settings(root))
    assert process.wait() == 0, process.output
    return root


def interrupt(root: Path, stage: str, number: int, moment: random.Random) -> tuple[int, str]:
    """Start the run, or go on with it, and send a signal somewhere in the next epochs of a stage.

    The wait is a share of the time that an epoch takes here: neither on a fast machine nor on a busy
    one does the stage end before it.
    """
    folder = root / "run"
    process = start_run(folder, *settings(root), "resume=true")

    def rows() -> list[dict]:
        where = folder if stage == "cluster" else pretext_folder(root)
        found = read_rows(where / "metrics.csv") if where is not None else []
        return [row for row in found if row["stage"] == stage]

    before = len(rows())
    wait_until(lambda: len(rows()) > before, process)
    seconds = rows()[-1]["seconds"] / len(rows())
    time.sleep(seconds * moment.random() * moment.choice([0.1, 1.0]))  # just after a checkpoint, or anywhere
    assert process.alive, process.output
    process.send(number)
    return process.wait(20), process.output


def assert_as_uninterrupted(root: Path, uninterrupted: Path) -> None:
    process = start_run(root / "run", *settings(root), "resume=true")
    assert process.wait() == 0, process.output
    run, expected = root / "run", uninterrupted / "run"
    assert same_weights(pretext_folder(root), pretext_folder(uninterrupted))
    assert same_weights(run, expected)
    assert same_predictions(run, expected)
    assert rows_without_times(run) == rows_without_times(expected)
    steps = [(row["stage"], row["epoch"]) for row in read_rows(run / "metrics.csv")]
    assert steps == [(stage, e) for stage in ("pretext", "cluster") for e in range(EPOCHS)]
    results, others = RunFolder(run).results(), RunFolder(expected).results()
    assert results["metrics"] == others["metrics"]
    assert [s["name"] for s in results["stages"]] == ["pretext", "cluster"]
    assert not list(root.rglob("*.part"))


def test_killed_at_random_moments_in_both_stages(uninterrupted, tmp_path):
    moment = random.Random(0)
    for stage in ("pretext", "pretext", "cluster", "cluster"):
        code, _ = interrupt(tmp_path, stage, signal.SIGKILL, moment)
        assert code == -signal.SIGKILL
    assert_as_uninterrupted(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_killed_at_more_random_moments(uninterrupted, tmp_path, seed):
    moment = random.Random(seed)
    stages = sorted(moment.choices(["pretext", "cluster"], k=5), reverse=True)
    stages = [s for i, s in enumerate(stages) if stages[:i].count(s) < 2]
    for stage in stages:
        interrupt(tmp_path, stage, signal.SIGKILL, moment)
    assert_as_uninterrupted(tmp_path, uninterrupted)


@pytest.mark.slow
def test_terminated_and_interrupted_from_the_keyboard(uninterrupted, tmp_path):
    moment = random.Random(1)
    for stage, number in (("pretext", signal.SIGINT), ("cluster", signal.SIGTERM)):
        code, output = interrupt(tmp_path, stage, number, moment)
        assert code == 130, output  # neither 0, as if it were done, nor a crash
        assert output.rstrip().endswith("interrupted: the same command with resume=true goes on")
        assert "Traceback" not in output
        assert not (tmp_path / "run" / "results.json").exists()
    assert_as_uninterrupted(tmp_path, uninterrupted)


def test_a_finished_run_is_shown_and_not_trained_again(uninterrupted):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*") if p.is_file()}
    process = start_run(
        uninterrupted / "run", *settings(uninterrupted), "resume=true", log=uninterrupted / "again.log"
    )
    assert process.wait() == 0, process.output
    assert "finished" in process.output
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_seconds_of_a_stage_leave_the_interruption_out(tmp_path):
    config = compose("method=rotnet", "epochs=4")
    data = data_of(config)
    job = probing(config, data, tmp_path, interrupt="2.1")
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train_here(job, tmp_path / "stage", data)
    time.sleep(1)
    (tmp_path / "armed").unlink()
    train_here(job, tmp_path / "stage", data)
    elapsed = time.monotonic() - started
    seconds = [row["seconds"] for row in read_rows(tmp_path / "stage" / "metrics.csv")]
    assert seconds == sorted(seconds)
    assert 0 < checkpoints.load(tmp_path / "stage" / "weights.pt")["seconds"] < elapsed - 1


# Step by step: what a resume could break, each on its own


def probing(config, data, root: Path, **settings):
    """A stage that writes down, in each step, learning rate, order, views, dropout and other draws."""
    (root / "armed").touch()
    optimizer = {
        "_target_": "scarcely.methods.optimizer.Optimizer",
        "lr": 0.01,
        "schedule": "multistep",
        "milestones": [1, 3],
    }
    method = {
        "_target_": "tests.runs.Probe",
        "epochs": 4,
        "batch_size": 512,
        "optimizer": optimizer,
        "log": str(root / "steps.txt"),
        "armed": str(root / "armed"),
        **settings,
    }
    return job_of(config, data, name="probe", method=method)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """Configuration, data and the log of an uninterrupted stage."""
    root = tmp_path_factory.mktemp("probed")
    config = compose("method=rotnet")
    data = data_of(config)
    train_here(probing(config, data, root), root / "stage", data)
    return config, data, (root / "steps.txt").read_text().splitlines()


@pytest.mark.parametrize("interrupted", ["0.0", "0.2", "1.0", "2.1", "3.0", "3.2"])
def test_every_step_after_a_resume_is_the_step_it_would_have_been(probed, tmp_path, interrupted):
    config, data, expected = probed
    job = probing(config, data, tmp_path, interrupt=interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_here(job, tmp_path / "stage", data)
    epoch, step = map(int, interrupted.split("."))
    log = tmp_path / "steps.txt"
    before = log.read_text().splitlines() if log.exists() else []
    assert before == expected[: 3 * epoch + step]
    (tmp_path / "armed").unlink()
    train_here(job, tmp_path / "stage", data)
    after = log.read_text().splitlines()[len(before) :]
    assert after == expected[3 * epoch :]  # the epoch in flight anew, none before it again, none left out
    rows = read_rows(tmp_path / "stage" / "metrics.csv")
    assert [(r["epoch"], r["step"]) for r in rows] == [(0, 3), (1, 6), (2, 9), (3, 12)]
    assert [r["lr"] for r in rows] == pytest.approx([0.01, 0.001, 0.001, 0.0001])


def test_the_steps_of_an_epoch_all_differ(probed):
    """Otherwise the test above would compare constants."""
    _, _, lines = probed
    assert len(lines) == 12
    columns = list(zip(*(line.split() for line in lines)))
    for name, values in zip(("order", "view 1", "view 2", "torch", "draw", "loss"), columns[3:]):
        assert len(set(values)) == 12, name


def test_an_interruption_after_the_last_epoch_trains_nothing_more(probed, tmp_path):
    config, data, expected = probed
    job = probing(config, data, tmp_path)
    folder = train_here(job, tmp_path / "stage", data)
    first = weights(folder)
    (folder / "weights.pt").unlink()  # killed between the last checkpoint and the weights
    train_here(job, folder, data)
    assert (tmp_path / "steps.txt").read_text().splitlines() == expected
    assert all(torch.equal(first[k], t) for k, t in weights(folder).items())
    assert len(read_rows(folder / "metrics.csv")) == 4
