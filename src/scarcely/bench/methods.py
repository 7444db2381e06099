"""A step of each method through the whole stack: against its bare passes, and with plain ingredients."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from scarcely.bench.input import PILViews
from scarcely.bench.profile import composed, prepare
from scarcely.bench.rows import Row, Settings, require_agreement
from scarcely.bench.turns import WARM_UP, Turns
from scarcely.data.loader import Batch
from scarcely.data.module import DataModule
from scarcely.job import Job

# their steps on CIFAR-10, the last stage of the run; the domains' have a measure of their own
FEW_LABELS = ("data.labels_per_class=2", "method.labelled_batch_size={labelled}")
METHODS: dict[str, tuple[str, ...]] = {
    "rotnet": (),
    "supervised": (),
    "lsdc": ("method/labeler=knn", "method.labeler.k={k}"),
    "ranking_statistics": (),
    "kcl": (),
    "mcl": (),
    "dtc": (),
    "pi_model": FEW_LABELS,
    "mean_teacher": FEW_LABELS,
    "alternating_ssl": FEW_LABELS[:1],  # its batches have no other share
}
CPU_WIDTH = 16  # of ResNet-18, a quarter: a CPU would need an hour


def measure(settings: Settings, threads: int) -> list[Row]:
    """Take a few steps of each method, in turns with its bare passes and with a plain version of it."""
    width = min(settings.width, CPU_WIDTH) if settings.device == "cpu" else settings.width
    rows = []
    for name in METHODS:
        print(f"  {name}", file=sys.stderr, flush=True)
        rows += _rows_of(name, [f"backbone.width={width}"], settings, threads)
    return rows


def stage_of(
    name: str, settings: Settings, folder: Path, steps: int, overrides: Sequence[str]
) -> tuple[Job, DataModule]:
    """Return the last stage of a method's run on CIFAR-10, cut to an epoch, and its data, set up.

    Args:
        name: of the method.
        settings: batch size, neighbours, device.
        folder: for the random weights that it starts from.
        steps: of the epoch, at least, where random images stand in for the data.
        overrides: of the run.
    """
    given = [f"method={name}", "data=cifar10", f"batch_size={settings.batch}"]
    given += [text.format(k=settings.k, labelled=settings.batch // 4) for text in METHODS[name]]
    config = composed([*given, *overrides, f"trainer={'gpu' if settings.device == 'cuda' else 'cpu'}"])
    job, data, _ = prepare(config, "", folder, 2 * steps)  # some methods see a part of the images
    return replace(job, method=job.method | {"epochs": 1}), data


def _rows_of(name: str, overrides: Sequence[str], settings: Settings, threads: int) -> list[Row]:
    recorder = Calls()
    turn = -(-settings.few_steps // settings.repeats)
    with tempfile.TemporaryDirectory() as folder:
        steps = WARM_UP + turn * settings.repeats
        job, data = stage_of(name, settings, Path(folder), steps, overrides)
        plain = PlainSteps(data, job)
        turns = Turns([recorder.passes, plain.steps], settings, turn)
        ours, bare, first_written = turns.train(job, data, [recorder])
    shared: dict[str, Any] = {"measure": "methods", "threads": threads, "device": settings.device}
    what = f"step of {name}, batch {settings.batch}, {overrides[0]}"
    return [
        Row.of_times(
            ours,
            bare,
            name=f"{what}; plain: bare passes",
            note=f"{ours.median / bare.median - 1:+.1%} time",
            **shared,
        ),
        Row.of_times(
            ours,
            first_written,
            name=f"{what}; plain: PIL, NCHW, looped optimizer",
            difference=require_agreement(plain.difference, 1e-3, f"a step of {name}"),
            **shared,
        ),
    ]


@dataclass
class Call:
    """A network's call in a step.

    Attributes:
        network: which.
        inputs: what it was given, apart from what made it.
        recorded: whether gradients were.
    """

    network: nn.Module
    inputs: tuple[Any, ...]
    recorded: bool


class Calls(pl.Callback):
    """The calls of a method's networks in its first step, and programs that repeat them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._inside = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin to listen, in the first step."""
        if batch_idx == 0:
            for child in pl_module.children():
                # no hook: a compiled network would be compiled with it
                child._compiled_call_impl = self._noted(child, child._compiled_call_impl or child._call_impl)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """No longer."""
        if batch_idx == 0:
            for child in pl_module.children():
                child._compiled_call_impl = child._compiled_call_impl.before

    def _noted(self, network: nn.Module, call: Callable[..., Any]) -> Any:
        def noted(*inputs: Any) -> Any:
            if any(True for _ in network.parameters()):
                kept = tuple(_apart(value) for value in inputs)
                self.calls.append(Call(network, kept, torch.is_grad_enabled()))
            return call(*inputs)

        noted.before = network._compiled_call_impl  # type: ignore[attr-defined]
        return noted

    def passes(self, method: Any, batches: Sequence[Batch], first: int) -> Iterator[Tensor | None]:
        """Repeat the calls, with a backward pass of what they return, as `Program`."""
        yield None
        for _ in batches:
            outputs = []
            for call in self.calls:
                with torch.set_grad_enabled(call.recorded), _autocast(method):
                    outputs.append(call.network(*call.inputs))
            trained = [output for output in outputs if output.requires_grad]
            torch.autograd.backward(trained, [torch.ones_like(output) for output in trained])
            for parameter in method.parameters():
                parameter.grad = None
            yield None


def _apart(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _autocast(method: Any) -> Any:
    return method.trainer.precision_plugin.forward_context()


class PlainSteps:
    """A method's step with ingredients as one takes them first.

    Views are made by PIL image by image, images and weights lie in the order (N, C, H, W), and the optimizer
    goes through the parameters one by one. What the method computes of them is its own.

    Args:
        data: the data, set up.
        job: the stage.

    Attributes:
        difference: of the losses of the two memory formats, relative.
    """

    def __init__(self, data: DataModule, job: Job) -> None:
        self.images = data.pool(job.role, job.protocol).inputs.numpy()
        self.augmentation = data.augmentation
        self.difference = 0.0

    def steps(self, method: Any, batches: Sequence[Batch], first: int) -> Iterator[Tensor | None]:
        """Take steps, as `Program`."""
        views = PILViews(self.images, method.augmentation(self.augmentation), method.views)
        optimizer = method.configure_optimizers()
        for group in optimizer.param_groups:
            group |= {"fused": False, "foreach": False, "lr": method.learning_rate(method.current_epoch)}
        self._compare(method, batches[0], first)
        method.to(memory_format=torch.contiguous_format)
        yield None
        for step, batch in enumerate(batches, start=first):
            made = [views[i] for i in batch.index.tolist()]
            stacked = tuple(torch.stack(view).to(method.device) for view in zip(*made, strict=True))
            with _autocast(method):
                loss = method.training_step(batch._replace(views=stacked), step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.on_train_batch_end(None, batch, step)
            yield loss
        method.to(memory_format=torch.channels_last)

    def _compare(self, method: Any, batch: Batch, step: int) -> None:
        with torch.no_grad(), _autocast(method):
            ours = method.training_step(batch, step)
            method.to(memory_format=torch.contiguous_format)
            views = tuple(view.contiguous() for view in batch.views)
            plain = method.training_step(batch._replace(views=views), step)
        self.difference = max(self.difference, float((ours / plain - 1).abs()))
