"""What is explained: one scalar of the output a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from scarcely.errors import ConfigError

Target = int | Tensor | Literal["predicted"] | Callable[[Tensor], Tensor]
Loss = Literal["cross_entropy", "binary_cross_entropy"]
"""What a step of meta-saliency descends: that of the target class among all, or of that class by itself."""


def scores(output: Tensor, target: Target, count: int) -> Tensor:
    """Return the scalar that each sample's map explains: the logit of its target class.

    Args:
        output: of the model, (N, C) logits; whatever it gives where the target is a function.
        target: one class for all, (N,) int64, ``predicted``, or a function of the output to (N,).
        count: N.

    Returns:
        (N,), with the output's graph.

    Raises:
        ConfigError: the output is not (N, C), a class is out of range, the target is of another shape.
    """
    if callable(target):
        values = target(output)
        if not isinstance(values, Tensor) or values.shape != (count,):
            raise ConfigError(
                f"the target function gave {_shape(values)} for {count} images",
                where="target",
                instead=f"one scalar an image, ({count},)",
            )
        return values
    return output.gather(1, class_indices(output, target, count)[:, None])[:, 0]


def class_indices(output: Tensor, target: int | Tensor | str, count: int) -> Tensor:
    """Return the target class of each sample, (N,) int64. Raises as :func:`scores`."""
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count:
        raise ConfigError(
            f"the model's output is {_shape(output)} for {count} images, not (N, C)",
            where="model",
            instead="a classifier of logits, or a target that is a function from the output to (N,)",
        )
    if isinstance(target, str):
        if target != "predicted":
            raise ConfigError(f"there is no target {target!r}", where="target", instead="predicted")
        return output.argmax(dim=1)
    classes = torch.as_tensor(target, device=output.device)
    if classes.is_floating_point() or classes.dtype == torch.bool or classes.shape not in ((), (count,)):
        raise ConfigError(
            f"the target is {_shape(classes)} of {classes.dtype} for {count} images",
            where="target",
            instead=f"a class index, or ({count},) class indices",
        )
    classes = classes.long().expand(count)
    wrong = classes[(classes < 0) | (classes >= output.shape[1])]
    if len(wrong):
        raise ConfigError(
            f"there is no class {int(wrong[0])}: the model has {output.shape[1]}",
            where="target",
            instead=f"0 to {output.shape[1] - 1}",
        )
    return classes


def loss(output: Tensor, target: Target, count: int, kind: Loss = "cross_entropy") -> Tensor:
    """Return the loss of the target class, summed over samples.

    ``cross_entropy``: −log softmax, for networks that tell classes apart. ``binary_cross_entropy``: −log of
    the class's own sigmoid, for networks with several labels an image. Of a function −Σ (as of a
    log-probability).

    Raises:
        ConfigError: another kind; else as :func:`scores`.
    """
    if kind not in get_args(Loss):
        raise ConfigError(
            f"there is no loss {kind!r}", where="meta_loss", instead=" or ".join(get_args(Loss))
        )
    own = scores(output, target, count)
    if callable(target):
        return -own.sum()
    if kind == "binary_cross_entropy":
        return -F.logsigmoid(own.float()).sum()
    return F.cross_entropy(output.float(), class_indices(output, target, count), reduction="sum")


def of_sample(target: Target, index: int, count: int) -> Target:
    """Return the target of one sample, for the model's output for that sample alone.

    A function expects the whole batch, whose samples it may tell apart: it is given the sample's output as
    often as there are samples.
    """
    if isinstance(target, Tensor) and target.ndim:
        return target[index : index + 1]
    if not callable(target):
        return target

    def of_output(output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"a model that gives {_shape(output)} has no meta-saliency of a target function",
                where="target",
                instead="a model whose output is one tensor, or meta_lr=0",
            )
        return target(output.expand(count, *output.shape[1:]))[index : index + 1]

    return of_output


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
