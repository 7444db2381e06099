"""From what each location contributes to the gradient of the weights, to one number a location.

A contribution is a vector z, or a matrix u vᵀ that is never built: every aggregation is a function f of the
single entries, summed (or maximised) over them, and f(u_i v_j) = Σ_k f_k(u_i) f_k(v_j). So the matrix costs
as much as its two vectors.

Source: "There and Back Again: Revisiting Backpropagation Saliency Methods" (Rebuffi, Fong, Ji and Vedaldi,
2020), section 3.1.3 and table 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Aggregate:
    """The sum, or the largest, of f over a contribution's entries.

    Attributes:
        parts: f_1, f_2, …, with f(u v) = Σ_k f_k(u) f_k(v). The first alone is f of a vector's entries.
        largest: the largest entry instead of the sum.
        root: the square root of the result.
    """

    parts: tuple[Callable[[Tensor], Tensor], ...]
    largest: bool = False
    root: bool = False

    def over(self, values: Tensor, dim: int) -> Tensor:
        """Sum the values, or take the largest."""
        return values.amax(dim) if self.largest else values.sum(dim)

    def finish(self, values: Tensor) -> Tensor:
        """Take the root, if there is one."""
        return values.sqrt() if self.root else values


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def _negative(x: Tensor) -> Tensor:
    return (-x).clamp(min=0)


AGGREGATES = {
    "sum": Aggregate((lambda x: x,)),
    "max_abs": Aggregate((torch.abs,), largest=True),
    "norm": Aggregate((torch.square,), root=True),
    # An entry u·v is positive where the signs agree: the positive parts' product and the negative parts'.
    "positive_sum": Aggregate((_positive, _negative)),
    "positive_norm": Aggregate((lambda x: _positive(x).square(), lambda x: _negative(x).square()), root=True),
}


@dataclass(frozen=True)
class Window:
    """The patch of the input that a convolution sees at each location of its output; (height, width).

    Attributes:
        kernel: size in pixels.
        stride: pixels between two patches.
        dilation: pixels between two taps of a patch.
        padding: pixels added left, right, above and below.
        fill: how the padding is filled, in the words of ``torch.nn.functional.pad``.
    """

    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    fill: str = "constant"

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Window:
        """The patches of a convolution."""
        fill = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        return cls(conv.kernel_size, conv.stride, conv.dilation, _padding(conv), fill)

    def places(self, values: Tensor) -> tuple[int, ...]:
        """Return (h, w), the number of patches down and across the input (N, C, H, W)."""
        left, right, above, below = self.padding
        lengths = (values.shape[2] + above + below, values.shape[3] + left + right)
        return tuple(
            (length - d * (k - 1) - 1) // s + 1
            for length, k, s, d in zip(lengths, self.kernel, self.stride, self.dilation)
        )

    def gather(self, values: Tensor, aggregate: Aggregate) -> Tensor:
        """Aggregate (N, G, H, W) over the taps of each patch, to (N, G, h, w).

        By slices: a convolution with ones would lose bits to TF32 and autocast, and knows no maximum.
        """
        places = self.places(values)
        values = F.pad(values, self.padding, mode=self.fill)
        rows, columns = (
            [slice(d * tap, d * tap + s * (count - 1) + 1, s) for tap in range(k)]
            for k, s, d, count in zip(self.kernel, self.stride, self.dilation, places)
        )
        taps = (values[:, :, row, column] for row in rows for column in columns)
        return reduce(torch.maximum if aggregate.largest else torch.add, taps)


def aggregate_vectors(z: Tensor, aggregate: Aggregate) -> Tensor:
    """Map vectors z, (N, C, h, w) float32, to (N, h, w)."""
    return aggregate.finish(aggregate.over(aggregate.parts[0](z), 1))


def aggregate_outer(u: Tensor, v: Tensor, aggregate: Aggregate, window: Window, groups: int = 1) -> Tensor:
    """Map the matrices u unfold(v)ᵀ to a number a location, without building them.

    Args:
        u: (N, C', h, w) float32, the gradient at the output.
        v: (N, C, H, W) float32, the input.
        aggregate: how.
        window: the patch of v that belongs to each location of u.
        groups: of the convolution. The matrices of the groups are parts of one: their sums add up.

    Returns:
        (N, h, w).
    """

    def by_group(x: Tensor) -> Tensor:
        return aggregate.over(x.unflatten(1, (groups, -1)), 2)

    products = (by_group(part(u)) * window.gather(by_group(part(v)), aggregate) for part in aggregate.parts)
    return aggregate.finish(aggregate.over(reduce(torch.add, products), 1))


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    """Left, right, above, below; an odd pixel of ``same`` goes right and below, as torch has it."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        height, width = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size))
        return width // 2, width - width // 2, height // 2, height - height // 2
    height, width = (int(p) for p in conv.padding)
    return width, width, height, height
