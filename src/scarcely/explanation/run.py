"""A run that explains a classifier: evaluations one by one, then everything a report shows (chapter 8)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import get_class
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn

from scarcely import checkpoints
from scarcely.config.check import names_function
from scarcely.config.schema import METHOD_KEYS
from scarcely.data.module import Role
from scarcely.data.objects import ObjectImages
from scarcely.errors import ConfigError, DataError, UserError
from scarcely.explanation.classifier import (
    Classifier,
    auto_layers,
    cascade_modules,
    fit_classes,
    forward,
    last_convolutions,
    load_classifier,
    load_run_classifier,
)
from scarcely.explanation.images import Batches, WholeImages
from scarcely.explanation.scores import (
    Examples,
    Identity,
    MetaEffect,
    Pointing,
    Randomization,
    Sensitivity,
    region,
)
from scarcely.files import write_atomically
from scarcely.folder import RunFolder
from scarcely.loggers import open_loggers, send_results
from scarcely.methods.normgrad import Evaluation, NormGrad
from scarcely.reports.evidence import Evidence
from scarcely.reports.html import write_report
from scarcely.saliency import layer_weights
from scarcely.saliency.layers import INPUT, resolve_layers

FAST_IMAGES = 2  # of each evaluation under fast=true
FAST_STEPS = 4  # of the randomisation
FAST_PROBES = 64  # fewer would leave classes without the two images that a linear probe needs


@dataclass
class Explanation:
    """A classifier, what is asked of it, and the images.

    Attributes:
        config: of the run.
        module: the methods and layers.
        images: those that are explained.
        training: those of the train part.
        outputs: {class of the data: column of the output}.
        kept: weights files of the classifier after some epochs, by epoch; the last is the classifier itself.
    """

    config: dict[str, Any]
    module: NormGrad
    images: WholeImages
    training: WholeImages
    outputs: dict[int, int]
    kept: dict[int, Path] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Maps at a time."""
        return int(self.config["method"]["batch_size"])

    @property
    def columns(self) -> list[int]:
        """Columns of the output that are classes; another one may stand for all other outputs."""
        return list(self.outputs.values())

    def some(self, evaluation: str, images: WholeImages | None = None) -> list[int]:
        """Return the images of an evaluation; of two evaluations, the fewer are among the more."""
        most = FAST_IMAGES if self.config["fast"] else self.module.max_images.get(evaluation)  # type: ignore[call-overload]
        return (images or self.images).chosen(self.config["seed"])[:most]

    def examples(self) -> list[int]:
        """Return the images whose maps are kept."""
        chosen = self.images.chosen(self.config["seed"])
        return chosen[: min(self.module.examples, FAST_IMAGES if self.config["fast"] else len(chosen))]

    def pictures(self) -> dict[int, tuple[int, int]]:
        """Return the size (h, w) of the picture of each example."""
        found = {}
        for index in self.examples():
            height, width, _ = self.images.picture(index).shape
            found[index] = (height, width)
        return found

    def shown_layers(self) -> list[str]:
        """Return the first layer, one half-way and the last: where maps are many, these stand for all."""
        layers = self.module.layers
        behind = [layer for layer in layers if layer != INPUT] or layers
        return list(dict.fromkeys([layers[0], behind[(len(behind) - 1) // 2], behind[-1]]))

    def batches(self, pairs: Sequence[tuple[int, int]], images: WholeImages | None = None) -> Batches:
        """Return (image, class) pairs in batches."""
        return Batches(images or self.images, pairs, self.batch_size)


def explain(config: dict[str, Any], folder: RunFolder, data: Any, accelerator: str) -> dict[str, Any]:
    """Evaluate what a classifier looks at, write the folder of the run, and return its results.

    Args:
        config: of the run, checked.
        folder: where it goes; evaluations that are there already are not made again.
        data: not set up yet.
        accelerator: ``cuda`` or ``cpu``.

    Raises:
        UserError: a model, data and settings that do not fit, before any evaluation.
    """
    started = time.monotonic()
    _require_objects(config, data)
    device = torch.device(accelerator)
    classifier = load_classifier(config, device)
    data.prepare_data()
    data.setup()
    config["data"]["augmentation"] |= data.augmentation_settings()
    with _in_method():
        session = prepare(config, classifier, data, device)
    with folder.opened(config), open_loggers(config, folder.path) as loggers:
        state = State.of(folder.path, session, data)
        session.module.layer_weights = _layer_weights(session, folder.path)
        metrics, about, arrays = _evaluate(session, state, accelerator)
        classes = list(data.classes)
        about = _describe(session, classes) | about
        _write_json(folder.path / "saliency.json", about)
        if arrays:
            arrays |= _pictures(session, classes)
            path = folder.path / "maps.npz"
            write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))
        results = {
            "method": config["method"]["name"],
            "data": config["data"]["name"],
            "seed": config["seed"],
            "protocol": session.images.protocol,
            "stages": [
                {
                    "name": config["method"]["stage"],
                    "seconds": round(state.seconds_before + time.monotonic() - started, 2),
                    "epochs": 0,
                    "cached": False,
                }
            ],
            "metrics": metrics,
            "samples": len(session.some("pointing")),
            "expected": config["expected"],
            "command": config["command"],
            "environment": config["environment"],
            "model": {
                "source": classifier.source,
                "ckpt": _absolute(config["ckpt"]),
                "shorter": session.images.shorter,
                "mean": list(session.images.mean),
                "std": list(session.images.std),
            },
        }
        write_report(Evidence.load(folder.path, results=results))
        for logger in loggers:
            send_results(logger, metrics, folder.path / "figures")
        _write_json(folder.path / "results.json", results)  # last of all: the run is finished
        shutil.rmtree(state.folder)
    return results


def _require_objects(config: Mapping[str, Any], data: Any) -> None:
    if not isinstance(data, ObjectImages):
        raise DataError(
            f"the images of data={config['data']['name']} have no annotated objects to point at",
            where="data",
            instead="data=shapes, voc, coco, or a folder of one's own with boxes or masks",
        )


# -- before anything long ------------------------------------------------------------------------


def prepare(
    config: dict[str, Any], classifier: Classifier, data: ObjectImages, device: torch.device
) -> Explanation:
    """Fit model, data and settings to each other, and try everything on one image.

    Raises:
        UserError: something does not fit.
    """
    settings = config["method"]
    tested = config["protocol"] == "split" and "test" in data.parts
    if config["protocol"] == "split" and not tested:
        print(f"note: data={data.name} has no test part: all its images are explained", file=sys.stderr)
    augmentation: Any = data.augmentation
    mean, std = classifier.normalization or (list(augmentation.mean), list(augmentation.std))
    channels = data.input_shape[0]
    if classifier.channels not in (None, channels):
        raise ConfigError(
            f"{classifier.source} takes {classifier.channels} channels, and images of data={data.name}"
            f" have {channels}",
            where="ckpt, data",
            instead="a model and data with the same number of channels",
        )
    shorter = data.decoded_size if settings["shorter"] == "auto" else settings["shorter"]
    outputs: dict[int, int] = {}

    def whole(role: Role) -> WholeImages:
        protocol = "split" if tested else "all"
        return WholeImages(
            *(data, role, protocol),  # type: ignore[arg-type]
            outputs=outputs,  # filled below
            shorter=shorter,
            mean=mean,
            std=std,
            device=device,
        )

    images, training = whole("test" if tested else "train"), whole("train")
    shapes = [one.size[0] / one.size[1] for one in images.annotated]
    widest, highest = (images.network_input([int(pick(shapes))]) for pick in (np.argmin, np.argmax))
    outputs |= fit_classes(classifier, data.classes, settings["class_map"], widest)
    forward(classifier.model, highest)
    if not images.chosen(config["seed"]):
        raise DataError(
            "no image has an object, not marked difficult, of a class that the model knows",
            where="data, method.class_map",
            instead="other images, or a map from their classes to the model's outputs",
        )
    arguments = {k: v for k, v in settings.items() if k not in METHOD_KEYS}
    arguments["layers"] = _layers(settings["layers"], classifier.model, widest)
    module: NormGrad = get_class(settings["_target_"])(model=classifier.model, **arguments)
    module.eval()
    session = Explanation(config, module, images, training, outputs, classifier.kept)
    if module.weights_file is not None:
        _read_weights(module)
    _try(session)
    return session


def _layers(given: str | list[str], model: nn.Module, image: torch.Tensor) -> list[str]:
    found = auto_layers(model, image) if given == "auto" else resolve_layers(model, given)
    if len(found) > 1 or given != "auto":
        return found
    raise ConfigError(
        "the model has no layer with spatial positions but the image", where="layers", instead="a CNN"
    )


def _try(session: Explanation) -> None:
    """Make one map of everything, so that what does not fit is known now."""
    module = session.module
    for name in module.names:
        if not module.layers_of(name):
            raise ConfigError(
                f"{name} suits none of the layers {', '.join(module.layers)}",
                where="method.methods, method.layers",
                instead="norm_grad_conv with names of convolutions, excitation with layers behind the image",
            )
    first = next(iter(session.batches(session.images.main_class(session.some("pointing")[:1]))))
    maps = module.maps(first.images, first.targets, module.names)
    weights = module.layer_weights
    module.layer_weights = {
        how: weights.get(how) or dict.fromkeys(module.layers, 1.0) for how in module.weights
    }
    for own in maps.values():
        module.combined(own, first.size)
    module.layer_weights = weights
    if "identity" in module.evaluations and not _convolutions(session):
        raise ConfigError(
            "there is no convolution at or before these layers, whose weights could be compared",
            where="method.evaluations, method.layers",
            instead="evaluations without identity",
        )


def _convolutions(session: Explanation) -> list[str]:
    layers = [layer for layer in session.module.layers if layer != INPUT]
    return last_convolutions(session.module.classifier, layers)


@contextlib.contextmanager
def _in_method() -> Iterator[None]:
    """Let errors of the saliency package, which names its own arguments, name the user's settings."""
    try:
        yield
    except UserError as error:
        if error.where not in ("layers", "method", "weights", "how", "modules", "loader"):
            raise
        where = {"method": "methods", "modules": "cascade_steps", "loader": "weights"}.get(
            error.where, error.where
        )
        raise type(error)(error.what, where=f"method.{where}", instead=error.instead) from error


# -- layer weights -------------------------------------------------------------------------------


def _layer_weights(session: Explanation, folder: Path) -> dict[str, dict[str, float]]:
    """Return the weights of the layers, found on images of the train part, once for a folder."""
    module, path = session.module, folder / "layer_weights.json"
    if module.weights_file is not None:
        weights = module.layer_weights
    elif path.is_file():
        return json.loads(path.read_text())
    else:
        most = FAST_PROBES if session.config["fast"] else module.probe_images
        chosen = session.training.chosen(session.config["seed"])[:most]
        pairs = session.training.main_class(chosen)
        loader = _Probes(session.batches(pairs, session.training))
        try:
            weights = {
                how: layer_weights(module.classifier, loader, module.layers, how) for how in module.weights
            }
        except DataError as error:
            raise DataError(
                f"the layers cannot be weighted on {len(chosen)} images of the train part: {error.what}",
                where="method.weights, method.probe_images",
                instead="method.weights=[spread,linear,uniform], or more images",
            ) from error
    _write_json(path, weights)
    return weights


class _Probes:
    """Batches (images, labels), as often as they are asked for."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            yield batch.images, torch.tensor(batch.classes)


def _read_weights(module: NormGrad) -> None:
    path = Path(str(module.weights_file)).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, dict[str, float]] = {
            how: {k: float(v) for k, v in content[how].items()} for how in module.weights
        }
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        missing = f": no {error} in it" if isinstance(error, KeyError) else ""
        raise DataError(
            f"{path} holds no layer weights{missing}",
            where="method.layer_weights",
            instead='the layer_weights.json of a run, {"spread": {"layer4": 0.9, …}, …}',
        ) from error
    for how, weights in found.items():
        wrong = [name for name in module.layers if not 0 <= weights.get(name, -1) < float("inf")]
        if wrong:
            raise DataError(
                f"there is no weight of {', '.join(wrong)} under {how!r} in {path}",
                where="method.layer_weights, method.layers",
                instead=f"the same layers as that run, {', '.join(weights)}",
            )
    module.layer_weights = found


# -- evaluations ---------------------------------------------------------------------------------


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
        _write_json(path, {"metrics": piece.metrics, "about": piece.about, "seconds": seconds})
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


def _evaluate(session: Explanation, state: State, accelerator: str) -> tuple[dict, dict, dict]:
    """Run all evaluations that are asked for, and return what they found together."""
    runner = _Runner(session, accelerator)
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


class _Runner:
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
        pairs = self.images.main_class(self.session.some("sensitivity"))
        batches = self.session.batches(pairs)
        return Piece(self.test("class sensitivity", Sensitivity(self.session.columns), batches).metrics())

    def meta(self) -> Piece:
        pairs = self.images.main_class(self.session.some("meta"))
        return Piece(self.test("meta-saliency", MetaEffect(), self.session.batches(pairs)).metrics())

    def identity(self) -> Piece:
        pairs = self.images.every_class(self.session.some("identity"))
        found = Identity(_convolutions(self.session), self.data.num_classes, self.module.tolerance)
        return Piece(self.test("virtual identity", found, self.session.batches(pairs)).metrics())

    def randomization(self) -> Piece:
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


# -- the folder ----------------------------------------------------------------------------------


def _describe(session: Explanation, classes: list[str]) -> dict[str, Any]:
    module = session.module
    return {
        "methods": list(module.names),
        "layers": list(module.layers),
        "weightings": list(module.weightings),
        "classes": classes,
        "layer_weights": module.layer_weights,
    }


def _pictures(session: Explanation, classes: Sequence[str]) -> dict[str, Any]:
    """Return the examples themselves: images, what is explained of them, and where that is."""
    images, examples = session.images, session.pictures()
    names = [images.annotated[i].name for i in examples]
    found: dict[str, Any] = {
        "names": np.array(names),
        "target": np.array([classes[images.main(i)] for i in examples]),
    }
    for place, (index, size) in enumerate(examples.items()):
        picture = images.picture(index)
        found[f"image/{place}"] = picture.expand(-1, -1, 3).numpy()
        found[f"regions/{place}"] = region(images.annotated[index].objects(), images.main(index), size)
    return found


def _absolute(ckpt: str) -> str:
    return ckpt if names_function(ckpt) else str(checkpoints.find(ckpt).absolute())


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1, default=str) + "\n")
