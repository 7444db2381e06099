"""Train a stage, once for all runs that need it."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import filelock
import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from scarcely import checkpoints, memory
from scarcely.backbones.base import Backbone
from scarcely.callbacks.history import History, Row, read_rows
from scarcely.callbacks.keep import KeepWeights, kept_weights
from scarcely.callbacks.last import LastCheckpoint
from scarcely.callbacks.progress import Progress
from scarcely.callbacks.ranks import EndedByParent
from scarcely.callbacks.snapshots import Snapshots
from scarcely.config.schema import METHOD_KEYS
from scarcely.config.signature import constant_of, signature_of
from scarcely.data.module import DataModule
from scarcely.data.objects import ObjectImages
from scarcely.errors import DataError, UserError, WriteError
from scarcely.files import FULL, remove_parts
from scarcely.job import Job
from scarcely.launch import launch
from scarcely.loggers import current_loggers, send_rows
from scarcely.methods.base import Method, Place
from scarcely.seeds import derive_seed

FAST_BATCHES = 2


@dataclass
class Trained:
    """A finished stage.

    Attributes:
        name: of the stage.
        weights: file of its weights.
        key: hash of what shaped them.
        epochs, seconds: how long it trained, interruptions left out.
        cached: it was found, not trained.
        rows: its record.
    """

    name: str
    weights: Path
    key: str
    epochs: int
    seconds: float
    cached: bool
    rows: list[Row] = field(default_factory=list)

    def after(self, epoch: int | None) -> Trained:
        """Return the stage as the next one inherits it, with the weights after an epoch; None is the last."""
        if epoch is None or epoch == self.epochs:
            return self
        kept = kept_weights(self.weights.parent, epoch)
        return replace(self, weights=kept, key=f"{self.key}-epoch{epoch}")

    def pretext_scores(self, epoch: int | None) -> dict[str, float]:
        """Return the epoch of a RotNet pretext and its accuracy then; nothing of any other stage.

        The accuracy is that of the rotations over the epoch, of augmented training images: each epoch of
        the record has it.

        Args:
            epoch: counted from 1; None is the last.
        """
        epoch = epoch or self.epochs
        row = next((row for row in self.rows if row["epoch"] == epoch - 1), {})
        if self.name != "pretext" or "rotation/accuracy" not in row:
            return {}
        return {"pretext/epoch": float(epoch), "pretext/accuracy": float(row["rotation/accuracy"])}

    def summary(self) -> dict[str, Any]:
        """Return what results.json says of a stage."""
        return {
            "name": self.name,
            "seconds": round(self.seconds, 2),
            "epochs": self.epochs,
            "cached": self.cached,
        }


def accelerator_of(trainer: Mapping[str, Any]) -> str:
    """Return ``cuda`` or ``cpu``.

    Raises:
        UserError: a GPU, or more of them than there are, was asked for; or BatchNorm over several processes
            of a CPU, which torch does not have.
    """
    wanted, devices = trainer["accelerator"], trainer["devices"]
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not available):
        if devices > 1 and trainer["sync_batchnorm"]:
            raise UserError(
                "BatchNorm over several processes needs GPUs",
                where="trainer.sync_batchnorm",
                instead="trainer.sync_batchnorm=false, or trainer.accelerator=gpu",
            )
        return "cpu"
    if available < devices:
        raise UserError(
            f"GPUs asked for: {devices}; there are {available or 'none'}",
            where="trainer, trainer.devices",
            instead=f"trainer.devices={available}" if available else "trainer=cpu",
        )
    return "cuda"


def build_backbone(config: Mapping[str, Any], input_shape: tuple[int, ...]) -> Backbone:
    """Build a backbone for inputs of a shape (C, H, W) or (D,)."""
    sizes: dict[str, Any] = {"in_features": int(torch.tensor(input_shape).prod())}
    if len(input_shape) == 3:
        sizes |= {"in_channels": input_shape[0], "image_size": input_shape[1]}
    wanted = signature_of(config["_target_"]).parameters
    given = {k: v for k, v in sizes.items() if k in wanted and k not in config}
    backbone = instantiate(dict(config), **given, _convert_="all")
    return backbone.to(memory_format=torch.channels_last) if len(input_shape) == 3 else backbone


def build_method(job: Job, input_shape: tuple[int, ...], *, inherit: bool = True) -> Method:
    """Build the networks of a stage; the same initial weights for the same seed.

    Args:
        job: the stage.
        input_shape: (C, H, W) or (D,).
        inherit: load the inherited weights (not needed where all weights are loaded next).
    """
    torch.manual_seed(derive_seed(job.seed, job.name, "init"))
    supplied = {
        "backbone": build_backbone(job.backbone, input_shape),
        **job.sizes,
        "input_shape": input_shape,
        "inherited": job.inherited is not None,
    }
    signature = signature_of(job.method["_target_"])
    wanted = {k: v for k, v in supplied.items() if k in signature.parameters}
    own = {
        k: v
        for k, v in job.method.items()
        if k == "_target_" or k not in METHOD_KEYS or k in signature.parameters
    }
    try:
        method: Method = instantiate(own, **wanted, _convert_="all")
    except InstantiationException as error:  # a constructor names its arguments, a user the settings
        cause = error.__cause__
        if not isinstance(cause, UserError):
            raise
        where = f"method.{cause.where}" if cause.where in signature.parameters else cause.where
        raise type(cause)(cause.what, where=where, instead=cause.instead) from error
    if inherit and job.inherited is not None:
        source = Path(job.inherited)
        tensors = checkpoints.tensors_of(checkpoints.load(checkpoints.find(source)))
        tensors = checkpoints.renamed(tensors, job.key_map or {}, str(source))
        where = job.named_by
        found = method.take(tensors, source=str(source), least=job.min_matched, where=where)
        if job.whole:  # the head too, where it is the same
            whole = checkpoints.match(method, tensors)
            if whole.share > 0:
                method.load_state_dict(whole.state, strict=False)
                found = whole
        taken = set(method.adopt(tensors))
        found.matched, found.unexpected = (
            sorted(taken | set(found.matched)),
            [name for name in found.unexpected if name not in taken],
        )
        method.inheritance = found.report(source.name)
    return method


def targets_of(
    method: Mapping[str, Any], data: DataModule, protocol: Literal["all", "split"]
) -> Tensor | None:
    """Return all classes that each image of a stage's pool shows, for a method that learns from them.

    Args:
        method: the configuration of the stage's method.
        data: the data, set up.
        protocol: of the pool.

    Returns:
        (N, C) int8 as `ObjectImages.targets`; None for a method that learns from one label or none.

    Raises:
        DataError: the data know one class an image.
    """
    if not constant_of(method["_target_"], "learns_targets"):
        return None
    if not isinstance(data, ObjectImages):
        raise DataError(
            f"{method['name']} learns from all classes that an image shows, and data={data.name} has one"
            " label an image",
            where="data",
            instead="data=shapes, data=voc or other images with several objects, or method=supervised",
        )
    return data.targets(method.get("role", "train"), protocol)


def fingerprint_of(job: Job, data: DataModule) -> str:
    """Return a hash of all that a stage learns from: samples and labels, and several of them an image."""
    samples = data.pool(job.role, job.protocol).fingerprint(labels=job.role != "pretext")
    targets = targets_of(job.method, data, job.protocol)
    if targets is None:
        return samples
    digest = hashlib.blake2b(samples.encode(), digest_size=16)
    digest.update(targets.numpy().tobytes())
    return digest.hexdigest()


def train(
    job: Job,
    folder: Path,
    data: DataModule,
    accelerator: str,
    earlier: list[Row] | None = None,
    rank: int = 0,
    batches: int | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> float:
    """Train a stage in this process, from the last checkpoint in its folder if there is one.

    Args:
        job: the stage.
        folder: where its checkpoint, record and weights go.
        data: the data, set up.
        accelerator: ``cuda`` or ``cpu``.
        earlier: rows of earlier stages, for the top of the record.
        rank: of this process.
        batches: most batches of an epoch; None for all.
        callbacks: what else looks on.

    Returns:
        Seconds of training, interruptions left out.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the last checkpoint is that of the last whole epoch.
    """
    quiet()
    world = job.trainer["devices"]
    device = torch.device("cuda", rank) if accelerator == "cuda" else torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    method = build_method(job, data.input_shape)
    scaled = job.trainer["precision"] == "16-mixed"
    method.place = Place(job.seed, job.name, job.epochs, rank, world, job.protocol, scaled)
    targets = targets_of(job.method, data, job.protocol)
    if targets is not None:  # moves with the method, and is no part of its state: the data give it again
        method.register_buffer("targets", targets, persistent=False)
    method.ready()
    history = History(folder / "metrics.csv", job.name, earlier or [], job.trainer["log_every"])
    if rank == 0 and method.inheritance:
        print(method.inheritance, file=sys.stderr, flush=True)
    batch_size = batch_size_of(job)
    loaders: dict[str, Any] = {"device": device, "rank": rank, "world_size": world}
    started = time.monotonic()
    if job.epochs == 0:
        method.to(device)
        method.prepare(data.evaluation_loader(job.role, job.protocol, batch_size=batch_size, device=device))
        seconds = time.monotonic() - started
    else:
        loader = training_loader(job, method, data, **loaders)
        scores = data.evaluation_loader(
            getattr(method, "scored_role", job.role),
            job.protocol,
            batch_size=2 * batch_size,
            true_labels=True,
            **loaders,
        )
        data.use(train=loader, val=scores if is_scored(method) else None)
        if job.trainer["compile"]:
            getattr(method, "student", method.backbone).compile()
        watching: list[pl.Callback] = [history, Progress(job.name), *callbacks]
        if world > 1:
            watching.append(EndedByParent())
        if job.keep:
            watching.append(
                KeepWeights(
                    folder, job.keep, lambda done: weights_of(job, method, data, history.seconds, done)
                )
            )
        watching.append(LastCheckpoint(folder / "last.ckpt"))
        if job.snapshots:
            watching.append(
                Snapshots(
                    folder / "snapshots.npz",
                    data.pool("unlabelled", job.protocol),
                    data.augmentation,
                    count=job.snapshots,
                    epochs=job.epochs,
                    seed=job.seed,
                    batch_size=2 * batch_size,
                )
            )
        trainer = pl.Trainer(
            max_epochs=job.epochs,
            accelerator="gpu" if accelerator == "cuda" else "cpu",
            devices=world,
            strategy="ddp" if world > 1 else "auto",
            sync_batchnorm=job.trainer["sync_batchnorm"] and world > 1,
            precision=job.trainer["precision"],
            gradient_clip_val=job.trainer["gradient_clip"],
            limit_train_batches=FAST_BATCHES if job.fast else batches,
            limit_val_batches=FAST_BATCHES if job.fast else None,
            check_val_every_n_epoch=score_every(job),
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=int(hasattr(method, "subset")),  # its length may change
            callbacks=watching,
            # ours are the processes, also in a job of a cluster whose variables Lightning would follow
            plugins=[checkpoints.AtomicCheckpointIO(), LightningEnvironment()],
            logger=current_loggers(rank) or False,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            benchmark=accelerator == "cuda",
        )
        last = folder / "last.ckpt"
        if last.is_file():
            checkpoints.check_last(last, method)
        try:
            trainer.fit(method, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
        except SystemExit as error:  # Lightning's end after Ctrl-C (code 1) or SIGTERM (code 0: as if done)
            raise KeyboardInterrupt from error
        seconds = history.seconds
    if rank == 0:
        method.to("cpu")
        checkpoints.save(weights_of(job, method, data, seconds, job.epochs), folder / "weights.pt")
    return seconds


def batch_size_of(job: Job) -> int:
    """Return the samples of a step, over all devices."""
    return int(job.method.get("batch_size", 256))


def score_every(job: Job) -> int:
    """Return the epochs from one look at the scores to the next."""
    return min(job.eval_every or max(1, job.epochs // 20), max(1, job.epochs))


def is_scored(method: Method) -> bool:
    """Return whether a method has scores while it is trained."""
    if hasattr(method, "metric"):
        return method.metric is not None
    return type(method).validation_step is not Method.validation_step


def training_loader(job: Job, method: Method, data: DataModule, **where: Any) -> Any:
    """Return the batches that a stage is trained on.

    Args:
        job: the stage.
        method: its networks.
        data: the data, set up.
        **where: device, rank and world_size, as `DataModule.training_loader` takes them.
    """
    return data.training_loader(
        job.role,
        job.protocol,
        batch_size=batch_size_of(job),
        views=method.views,
        seed=job.seed,
        stage=job.name,
        gather=getattr(method, "pairs", "local") == "global",
        group=getattr(method, "group", 0),
        labelled_batch_size=getattr(method, "labelled_batch_size", None),
        epoch_of=getattr(method, "epoch_of", "unlabelled"),
        subset=getattr(method, "subset", None),
        augmentation=method.augmentation(data.augmentation),
        **where,
    )


def weights_of(job: Job, method: Method, data: DataModule, seconds: float, epochs: int) -> dict[str, Any]:
    """Return what a stage keeps after some epochs: weights and all that rebuilds the network around them."""
    return {
        "format": checkpoints.FORMAT,
        "job": asdict(job),
        "state_dict": {k: v.cpu().contiguous() for k, v in method.state_dict().items()},
        "input_shape": list(data.input_shape),
        "decoded_size": data.decoded_size,
        "classes": list(data.classes),
        "seconds": seconds,
        "epochs": epochs,
        "arrays": method.arrays(),
    }


def within_memory(job: Job) -> AbstractContextManager[None]:
    """Return what says, if a stage does not fit into memory, what of it to lower."""
    views = constant_of(job.method["_target_"], "views") or 1
    size, world = batch_size_of(job), job.trainer["devices"]
    share = f" on each of {world} devices" if world > 1 else ""
    precision = "" if job.trainer["precision"] != "32-true" else "trainer.precision=bf16-mixed on a GPU; "
    return memory.told(
        f"a step of stage {job.name} takes {size // world} samples in {views} view(s){share}",
        where="batch_size, backbone, trainer",
        instead=f"batch_size={max(1, size // 2)}, with a learning rate as much smaller; {precision}"
        "data.resident=host to keep the samples off the device; more devices, which share a batch",
    )


def run_stage(
    job: Job, folder: Path, data: DataModule, accelerator: str, key: str, earlier: list[Row]
) -> Trained:
    """Train a stage in a folder of its own, in as many processes as it wants."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_parts(folder)
    # before an interruption: what of it reached a logger is for the logger to know
    send_rows([row for row in read_rows(folder / "metrics.csv") if row.get("stage") == job.name])
    if job.trainer["devices"] > 1 and job.epochs > 0:
        launch(job, folder, accelerator, earlier)
    else:
        with within_memory(job):
            train(job, folder, data, accelerator, earlier)
    return finished(job, folder, key, cached=False)


