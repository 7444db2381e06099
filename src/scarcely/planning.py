"""What a run will need before it is begun: steps, time and bytes of each stage (``plan=true``).

The steps are those of the very loaders that a run makes, over all samples of the data. What a step costs is
measured: a few real steps of the stage with its own settings, on this machine. Data that are not there are
stood in for by random images of the published number and size.
"""

from __future__ import annotations

import contextlib
import copy
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_class, instantiate
from torch import Tensor

from scarcely import stages
from scarcely.data.module import DataModule
from scarcely.data.outline import FEW, Outline, outline_of
from scarcely.domains.chain import Chain
from scarcely.domains.jobs import Domains, is_a
from scarcely.errors import ConfigError, UserError
from scarcely.job import Job
from scarcely.methods.base import Method, Place
from scarcely.methods.round_robin import RoundRobin

STEPS = 4  # the first two of them warm up and are looked at, the others are measured
_WATCHED = 2
_PATIENCE = 20.0  # seconds after which two steps are enough
_SAMPLES = 8  # times the batch: images of each part that stand in for the data
_LARGE = 1 << 19  # numbers in the inputs of a step that a CPU takes whole; of larger ones, a share
_FEWEST = 64  # samples of such a share


@dataclass(frozen=True)
class Cost:
    """What a step of a stage costs on one device.

    Attributes:
        seconds: of a step.
        scoring: seconds a sample, of a look at the scores; 0 of a stage without.
        parameters: numbers in the network.
        trained: those of them that are trained.
        weights, gradients, optimizer: bytes of these.
        kept: bytes that the forward pass keeps for the backward pass: the activations.
        peak: most bytes that a GPU held at a time; None on a CPU.
        measured: samples of the steps that were measured; where fewer than in a step of the run, seconds and
            kept bytes are taken to grow with them.
    """

    seconds: float
    scoring: float
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    kept: int
    peak: int | None
    measured: int


@dataclass(frozen=True)
class StagePlan:
    """What a stage will need.

    Attributes:
        name: of the stage.
        samples: that it is trained on.
        batch_size: over all devices.
        epochs: number of them.
        steps: in all.
        scored: samples that are looked at for scores, in all.
        cost: of a step on one device; None where nothing is trained by steps, or where what is trained is
            known only when the stages before are done.
    """

    name: str
    samples: int
    batch_size: int
    epochs: int
    steps: int
    scored: int
    cost: Cost | None

    @property
    def seconds(self) -> float:
        """Of all steps and scores."""
        return 0.0 if self.cost is None else self.steps * self.cost.seconds + self.scored * self.cost.scoring


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        stages: in order.
        data: bytes of the samples as they are kept, decoded.
        source: where the number of samples is from, in words.
        exact: it is not rounded.
        device: that was measured, in words.
        devices: number of them in a run.
    """

    stages: list[StagePlan]
    data: int
    source: str
    exact: bool
    device: str
    devices: int

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def content(self) -> dict[str, Any]:
        """Return all of it as plain containers."""
        return asdict(self) | {"seconds": self.seconds}


def make_plan(config: dict[str, Any], accelerator: str) -> Plan:
    """Plan a checked configuration; nothing is trained or downloaded, and no run folder is made.

    Class folders are counted, and published sets that are not there stood in for. Other images are decoded to
    the cache, as the run would do it.

    Args:
        config: of the run.
        accelerator: ``cuda`` or ``cpu``.

    Raises:
        ConfigError: a run that trains nothing.
        UserError: data that are neither there nor published, or that the method does not fit.
    """
    from scarcely.run import describe_device

    task, devices = config["method"]["task"], config["trainer"]["devices"]
    if task == "saliency":
        if config["ckpt"] is not None:
            raise ConfigError(
                f"method={config['method']['name']} of a ckpt trains nothing that could be planned",
                where="plan",
                instead="no plan, or no ckpt: the classifier that is trained first has one",
            )
        config = config | {"plan": config["plan"][:-1]}
        print("plan: of the classifier; the evaluations of its maps are not counted", file=sys.stderr)
    data = instantiate(config["data"], _convert_="all")
    if task == "domains":
        planned, nbytes, source, exact = *_of_domains(config, data, accelerator), "the data", True
    else:
        planned, outline = _of_stages(config, data, accelerator)
        nbytes = sum(s.nbytes for s in data.parts.values()) if outline is None else outline.nbytes
        source, exact = ("the data", True) if outline is None else (outline.source, outline.exact)
    return Plan(planned, nbytes, source, exact, describe_device(accelerator), devices)


def _of_stages(
    config: dict[str, Any], data: DataModule, accelerator: str
) -> tuple[list[StagePlan], Outline | None]:
    from scarcely.run import fit_data, make_jobs

    outline = outline_of(data)
    few = data
    if outline is None:
        data.check()
        data.prepare_data()
    else:
        few = instantiate(_with_few_labels(config["data"]), _convert_="all")
        outline.fill(few, most=_SAMPLES * max(map(_batch_size, config["plan"])))
        few.setup()
        outline.fill(data)
        data.augmentation = _AnySize()  # type: ignore[assignment]
    data.setup()
    config["data"]["augmentation"] |= few.augmentation_settings()
    sizes = fit_data(config, data)
    jobs = make_jobs(config, data, sizes)
    return [_planned(job, data, few, accelerator) for job in jobs], outline


def _of_domains(config: dict[str, Any], data: Any, accelerator: str) -> tuple[list[StagePlan], int]:
    data.check()
    domains = Domains.of(config, data, accelerator)
    chain = Chain(domains, config["plan"], config["ckpt"])
    work: list[tuple[Job, DataModule, bool]] = []
    if chain.source_method is not None and domains.source is not None:
        work.append((domains.job(chain.source_method, domains.source), domains.data(domains.source), True))
    for i, method in enumerate(chain.each):
        if is_a(method, RoundRobin):
            work.append((*domains.round_robin(method, chain.each[i + 1]), True))
            continue
        known = not (i and hasattr(get_class(method["_target_"]), "join"))
        work += [(domains.job(method, name), domains.data(name), known) for name in chain.targets]
    if chain.prediction is not None:
        work.append((*domains.prediction(chain.prediction, chain.scored), True))
    costs: dict[str, Cost | None] = {}  # domains differ in their heads alone
    planned = []
    for job, own, known in work:
        kind = job.name.split(" ", 1)[-1] if known else ""
        counted = _counted(job, own)
        if kind and kind not in costs:
            costs[kind] = _cost(job, own, accelerator, counted.samples)
        planned.append(replace(counted, cost=costs.get(kind)))
        domains.release(*domains.names)
    nbytes = sum(s.nbytes for name in domains.names for s in domains.data(name).parts.values())
    return planned, nbytes


class _AnySize:
    """Stands in for the augmentation of images that are counted, not seen."""

    def check(self, shape: object) -> None:
        """Take any."""


def _with_few_labels(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data with no more labels of a class than are sure to be among those that stand in for all."""
    changed = copy.deepcopy(dict(data))
    if changed.get("labels_file") is not None:
        changed |= {"labels_file": None, "labels_per_class": 1}
    elif changed.get("labels_per_class") is not None:
        changed["labels_per_class"] = min(FEW, changed["labels_per_class"])
    return changed


