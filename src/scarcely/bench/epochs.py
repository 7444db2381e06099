"""Images a second of whole trainings, and how near that is to nothing but matrix products."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scarcely import stages
from scarcely.bench.methods import stage_of
from scarcely.bench.rows import Row, Settings
from scarcely.bench.turns import WARM_UP, Turns, unseen
from scarcely.data.loader import Batch
from scarcely.data.module import DataModule
from scarcely.job import Job

METHODS = ("rotnet", "lsdc", "ranking_statistics")
IMAGES = 50_000  # of an epoch: CIFAR-10's


def measure(settings: Settings, threads: int) -> list[Row]:
    """Train each method as a run does, in turns with matrix products of the same precision."""
    rows = []
    for name in METHODS:
        print(f"  {name}", file=sys.stderr, flush=True)
        rows.append(_row_of(name, settings, threads))
    return rows


def _row_of(name: str, settings: Settings, threads: int) -> Row:
    cuda = settings.device == "cuda"
    faster = ["trainer.precision=bf16-mixed", "trainer.compile=true"] if cuda else []
    turn = -(-(settings.steps if cuda else settings.few_steps) // settings.repeats)
    with tempfile.TemporaryDirectory() as folder:
        steps = WARM_UP + turn * settings.repeats
        overrides = [f"backbone.width={settings.width}", *faster]
        job, data = stage_of(name, settings, Path(folder), steps, overrides)
        operations = operations_of(job, data, settings.device)
        products = Products(settings.device, settings.pixels)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        turns = Turns([products.steps], settings, turn)
        ours, product = turns.train(job, data)
    peak = products.operations / product.median
    rate = ours.per_second(settings.batch)
    best = product.per_second(products.operations * settings.batch / operations)
    notes = [
        f"{rate.median / best.median:.0%} of {peak / 1e12:#.3g} TFLOP/s",
        f"{operations / settings.batch / 1e9:#.3g} GFLOP an image",
        f"{IMAGES / rate.median:,.0f} s an epoch",
    ]
    if cuda:
        notes.append(f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    return Row(
        measure="epochs",
        name=f"training of {name}, batch {settings.batch}; plain: matrix products of as many operations",
        unit="images/s",
        ours=rate,
        plain=best,
        ratio=rate.median / best.median,
        threads=threads,
        device=settings.device,
        note=", ".join(notes),
    )


class Products:
    """Square matrix products, in the precision of the training.

    Args:
        device: ``cuda``: bfloat16; ``cpu``: float32.
        side: of the matrices on the CPU, divided by four; a GPU multiplies larger ones.

    Attributes:
        operations: of a product, a multiplication and an addition counted as two.
    """

    def __init__(self, device: str, side: int) -> None:
        n = 8192 if device == "cuda" else 4 * side
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        generator = torch.Generator().manual_seed(0)
        self.a, self.b = (torch.randn(n, n, generator=generator).to(device, kind) for _ in range(2))
        self.out = torch.empty_like(self.a)
        self.operations = 2 * n**3

    def steps(self, method: Any, batches: Sequence[Batch], first: int) -> Iterator[Tensor | None]:
        """Multiply once a batch, as `Program`."""
        yield None
        for _ in batches:
            torch.mm(self.a, self.b, out=self.out)
            yield None


class Operations(pl.Callback):
    """Count the floating-point operations of the first step, forward and backward, as torch does."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin."""
        self.counter.__enter__()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End, and leave out the scores."""
        self.counter.__exit__(None, None, None)
        trainer.limit_val_batches = 0


def operations_of(job: Job, data: DataModule, device: str) -> int:
    """Return the operations of a step of a stage."""
    counting = Operations()
    plain = replace(job, trainer=job.trainer | {"compile": False})  # what is compiled cannot be counted
    with unseen() as folder:
        stages.train(plain, folder, data, device, batches=1, callbacks=[counting])
    return counting.counter.get_total_flops()
