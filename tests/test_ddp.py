"""Two CPU processes: the same losses and weights as one, one message where a rank fails, no orphans."""

from __future__ import annotations

import copy
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scarcely import launch, loggers, stages, worker
from scarcely.callbacks.history import read_rows, write_rows
from scarcely.errors import UserError
from scarcely.evaluation import clustering_scores
from scarcely.methods.rotnet import RotNet
from tests.runs import (
    TINY,
    Probe,
    Process,
    command_line,
    compose,
    data_of,
    job_of,
    rows_without_times,
    same_weights,
    start_ranks,
    train_here,
    wait_until,
    weights,
)

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
VECTORS = ("data=two_moons", "backbone.widths=[16,16,8]", "compare_kmeans=false", "embedding_size=0")
# the features of an untrained network are close together
SNE = ("method/labeler=sne", "method.labeler.temperature=0.02")
# The statistics of BatchNorm are those of a rank's own samples: networks without it, or with frozen ones
# (which the command line refuses where no weights are inherited: set below it).
MIXUP = ("method.composition=mixup", "method.freeze=0")
RUNS = {
    "mixup, all trained": (2, VECTORS, MIXUP, {}),
    "no composition": (2, VECTORS, ("method.composition=none", "method.freeze=0", *SNE), {}),
    "ricap, head trained": (2, TINY, ("method.composition=ricap",), {"freeze": 4, "frozen_bn": "eval"}),
    "four processes": (4, VECTORS, MIXUP, {}),
    "an epoch is a step": (2, VECTORS, (*MIXUP, "batch_size=1000"), {}),  # so that each loss is that of one
}
SLOW = ("four processes",)
COMMON = ("pretext=none", "epochs=3", "batch_size=128", "eval_every=1", "method.rampup=2")


def two_ranks(job, folder, env=None):
    for process in start_ranks(job, folder, env):
        assert process.wait() == 0, process.output
    return folder


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RUNS]
)
def pair(request, tmp_path_factory):
    """The same stage in one process and in two, with its data."""
    world, base, settings, changes = RUNS[request.param]
    root = tmp_path_factory.mktemp("ddp")
    one = compose("trainer=cpu", *COMMON, *settings, base=base)
    # a cluster's variables must not lead Lightning to take its tasks for our processes
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "job", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    two = compose(*TWO, *COMMON, *settings, f"trainer.devices={world}", "method.pairs=global", base=base)
    data = data_of(one)
    jobs = [job_of(c, data, method={**c["plan"][-1]["method"], **changes}) for c in (one, two)]
    train_here(jobs[0], root / "one", data)
    two_ranks(jobs[1], root / "two", slurm)
    return root, jobs[0], data


def test_two_processes_lose_what_one_loses(pair):
    root, _, _ = pair
    one, two = (rows_without_times(root / name) for name in ("one", "two"))
    assert len(one) == 3
    assert [row.keys() for row in one] == [row.keys() for row in two]
    for a, b in zip(one, two):
        assert (a["step"], a["lr"], a["rampup"]) == (b["step"], b["lr"], b["rampup"])
        for name in ("loss", "loss/clustering", "loss/consistency"):
            # sums in another order, over some tens of steps
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-7), name
        for name in ("pairs/positive", "pairs/precision"):  # a tie may fall to the other side
            assert a[name] == pytest.approx(b[name], abs=1e-3), name
    assert len({row["loss"] for row in one}) == 3  # it did learn something


def test_two_processes_learn_what_one_learns(pair):
    root, job, data = pair
    start = stages.build_method(job, data.input_shape).state_dict()
    one, two = weights(root / "one"), weights(root / "two")
    for name in one:
        moved = (one[name] - start[name]).abs().max().item()
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-3 * moved + 1e-7, msg=name)
    assert any(not torch.equal(one[n], start[n]) for n in one)


