"""Classifiers to explain: of a run of this project, of a weights file of torchvision, or the user's own."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scarcely import checkpoints
from scarcely.backbones.base import Backbone
from scarcely.config.check import names_function
from scarcely.errors import CheckpointError, ConfigError, DataError, UserError
from scarcely.methods.base import Method
from scarcely.saliency.layers import INPUT, resolve_layers
from scarcely.saliency.target import Loss

CLASS_MAPS = Path(__file__).parent / "data" / "class_maps"


@dataclass
class Classifier:
    """A model in evaluation mode, and what is known of it.

    Attributes:
        model: from normalised images to logits (N, K).
        source: where it came from, in words.
        names: what its outputs are called; None where nobody says.
        normalization: mean and std of each channel that it was trained with; None where nobody says.
        channels: of its images; None where nobody says.
        loss: what it was trained by, of one class.
        kept: {epoch: weights file}, of a run that kept some while it trained, the last epoch too.
    """

    model: nn.Module
    source: str
    names: tuple[str, ...] | None = None
    normalization: tuple[list[float], list[float]] | None = None
    channels: int | None = None
    loss: Loss = "cross_entropy"
    kept: dict[int, Path] = field(default_factory=dict)


class Network(nn.Module):
    """The networks of a method, called as they are in it, and their scores (N, K) of images.

    Args:
        method: the trained method.
        scores: features (N, D) to scores (N, K).
    """

    def __init__(self, method: Any, scores: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        for name, child in method.named_children():
            if any(True for _ in child.parameters()):
                self.add_module(name, child)
        for module in method.modules():
            if isinstance(module, Backbone):
                module.freeze(0)  # frozen blocks run without a graph, and no gradient would reach them
        self._method = (method,)  # hidden: a method as a part of this would bring its trainer along
        self.scores = scores

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of normalised images."""
        scores = self.scores(self._method[0].features(images))
        assert scores is not None
        return scores


def load_classifier(config: Mapping[str, Any], device: torch.device) -> Classifier:
    """Load what ``ckpt`` names.

    Raises:
        CheckpointError: an unreadable file, a run without a classifier, weights of another network.
        ConfigError: no such function, or one that makes no model.
    """
    ckpt = config["ckpt"]
    if names_function(ckpt):
        found = _from_function(ckpt)
    else:
        path = checkpoints.find(ckpt)
        content = checkpoints.load(path)
        ours = isinstance(content, dict) and content.get("format") == checkpoints.FORMAT and "job" in content
        found = load_run_classifier(path) if ours else _from_weights(config, path, content)
        if ours and config["key_map"]:
            raise ConfigError(
                "key_map renames the weights of a file, and ckpt is a run, which knows its network",
                where="key_map",
                instead="leave it out",
            )
    found.model.to(device).eval()
    return found


def load_run_classifier(path: Path) -> Classifier:
    """Load the classifier of a run of this project from one of its weights files.

    Raises:
        CheckpointError: the run has no classifier, or was trained on vectors.
    """
    from scarcely.predict import load_run

    method, content = load_run(str(path))
    return classifier_of(method, content, path)


def classifier_of(method: Method, content: dict[str, Any], path: Path) -> Classifier:
    """Return the classifier in a method.

    Args:
        method: with its weights.
        content: of its weights file.
        path: of that file, which need not be there.

    Raises:
        CheckpointError: as `load_run_classifier`.
    """
    from scarcely.predict import old_and_new

    settings, shape = content["job"]["method"], content["input_shape"]
    if len(shape) != 3:
        raise CheckpointError(
            f"{path} was trained on vectors, and maps are of images", where="ckpt", instead="a run on images"
        )
    scores: Any = method.logits
    names: tuple[str, ...] | None = tuple(content["classes"])
    if settings["task"] == "discovery":
        scores, found = old_and_new(method, content, path.parent)
        names = tuple(found)
    elif settings["task"] == "clustering":
        names = None
    elif settings.get("role") == "labelled":
        names = tuple(content["classes"][: content["job"]["num_known"]])
    with torch.no_grad():
        output = scores(method.features(torch.zeros(2, *shape)))
    if settings["task"] in ("pretext", "count") or not isinstance(output, Tensor) or output.ndim != 2:
        raise CheckpointError(
            f"a {settings['name']} run has no classifier to explain",
            where="ckpt",
            instead="a run of method=supervised, multilabel, finetune and the like",
        )
    own = content["job"]["data"]["augmentation"]
    kept = {int(p.stem.removeprefix("weights-epoch")): p for p in path.parent.glob("weights-epoch*.pt")}
    return Classifier(
        Network(method, scores),
        f"a run of method={settings['name']} on data={content['job']['data']['name']}",
        names if names is not None and len(names) == output.shape[1] else None,
        (list(own["mean"]), list(own["std"])) if own.get("mean") else None,
        shape[0],
        "binary_cross_entropy" if method.learns_targets else "cross_entropy",
        kept | {int(content["epochs"]): path} if kept else {},
    )


