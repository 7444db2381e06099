"""The named methods: NormGrad and its relatives, and those that the paper compares with.

Every method has ``maps(run, images)``, where ``run`` is a forward and a backward pass, and gives
{layer: (N, h, w)}, not scaled: what is larger is more salient.

Sources: table 2 of the paper; CAM (Zhou et al., 2016); Grad-CAM (Selvaraju et al., 2017); SmoothGrad (Smilkov
et al., 2017); integrated gradients (Sundararajan, Taly and Yan, 2017); for those that change the backward
pass, :mod:`scarcely.saliency.rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scarcely.errors import ConfigError
from scarcely.saliency.aggregate import AGGREGATES, aggregate_vectors
from scarcely.saliency.extract import ExtractAggregate, Pass
from scarcely.saliency.layers import INPUT
from scarcely.saliency.rules import ContrastiveExcitation, DeconvReLU, Excitation, GuidedReLU
from scarcely.spec import NonNegative, PositiveInt


class Method(Protocol):
    """What turns passes into maps.

    Attributes:
        single_pass: whether it takes one pass, of the images themselves.
    """

    @property
    def single_pass(self) -> bool: ...  # noqa: D102

    def maps(self, run: Pass, images: Tensor) -> dict[str, Tensor]:
        """Return {layer: (N, h, w) float32}."""


@dataclass(frozen=True)
class GradCAM:
    """(Σ_k a_k ḡ_k)₊, with ḡ the gradient's spatial mean; at layers before the last it means little."""

    single_pass = True

    def maps(self, run: Pass, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return {
            site.name: (site.activation * site.gradient.mean((2, 3), keepdim=True)).sum(1).clamp(min=0)
            for site in run(images)
        }


@dataclass(frozen=True)
class CAM:
    """Σ_k a_k w_k, with w the classifier's weights of the target class.

    They are taken as the spatial sum of the gradient, which they are if global average pooling and one
    linear layer follow. At any other layer it is Grad-CAM without its positive filter.
    """

    single_pass = True

    def maps(self, run: Pass, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return {
            site.name: (site.activation * site.gradient.sum((2, 3), keepdim=True)).sum(1)
            for site in run(images)
        }


@dataclass(frozen=True)
class ModifiedBackprop:
    """An extract-and-aggregate of a signal that is passed back by another rule.

    Attributes:
        rule: the rule's context, made anew for each pass.
        read: how the map is read from the signal.
        positive: only where it is positive.
        image: whether the rule goes down to the image. Excitation does not: it shares by activations
            that are not negative.
    """

    rule: Callable[[], TorchFunctionMode]
    read: ExtractAggregate
    positive: bool = False
    image: bool = True

    single_pass = True

    def maps(self, run: Pass, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        sites = run(images, rule=self.rule)
        if not self.image and any(site.name == INPUT for site in sites):
            raise ConfigError(
                "excitation backprop ends above the image, whose values may be negative",
                where="layers",
                instead="layers behind a ReLU",
            )
        maps = {site.name: self.read.map(site) for site in sites}
        return {name: m.clamp(min=0) for name, m in maps.items()} if self.positive else maps


@dataclass(frozen=True)
class SmoothGrad:
    """max_k |mean of g_k over noisy copies of the image|, at any layer; one pass a copy.

    Attributes:
        samples: number of copies.
        noise: standard deviation of the noise, as a share of each image's range.
        seed: of the noise.
    """

    samples: PositiveInt = 25
    noise: NonNegative = 0.15
    seed: int = 0

    single_pass = False

    def maps(self, run: Pass, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        generator = torch.Generator(images.device).manual_seed(self.seed)
        flat = images.flatten(1)
        deviation = self.noise * (flat.amax(1) - flat.amin(1)).view(-1, *[1] * (images.ndim - 1))
        total: dict[str, Tensor] = {}
        for _ in range(self.samples):
            noise = torch.empty_like(images).normal_(generator=generator)
            for site in run(images + deviation * noise):
                total[site.name] = site.gradient + total.get(site.name, 0)
        largest = AGGREGATES["max_abs"]
        return {name: aggregate_vectors(g / self.samples, largest) for name, g in total.items()}


@dataclass(frozen=True)
class IntegratedGradients:
    """Σ_k ∫ g_k da_k along the straight line from a baseline to the image; a pass for each end of a step.

    At the image this is the method of the source. At another layer it is the same integral along the way
    that the layer's activation takes meanwhile, so that at every layer the map sums up to what the target
    gains from the baseline to the image.

    Attributes:
        steps: of the trapezoidal rule.
        baseline: the value of every pixel of the image where the line starts.
    """

    steps: PositiveInt = 32
    baseline: float = 0.0

    single_pass = False

    def maps(self, run: Pass, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        start = torch.full_like(images, self.baseline)
        before = {site.name: site for site in run(start)}
        total: dict[str, Tensor] = {}
        for step in range(1, self.steps + 1):
            for site in run(torch.lerp(start, images, step / self.steps)):
                last = before[site.name]
                moved = site.activation - last.activation
                contribution = ((site.gradient + last.gradient) / 2 * moved).sum(1)
                total[site.name] = contribution + total.get(site.name, 0)
                before[site.name] = site
        return total


METHODS: dict[str, Method] = {
    "gradient": ExtractAggregate("bias", "max_abs"),
    "gradient_sum": ExtractAggregate("bias", "sum"),
    "linear_approximation": ExtractAggregate("scaling", "sum"),
    "grad_cam": GradCAM(),
    "cam": CAM(),
    "norm_grad": ExtractAggregate("conv", "norm"),
    "selective_norm_grad": ExtractAggregate("scaling", "positive_norm"),
    "norm_grad_conv": ExtractAggregate("conv", "norm", real=True),
    "guided_backprop": ModifiedBackprop(GuidedReLU, ExtractAggregate("bias", "max_abs")),
    "deconvnet": ModifiedBackprop(DeconvReLU, ExtractAggregate("bias", "max_abs")),
    "excitation_backprop": ModifiedBackprop(Excitation, ExtractAggregate("bias", "sum"), image=False),
    "contrastive_excitation_backprop": ModifiedBackprop(
        ContrastiveExcitation, ExtractAggregate("bias", "sum"), positive=True, image=False
    ),
    "smooth_grad": SmoothGrad(),
    "integrated_gradients": IntegratedGradients(),
}


def named(method: str | Method) -> Method:
    """Return the method of this name, or the method itself.

    Raises:
        ConfigError: there is none of this name.
    """
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise ConfigError(
            f"there is no saliency method {method!r}", where="method", instead=", ".join(METHODS)
        )
    return METHODS[method]