def test_scores_are_those_of_one_process_with_the_same_weights(pair):
    """Each rank scores its share: no sample is missing and none counts twice."""
    root, job, data = pair
    method = stages.build_method(job, data.input_shape)
    method.load_state_dict(weights(root / "two"))
    clean = data.evaluation_loader("train", "all", batch_size=100)
    expected = clustering_scores(method.predict_all(clean), job.num_clusters, job.num_classes)
    row = read_rows(root / "two" / "metrics.csv")[-1]
    for name in ("acc", "nmi", "ari"):
        assert row[name] == pytest.approx(expected[name], abs=1e-6)


def test_the_gathered_gradient_is_that_of_the_whole_batch(tmp_path):
    """One step of plain SGD with rate 1: the weights move by the gradient, which DDP averages."""
    plain = ("method.optimizer.lr=1", "method.optimizer.momentum=0", "method.optimizer.weight_decay=0")
    settings = (*plain, "method.composition=mixup", "method.freeze=0", "pretext=none", "epochs=1")
    settings = (*settings, "batch_size=500", "method.rampup=0")
    one = compose("trainer=cpu", *settings, base=VECTORS)
    two = compose(*TWO, *settings, "method.pairs=global", base=VECTORS)
    local = compose(*TWO, *settings, "method.pairs=local", base=VECTORS)
    data = data_of(one)
    start = stages.build_method(job_of(one, data), data.input_shape).state_dict()
    train_here(job_of(one, data), tmp_path / "one", data)
    two_ranks(job_of(two, data), tmp_path / "two")
    two_ranks(job_of(local, data), tmp_path / "local")

    def gradient(name):
        return torch.cat([(start[k] - t).flatten() for k, t in weights(tmp_path / name).items()])

    expected = gradient("one")
    assert expected.norm() > 1e-3
    # differences of weights of size 1 in float32: 1e-7
    torch.testing.assert_close(gradient("two"), expected, rtol=1e-3, atol=1e-6)
    assert (gradient("local") - expected).norm() > 0.05 * expected.norm()  # pairs=local is another loss


def test_local_pairs_are_each_ranks_own(tmp_path):
    """With BatchNorm, RICAP and kNN among the rank's half of the batch."""
    config = compose(
        *TWO, "method.composition=ricap", "method.labeler.k=15", *COMMON, "epochs=1", base=TINY[:1] + TINY[2:]
    )
    data = data_of(config)
    folder = two_ranks(job_of(config, data), tmp_path / "stage")
    assert all(t.isfinite().all() for t in weights(folder).values())
    row = read_rows(folder / "metrics.csv")[-1]
    assert row["step"] == 1797 // 128
    # each sample has 13 neighbours among 63 others; among the 127 of the whole batch at most 26
    assert 26 / 127 < 13 / 63 <= row["pairs/positive"]


def test_a_killed_stage_of_two_processes_goes_on_to_the_same_bits(tmp_path):
    config = compose(*TWO, *RUNS["mixup, all trained"][1], *COMMON, "epochs=6", base=VECTORS)
    data = data_of(config)
    job = job_of(config, data)
    whole = two_ranks(job, tmp_path / "whole")
    processes = start_ranks(job, tmp_path / "killed")
    wait_until(lambda: len(read_rows(tmp_path / "killed" / "metrics.csv")) >= 2, processes[0])
    for process in processes:
        process.send(signal.SIGKILL)
        process.wait()
    two_ranks(job, tmp_path / "killed")
    assert same_weights(tmp_path / "killed", whole)
    assert rows_without_times(tmp_path / "killed") == rows_without_times(whole)


# A rank that fails


def probing(config, data, **settings):
    method = {
        "_target_": "tests.runs.Probe",
        "epochs": 3,
        "batch_size": 128,
        "optimizer": {"_target_": "scarcely.methods.optimizer.Optimizer", "lr": 0.01},
        **settings,
    }
    return job_of(config, data, name="probe", method=method)


@pytest.fixture(scope="module")
def two_moons():
    config = compose(*TWO, "pretext=none", *RUNS["no composition"][2], base=VECTORS)
    return config, data_of(config)


