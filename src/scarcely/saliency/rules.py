"""Backward passes that are not the gradient's: the methods that the paper compares with.

A rule is a context: what the model does inside it is computed as ever, and propagated back differently.
Functions are intercepted where they are called, in place or not, whether by a module or by hand.

Sources: deconvnet (Zeiler and Fergus, 2014); guided backprop (Springenberg et al., 2014); excitation backprop
and its contrastive form ("Top-down Neural Attention by Excitation Backprop", Zhang et al., 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]

_RELUS: set[Function] = {F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_WEIGHTED: set[Function] = {F.conv2d, F.linear}
_MEANS: set[Function] = {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, Tensor.mean}
_SUMS: set[Function] = {torch.add, Tensor.add, Tensor.add_}


class GuidedReLU(TorchFunctionMode):
    """A ReLU passes back what is positive, where its input was positive (guided backprop)."""

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_relu(func, kwargs):
            return func(*args, **kwargs)
        return _call(self._backward, args[0], lambda x: func(x, *args[1:], **kwargs))

    @staticmethod
    def _backward(x: Tensor, y: Tensor, signal: Tensor) -> Tensor:
        return signal.clamp(min=0) * ((x > 0) & (x == y))  # a ReLU6 is flat at 6 too


class DeconvReLU(GuidedReLU):
    """A ReLU passes back what is positive, wherever (deconvnet)."""

    @staticmethod
    def _backward(x: Tensor, y: Tensor, signal: Tensor) -> Tensor:
        return signal.clamp(min=0)


class Excitation(TorchFunctionMode):
    """The probability that a unit wins, passed back from winner to winner (excitation backprop, eq. 3).

    A unit shares its probability p_i among the units below by a_j w⁺_ij / Σ_j a_j w⁺_ij. Convolutions, linear
    layers and averages share so, sums of two branches by the size of the summands; ReLU, batch norm and
    dropout have one unit below and hand all to it; max-pooling hands it to the winner. Anything else
    passes on its ordinary gradient. Units below count where they are positive: of a layer behind a linear
    bottleneck, whose inputs may all be negative, probability is lost.
    """

    contrastive = False

    def __init__(self) -> None:
        super().__init__()
        self._top: object = None

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}

        def of_first(x: Tensor) -> Tensor:
            result: Tensor = func(x, *args[1:], **kwargs)
            return result

        if func in _WEIGHTED:
            return self._weighted(func, *args, **kwargs)
        if func in _MEANS:
            return _call(_sharing(of_first), args[0], of_first)
        if _is_relu(func, kwargs) or func in (F.batch_norm, F.dropout):
            return _call(lambda x, y, p: p, args[0], of_first)
        if func in _SUMS and not kwargs and _alike(*args):
            total = _Sum.apply(*args)
            return args[0].copy_(total) if func is Tensor.add_ else total
        return func(*args, **kwargs)

    def _weighted(
        self, func: Function, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        self._top = here = object()  # the last to be called is the classifier

        def share(x: Tensor, y: Tensor, p: Tensor, sign: int = 1) -> Tensor:
            excitatory = (sign * weight.detach().float()).clamp(min=0)
            return _sharing(lambda a: func(a, excitatory, None, *args, **kwargs))(x, y, p)

        def contrast(x: Tensor, y: Tensor, p: Tensor) -> Tensor:
            target = share(x, y, p)
            return target - share(x, y, p, -1) if self.contrastive and self._top is here else target

        return _call(contrast, x, lambda x: func(x, weight, bias, *args, **kwargs))


class ContrastiveExcitation(Excitation):
    """Excitation of the target less that of "not the target", whose weights have the other sign.

    The two part at the classifier, the last convolution or linear layer; below it their difference is passed
    back, since all of it is linear in p (section 3.3 of the source).
    """

    contrastive = True


def _is_relu(func: Function, kwargs: Mapping[str, Any]) -> bool:
    return func in _RELUS or (func is F.hardtanh and kwargs["min_val"] == 0)  # which is what nn.ReLU6 calls


def _call(
    backward: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, func: Callable[[Tensor], Tensor]
) -> Tensor:
    """Call a function, in place if it is that, and give it another backward: (x, y, signal) to signal."""
    with torch.no_grad():
        scratch = x.clone()
        y = func(scratch)
    y = _Rule.apply(x, y, backward)
    return x.copy_(y) if scratch._version else y


class _Rule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rule: Function) -> Tensor:
        ctx.rule = rule
        # Copies: what comes after may write into the input or into the output.
        ctx.save_for_backward(x.clone(), y)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None, None]:
        x, y = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            return ctx.rule(x.float(), y.float(), signal.float()).to(x.dtype), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a.clamp(min=0), b.clamp(min=0))
        return a + b

    @staticmethod
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        share = _divided(p, a + b)
        return a * share, b * share


def _sharing(excite: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The backward that shares p by a_j w⁺_ij, where ``excite`` is Σ_j a_j w⁺_ij."""

    def backward(x: Tensor, y: Tensor, p: Tensor) -> Tensor:
        with torch.enable_grad():
            a = x.clamp(min=0).requires_grad_()
            total = excite(a)
        (weights,) = torch.autograd.grad(total, a, _divided(p, total.detach()))
        return a.detach() * weights

    return backward


def _divided(p: Tensor, total: Tensor) -> Tensor:
    """p / total; where nothing excites the unit, its probability has nowhere to go."""
    return torch.where(total > 0, p / total, 0)


def _alike(*args: Any) -> bool:
    return len(args) == 2 and all(isinstance(a, Tensor) for a in args) and args[0].shape == args[1].shape