def _from_weights(config: Mapping[str, Any], path: Path, content: Any) -> Classifier:
    """Build a network of torchvision with as many classes as a weights file has, and fill it."""
    backbone = config["backbone"]
    if "torchvision" not in str(backbone.get("_target_")):
        raise CheckpointError(
            f"{path} holds weights alone, and does not say of which network",
            where="ckpt, backbone",
            instead="backbone=torchvision backbone.name=NAME for a file of torchvision's weights, the folder"
            " of a run of this project, or ckpt=module:function",
        )
    from torchvision import models

    name = backbone["name"]
    tensors = checkpoints.renamed(checkpoints.tensors_of(content), config["key_map"] or {}, str(path))
    with torch.device("meta"):  # its size alone is of interest
        plain = models.get_model(name, weights=None)
    last = [n for n, m in plain.named_modules() if isinstance(m, nn.Linear)][-1]
    head = next(
        (t for n, t in tensors.items() if n == f"{last}.weight" or n.endswith(f".{last}.weight")), None
    )
    if head is None:
        raise CheckpointError(
            f"{path} holds no classifier of {name}: there is no {last}.weight in it",
            where="ckpt",
            instead="weights with the classifier, as torchvision publishes them",
        )
    model = models.get_model(name, weights=None, num_classes=len(head))
    found = checkpoints.match(model, tensors)
    print(found.report(path.name), file=sys.stderr, flush=True)
    if found.missing or found.reshaped or found.unexpected:
        raise CheckpointError(
            f"{path} is not all of {name}, or of another network\n{found.report(path.name)}",
            where="ckpt, backbone.name",
            instead="the backbone.name of the file; key_map={…: …} where its weights are called otherwise",
        )
    model.load_state_dict(found.state, strict=False)  # old files lack the counters of BatchNorm
    return Classifier(model, f"torchvision's {name}, {path.name}", channels=3)


def _from_function(ckpt: str) -> Classifier:
    """Call ``module:function``, found from the current folder too."""
    module, _, name = ckpt.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"ckpt={ckpt}: {error}",
            where="ckpt",
            instead="a module of the current folder, or an installed one, and a function in it",
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    model = function() if callable(function) else None
    if not isinstance(model, nn.Module):
        what = f"there is no function {name!r} in {module}" if function is None else f"{ckpt} gives no model"
        raise ConfigError(what, where="ckpt", instead="module:function that returns a torch.nn.Module")
    return Classifier(model, f"the model of {ckpt}")


# -- outputs and classes -------------------------------------------------------------------------