def test_what_one_rank_says_is_raised_whatever_the_others_stumble_over(two_moons, tmp_path):
    config, data = two_moons
    ranks = start_ranks(probing(config, data, fail_on_rank=1), tmp_path / "stage")
    assert ranks[1].wait() == 2, ranks[1].output
    ranks[0].wait(launch.GRACE + 20)
    for rank in ranks:
        assert "Traceback" not in rank.output
    with pytest.raises(UserError, match="this rank has had enough") as caught:
        worker.raise_error(tmp_path / "stage", 2, "probe")
    assert (caught.value.where, caught.value.instead) == ("here", "a rest")


def test_a_loss_that_is_not_finite_on_both_ranks_is_one_error(two_moons, tmp_path):
    config, data = two_moons
    ranks = start_ranks(probing(config, data, poison="1.1"), tmp_path / "stage")
    assert [rank.wait() for rank in ranks] == [2, 2], ranks[0].output
    with pytest.raises(UserError, match="not finite") as caught:
        worker.raise_error(tmp_path / "stage", 2, "probe")
    assert "epoch 1, step 1 of it" in caught.value.where
    assert (tmp_path / "stage" / "last.ckpt").is_file()


def test_a_crash_shows_the_traceback_of_each_rank(two_moons, tmp_path, capsys):
    config, data = two_moons
    job = replace(probing(config, data), method={**probing(config, data).method, "epochs": "three"})
    with pytest.raises(ValueError):
        _ = job.epochs
    ranks = start_ranks(job, tmp_path / "stage")
    assert [rank.wait() for rank in ranks] == [1, 1]
    with pytest.raises(RuntimeError, match="stage probe ended with an error; its traceback is above"):
        worker.raise_error(tmp_path / "stage", 2, "probe")
    shown = capsys.readouterr().err
    assert "rank 0:\nTraceback" in shown
    assert "rank 1:\nTraceback" in shown


class Counts(RotNet):
    """Says how many threads it has."""

    def training_step(self, batch, batch_idx):
        raise UserError(f"{torch.get_num_threads()} thread(s)")


