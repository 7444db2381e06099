"""What a trained method looks at when it puts an image into its cluster: for the montages of a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scarcely.backbones.base import Backbone
from scarcely.saliency.attributor import attribute
from scarcely.saliency.combine import combine
from scarcely.saliency.weights import layer_weights

DEEPEST = 2  # blocks: below them maps know little of the class, and the last alone is coarse


def cluster_maps(
    model: nn.Module,
    backbone: Backbone,
    images: Tensor,
    clusters: Tensor,
    size: tuple[int, int],
) -> Tensor | None:
    """Map selective NormGrad of each image's cluster, of the backbone's last blocks with equal weights.

    Frozen blocks, which run without a graph, are mapped as well.

    Args:
        model: from images to (N, K) logits by way of the backbone, as a method of this project;
            in evaluation mode.
        backbone: a module of the model.
        images: (N, C, H, W), normalised, on the model's device.
        clusters: (N,), whose logit is explained.
        size: (h, w) of the maps.

    Returns:
        (N, h, w) float32 in [0, 1], on the device; None if no block of the backbone that takes part has
        spatial positions.
    """
    layers = _spatial_blocks(model, backbone, images[:1])[-DEEPEST:]
    if not layers:
        return None
    with _unfrozen(backbone):
        maps = attribute(model, images, clusters, layers, "selective_norm_grad")
    return combine(maps, size, layer_weights(model, None, layers, "uniform"))


def _spatial_blocks(model: nn.Module, backbone: Backbone, image: Tensor) -> list[str]:
    """Names of the blocks that the model runs and whose output is (N, C, h, w), in their order."""
    names = {module: name for name, module in model.named_modules()}
    found: list[str] = []

    def visit(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            found.append(names[module])

    hooks = [backbone.get_submodule(name).register_forward_hook(visit) for name in backbone.block_names]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def _unfrozen(backbone: Backbone) -> Iterator[None]:
    frozen = backbone.num_frozen
    backbone.num_frozen = 0
    try:
        yield
    finally:
        backbone.num_frozen = frozen
