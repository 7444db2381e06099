"""What each location contributes to the gradient of spatially shared weights: extract, then aggregate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from scarcely.errors import ConfigError
from scarcely.saliency.aggregate import AGGREGATES, Window, aggregate_outer, aggregate_vectors


@dataclass
class Site:
    """What a forward and a backward pass leave at one layer.

    Attributes:
        name: of the layer.
        activation: a, (N, C, h, w) float32, the layer's output.
        gradient: g, (N, C, h, w) float32, of the target at the same place.
        module: the layer; None for the image.
        entry: (N, C', H, W) float32, the layer's input, where the pass was asked for it.
    """

    name: str
    activation: Tensor
    gradient: Tensor
    module: nn.Module | None = None
    entry: Tensor | None = None


class Pass(Protocol):
    """One forward and one backward pass of the images, to the sites in order."""

    def __call__(
        self,
        images: Tensor,
        *,
        rule: Callable[[], AbstractContextManager[object]] | None = None,
        entries: bool = False,
    ) -> list[Site]:
        """Run; under a rule of :mod:`scarcely.saliency.rules`; with the layers' inputs if asked for."""


@dataclass(frozen=True)
class ExtractAggregate:
    """A saliency method: one spatial contribution, aggregated one way (section 3.1, tables 1 and 2).

    Attributes:
        extract: of a ``bias`` g, of a ``scaling`` g⊙a, of a ``conv`` g unfold(a)ᵀ.
        aggregate: ``sum``, ``max_abs``, ``norm``, or after a positive filter ``positive_sum``,
            ``positive_norm``.
        real: of the weights of the layer itself: a convolution with its own stride, padding, dilation and
            groups, the scaling of a batch norm. Otherwise of a virtual identity behind the layer, which
            any layer may have. For a bias the two are the same.
        kernel_size: of a virtual convolution; odd.

    Raises:
        ConfigError: an unknown name, an even kernel size.
    """

    extract: Literal["bias", "scaling", "conv"] = "scaling"
    aggregate: Literal["sum", "max_abs", "norm", "positive_sum", "positive_norm"] = "positive_norm"
    real: bool = False
    kernel_size: int = 1

    single_pass = True

    def __post_init__(self) -> None:
        for key, value, known in (
            ("extract", self.extract, ("bias", "scaling", "conv")),
            ("aggregate", self.aggregate, tuple(AGGREGATES)),
        ):
            if value not in known:
                raise ConfigError(f"there is no {key} {value!r}", where=key, instead=", ".join(known))
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(
                f"a virtual identity has no {self.kernel_size} x {self.kernel_size} kernel",
                where="kernel_size",
                instead="an odd number, so that the kernel has a centre",
            )

    def maps(self, run: Pass, images: Tensor) -> dict[str, Tensor]:
        """Return {layer: (N, h, w)} from one pass."""
        return {site.name: self.map(site) for site in run(images, entries=self.real)}

    def map(self, site: Site) -> Tensor:
        """Return the (N, h, w) map of one layer.

        Raises:
            ConfigError: the layer has no weights of this kind.
        """
        aggregate = AGGREGATES[self.aggregate]
        if self.extract == "bias":
            return aggregate_vectors(site.gradient, aggregate)
        if self.extract == "scaling":
            scaled = _normalized(site) if self.real else site.activation
            return aggregate_vectors(site.gradient * scaled, aggregate)
        if self.real:
            conv, entry, window = _conv(site)
            return aggregate_outer(site.gradient, entry, aggregate, window, conv.groups)
        k = self.kernel_size
        window = Window(kernel=(k, k), padding=(k // 2,) * 4)
        return aggregate_outer(site.gradient, site.activation, aggregate, window)


def _conv(site: Site) -> tuple[nn.Conv2d, Tensor, Window]:
    if not isinstance(site.module, nn.Conv2d) or site.entry is None:
        raise _no_weights(site, "a convolution of its own", "the name of an nn.Conv2d")
    window = Window.of(site.module)
    if window.places(site.entry) != tuple(site.gradient.shape[2:]):  # a subclass that pads in its own way
        raise _no_weights(site, "the padding that it says", "a convolution that pads as nn.Conv2d does")
    return site.module, site.entry, window


def _normalized(site: Site) -> Tensor:
    """What a batch norm scales: its input, normalised."""
    norm = site.module
    if isinstance(norm, nn.BatchNorm2d) and site.entry is not None:
        return F.batch_norm(site.entry, norm.running_mean, norm.running_var, eps=norm.eps)
    raise _no_weights(site, "a scaling of its own", "the name of an nn.BatchNorm2d")


def _no_weights(site: Site, what: str, instead: str) -> ConfigError:
    kind = type(site.module).__name__ if site.module is not None else "image"
    return ConfigError(
        f"layer {site.name!r} ({kind}) does not have {what}",
        where="layers",
        instead=f"{instead}, or a method of a virtual identity",
    )