class Flags(Probe):
    """Says, in its third step, how often the ranks have asked each other something since the first."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.asked, broadcast = [], torch.distributed.broadcast
            torch.distributed.broadcast = lambda *given, **named: (
                self.asked.append(given),
                broadcast(*given, **named),
            )
        if batch_idx == 2:
            raise UserError(f"asked {len(self.asked)} times")
        return super().training_step(batch, batch_idx)


def test_no_step_asks_the_other_ranks_whether_to_end(two_moons, tmp_path):
    config, data = two_moons
    job = probing(config, data)
    job = replace(job, method=job.method | {"_target_": f"{__name__}.Flags"})
    ranks = start_ranks(job, tmp_path / "stage")
    assert [rank.wait() for rank in ranks] == [2, 2], ranks[0].output
    with pytest.raises(UserError, match="asked 0 times"):
        worker.raise_error(tmp_path / "stage", 2, "probe")


def test_a_rank_ends_at_once_by_sigterm(two_moons, tmp_path):
    config, data = two_moons
    job = probing(config, data)
    job = replace(job, method=job.method | {"epochs": 10_000})
    ranks = start_ranks(job, tmp_path / "stage")
    wait_until(lambda: (tmp_path / "stage" / "last.ckpt").is_file(), ranks[0])
    ranks[1].send(signal.SIGTERM)
    assert ranks[1].wait(20) == -signal.SIGTERM
    for rank in ranks[:1]:
        rank.send(signal.SIGTERM)
        assert rank.wait(20) != 0


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "given"), [(0, 1), (2, 2)])
def test_each_rank_has_its_threads_or_its_share_of_all(wanted, given, tmp_path):
    config = compose("method=rotnet", "epochs=1", *TWO, f"trainer.threads={wanted}")
    method = config["plan"][-1]["method"] | {"_target_": f"{__name__}.Counts"}
    with pytest.raises(UserError, match=rf"{given} thread\(s\)"):
        stages.run_stage(
            job_of(config, data_of(config), method=method), tmp_path, data_of(config), "cpu", "", []
        )


# Started by the command line: interpreters of their own


def limited_run(size: int, arguments: list[str]) -> int:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return command_line(arguments)


def processes_of(folder: Path) -> list[int]:
    """Processes, zombies left out, with this folder on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(folder) in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def environment() -> dict[str, str]:
    root = Path(__file__).parent.parent
    return {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.slow
def test_a_rank_that_cannot_go_on_ends_the_run_with_one_message(tmp_path):
    """Rank 0 alone writes checkpoints; the other waits for it."""
    folder = tmp_path / "run"
    arguments = [*VECTORS, *TWO, *COMMON, "method.freeze=0", "method.composition=none", f"run_dir={folder}"]
    process = Process(limited_run, 4000, arguments, log=tmp_path / "log", env=environment())
    assert process.wait(240) == 2, process.output
    assert process.output.count("error:") == 1
    assert "error: could not write last.ckpt" in process.output
    assert "resume=true" in process.output
    assert "Traceback" not in process.output
    assert processes_of(folder) == []
    assert not (folder / "last.ckpt").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_no_rank_outlives_a_killed_run(tmp_path):
    folder = tmp_path / "run"
    arguments = [*VECTORS, *TWO, *COMMON, "method.freeze=0", "method.composition=none", f"run_dir={folder}"]
    process = Process(command_line, arguments, log=tmp_path / "log", env=environment())
    wait_until(lambda: len(processes_of(folder)) == 2, process)
    process.send(signal.SIGKILL)
    process.wait()
    wait_until(lambda: processes_of(folder) == [], seconds=10)
    said = re.search(r"2 devices, batch_size=(\d+) in all, (\d+) on each; learning rate .*", process.output)
    assert int(said[1]) == 2 * int(said[2])


@pytest.mark.slow
def test_a_run_of_two_processes_is_killed_and_resumed(tmp_path):
    settings = [*VECTORS, *TWO, *COMMON, "epochs=8", "method.composition=mixup", "method.freeze=0"]
    settings = [*settings, "method.pairs=global", "pretext=denoising", "stages.pretext.epochs=3"]
    for name in ("whole", "killed"):
        given = [*settings, f"run_dir={tmp_path / name}", f"cache_dir={tmp_path / name}-cache"]
        process = Process(command_line, given, log=tmp_path / f"{name}.log", env=environment())
        if name == "killed":
            rows = tmp_path / name / "metrics.csv"
            wait_until(lambda rows=rows: len(read_rows(rows)) >= 3 + 4, process, seconds=240)
            process.send(signal.SIGKILL)
            process.wait()
            wait_until(lambda: processes_of(tmp_path / "killed") == [], seconds=10)
            process = Process(
                command_line, [*given, "resume=true"], log=tmp_path / "again.log", env=environment()
            )
        assert process.wait(240) == 0, process.output
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    assert rows_without_times(tmp_path / "killed") == rows_without_times(tmp_path / "whole")


class Recorder:
    """A logger that keeps what it gets."""

    def __init__(self):
        self.sent = []

    def log_metrics(self, scalars, step=None):
        self.sent.append((step, copy.deepcopy(scalars)))


def test_rows_of_the_ranks_reach_the_loggers_of_the_run_once(tmp_path):
    config = compose(*TWO, *RUNS["no composition"][1], *COMMON, base=VECTORS)
    folder, job = tmp_path, job_of(config, data_of(config))
    rows = [{"stage": "cluster", "epoch": e, "step": 10 * e, "loss": 1.0 - e / 10} for e in range(4)]
    logger = Recorder()
    with loggers.logging_to([logger]):
        write_rows(folder / "metrics.csv", rows[:1])  # of before an interruption
        forward = launch._forwarding(job, folder)
        for count in (1, 2, 2, 4):
            write_rows(folder / "metrics.csv", rows[:count])
            forward()
    assert [step for step, _ in logger.sent] == [10, 20, 30]
    assert logger.sent[0][1] == {"cluster/epoch": 1, "cluster/loss": pytest.approx(0.9)}
