"""Steps of a real training, in turns with other programs that take the same batches."""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from scarcely import stages
from scarcely.bench.rows import Settings, Spread, clock_of, wait_for
from scarcely.data.loader import Batch
from scarcely.data.module import DataModule
from scarcely.job import Job

WARM_UP = 3  # steps of all sides

# Takes the method, batches, and the number of the first one's step. Gives None when it is ready for them,
# then the loss of each step, or None, when the step is done. What it does after the last is not timed.
Program = Callable[[Any, Sequence[Batch], int], Iterator[Tensor | None]]


@contextlib.contextmanager
def unseen() -> Iterator[Path]:
    """Give a folder that is removed afterwards; what a training says of itself is not shown."""
    text = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
    ):
        yield Path(folder)


class Turns(pl.Callback):
    """Let other programs take the steps that the stack has just taken, on the same batches.

    A step of the stack goes from the end of one to the end of the next, with its input, its record and all
    callbacks. On a GPU no step waits for the one before: events on the device tell when each ended.

    Args:
        programs: the others.
        settings: which clock, and how many turns.
        turn: steps of a turn; a shorter one before them warms up.

    Attributes:
        seconds: of each step: those of the stack, then those of each other program.
        losses: of each step that warmed up, likewise.
    """

    def __init__(self, programs: Sequence[Program], settings: Settings, turn: int) -> None:
        self.programs, self.settings, self.turn = programs, settings, turn
        self.seconds: list[list[float]] = [[] for _ in range(1 + len(programs))]
        self.losses: list[list[Tensor]] = [[] for _ in range(1 + len(programs))]
        self._batches: list[Batch] = []  # of this turn
        self._first = 0  # its first step
        self._marks: list[Any] = []

    @property
    def steps(self) -> int:
        """Steps of each side, those that warm up too."""
        return WARM_UP + self.turn * self.settings.repeats

    def train(self, job: Job, data: DataModule, others: Sequence[pl.Callback] = ()) -> list[Spread]:
        """Train a stage, with other callbacks before this one; return the seconds of a step of each side."""
        job = replace(job, method=job.method | {"epochs": 1})
        with unseen() as folder:
            callbacks = [*others, self]
            stages.train(job, folder, data, self.settings.device, batches=self.steps, callbacks=callbacks)
        return [Spread.of(seconds) for seconds in self.seconds]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave out validation: an epoch is no step."""
        trainer.limit_val_batches = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first step begins."""
        self._mark()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the step ended; at the end of a turn the others take theirs."""
        self._mark()
        self._batches.append(batch)
        warming = self._first == 0
        if warming:
            self.losses[0].append(outputs["loss"].detach())
        if len(self._batches) < (WARM_UP if warming else self.turn):
            return
        turns = [self._seconds()]
        for program, losses in zip(self.programs, self.losses[1:], strict=True):
            found = self._turn_of(program, pl_module)
            turns.append(self._seconds())
            if warming:
                losses += found
        if not warming:
            for seconds, turn in zip(self.seconds, turns, strict=True):
                seconds += turn
        self._first += len(self._batches)
        self._batches = []
        self._mark()

    def _turn_of(self, program: Program, method: Any) -> list[Tensor]:
        steps = program(method, self._batches, self._first)
        next(steps)
        self._mark()
        losses = []
        for loss in steps:
            self._mark()
            if loss is not None:
                losses.append(loss.detach())
        return losses

    def _mark(self) -> None:
        if self.settings.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(clock_of(self.settings)())

    def _seconds(self) -> list[float]:
        """Return the time from each mark to the next, and forget them."""
        wait_for(self.settings.device)
        marks, self._marks = self._marks, []
        pairs = itertools.pairwise(marks)
        if self.settings.device == "cuda":
            return [start.elapsed_time(end) / 1e3 for start, end in pairs]
        return [end - start for start, end in pairs]

    def losses_apart(self, program: int = 0) -> float:
        """Return the largest relative difference to a program's losses in the steps that warmed up."""
        pairs = zip(self.losses[0], self.losses[1 + program], strict=True)
        return max(abs(float(mine / other) - 1) for mine, other in pairs)
