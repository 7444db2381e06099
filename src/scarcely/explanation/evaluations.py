"""The evaluations of a run one by one, each kept in its folder as soon as it is done (chapter 8)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment

from scarcely.data.objects import ObjectImages
from scarcely.explanation.classifier import cascade_modules, fit_classes, load_run_classifier
from scarcely.explanation.images import Batches
from scarcely.explanation.scores import (
    Examples,
    Identity,
    MetaEffect,
    Pointing,
    Randomization,
    Sensitivity,
)
from scarcely.explanation.session import Explanation
from scarcely.files import write_atomically, write_json
from scarcely.methods.normgrad import Evaluation, NormGrad

FAST_STEPS = 4  # of the randomisation under fast=true


@dataclass
class State:
    """What a run has found so far, in its folder: a killed run goes on after its last evaluation.

    Attributes:
        folder: of the pieces.
        seconds_before: how long those took that were found.
    """

    folder: Path
    seconds_before: float = 0.0

    @classmethod
    def of(cls, run: Path, session: Explanation, data: ObjectImages) -> State:
        """Find the pieces; those of another model or other data are thrown away."""
        folder = run / "evaluations"
        digest = hashlib.blake2b(data.fingerprint().encode(), digest_size=12)
        for name, tensor in session.module.classifier.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        key = digest.hexdigest()
        if not (folder / "key").is_file() or (folder / "key").read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            (run / "layer_weights.json").unlink(missing_ok=True)
            write_atomically(folder / "key", key)
        return cls(folder)

    def once(self, name: str, make: Callable[[], Piece]) -> Piece:
        """Return a piece: as it was found, or made now and kept."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            content = json.loads(path.read_text())
            self.seconds_before += content["seconds"]
            arrays = {}
            if (self.folder / f"{name}.npz").is_file():
                with np.load(self.folder / f"{name}.npz", allow_pickle=False) as archive:
                    arrays = {key: archive[key] for key in archive.files}
            return Piece(content["metrics"], content["about"], arrays)
        started = time.monotonic()
        piece = make()
        if piece.arrays:
            arrays = piece.arrays
            npz = self.folder / f"{name}.npz"
            write_atomically(npz, lambda file: np.savez(file, allow_pickle=False, **arrays))
        seconds = time.monotonic() - started
        write_json(path, {"metrics": piece.metrics, "about": piece.about, "seconds": seconds})
        return piece


