"""What Lightning, the record and the checkpoints cost, against a bare loop of the same tensor program."""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate

from scarcely import stages
from scarcely.bench.rows import Row, Settings, Spread, clock_of, require_agreement
from scarcely.bench.step import OurStep, last_job
from scarcely.callbacks.history import read_rows
from scarcely.config.compose import compose_run
from scarcely.data.module import DataModule
from scarcely.job import Job
from scarcely.methods.base import Place
from scarcely.methods.lsdc import LSDC


def measure(settings: Settings, threads: int) -> list[Row]:
    """Compare epochs of LSD-C on digits: short ones, in which the overhead weighs most."""
    config = compose_run(["method=lsdc", "data=digits", *settings.overrides])
    data = instantiate(config["data"], _convert_="all")
    data.prepare_data()
    data.setup()
    job = last_job(config, settings.epochs, data.num_classes)
    begun = note_epochs(data, clock_of(settings))
    seconds: dict[Any, list[float]] = {train_by_lightning: [], train_by_loop: []}
    difference = 0.0
    for _ in range(settings.repeats):
        losses = []
        for train, record in seconds.items():
            begun.clear()
            losses.append(train(job, data, settings.device))
            whole = [end - start for start, end in itertools.pairwise(begun)]
            record += whole[1:]  # the first warms up
        difference = require_agreement(abs(losses[0] / losses[1] - 1), 1e-3, "loss of the first epoch")
    ours, plain = (Spread.of(record) for record in seconds.values())
    return [
        Row.of_times(
            ours,
            plain,
            measure="overhead",
            name="epoch of LSD-C on digits, all callbacks",
            threads=threads,
            device=settings.device,
            difference=difference,
            note=f"{ours.median / plain.median - 1:+.1%} time",
        )
    ]


def note_epochs(data: DataModule, clock: Callable[[], float]) -> list[float]:
    """Return a list to which the loaders of these data will add the time at which each epoch begins."""
    begun: list[float] = []
    make = data.training_loader

    def make_noting(*args: Any, **kwargs: Any) -> Any:
        loader: Any = make(*args, **kwargs)
        set_epoch = loader.set_epoch

        def note(epoch: int) -> None:
            begun.append(clock())
            set_epoch(epoch)

        loader.set_epoch = note
        return loader

    cast(Any, data).training_loader = make_noting
    return begun


def train_by_lightning(job: Job, data: DataModule, accelerator: str) -> float:
    """Train a stage as a run does, scored in its last epoch alone; return the loss of the first."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        stages.train(job, Path(folder), data, accelerator)
        return read_rows(Path(folder) / "metrics.csv")[0]["loss"]


def train_by_loop(job: Job, data: DataModule, accelerator: str) -> float:
    """Take the same steps, but for the last epoch, in a loop; return the loss of the first."""
    method = cast(LSDC, stages.build_method(job, data.input_shape).to(accelerator))
    method.place = Place(job.seed, job.name, job.epochs)
    protocol: Any = job.protocol
    loader = data.training_loader(
        job.role,
        protocol,
        batch_size=job.method["batch_size"],
        views=method.views,
        seed=job.seed,
        stage=job.name,
        device=accelerator,
    )
    step = OurStep(method)
    losses = []
    for epoch in range(job.epochs - 1):
        loader.set_epoch(epoch)
        for group in step.optimizer.param_groups:
            group["lr"] = method.optimizer.lr_at(epoch, job.epochs)
        for i, batch in enumerate(loader):
            step(batch, i)
        losses.append(method.epoch_summary()["loss"])  # waits for the device, as the record does
    loader.set_epoch(job.epochs - 1)
    return losses[0]
