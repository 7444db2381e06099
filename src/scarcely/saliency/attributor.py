"""Saliency maps at any layers of a classifier, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import chain
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.func import functional_call

from scarcely.errors import ConfigError
from scarcely.saliency.extract import Site
from scarcely.saliency.layers import INPUT, resolve_layers
from scarcely.saliency.meta import sgd_step
from scarcely.saliency.methods import Method, named
from scarcely.saliency.target import Loss, Target, class_indices, of_sample, scores


def attribute(
    model: nn.Module,
    images: Tensor,
    target: Target,
    layers: str | Sequence[str],
    method: str | Method = "selective_norm_grad",
    meta_lr: float = 0.0,
    meta_loss: Loss = "cross_entropy",
) -> dict[str, Tensor]:
    """Map what the model looks at when it gives the images' targets.

    The model runs in evaluation mode. Afterwards it is as before: modes, parameters, their ``grad`` and
    ``requires_grad``, hooks. Under autocast and for channels_last models maps are float32 all the same.

    Args:
        model: from (N, C, H, W) to (N, classes) logits.
        images: (N, C, H, W), on the model's device.
        target: what is explained, a scalar an image: the logit of one class, of (N,) classes, of the class
            that is ``predicted``; or a function from the model's output, of whatever form, to (N,).
        layers: module names or globs (``layer*``, ``features.3``), ``input`` for the image. Of a module that
            is called several times in a pass, the last call counts.
        method: a name of ``METHODS``, or a method such as ``ExtractAggregate("conv", "sum")``.
        meta_lr: meta-saliency: the maps of the weights after one SGD step of this rate on the image's own
            loss, one step an image; 0.002 in the paper. A negative rate ascends; 0 takes no step.
        meta_loss: of the target class: ``cross_entropy``, or ``binary_cross_entropy`` for a network that
            was trained with several labels an image. Of a function as target it is its negative value.

    Returns:
        {layer name: (N, h, w) float32}, the image first, then as the model registers its modules.

    Raises:
        ConfigError: a layer that does not exist, has no spatial positions, takes no part or gets no gradient;
            an output that is not (N, classes); a target out of range; an unknown method, or one that does
            not suit the layer; inference mode.
    """
    with Attributor(model, layers) as attributor:
        return attributor(images, target, method, meta_lr, meta_loss)


class Attributor:
    """:func:`attribute` for repeated use, with the same layers of the same model.

        with Attributor(model, "layer*") as attributor:
            maps = attributor(images, "predicted", "norm_grad")

    Inside the block the model is in evaluation mode and its parameters ask for no gradient.

    Args:
        model: as for :func:`attribute`.
        layers: as for :func:`attribute`.
    """

    def __init__(self, model: nn.Module, layers: str | Sequence[str]) -> None:
        self.model = model
        self.layers = resolve_layers(model, layers)
        self._held: ExitStack | None = None
        self._sites: dict[str, Site] | None = None  # of the pass under way
        self._entries = False

    def __enter__(self) -> Attributor:
        _refuse_inference(self.model)
        with ExitStack() as stack:
            stack.enter_context(_frozen(self.model))
            for name in self.layers:
                if name != INPUT:
                    hook = self.model.get_submodule(name).register_forward_hook(partial(self._visit, name))
                    stack.callback(hook.remove)
            self._held = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        target: Target,
        method: str | Method = "selective_norm_grad",
        meta_lr: float = 0.0,
        meta_loss: Loss = "cross_entropy",
    ) -> dict[str, Tensor]:
        """Return {layer: (N, h, w)} as :func:`attribute` does, which also says what is raised."""
        method = named(method)
        images = self._ready(images)
        if isinstance(target, str) and (meta_lr or not method.single_pass):
            target = class_indices(self.model(images), target, len(images))  # one class for all passes
        if not meta_lr:
            return method.maps(partial(self._pass, target), images)
        # Sample by sample, with the memory of one more set of weights. Under vmap a ResNet-18 takes twice as
        # long on a CPU (a tiny network half), and neither rules nor all in-place operations work.
        maps = []
        for i, image in enumerate(images.split(1)):
            own = of_sample(target, i, len(images))
            parameters = sgd_step(self.model, image, own, meta_lr, meta_loss)
            maps.append(method.maps(partial(self._pass, own, parameters=parameters), image))
        return {name: torch.cat([of_image[name] for of_image in maps]) for name in self.layers}

    @torch.no_grad()
    def activations(self, images: Tensor) -> dict[str, Tensor]:
        """Return {layer: (N, C, h, w) float32} from a forward pass alone."""
        _, sites = self._forward(self._ready(images), None)
        return {site.name: site.activation.detach().float() for site in sites}

    def _ready(self, images: Tensor) -> Tensor:
        if self._held is None:
            raise RuntimeError("an Attributor works inside its with block")
        _refuse_inference(None)
        return images.clone() if images.is_inference() else images.detach()

    def _pass(
        self,
        target: Target,
        images: Tensor,
        *,
        parameters: dict[str, Tensor] | None = None,
        rule: Callable[[], AbstractContextManager[object]] | None = None,
        entries: bool = False,
    ) -> list[Site]:
        """One forward and one backward, to the sites in order."""
        self._entries = entries
        with torch.enable_grad():
            output, sites = self._forward(images, parameters, rule)
            total = scores(output, target, len(images)).sum()
        reached = [site.activation for site in sites]
        gradients: Sequence[Tensor | None] = [None] * len(sites)
        if total.requires_grad:
            gradients = torch.autograd.grad(total, reached, allow_unused=True)
        for site, gradient in zip(sites, gradients):
            if gradient is None:
                raise ConfigError(
                    f"no gradient of the target reaches layer {site.name!r}",
                    where="layers",
                    instead="a layer that the target depends on, in a part of the model that runs"
                    " neither under no_grad (as frozen blocks may) nor detached",
                )
            site.activation, site.gradient = site.activation.detach().float(), gradient.float()
        return sites

    def _forward(
        self,
        images: Tensor,
        parameters: dict[str, Tensor] | None,
        rule: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> tuple[Tensor, list[Site]]:
        sites: dict[str, Site] = {}
        self._sites = sites
        try:
            with rule() if rule is not None else nullcontext():
                if INPUT in self.layers:
                    images = self._visit(INPUT, None, (), images)
                if parameters is None:
                    output = self.model(images)
                else:
                    output = functional_call(self.model, parameters, (images,))
        finally:
            self._sites = None
        missing = [name for name in self.layers if name not in sites]
        if missing:
            raise ConfigError(
                f"the forward pass does not reach {', '.join(map(repr, missing))}",
                where="layers",
                instead="layers that the model calls when it is evaluated",
            )
        return output, [sites[name] for name in self.layers]

    def _visit(
        self, name: str, module: nn.Module | None, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        """Keep a layer's output, and hand on a copy: what comes next may work in place."""
        if self._sites is None:
            return output
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"layer {name!r} has no spatial positions: its output is {shape}",
                where="layers",
                instead="layers whose output is (N, C, h, w)",
            )
        # The graph begins at the first layer that is asked for: nothing below it is differentiated. A copy is
        # kept, too: a module may return its very input, into which others write.
        kept = output.clone() if output.requires_grad else output.detach().clone().requires_grad_()
        entry = inputs[0].detach().clone().float() if self._entries and inputs else None
        self._sites[name] = Site(name, kept, kept, module, entry)
        return kept.clone()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradient for the parameters; everything as before in the end."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _refuse_inference(model: nn.Module | None) -> None:
    made = model is not None and any(t.is_inference() for t in chain(model.parameters(), model.buffers()))
    if made or torch.is_inference_mode_enabled():
        raise ConfigError(
            "inference mode has no gradients" + (": the model was made in it" if made else ""),
            where="the caller's torch.inference_mode (of a Trainer: inference_mode=True)",
            instead="torch.no_grad, and inference_mode=False for a Trainer",
        )