@dataclass
class Piece:
    """What one evaluation found.

    Attributes:
        metrics: for results.json.
        about: for saliency.json.
        arrays: for maps.npz.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)


def evaluate(session: Explanation, state: State, accelerator: str) -> tuple[dict, dict, dict]:
    """Run all evaluations that are asked for, and return what they found together."""
    runner = Runner(session, accelerator)
    makers: dict[str, Callable[[], Piece]] = {
        "pointing": runner.pointing,
        "sensitivity": runner.sensitivity,
        "meta": runner.meta,
        "identity": runner.identity,
        "randomization": runner.randomization,
        "epochs": runner.epochs,
        "examples": runner.examples,
    }
    wanted = [*session.module.evaluations, *(["examples"] if session.examples() else [])]
    pieces = [state.once(name, make) for name, make in makers.items() if name in wanted]
    found = Piece()
    for piece in pieces:
        found.metrics |= piece.metrics
        found.about |= piece.about
        found.arrays |= piece.arrays
    if "examples" not in wanted:
        found.arrays = {}
    return found.metrics, found.about, found.arrays


class Runner:
    """Each evaluation on its images."""

    def __init__(self, session: Explanation, accelerator: str) -> None:
        self.session, self.module, self.images = session, session.module, session.images
        self.data = session.images.data
        self.accelerator = accelerator

    def test(
        self, title: str, evaluation: Evaluation, batches: Batches, module: NormGrad | None = None
    ) -> Any:
        """Let Lightning show the batches to an evaluation."""
        module = module or self.module
        module.evaluation = evaluation
        trainer = lightning(self.accelerator, self.session.config["trainer"]["precision"])
        try:
            with _progress(title, len(batches)) as advance:
                trainer.test(module, _Counted(batches, advance), verbose=False)
        except SystemExit as error:  # Lightning's end after Ctrl-C
            raise KeyboardInterrupt from error
        return evaluation

    def pointing(self) -> Piece:
        """Do the maps point at the objects?"""
        chosen = self.session.some("pointing")
        pairs = self.images.every_class(chosen)
        game = self.test(
            "pointing game",
            Pointing(self.data.num_classes, self.module.tolerance),
            self.session.batches(pairs),
        )
        metrics = game.metrics()
        # also those of images without anything to explain, of which none is chosen
        counted = range(len(self.images)) if self._all("pointing") else chosen
        metrics |= {f"pointing/{k}": float(v) for k, v in self.images.counts(counted).items()}
        center = {
            k: metrics[f"pointing/center/{k}"]
            for k in ("all", "difficult")
            if f"pointing/center/{k}" in metrics
        }
        return Piece(metrics, {"center": center})

    def _all(self, evaluation: str) -> bool:
        return not self.session.config["fast"] and self.module.max_images.get(evaluation) is None  # type: ignore[call-overload]

    def sensitivity(self) -> Piece:
        """Do the maps of two classes differ?"""
        pairs = self.images.main_class(self.session.some("sensitivity"))
        batches = self.session.batches(pairs)
        return Piece(self.test("class sensitivity", Sensitivity(self.session.columns), batches).metrics())

    def meta(self) -> Piece:
        """What does a step of learning do to the maps?"""
        pairs = self.images.main_class(self.session.some("meta"))
        return Piece(self.test("meta-saliency", MetaEffect(), self.session.batches(pairs)).metrics())

    def identity(self) -> Piece:
        """Does a virtual identity stand for the convolution beside it?"""
        pairs = self.images.every_class(self.session.some("identity"))
        found = Identity(self.session.convolutions(), self.data.num_classes, self.module.tolerance)
        return Piece(self.test("virtual identity", found, self.session.batches(pairs)).metrics())

    def randomization(self) -> Piece:
        """Do the maps change when the weights are drawn anew, layer by layer from the output?"""
        examples = self.session.pictures()
        chosen = list(dict.fromkeys([*examples, *self.session.some("randomization")]))
        first = self.images.network_input(chosen[:1])
        most = FAST_STEPS if self.session.config["fast"] else self.module.cascade_steps
        modules = cascade_modules(self.module.classifier, first, most)
        cascade = Randomization(self.session.shown_layers(), modules, examples, self.session.config["seed"])
        batches = self.session.batches(self.images.main_class(chosen))
        self.test("randomisation", cascade, batches)
        arrays = cascade.arrays(list(examples)) if examples else {}
        return Piece(cascade.metrics(), {"randomization": cascade.rows()}, arrays)

    def epochs(self) -> Piece:
        """Compare maps with and without meta-saliency after each epoch that the classifier's run kept."""
        kept = self.session.kept
        if not kept:
            print(
                "epochs: the classifier's run kept no weights of earlier epochs (keep=[1,5,20] in its method"
                " does); this evaluation is left out",
                file=sys.stderr,
            )
            return Piece()
        parts = {"train": self.session.training}
        if self.images.role == "test":
            parts["test"] = self.images
        curves: dict[tuple[str, str], dict[str, list[Any]]] = {}
        for epoch, path in sorted(kept.items()):
            classifier = load_run_classifier(path)
            classifier.model.to(self.images.device).eval()
            image = self.images.network_input([0])
            fit_classes(classifier, self.data.classes, self.module.class_map, image)
            module = self.module.of(classifier.model)
            for part, images in parts.items():
                pairs = images.main_class(self.session.some("epochs", images))
                found: MetaEffect = self.test(
                    f"epoch {epoch}, {part} part", MetaEffect(), self.session.batches(pairs, images), module
                )
                for key, correlation in found.found.items().items():
                    name, _, layer = key.partition("/")
                    curve = curves.setdefault((name, layer), {"epoch": [], **{p: [] for p in parts}})
                    if part == "train":
                        curve["epoch"].append(epoch)
                    mean = correlation.mean
                    curve[part].append(mean if mean == mean else None)
        rows = [{"method": name, "layer": layer, **curve} for (name, layer), curve in curves.items()]
        return Piece(about={"epochs": rows})

    def examples(self) -> Piece:
        """Keep the maps of a few images as pictures."""
        pictures = self.session.pictures()
        sensitive = "sensitivity" in self.module.evaluations
        names = {column: self.data.classes[label] for label, column in self.session.outputs.items()}
        layers = self.session.shown_layers()
        found = Examples(
            pictures, list(pictures), self.session.columns if sensitive else [], layers, names.__getitem__
        )
        self.test("pictures", found, self.session.batches(self.images.main_class(list(pictures))))
        arrays = found.arrays
        if sensitive:
            arrays |= {
                "most": np.array(found.most),
                "least": np.array(found.least),
                "sensitivity_layers": np.array(layers),
            }
        return Piece(arrays=arrays)


def lightning(accelerator: str, precision: Any = "32-true", callbacks: Any = None) -> pl.Trainer:
    """Return a Trainer that tests and predicts with gradients, which saliency needs."""
    return pl.Trainer(
        accelerator="gpu" if accelerator == "cuda" else "cpu",
        devices=1,
        precision=precision,
        inference_mode=False,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[LightningEnvironment()],
    )


class _Counted:
    """Batches that tell how far they are."""

    def __init__(self, batches: Batches, advance: Callable[[], None]) -> None:
        self.batches, self.advance = batches, advance

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch
            self.advance()


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, a line at the end elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    started = time.monotonic()
    if not console.is_terminal:
        yield lambda: None
        print(f"{title}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        return
    columns = (TextColumn(f"[bold]{title}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)
