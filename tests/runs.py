"""Real runs for tests, small and without pictures: in this process, or in others that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from scarcely import checkpoints, stages, worker
from scarcely.callbacks.history import read_rows
from scarcely.config.check import check
from scarcely.config.compose import compose_run
from scarcely.job import Job
from scarcely.methods.base import Method

# seven steps an epoch, each a few milliseconds
TINY = (
    "data=digits",
    "trainer=cpu",
    "data.size=8",
    "batch_size=256",
    "backbone.width=4",
    "backbone.num_features=16",
    "compare_kmeans=false",
    "embedding_size=0",
)

# A server that has imported everything and trained nothing: each process is forked from it in
# milliseconds, where a new interpreter would import for seconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "scarcely.run", "scarcely.stages", "scarcely.worker", "scarcely.evaluation",
        "scarcely.reports.evidence", "scarcely.reports.table", "scarcely.reports.html",
        "scarcely.config.check", "hydra", "hydra._internal.hydra", "sklearn.datasets", "sklearn.cluster",
        "scarcely.methods.lsdc", "scarcely.methods.rotnet", "scarcely.methods.denoising",
        "scarcely.data.digits", "scarcely.data.two_moons", "scarcely.backbones.small",
        "torch._dynamo", "torch.utils.data", "torch.distributed",
    ]
)  # fmt: skip


def compose(*overrides: str, base: Sequence[str] = TINY) -> dict:
    """Return the checked configuration of a tiny run."""
    given = [f"++{o}" if o.startswith("stages.") else o for o in (*base, *overrides)]
    config = compose_run(given)
    check(config)
    return config


def job_of(config: dict, data, stage: int = -1, **changes) -> Job:
    """Return one stage of a configuration."""
    planned = config["plan"][stage]
    settings = {
        "name": planned["name"],
        "method": planned["method"],
        "num_clusters": data.num_classes,
        "num_classes": data.num_classes,
        **{key: config[key] for key in ("backbone", "data", "trainer", "seed", "protocol", "fast")},
    }
    return Job(**{**settings, **changes})


def data_of(config: dict):
    """Return the data of a configuration, set up."""
    from hydra.utils import instantiate

    data = instantiate(config["data"], _convert_="all")
    data.setup()
    return data


class Process:
    """A process whose output goes to a file."""

    def __init__(self, target, *arguments, log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        arguments = (target, arguments, str(log), env or {})
        self._process = _SERVER.Process(target=_child, args=arguments, daemon=False)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Return the exit code; minus the signal that ended it."""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"still running after {seconds} s:\n{self.output}")
        return self._process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def _child(target, arguments, log, env):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.update(env)
    # a shell that runs the tests in its background ignores Ctrl-C, and so would all below it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    sys.exit(target(*arguments))


def start_run(folder: Path, *overrides: str, log: Path | None = None) -> Process:
    """Start ``train.py`` with a tiny run in a folder."""
    arguments = [*TINY, f"run_dir={folder}", *overrides]
    return Process(command_line, arguments, log=log or folder.with_suffix(".log"))


def command_line(arguments: list[str]) -> int:
    """What ``train.py`` does, without the pictures: they take longer than the training of these runs."""
    import scarcely.reports.html
    from scarcely.cli import main

    scarcely.reports.html.write_report = lambda evidence: None
    return main(arguments)


def start_ranks(job: Job, folder: Path, env: dict[str, str] | None = None) -> list[Process]:
    """Start the ranks of a stage as `launch` does, but forked."""
    folder.mkdir(parents=True, exist_ok=True)
    worker.write_job(folder, job, "cpu", [])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = job.trainer["devices"]
    return [
        Process(
            worker.main,
            folder,
            log=folder / f"rank{rank}.log",
            env={**(env or {}), **worker.environment(rank, world, port)},
        )
        for rank in range(world)
    ]


