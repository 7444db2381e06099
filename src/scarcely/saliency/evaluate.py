"""Whether maps depend on what they should: on the class and on the weights.

The pointing game and the correlation itself are in :mod:`scarcely.metrics`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scarcely.errors import ConfigError
from scarcely.metrics.sensitivity import Correlation, class_sensitivity, correlate, resize
from scarcely.saliency.attributor import Attributor, attribute
from scarcely.saliency.extract import ExtractAggregate
from scarcely.saliency.layers import INPUT, resolve_layers
from scarcely.saliency.methods import Method
from scarcely.saliency.target import Loss, Target, class_indices


def class_sensitivities(
    model: nn.Module,
    images: Tensor,
    layers: str | Sequence[str],
    method: str | Method = "selective_norm_grad",
    meta_lr: float = 0.0,
    meta_loss: Loss = "cross_entropy",
) -> dict[str, Correlation]:
    """Correlate the maps of the most and the least probable class of each image (section 4.3).

    Args: as for ``attribute``. Maps are resized to the images.

    Returns:
        {layer: correlation}; over batches, put ``Correlation.of`` around the ``each`` of all.
    """

    with Attributor(model, layers) as attributor, torch.no_grad():
        logits = model(images)
        most, least = (
            attributor(images, class_indices(signed, "predicted", len(images)), method, meta_lr, meta_loss)
            for signed in (logits, -logits)
        )
    return {name: class_sensitivity(most[name], least[name], _size(images)) for name in most}


def correlations(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], size: tuple[int, int]
) -> dict[str, Correlation]:
    """Correlate two methods' maps layer by layer, resized to (H, W): with and without meta-saliency, say."""
    return {name: correlate(a[name], b[name], size) for name in a}


def identity_correlations(
    model: nn.Module, images: Tensor, target: Target, layers: str | Sequence[str]
) -> dict[str, Correlation]:
    """Correlate NormGrad of real convolutions with that of a virtual identity behind each (section 4.1).

    Args: as for ``attribute``; every layer an nn.Conv2d.

    Returns:
        {layer: correlation}, of maps resized to the images.
    """
    with Attributor(model, layers) as attributor:
        real = attributor(images, target, "norm_grad_conv")
        virtual = attributor(images, target, ExtractAggregate("conv", "norm"))
    return correlations(real, virtual, _size(images))


@dataclass(frozen=True)
class RandomizationStep:
    """One step of the cascade.

    Attributes:
        module: the name of what was randomised last; empty for the model as it is, the first step.
        maps: {layer: (N, h, w)} of the network as it is by now.
        correlations: {layer: correlation} with the first step's maps.
    """

    module: str
    maps: dict[str, Tensor]
    correlations: dict[str, Correlation]


def cascading_randomization(
    model: nn.Module,
    images: Tensor,
    target: Target,
    layers: str | Sequence[str],
    method: str | Method = "selective_norm_grad",
    meta_lr: float = 0.0,
    meta_loss: Loss = "cross_entropy",
    modules: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[RandomizationStep]:
    """Re-initialise the network from its head down, module by module, and watch the maps (section 4.5).

    Maps that do not depend on the weights stay as they are. The model itself is left alone.

    Args:
        model: as for ``attribute``, as are images, layers, method, meta_lr and meta_loss.
        images: see there.
        target: see there; ``predicted`` means what the model predicts as it is.
        layers: see there.
        method: see there.
        meta_lr: see there.
        meta_loss: see there.
        modules: names or globs of what is randomised, one a step, the last registered first, with all inside
            it; every module with parameters of its own by default.
        seed: of the new weights.

    Yields:
        The model as it is, then a step for each module.
    """
    size = _size(images)
    model = copy.deepcopy(model).eval()
    if isinstance(target, str):
        with torch.no_grad():
            target = class_indices(model(images), target, len(images))
    first = attribute(model, images, target, layers, method, meta_lr, meta_loss)
    yield RandomizationStep("", first, correlations(first, first, size))
    for step, name in enumerate(reversed(_with_parameters(model, modules))):
        _randomize(model.get_submodule(name), seed + step)  # or equal layers would get equal weights
        maps = attribute(model, images, target, layers, method, meta_lr, meta_loss)
        yield RandomizationStep(name, maps, correlations(first, maps, size))


def quantus_explainer(
    layer: str,
    method: str | Method = "selective_norm_grad",
    meta_lr: float = 0.0,
    meta_loss: Loss = "cross_entropy",
) -> Callable[..., np.ndarray]:
    """Return an ``explain_func`` for Quantus: maps of one layer, resized to the images, (N, 1, H, W)."""

    def explain(model: nn.Module, inputs: Any, targets: Any, **_: object) -> np.ndarray:
        device = next(model.parameters()).device
        images = torch.as_tensor(inputs, dtype=torch.float32, device=device)
        maps = attribute(model, images, torch.as_tensor(targets), layer, method, meta_lr, meta_loss)
        return resize(maps[layer], _size(images))[:, None].cpu().numpy()

    return explain


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height, width


def _with_parameters(model: nn.Module, modules: str | Sequence[str] | None) -> list[str]:
    if modules is not None:
        names = [name for name in resolve_layers(model, modules) if name != INPUT]
        bare = [name for name in names if not any(True for _ in model.get_submodule(name).parameters())]
        if bare:
            raise ConfigError(
                f"there are no parameters in {', '.join(bare)}",
                where="modules",
                instead="modules with weights",
            )
        return names
    return [
        name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))
    ]


def _randomize(module: nn.Module, seed: int) -> None:
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        torch.manual_seed(seed)
        for part in module.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
                continue
            for parameter in part.parameters(recurse=False):  # as spread as before
                parameter.normal_(parameter.mean().item(), parameter.std(correction=0).item())