def _batch_size(stage: Mapping[str, Any]) -> int:
    return int((stage["method"] or {}).get("batch_size", 0))


def _planned(job: Job, data: DataModule, few: DataModule, accelerator: str) -> StagePlan:
    counted = _counted(job, data, few.input_shape)
    return replace(counted, cost=_cost(job, few, accelerator, counted.samples) if job.epochs else None)


def _counted(job: Job, data: DataModule, input_shape: tuple[int, ...] | None = None) -> StagePlan:
    """Count samples and steps with the loader of the run, of all ranks: each takes the same steps."""
    samples = len(data.pool(job.role, job.protocol))
    steps = scored = 0
    if job.epochs:
        method = _built(job, input_shape or data.input_shape)
        loader = stages.training_loader(job, method, data)
        for epoch in range(job.epochs):
            loader.set_epoch(epoch)
            steps += min(len(loader), stages.FAST_BATCHES) if job.fast else len(loader)
        if stages.is_scored(method):
            each = len(data.pool(getattr(method, "scored_role", job.role), job.protocol))
            scored = each * (job.epochs // stages.score_every(job))
    return StagePlan(job.name, samples, stages.batch_size_of(job), job.epochs, steps, scored, None)


def _built(job: Job, input_shape: tuple[int, ...]) -> Method:
    method = stages.build_method(job, input_shape, inherit=False)
    method.place = Place(job.seed, job.name, job.epochs, 0, 1, job.protocol)
    return method


def _cost(job: Job, data: DataModule, accelerator: str, samples: int) -> Cost:
    """Measure a few steps of the share of one device; of so many samples there may be fewer than a batch."""
    devices = job.trainer["devices"]
    share = _divided(job, devices)
    whole = min(stages.batch_size_of(share), max(1, samples // devices))
    numbers = whole * _built(job, data.input_shape).views * int(torch.tensor(data.input_shape).prod())
    parts = 1
    while accelerator == "cpu" and numbers / parts > _LARGE and whole // parts >= 2 * _FEWEST:
        parts *= 2
    print(f"plan: {job.name}, a few steps", file=sys.stderr, flush=True)
    watch = _Watch(accelerator)
    _train(_divided(share, parts), data, accelerator, watch)
    times = watch.cost(whole)
    if parts == 1:
        return times
    # twice the samples do not take twice as long: a step has a part that does not depend on them
    half = _Watch(accelerator)
    try:
        _train(_divided(share, 2 * parts), data, accelerator, half)
    except UserError:  # too few for this method, as for more neighbours than there are
        return times
    one, two = half.cost(), watch.cost()
    slope = (two.seconds - one.seconds) / max(1, two.measured - one.measured)
    seconds = max(two.seconds, one.seconds + slope * (whole - one.measured))
    return replace(times, seconds=seconds)


def _divided(job: Job, parts: int) -> Job:
    """Return a job whose batches are a share of what they are, on one device."""
    method = dict(job.method)
    for key in ("batch_size", "labelled_batch_size"):
        if parts > 1 and isinstance(method.get(key), int):
            method[key] = max(1, method[key] // parts)
    return replace(job, method=method, trainer=job.trainer | {"devices": 1}, snapshots=0, inherited=None)


def _train(job: Job, data: DataModule, accelerator: str, watch: _Watch) -> None:
    job = replace(job, method=job.method | {"keep": None}, eval_every=job.epochs + 1, fast=False)
    unseen = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(unseen),
        contextlib.redirect_stderr(unseen),
    ):
        stages.train(job, Path(folder), data, accelerator, batches=STEPS, callbacks=[watch])


class _Watch(pl.Callback):
    """Takes the time of steps, counts bytes, and ends the training after one epoch.

    Args:
        accelerator: ``cuda`` or ``cpu``.
    """

    def __init__(self, accelerator: str) -> None:
        self.on_gpu = accelerator == "cuda"
        self.begun: list[float] = []
        self.sizes: list[int] = []
        self.kept = 0
        self._counting = contextlib.ExitStack()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin to count what the GPU holds."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the time; in a step that warms up, look at what is kept for the backward pass."""
        self._note()
        self.sizes.append(_samples_of(batch))
        if len(self.begun) == _WATCHED:
            self._counting.enter_context(self._count(pl_module))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The forward pass is over."""
        self._counting.close()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End early where steps are long."""
        if len(self.begun) >= _WATCHED and time.perf_counter() - self.begun[0] > _PATIENCE:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End, and look at the network and its optimizer."""
        self._note()
        self._counting.close()
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in pl_module.parameters())
        self.trained = sum(p.numel() for p in trained)
        self.weights = sum(t.nbytes for t in pl_module.state_dict().values())
        self.gradients = sum(p.nbytes for p in trained)
        self.optimizer = sum(
            value.nbytes
            for optimizer in trainer.optimizers
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        self.peak = torch.cuda.max_memory_allocated() if self.on_gpu else None
        self.scoring = _scoring_seconds(trainer, pl_module) if stages.is_scored(pl_module) else 0.0
        trainer.should_stop = True

    def cost(self, batch_size: int | None = None) -> Cost:
        """Return what was found, of a step of this size."""
        times = [after - before for before, after in zip(self.begun, self.begun[1:])]
        usual = max(self.sizes)
        warm = min(_WATCHED, len(times) - 1)
        whole = [t for t, size in list(zip(times, self.sizes))[warm:] if size == usual] or times[-1:]
        factor = 1.0 if batch_size is None else max(1.0, batch_size / usual)
        return Cost(
            seconds=statistics.median(whole) * factor,
            scoring=self.scoring,
            parameters=self.parameters,
            trained=self.trained,
            weights=self.weights,
            gradients=self.gradients,
            optimizer=self.optimizer,
            kept=int(self.kept * factor),
            peak=self.peak,
            measured=usual,
        )

    def _note(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self.begun.append(time.perf_counter())

    @contextlib.contextmanager
    def _count(self, method: Any) -> Iterator[None]:
        own = {t.untyped_storage().data_ptr() for t in (*method.parameters(), *method.buffers())}
        found: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        self.kept = sum(found.values())


def _samples_of(batch: Any) -> int:
    """Return the samples of a batch: of this rank, of all domains that it holds."""
    own = batch.index if hasattr(batch, "index") and isinstance(batch.index, Tensor) else None
    return len(own) if own is not None else sum(_samples_of(one) for one in batch if isinstance(one, tuple))


@torch.no_grad()
def _scoring_seconds(trainer: Any, method: Any) -> float:
    """Return the seconds that a look at a sample takes, of the second of two batches."""
    seconds, batches = 0.0, iter(trainer.datamodule.val_dataloader())
    method.eval()
    for _ in range(2):
        batch = next(batches, None)
        if batch is None or not hasattr(batch, "views"):
            break
        started = time.perf_counter()
        method(batch.views[0]).sum().item()
        seconds = (time.perf_counter() - started) / len(batch.index)
    method.train()
    return seconds