def train_here(job: Job, folder: Path, data) -> Path:
    """Train a stage in this process and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stages.train(job, folder, data, "cpu")
    return folder


def discovery_jobs(config: dict, data, root: Path) -> list[Job]:
    """Return the stages of a discovery, each starting from the folder of the one before it."""
    jobs: list[Job] = []
    for i, planned in enumerate(config["plan"]):
        known = planned["method"].get("role") == "labelled"
        sizes = {"num_classes": data.num_known if known else data.num_classes, "num_new": data.num_new}
        inherited = str(root / jobs[-1].name / "weights.pt") if jobs else None
        jobs.append(job_of(config, data, i, num_known=data.num_known, inherited=inherited, **sizes))
    return jobs


def wait_until(condition, process: Process | None = None, seconds: float = 60) -> None:
    """Look every few milliseconds, as long as the process lives."""
    until = time.monotonic() + seconds
    while not condition():
        if process is not None and not process.alive:
            raise AssertionError(f"ended too early, exit code {process.wait()}:\n{process.output}")
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s" + (f":\n{process.output}" if process else ""))
        time.sleep(0.004)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a finished stage."""
    return checkpoints.load(folder / "weights.pt")["state_dict"]


def rows_without_times(folder: Path) -> list[dict]:
    """Return the record of a run without what differs from one run to the next."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder / "metrics.csv")]


def same_weights(a: Path, b: Path) -> bool:
    """Whether two stages ended with the same bits."""
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def same_predictions(a: Path, b: Path) -> bool:
    """Whether two runs predict the same, confidences included."""
    with np.load(a / "predictions.npz") as first, np.load(b / "predictions.npz") as second:
        return set(first) == set(second) and all(np.array_equal(first[k], second[k]) for k in first)


class Probe(Method):
    """Trains one linear layer with dropout and writes down, step by step, all that a resume could break.

    Args:
        log: file that gets one line a step.
        interrupt: ``EPOCH.STEP`` at which Ctrl-C is pressed while the file ``armed`` is there.
        fail_on_rank: rank whose second step raises an error that the user can mend.
        poison: ``EPOCH.STEP`` whose loss is not finite.
    """

    views = 2

    def __init__(
        self,
        backbone,
        optimizer,
        log: str = "",
        interrupt: str = "",
        armed: str = "",
        fail_on_rank: int | None = None,
        poison: str = "",
        poison_weights: str = "",
    ) -> None:
        super().__init__(backbone, optimizer)
        self.head = torch.nn.Linear(backbone.num_features, 2)
        self.log_file, self.interrupt, self.armed = log, interrupt, armed
        self.fail_on_rank, self.poison, self.poison_weights = fail_on_rank, poison, poison_weights

    def training_step(self, batch, batch_idx):
        where = f"{self.current_epoch}.{batch_idx}"
        if self.interrupt == where and Path(self.armed).exists():
            raise KeyboardInterrupt
        if self.fail_on_rank == self.place.rank and batch_idx == 1:
            from scarcely.errors import UserError

            raise UserError("this rank has had enough", where="here", instead="a rest")
        features = torch.nn.functional.dropout(self.backbone(batch.views[1]), 0.5)
        loss = self.head(features).square().mean()
        if self.poison == where:
            loss = loss * torch.inf
        if self.poison_weights == where:  # a finite loss with an infinite gradient
            loss = loss + (self.head.bias.sum() * 0).abs().sqrt()
        self.record({"loss": loss})
        if self.log_file:
            facts = [
                where,
                self.trainer.optimizers[0].param_groups[0]["lr"],
                batch.index.sum().item(),
                (batch.index * torch.arange(len(batch.index))).sum().item(),
                batch.views[0].double().sum().item(),
                batch.views[1].double().sum().item(),
                torch.rand(1).item(),
                self.draw("probe", batch_idx).random(),
                loss.item(),
            ]
            with open(self.log_file, "a") as file:
                file.write(" ".join(map(repr, facts)) + "\n")
        return loss
