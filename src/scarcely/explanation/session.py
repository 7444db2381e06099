"""What a run explains: a classifier, its settings and the images, fitted to each other (chapter 8)."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class
from torch import nn

from scarcely.config.schema import METHOD_KEYS
from scarcely.data.module import Role
from scarcely.data.objects import ObjectImages
from scarcely.errors import ConfigError, DataError, UserError
from scarcely.explanation.classifier import (
    Classifier,
    auto_layers,
    fit_classes,
    forward,
    last_convolutions,
)
from scarcely.explanation.images import Batches, WholeImages
from scarcely.files import write_json
from scarcely.methods.normgrad import NormGrad
from scarcely.saliency import layer_weights
from scarcely.saliency.layers import INPUT, resolve_layers

FAST_IMAGES = 2  # of each evaluation under fast=true
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

    def convolutions(self) -> list[str]:
        """Return the last convolution at or before each layer: those that identities are compared with."""
        layers = [layer for layer in self.module.layers if layer != INPUT]
        return last_convolutions(self.module.classifier, layers)

    def batches(self, pairs: Sequence[tuple[int, int]], images: WholeImages | None = None) -> Batches:
        """Return (image, class) pairs in batches."""
        return Batches(images or self.images, pairs, self.batch_size)


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
    if settings["meta_loss"] == "auto":
        arguments["meta_loss"] = classifier.loss
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
    if "identity" in module.evaluations and not session.convolutions():
        raise ConfigError(
            "there is no convolution at or before these layers, whose weights could be compared",
            where="method.evaluations, method.layers",
            instead="evaluations without identity",
        )


@contextlib.contextmanager
def in_method() -> Iterator[None]:
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


def weigh_layers(session: Explanation, folder: Path) -> dict[str, dict[str, float]]:
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
    write_json(path, weights)
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
