"""Epochs of a training in several processes, against the same in one."""

from __future__ import annotations

import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from scarcely.bench.rows import Row, Settings, Spread, require_agreement
from scarcely.bench.step import last_job
from scarcely.callbacks.history import Row as Record
from scarcely.callbacks.history import read_rows
from scarcely.config.compose import compose_run
from scarcely.job import Job
from scarcely.launch import launch

MOST = 4  # processes on a CPU, whose cores they share


def measure(settings: Settings, threads: int) -> list[Row]:
    """Train LSD-C on digits with the same batches by one and by several processes, of one thread each."""
    cuda = settings.device == "cuda"
    count = torch.cuda.device_count() if cuda else min(MOST, threads)
    if count < 2:
        print("one device, one core: nothing to divide among processes", file=sys.stderr)
        return []
    config = compose_run(["method=lsdc", "data=digits", "method.pairs=global", *settings.overrides])
    data: Any = instantiate(config["data"], _convert_="all")
    data.prepare_data()
    data.setup()
    epochs = 2 + settings.repeats
    job = last_job(config, epochs, data.num_classes)
    records = [
        _record(replace(job, trainer=job.trainer | {"devices": n, "threads": 1}), settings)
        for n in (count, 1)
    ]
    first = [record[0]["loss"] for record in records]
    difference = require_agreement(abs(first[0] / first[1] - 1), 5e-2, "loss of the first epoch")
    ours, plain = (
        # the first epoch warms up, the last is scored
        Spread.of([b["seconds"] - a["seconds"] for a, b in itertools.pairwise(record[:-1])])
        for record in records
    )
    return [
        Row.of_times(
            ours,
            plain,
            measure="processes",
            name=f"epoch of LSD-C on digits in {count} processes; plain: in one",
            threads=1,
            device=settings.device,
            difference=difference,
            note="wall-clock time; BatchNorm sees the share of each",
        )
    ]


def _record(job: Job, settings: Settings) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        launch(job, Path(folder), settings.device, [])
        return read_rows(Path(folder) / "metrics.csv")
