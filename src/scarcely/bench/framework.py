"""What a step of LSD-C costs through the whole stack, against the tensor program that it comes down to."""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.nn import functional as F

from scarcely import stages
from scarcely.bench.rows import Row, Settings, Spread, clock_of, require_agreement, wait_for
from scarcely.bench.step import last_job
from scarcely.config.compose import compose_run
from scarcely.data.arrays import image_samples
from scarcely.data.loader import Batch
from scarcely.data.module import DataModule
from scarcely.functional.pairwise import mix_target, pairwise_bce
from scarcely.functional.ramp import sigmoid_rampup
from scarcely.job import Job
from scarcely.methods.base import Place
from scarcely.methods.lsdc import LSDC

MOST = 1.05  # times as long as the tensor program
WARM_UP = 3  # steps of both sides, whose losses are compared


def measure(settings: Settings, threads: int) -> list[Row]:
    """Train an epoch of LSD-C on random images, in turns of several steps with the bare program."""
    parts = ["method/labeler=knn", "method.composition=ricap", "method.freeze=3"]  # all said: defaults move
    sizes = [f"backbone.width={settings.width}", f"method.labeler.k={settings.k}"]
    config = compose_run(["method=lsdc", "data=cifar10", *parts, *sizes, f"batch_size={settings.batch}"])
    turn = -(-settings.steps // settings.repeats)
    data = random_images(config["data"], settings.batch * (WARM_UP + turn * settings.repeats))
    job = last_job(config, 1, data.num_classes)
    turns = Turns(BareStep(job, data, settings.device), settings, turn)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        stages.train(job, Path(folder), data, settings.device, callbacks=[turns])
    # where a GPU multiplies in TF32, pairs near a threshold may change sides
    most = 1e-2 if settings.device == "cuda" else 1e-3
    difference = require_agreement(turns.losses_apart(), most, "losses of the first steps")
    ours, plain = Spread.of(turns.ours), Spread.of(turns.plain)
    return [
        Row.of_times(
            ours,
            plain,
            target=f"at most {MOST:g} times the time",
            met=ours.median <= MOST * plain.median,
            measure="framework",
            name=f"step of LSD-C, whole stack: ResNet-18, batch {settings.batch}; plain: its tensor program",
            threads=threads,
            device=settings.device,
            difference=difference,
            note=f"{ours.median / plain.median - 1:+.1%} time, {len(turns.ours)} steps",
        )
    ]


def random_images(config: dict[str, Any], count: int) -> DataModule:
    """Return CIFAR-10 with so many random images in the place of its own, set up."""
    data: Any = instantiate(config, _convert_="all")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    samples = image_samples(pixels, torch.randint(10, (count,), generator=generator))
    data.classes, data.read = tuple("0123456789"), lambda: {"train": samples}
    data.prepare_data = lambda: None  # Lightning would download it
    data.setup()
    return data


class BareStep:
    """The step as tensors alone: three passes, labels, loss, backward pass and fused optimizer.

    Its views are there already. Nothing is recorded, nor computed for the record.

    Args:
        job: LSD-C; the networks begin as a run's do.
        data: its data.
        device: where.
    """

    def __init__(self, job: Job, data: DataModule, device: str) -> None:
        self.method = cast(LSDC, stages.build_method(job, data.input_shape).to(device)).train()
        self.method.place = Place(job.seed, job.name, job.epochs)
        self.optimizer = self.method.configure_optimizers()
        for group in self.optimizer.param_groups:
            group["lr"] = self.method.learning_rate(0)

    def __call__(self, views: Sequence[Tensor], step: int) -> Tensor:
        """Take a step and return its loss."""
        loss = self.loss(views, step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        """Return L_clus + ω(t)·L_cons of three views (LSD-C, eq. 7)."""
        method, (x, *others) = self.method, views
        composed, mixing = method.compose_views(others, step)
        assert mixing is not None
        features = method.backbone(x)
        p = method.head(features).softmax(dim=1)
        p1, p2 = (method.head(method.backbone(view)).softmax(dim=1) for view in composed)
        target = mix_target(method.labeler(features.detach()), *mixing)
        weight = method.consistency * sigmoid_rampup(0, method.rampup)
        return pairwise_bce(p, p1, target) + weight * F.mse_loss(p1, p2)


class Turns(pl.Callback):
    """Let the bare program take the steps that the stack has just taken, on the same batches.

    A step of the stack goes from the end of one to the end of the next, with its input, its record and all
    callbacks. On a GPU no step waits for the one before: events on the device tell when each ended.

    Args:
        bare: the tensor program.
        settings: which clock, and how many turns.
        turn: steps of a turn; a shorter one before them warms up.

    Attributes:
        ours, plain: seconds of each step.
    """

    def __init__(self, bare: BareStep, settings: Settings, turn: int) -> None:
        self.bare, self.settings, self.turn = bare, settings, turn
        self.ours: list[float] = []
        self.plain: list[float] = []
        self._losses: tuple[list[Tensor], list[Tensor]] = ([], [])  # of both, while they warm up
        self._batches: list[Batch] = []  # of this turn
        self._first = 0  # its first step
        self._marks: list[Any] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave out validation: an epoch is no step."""
        trainer.limit_val_batches = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the step ended; at the end of a turn it is the other's."""
        self._mark()
        self._batches.append(batch)
        warming = self._first == 0
        if warming:
            self._losses[0].append(outputs["loss"].detach())
        if len(self._batches) < (WARM_UP if warming else self.turn):
            return
        ours = self._seconds()
        losses = self._plain_turn()
        plain = self._seconds()
        if warming:
            self._losses[1].extend(losses)
        else:
            self.ours += ours
            self.plain += plain
        self._first += len(self._batches)
        self._batches = []
        self._mark()

    def _plain_turn(self) -> list[Tensor]:
        self._mark()
        losses = []
        for step, batch in enumerate(self._batches, start=self._first):
            losses.append(self.bare(batch.views, step))
            self._mark()
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

    def losses_apart(self) -> float:
        """Return the largest relative difference of the losses of both sides in the steps that warmed up."""
        return max(abs(float(mine / other) - 1) for mine, other in zip(*self._losses, strict=True))
