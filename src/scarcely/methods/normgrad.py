"""What a classifier looks at: maps of several methods at several layers, and combined ones (chapter 8).

Nothing is trained: a test feeds images to one evaluation at a time, a prediction gives maps.

Source: "There and Back Again: Revisiting Backpropagation Saliency Methods" (Rebuffi, Fong, Ji and Vedaldi,
2020).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from scarcely.errors import ConfigError
from scarcely.metrics.pointing import Objects
from scarcely.metrics.sensitivity import resize
from scarcely.saliency import METHODS, Attributor, ExtractAggregate, combine
from scarcely.saliency.extract import Pass
from scarcely.saliency.layers import INPUT, resolve_layers
from scarcely.saliency.methods import CAM, GradCAM, Method
from scarcely.saliency.target import Loss
from scarcely.spec import Annotated, Literal, NonNegative, NonNegativeInt, PositiveInt, Range

MethodName = Literal[
    "gradient",
    "gradient_sum",
    "linear_approximation",
    "grad_cam",
    "cam",
    "norm_grad",
    "selective_norm_grad",
    "norm_grad_conv",
    "guided_backprop",
    "deconvnet",
    "excitation_backprop",
    "contrastive_excitation_backprop",
    "smooth_grad",
    "integrated_gradients",
]
EvaluationName = Literal["pointing", "sensitivity", "randomization", "identity", "meta", "epochs"]
Weighting = Literal["spread", "accuracy", "linear", "uniform"]

META = "-meta"  # behind the name of a method: with meta-saliency
COMBINED = "combined-"  # before HOW-WEIGHTS, in the place of a layer

Maps = dict[str, dict[str, Tensor]]
"""{method: {layer: (N, h, w)}}, of the layers that suit the method."""


class Explained(NamedTuple):
    """Images of one size and what is explained of each; an image comes once for each of its classes.

    Attributes:
        images: (N, C, H, W), normalised.
        targets: (N,) int64, columns of the classifier's output.
        classes: N classes of the data, the same as the targets.
        objects: N annotations, those of the images.
        index: N places of the images in their pool.
    """

    images: Tensor
    targets: Tensor
    classes: Sequence[int] = ()
    objects: Sequence[Objects] = ()
    index: Sequence[int] = ()  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.images.shape[-2:]
        return height, width


class Evaluation(Protocol):
    """What a test asks of the maps."""

    def update(self, module: NormGrad, batch: Explained) -> None:
        """Look at a batch."""

    def metrics(self) -> dict[str, float]:
        """Return the scores over all batches; what is undefined is absent."""


@dataclass(frozen=True)
class Together:
    """Methods that read their maps from one and the same pass: {layer: (N · methods, h, w)}.

    The maps of an image follow one another: with meta-saliency images come one by one, and are joined.
    """

    methods: tuple[Method, ...]

    single_pass = True

    @classmethod
    def of(cls, names: Sequence[str]) -> Together:
        """Return the methods of these names."""
        return cls(tuple(METHODS[name] for name in names))

    def maps(self, run: Pass, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        sites = run(images)
        each = [method.maps(lambda images, **_: sites, images) for method in self.methods]
        return {name: torch.stack([m[name] for m in each], dim=1).flatten(0, 1) for name in each[0]}


class NormGrad(pl.LightningModule):
    """Saliency maps of a classifier, and how good they are.

    Args:
        model: from (N, C, H, W) to (N, K) logits; it is explained, never changed.
        methods: what makes the maps.
        layers: where: module names or globs, ``input``; ``auto`` is settled by the run.
        weights: how layers are weighted in combined maps.
        how: how maps are combined.
        meta_lr: step of meta-saliency, 2ε of section 4.4.
        meta_loss: what that step descends: the loss of a class among all, or by itself, as a network with
            several labels an image learns; ``auto`` is settled by the run.
        meta_methods: those that are evaluated with meta-saliency too.
        evaluations: what is evaluated.
        tolerance: of the pointing game, pixels of the original image.
        shorter: pixels that the shorter side of an image has in the network; ``auto`` is the size at which
            the data keeps its images, null leaves each as it is.
        max_images: images of each evaluation; null for all.
        examples: images whose maps are kept for pictures.
        probe_images: images of the train part that layers are weighted on.
        cascade_steps: most modules that the randomisation goes through.
        class_map: outputs of the model that stand for each class of the data, a JSON file or the name of a
            shipped one; null where the model has the data's classes.
        layer_weights: file of layer weights that an earlier run has found.
    """

    evaluation: Evaluation | None = None  # of the test under way
    layer_weights: dict[str, dict[str, float]]  # {weighting: {layer: weight}}
    shown: tuple[str, str] = ("selective_norm_grad", f"{COMBINED}sum-uniform")  # what a prediction gives

    def __init__(
        self,
        model: nn.Module,
        methods: list[MethodName],
        layers: Literal["auto"] | str | list[str] = "auto",
        weights: list[Weighting] | None = None,
        how: list[Literal["sum", "product"]] | None = None,
        meta_lr: Annotated[float, Range(above=0)] = 0.002,
        meta_loss: Literal["auto", "cross_entropy", "binary_cross_entropy"] = "auto",
        meta_methods: list[MethodName] | None = None,
        evaluations: list[EvaluationName] | None = None,
        tolerance: NonNegative = 15.0,
        shorter: Literal["auto"] | PositiveInt | None = "auto",
        max_images: dict[EvaluationName, PositiveInt | None] | None = None,
        examples: NonNegativeInt = 4,
        probe_images: PositiveInt = 1000,
        cascade_steps: PositiveInt = 16,
        class_map: str | None = None,
        layer_weights: str | None = None,
    ) -> None:
        super().__init__()
        # In a tuple, since what Lightning sees as a part of this module would be given its trainer, and a
        # randomised copy of the classifier would copy that.
        self._classifier = (model,)
        self.layers = [INPUT] if layers == "auto" else resolve_layers(model, layers)
        self.methods = tuple(dict.fromkeys(methods))
        self.meta_methods = tuple(dict.fromkeys(meta_methods or ()))
        self.weights, self.how = tuple(weights or ()), tuple(how or ())
        self.meta_lr, self.tolerance = meta_lr, tolerance
        self.meta_loss: Loss = "cross_entropy" if meta_loss == "auto" else meta_loss
        self.evaluations = tuple(evaluations or ())
        self.shorter = shorter
        self.max_images = dict(max_images or {})
        self.examples, self.probe_images = examples, probe_images
        self.cascade_steps = cascade_steps
        self.class_map, self.weights_file = class_map, layer_weights
        self.layer_weights = {}

    def of(self, classifier: nn.Module) -> NormGrad:
        """Return the same settings for a model with the same layers, such as this one at another epoch."""
        other = copy.copy(self)
        other._classifier = (classifier,)
        return other

    @property
    def classifier(self) -> nn.Module:
        """The model that is explained."""
        return self._classifier[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All methods that are evaluated, those with meta-saliency as ``NAME-meta``, in a fixed order."""
        return (*self.methods, *(name + META for name in self.meta_methods))

    @property
    def weightings(self) -> tuple[str, ...]:
        """The ways to combine layers, ``HOW-WEIGHTS``."""
        return tuple(f"{how}-{weights}" for weights in self.weights for how in self.how)

    def layers_of(self, name: str) -> tuple[str, ...]:
        """Return the layers that suit a method: no convolution is no layer for the real weights of one."""
        method: Any = METHODS[name.removesuffix(META)]
        layers = self.layers
        if isinstance(method, ExtractAggregate) and method.real:
            convolutions = {n for n, m in self.classifier.named_modules() if isinstance(m, nn.Conv2d)}
            layers = [layer for layer in layers if layer in convolutions]
        elif not getattr(method, "image", True):
            layers = [layer for layer in layers if layer != INPUT]
        return tuple(layers)

    def maps(self, images: Tensor, targets: Tensor, names: Sequence[str]) -> Maps:
        """Return maps of methods by name, at all layers that suit each.

        Args:
            images: (N, C, H, W).
            targets: (N,) columns of the classifier's output.
            names: of `names`.
        """
        found: Maps = {}
        for group, method, lr in self.passes(names):
            with Attributor(self.classifier, self.layers_of(group[0])) as attributor:
                for layer, rows in attributor(images, targets, method, lr, self.meta_loss).items():
                    for name, m in zip(group, rows.unflatten(0, (-1, len(group))).unbind(dim=1), strict=True):
                        found.setdefault(name, {})[layer] = m
        return {name: found[name] for name in names}

    def passes(self, names: Sequence[str]) -> list[tuple[list[str], Method, float]]:
        """Return names that share their passes, what makes their maps, and the rate of meta-saliency.

        The maps of several names are those of `Together`.
        """
        found: list[tuple[list[str], Method, float]] = []
        for suffix, lr in (("", 0.0), (META, self.meta_lr)):
            own = [n.removesuffix(META) for n in names if n.endswith(META) == bool(suffix)]
            plain = [n for n in own if _reads_plain_pass(METHODS[n])]
            if plain:
                found.append(([n + suffix for n in plain], Together.of(plain), lr))
            found += [([n + suffix], METHODS[n], lr) for n in own if n not in plain]
        return found

    def combined(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Return {``HOW-WEIGHTS``: (N, H, W)} of the maps of a method's layers."""
        return {
            f"{how}-{weights}": combine(maps, size, self.layer_weights[weights], how)
            for weights in self.weights
            for how in self.how
        }

    @torch.no_grad()
    def most_and_least(self, images: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the most and the least probable of some outputs for each image, (N,) each."""
        columns = torch.tensor(classes, device=images.device)
        logits = self.classifier(images)[:, columns]
        return columns[logits.argmax(dim=1)], columns[logits.argmin(dim=1)]

    # -- what Lightning calls -----------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch, which comes on the device."""
        return batch

    def test_step(self, batch: Explained, batch_idx: int) -> None:
        """Show a batch to the evaluation under way."""
        assert self.evaluation is not None, "a test runs an evaluation"
        self.evaluation.update(self, batch)

    def on_test_epoch_end(self) -> None:
        """Keep the scores of the evaluation."""
        assert self.evaluation is not None
        self.scores = self.evaluation.metrics()

    def predict_step(self, batch: Explained, batch_idx: int = 0) -> Tensor:
        """Return the maps of `shown`, (N, H, W) of the size of the images."""
        name, layer = self.shown
        maps = self.maps(batch.images, batch.targets, [name])[name]
        if layer in maps:
            return resize(maps[layer], batch.size)
        how, _, weights = layer.removeprefix(COMBINED).partition("-")
        if not layer.startswith(COMBINED) or weights not in self.layer_weights:
            known = [*maps, *(COMBINED + weighting for weighting in self.weightings)]
            raise ConfigError(
                f"there is no map of {name} at {layer!r}", where="layer", instead=", ".join(known)
            )
        return combine(maps, batch.size, self.layer_weights[weights], how)  # type: ignore[arg-type]


def _reads_plain_pass(method: Method) -> bool:
    return isinstance(method, GradCAM | CAM) or (isinstance(method, ExtractAggregate) and not method.real)