class Grouped:
    """A forward hook that turns logits into those of groups of outputs, and of all the others together.

    The logit of a group is log Σ exp of its outputs': the softmax over groups then gives each the sum of its
    outputs' probabilities.

    Args:
        groups: outputs of each group.
        count: number of outputs.
    """

    def __init__(self, groups: Sequence[Sequence[int]], count: int) -> None:
        self.groups = [list(group) for group in groups]
        rest = sorted(set(range(count)) - {output for group in groups for output in group})
        self.groups += [rest] if rest else []

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Return (N, groups, and one for the others if there are any)."""
        return torch.stack([output[:, group].logsumexp(dim=1) for group in self.groups], dim=1)


def output_groups(
    classes: Sequence[str], names: Sequence[str] | None, count: int, class_map: str | None
) -> dict[int, list[int]]:
    """Return which outputs of a model stand for which class of the data; a class may have none.

    Args:
        classes: of the data.
        names: of the outputs, or None.
        count: number of outputs.
        class_map: JSON file {class: [outputs]}, or the name of a shipped one.

    Raises:
        ConfigError: classes and outputs that do not correspond, and no map between them.
        DataError: a map that is none, or of other classes or outputs.
    """
    if class_map is not None:
        return _read_class_map(class_map, classes, count)
    if names is None:
        if count == len(classes):
            return {label: [label] for label in range(count)}
        raise ConfigError(
            f"the model has {count} outputs without names, and the data have {len(classes)} classes",
            where="ckpt, data",
            instead="method.class_map=FILE.json, {class: [outputs]}, or one of "
            + ", ".join(sorted(p.stem for p in CLASS_MAPS.glob("*.json"))),
        )
    missing = [name for name in classes if name not in names]
    if missing:
        raise ConfigError(
            f"the model knows no {', '.join(missing[:6])}{' …' if len(missing) > 6 else ''}: "
            f"its classes are {', '.join(names[:6])}{' …' if len(names) > 6 else ''}",
            where="ckpt, data",
            instead="a model of these classes, or method.class_map=FILE.json, {class: [outputs]}",
        )
    return {label: [list(names).index(name)] for label, name in enumerate(classes)}


def _read_class_map(given: str, classes: Sequence[str], count: int) -> dict[int, list[int]]:
    shipped = CLASS_MAPS / f"{given}.json"
    path = shipped if shipped.is_file() else Path(given).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        groups = {str(name): [int(output) for output in outputs] for name, outputs in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no map from classes to outputs",
            where="method.class_map",
            instead='a JSON file such as {"cat": [281, 282], "dog": [151]}',
        ) from error
    unknown = [name for name in groups if name not in classes]
    wrong = [o for outputs in groups.values() for o in outputs if not 0 <= o < count]
    if unknown or wrong or not any(groups.values()):
        what = f"the data have no class {unknown[0]!r}" if unknown else f"the model has no output {wrong[:1]}"
        raise DataError(
            what if unknown or wrong else f"{path} names no output of any class",
            where=f"method.class_map={given}",
            instead=f"classes among {', '.join(classes)}; outputs from 0 to {count - 1}",
        )
    return {label: groups[name] for label, name in enumerate(classes) if groups.get(name)}


def fit_classes(
    classifier: Classifier, classes: Sequence[str], class_map: str | None, image: Tensor
) -> dict[int, int]:
    """Let the model give one logit a class, and return {class of the data: column of the output}.

    Where outputs are not the classes themselves, a forward hook groups them from now on: the names of the
    model's layers stay as they are.

    Args:
        classifier: the model, which is changed.
        classes: of the data.
        class_map: as for `output_groups`.
        image: (1, C, H, W), any of the images.

    Raises:
        UserError: as `output_groups`, or a model that does not take such images or is no classifier.
    """
    output = forward(classifier.model, image)
    if not isinstance(output, Tensor) or output.ndim != 2:
        what = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(
            f"{classifier.source} gives {what} for one image, not (1, classes)",
            where="ckpt",
            instead="a classifier that returns logits",
        )
    count = output.shape[1]
    groups = output_groups(classes, classifier.names, count, class_map)
    if list(groups.values()) != [[column] for column in range(count)]:
        classifier.model.register_forward_hook(Grouped(list(groups.values()), count))
    return {label: column for column, label in enumerate(groups)}


def forward(model: nn.Module, image: Tensor) -> Any:
    """Return the output for one image, (1, C, H, W).

    Raises:
        ConfigError: the model does not take it.
    """
    try:
        with torch.no_grad():
            return model(image)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        _, channels, height, width = image.shape
        raise ConfigError(
            f"the model does not take an image of {channels} x {height} x {width}: {error}",
            where="ckpt, data, method.shorter",
            instead="images like those it was trained on; with fully connected layers, of one size",
        ) from error


# -- layers --------------------------------------------------------------------------------------


def auto_layers(model: nn.Module, image: Tensor) -> list[str]:
    """Return the image and a layer at every depth (appendix of the paper).

    Of a ResNet the four stages, of a VGG the ReLU before each max-pooling, of another backbone of ours its
    blocks, of any other network the last module of each resolution.

    Args:
        model: the classifier.
        image: (1, C, H, W).
    """
    shapes = _output_shapes(model, image)
    for prefix in ("backbone.", ""):
        inner = getattr(model, "backbone", None) if prefix else model
        if not isinstance(inner, nn.Module):
            continue
        stages = [f"layer{k}" for k in (1, 2, 3, 4)]
        if isinstance(inner, Backbone) and not isinstance(getattr(inner, "features", None), nn.Sequential):
            stages = list(inner.block_names)
        found = [prefix + name for name in stages if prefix + name in shapes]
        if not found and isinstance(features := getattr(inner, "features", None), nn.Sequential):
            names = [name for name, _ in features.named_children()]
            pooled = [i for i, m in enumerate(features) if isinstance(m, nn.MaxPool2d) and i]
            found = [f"{prefix}features.{names[i - 1]}" for i in pooled]
        if found:
            return resolve_layers(model, [INPUT, *found])
    last = {shape: name for name, shape in shapes.items() if shape != (1, 1)}  # in the order of the calls
    return resolve_layers(model, [INPUT, *last.values()])


def last_convolutions(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return the last convolution at or before each of some layers, as the model registers them."""
    names = [name for name, _ in model.named_modules()]
    convolutions = [i for i, (_, m) in enumerate(model.named_modules()) if isinstance(m, nn.Conv2d)]
    found = []
    for layer in layers:
        inside = [i for i, name in enumerate(names) if name == layer or name.startswith(f"{layer}.")]
        found += [names[i] for i in convolutions if i <= max(inside, default=-1)][-1:]
    return list(dict.fromkeys(found))


