"""Composite samples, made from several samples of a batch, and what they are made of.

Each function composes all the views of a batch alike and returns, beside the composed views, the
``(permutations, weights)`` of :func:`scarcely.functional.pairwise.mix_target`: composite j is made of
the samples ``permutations[s, j]`` with the shares ``weights[s]``.

All draws are made on the host, by a numpy generator: a generator in the same state composes the same
on every device, and no device has to be waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scarcely.spec import Positive

Composition = tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RicapDraw:
    """What RICAP drew for a batch of N images and V views of each.

    Attributes:
        boxes: (4, 4) int64, top, left, height and width of each patch in the composite, in pixels.
            Patches may be empty.
        offsets: (V, 4, 2) int64, top and left of each view's patches in the images that they are cut from.
        permutations: (4, N) int64, the images that each patch is cut from.
    """

    boxes: np.ndarray
    offsets: np.ndarray
    permutations: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """(4,) float64, each patch's share of the area."""
        areas = self.boxes[:, 2] * self.boxes[:, 3]
        return areas / areas.sum()


def ricap(
    views: Sequence[Tensor], generator: np.random.Generator, beta: Positive = 0.3, identity: bool = True
) -> Composition:
    """Random image cropping and patching ("Data Augmentation using RICAP", Takahashi et al., 2018).

    Four patches from four permutations of the batch make one image; the point where they meet is drawn
    once for the batch. All views share boxes and permutations, and each has its own crop positions.

    Args:
        views: V tensors (N, C, H, W) of one size.
        generator: the source of all draws.
        beta: parameter of the symmetric Beta distribution of the meeting point.
        identity: cut a patch of more than a quarter of the area from the image itself (LSD-C's code).

    Returns:
        The V composed views, with the memory format of the originals; permutations, (4, N) int64, and
        the patches' shares of the area, (4,) float32, on the views' device.

    Raises:
        ValueError: there are no views, or they are no image batches of one size.
    """
    if len(views) == 0 or any(view.ndim != 4 or view.shape != views[0].shape for view in views):
        raise ValueError(f"RICAP needs image batches (N, C, H, W) of one shape, not {_shapes(views)}")
    count, _, height, width = views[0].shape
    draw = draw_ricap(generator, count, height, width, len(views), beta, identity)
    permutations, weights = _on_device(draw.permutations, draw.weights, views[0].device)
    composed = tuple(
        apply_ricap(view, draw.boxes, offsets, permutations) for view, offsets in zip(views, draw.offsets)
    )
    return composed, (permutations, weights)


def draw_ricap(
    generator: np.random.Generator,
    count: int,
    height: int,
    width: int,
    views: int,
    beta: float,
    identity: bool,
) -> RicapDraw:
    """Draw the boxes, crop positions and permutations for a batch of ``count`` images."""
    w, h = round(width * generator.beta(beta, beta)), round(height * generator.beta(beta, beta))
    boxes = np.array(
        [
            (0, 0, h, w),
            (0, w, h, width - w),
            (h, 0, height - h, w),
            (h, w, height - h, width - w),
        ]
    )
    room = np.array([height, width]) - boxes[:, 2:]
    offsets = generator.integers(0, room, size=(views, 4, 2), endpoint=True)
    # Drawn even where the identity takes their place: the stream must not depend on the boxes.
    permutations = generator.permuted(np.tile(np.arange(count), (4, 1)), axis=1)
    if identity:
        large = 4 * boxes[:, 2] * boxes[:, 3] > height * width
        permutations[large] = np.arange(count)
    return RicapDraw(boxes, offsets, permutations)


def apply_ricap(view: Tensor, boxes: np.ndarray, offsets: np.ndarray, permutations: Tensor) -> Tensor:
    """Compose one view (N, C, H, W) of the patches ``boxes`` (4, 4), cut at ``offsets`` (4, 2)."""
    composed = torch.empty_like(view)
    patches = zip(boxes.tolist(), offsets.tolist(), permutations)
    for (top, left, height, width), (y, x), permutation in patches:
        crop = view[:, :, y : y + height, x : x + width]
        composed[:, :, top : top + height, left : left + width] = crop[permutation]
    return composed


def mixup(views: Sequence[Tensor], generator: np.random.Generator, beta: Positive = 0.3) -> Composition:
    """Mix each sample with a random other ("mixup: Beyond Empirical Risk Minimization", Zhang et al., 2018).

    x̃_j = λ x_j + (1 − λ) x_σ(j), with one λ ~ Beta(β, β) and one permutation σ for the batch and its views.

    Args:
        views: V floating-point tensors (N, ...), of any kind of sample.
        generator: the source of all draws.
        beta: β.

    Returns:
        The V composed views, with the memory format of the originals; permutations, the identity and σ,
        (2, N) int64, and weights, λ and 1 − λ, (2,) float32, on the views' device.

    Raises:
        ValueError: there are no views, or they differ in their number of samples.
    """
    if len(views) == 0 or any(len(view) != len(views[0]) for view in views):
        raise ValueError(f"MixUp needs views (N, ...) of the same samples, not {_shapes(views)}")
    count = len(views[0])
    share = generator.beta(beta, beta)
    pairs = np.stack([np.arange(count), generator.permutation(count)])
    permutations, weights = _on_device(pairs, np.array([share, 1 - share]), views[0].device)
    composed = tuple(torch.lerp(view[permutations[1]], view, share) for view in views)
    return composed, (permutations, weights)


def _on_device(permutations: np.ndarray, weights: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    # Blocking copies would wait for all that the device still has to do, and so may copies from memory
    # that is not pinned.
    drawn = (torch.from_numpy(permutations), torch.from_numpy(weights.astype(np.float32)))
    pinned = (tensor.pin_memory() if device.type == "cuda" else tensor for tensor in drawn)
    on_device = [tensor.to(device, non_blocking=True) for tensor in pinned]
    return on_device[0], on_device[1]


def _shapes(views: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(view.shape) for view in views]
