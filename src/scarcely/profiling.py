"""Where the time of a training step goes: its parts, its operators, and what makes the host wait.

A `StepProfiler` is a callback: the steps that it looks at are those of a run, with all that belongs to them.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import Profiler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scarcely.errors import ConfigError

INPUT = "input: the next batch, its views"
FORWARD = "networks, forward"
LOSS = "labels of pairs, losses, composed views"
BACKWARD = "backward"
OPTIMIZER = "optimizer"
HOOKS = "what the method does beside its step"
REST = "Lightning, record, progress"
PARTS = (INPUT, FORWARD, LOSS, BACKWARD, OPTIMIZER, HOOKS, REST)

WARM_UP = 3  # steps before anything is measured: memory is allocated, kernels are chosen
# operators whose result decides on the host: on a GPU it waits until all before them is done
_WAITING = {
    "aten::_local_scalar_dense",  # .item(), float(), bool(), int()
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::repeat_interleave",  # by a tensor
    "aten::bincount",
}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "hipLaunch")


class Wait(NamedTuple):
    """An operator that makes the host wait for a GPU, and the line of Python that asks for it."""

    what: str
    line: str


class OperatorTime(NamedTuple):
    """What an operator costs in one step: calls, and seconds of itself alone on host and device."""

    name: str
    calls: float
    host: float
    device: float


@dataclass
class StepProfile:
    """What was found.

    Attributes:
        step: seconds of a step, the median; on a GPU without any wait between its parts.
        parts: seconds of each part of a step, the medians; on a GPU each waits for the one before.
        operators: the most expensive first.
        calls: operators called in a step, those within others too.
        launches: kernels launched in a step; None on the CPU.
        waits: how often each operator makes the host wait in a step; None where it was not watched.
    """

    step: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    operators: list[OperatorTime] = field(default_factory=list)
    calls: float = 0.0
    launches: float | None = None
    waits: Counter[Wait] | None = None


class StepClock(Profiler):
    """Lightning's actions as seconds of the parts of a step; one within another counts for itself alone.

    Args:
        clock: seconds from anywhere.

    Attributes:
        waiting: whether a part ends when the device has done it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.waiting = False
        self._clock = clock
        self._inside = [REST]
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._since = clock()

    def start(self, action_name: str) -> None:
        """Begin an action."""
        self.enter(_part_of(action_name) or self._inside[-1])

    def stop(self, action_name: str) -> None:
        """End it."""
        self.leave()

    def enter(self, part: str) -> None:
        """Begin a part; the one around it stands still."""
        if part != self._inside[-1]:
            self._charge()
        self._inside.append(part)

    def leave(self) -> None:
        """End a part."""
        if len(self._inside) > 1 and self._inside[-1] != self._inside[-2]:
            self._charge()
        if len(self._inside) > 1:  # it may have begun before this was the trainer's profiler
            self._inside.pop()

    def lap(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""
        self._charge()
        seconds, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return seconds

    def _charge(self) -> None:
        if self.waiting:
            torch.cuda.synchronize()
        now = self._clock()
        self._seconds[self._inside[-1]] += now - self._since
        self._since = now

    def time_networks(self, module: torch.nn.Module) -> None:
        """Charge the calls of a method's networks to the forward pass.

        Not by hooks: of a compiled network these would be compiled too.
        """
        for child in module.children():
            call: Callable[..., Any] = child._compiled_call_impl or child._call_impl
            child._compiled_call_impl = self._timed(call)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(FORWARD)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave()

        return timed


def _part_of(action: str) -> str | None:
    """Return the part of a step that an action of Lightning is, None for the part that it is in."""
    if action.endswith(("train_dataloader_next", "batch_transfer", "batch_to_device")):
        return INPUT
    if action.endswith(".training_step"):
        return LOSS
    if action.endswith(".backward"):
        return BACKWARD
    if action.endswith((".optimizer_step", ".optimizer_zero_grad")):
        return OPTIMIZER
    if action.startswith("[LightningModule]") and action.endswith(
        (".on_train_batch_start", ".on_train_batch_end")
    ):
        return HOOKS
    return None


class Waits(TorchDispatchMode):
    """Count the operators at which the host would have to wait for a GPU, wherever they run.

    Attributes:
        found: how often each occurred.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Wait] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masked = name in _INDEXING and any(_is_mask(index) for index in args[1])
        if name in _WAITING or masked:
            self.found[Wait(f"{name} with a mask" if masked else name, line_of_caller())] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def line_of_caller() -> str:
    """Return ``FILE:LINE FUNCTION`` of the innermost frame that is neither of torch nor of who looks on."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        if path != __file__ and "/torch/" not in path and function != "__torch_dispatch__":
            return f"{_short(path)}:{frame.f_lineno} {function}"
        frame = frame.f_back
    return "?"


def _short(path: str) -> str:
    for root in ("site-packages/", "src/"):
        path = path.rpartition(root)[2]
    return path


@contextmanager
def _waits_of_gpu() -> Iterator[Counter[Wait]]:
    """Count what really makes the host wait, as torch tells it."""
    found: Counter[Wait] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            found[Wait("synchronisation", line_of_caller())] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


class StepProfiler(pl.Callback):
    """Measure some steps of a training, then end it.

    The first step of an epoch is left out: an epoch has work of its own. The look at the loss every
    ``trainer.log_every`` steps is no part of a step either.

    Args:
        steps: that are timed.
        listed: operators are counted over so many steps, or over as many as an epoch has.
        trace: file for a chrome trace of these.
        clock: that times them.

    Attributes:
        profile: what was found.
    """

    def __init__(
        self,
        steps: int = 10,
        listed: int = 3,
        trace: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.steps, self.listed, self.trace = steps, listed, trace
        self.profile = StepProfile()
        self._clock = StepClock(clock)
        self._index = 0  # of the step that ended last, in its epoch
        self._script: Generator[None, None, None] = (_ for _ in ())

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the place of Lightning's profiler, and leave out validation."""
        trainer.profiler = self._clock  # type: ignore[attr-defined]
        trainer.limit_val_batches = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin.

        Raises:
            ConfigError: each epoch is a single step.
        """
        if trainer.num_training_batches < 2:
            raise ConfigError(
                "an epoch is a single step, and the first of an epoch is not measured",
                where="batch_size",
                instead="a smaller batch_size",
            )
        trainer.fit_loop.max_epochs = -1  # however short they are: it ends when all is measured
        compiled = any(child._compiled_call_impl is not None for child in pl_module.children())
        self._clock.time_networks(pl_module)
        self._script = self._measure(trainer, compiled)
        next(self._script)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go on to the next step."""
        self._index = batch_idx
        try:
            next(self._script)
        except StopIteration:
            trainer.should_stop = True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave torch as it was."""
        self._script.close()

    def _measure(self, trainer: pl.Trainer, compiled: bool) -> Generator[None, None, None]:
        """Measure one thing after the other; each ``yield`` is a step."""
        cuda = trainer.strategy.root_device.type == "cuda"
        for _ in range(WARM_UP + 1):  # the first of all begins before the clock does
            yield
        laps = yield from self._laps(waiting=cuda)
        whole = (yield from self._laps(waiting=False)) if cuda else laps
        self.profile.step = statistics.median(sum(lap.values()) for lap in whole)
        self.profile.parts = {part: statistics.median(lap[part] for lap in laps) for part in PARTS}
        count = min(self.listed, int(trainer.num_training_batches) - 1)
        yield from self._until_left(trainer, count)
        with torch.profiler.profile() as found:
            for _ in range(count):
                yield
            if cuda:
                torch.cuda.synchronize()
        self._list(found, count, cuda)
        if self.trace is not None:
            found.export_chrome_trace(str(self.trace))
        yield from self._until_left(trainer, 1)
        if cuda:
            with _waits_of_gpu() as self.profile.waits:
                yield
        elif not compiled:  # such a mode would compile the networks anew
            with Waits() as watch:
                yield
            self.profile.waits = watch.found

    def _laps(self, waiting: bool) -> Generator[None, None, list[dict[str, float]]]:
        laps: list[dict[str, float]] = []
        self._clock.waiting = waiting
        self._clock.lap()
        while len(laps) < self.steps:
            yield
            lap = self._clock.lap()
            if self._index:
                laps.append(lap)
        self._clock.waiting = False
        return laps

    def _until_left(self, trainer: pl.Trainer, count: int) -> Iterator[None]:
        """Go on until so many steps of the epoch are left."""
        while int(trainer.num_training_batches) - 1 - self._index < count:
            yield

    def _list(self, found: torch.profiler.profile, count: int, cuda: bool) -> None:
        rows = found.key_averages()
        operators = [row for row in rows if "::" in row.key and not row.key.startswith("autograd::")]
        listed = [
            OperatorTime(
                row.key,
                row.count / count,
                row.self_cpu_time_total / 1e6 / count,
                row.self_device_time_total / 1e6 / count,
            )
            for row in operators
        ]
        self.profile.operators = sorted(listed, key=lambda row: -(row.device if cuda else row.host))
        self.profile.calls = sum(row.calls for row in listed)
        if cuda:
            launches = sum(row.count for row in rows if row.key.startswith(_LAUNCHES))
            self.profile.launches = launches / count