def cascade_modules(model: nn.Module, image: Tensor, most: int) -> list[str]:
    """Return modules that hold all parameters in use, at most so many, for cascading randomisation.

    The largest are divided into their parts as long as there are not too many. A network whose parts at the
    top are more than that has a step for each of these.
    """
    called: set[str] = set()
    with _watching(model, lambda name, output: called.add(name)):
        forward(model, image)

    def parts(name: str) -> list[str]:
        prefix = f"{name}." if name else ""
        module = model.get_submodule(name)
        own = [prefix + n for n, child in module.named_children() if any(True for _ in child.parameters())]
        return [n for n in own if any(c == n or c.startswith(f"{n}.") for c in called)]

    def size(name: str) -> int:
        return sum(p.numel() for p in model.get_submodule(name).parameters())

    found = parts("")
    divisible = list(found)
    while divisible:
        largest = max(divisible, key=size)
        divisible.remove(largest)
        inner = parts(largest)
        bare = not any(True for _ in model.get_submodule(largest).parameters(recurse=False))
        if inner and bare and len(found) - 1 + len(inner) <= most:
            at = found.index(largest)
            found[at : at + 1] = inner
            divisible += inner
    return found


def _output_shapes(model: nn.Module, image: Tensor) -> dict[str, tuple[int, int]]:
    """{module: (h, w)} of those with spatial positions, in the order in which they end."""
    shapes: dict[str, tuple[int, int]] = {}

    def note(name: str, output: Any) -> None:
        shapes.pop(name, None)
        if isinstance(output, Tensor) and output.ndim == 4:
            shapes[name] = (output.shape[2], output.shape[3])

    with _watching(model, note):
        forward(model, image)
    return shapes


@contextlib.contextmanager
def _watching(model: nn.Module, tell: Callable[[str, Any], None]) -> Iterator[None]:
    """Tell a function what each module but the model itself gives."""

    def hook(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tell(name, output)

    hooks = [m.register_forward_hook(partial(hook, name)) for name, m in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