def finished(job: Job, folder: Path, key: str, *, cached: bool) -> Trained:
    """Read a finished stage from its folder."""
    content = checkpoints.load(folder / "weights.pt")
    return Trained(
        name=job.name,
        weights=folder / "weights.pt",
        key=key,
        epochs=int(content["epochs"]),
        seconds=float(content["seconds"]),
        cached=cached,
        rows=[r for r in read_rows(folder / "metrics.csv") if r.get("stage") == job.name],
    )


def cached_stage(
    job: Job, cache: Path, data: DataModule, accelerator: str, key: str, earlier: list[Row]
) -> Trained:
    """Return a stage from the cache, or train it there while other runs wait.

    A stage that was interrupted goes on from its last epoch, whoever asks for it: its folder is
    named by all that shapes it.
    """
    folder = cache / "stages" / key
    if _is_finished(job, folder):
        return _found(job, folder, key)
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"{job.name}: another run trains the same stage; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    except OSError as error:
        full = error.errno in FULL
        raise WriteError(
            f"cannot write to the cache {cache}: {'the disk is full' if full else error.strerror}",
            where="cache_dir",
            instead="cache_dir=FOLDER, or the variable SCARCELY_CACHE, on a disk with room and open to you",
        ) from error
    try:
        if _is_finished(job, folder):
            return _found(job, folder, key)
        trained = run_stage(job, folder, data, accelerator, key, earlier)
        (folder / "last.ckpt").unlink(missing_ok=True)
        return trained
    finally:
        lock.release()


def _found(job: Job, folder: Path, key: str) -> Trained:
    """Return a stage from the cache; the loggers get its record, as if it had been trained for this run."""
    trained = finished(job, folder, key, cached=True)
    send_rows(trained.rows)
    return trained


def _is_finished(job: Job, folder: Path) -> bool:
    kept = (kept_weights(folder, epoch) for epoch in job.keep)
    return all(path.is_file() for path in (folder / "weights.pt", *kept))


def quiet() -> None:
    """Silence Lightning's notes about things that this project decides itself."""
    for name in (
        "pytorch_lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "lightning_fabric",
        "pytorch_lightning.utilities",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*The number of training batches.*",
        ".*Checkpoint directory.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*`max_epochs` was not set.*",
        ".*find_unused_parameters.*",
        ".*No device id is provided.*",
        ".*functional.all_gather is deprecated.*",  # by torch; Lightning calls it
        ".*in eval mode at the start of training.*",  # frozen_bn=eval
        ".*across ranks is zero.*",  # no scores during training
    ):
        warnings.filterwarnings("ignore", pattern)
