"""RevNet-18: reversible blocks, whose activations are computed again in the backward pass, not stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from scarcely.backbones.base import Backbone, he_initialise
from scarcely.errors import ConfigError
from scarcely.spec import PositiveInt


class Residual(nn.Module):
    """The basic residual function: twice BatchNorm, ReLU, 3×3 convolution (Gomez et al., 2017, eq. 4)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, channels_out, H / stride, W / stride)``, sizes rounded up."""
        x = self.conv1(F.relu(self.bn1(x), inplace=True))
        return self.conv2(F.relu(self.bn2(x), inplace=True))


class TransitionBlock(nn.Module):
    """A residual block that changes shape, hence not reversible; the skip is that of our ResNet-18.

    The skip halves by average pooling and appends zero channels.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, channels_out - channels_in
        self.residual = Residual(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, channels_out, H / stride, W / stride)``, sizes rounded up."""
        y = self.residual(x)
        # ceil_mode: an odd side must meet the convolution's rounding up
        x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        return y + F.pad(x, (0, 0, 0, 0, 0, self.extra))


class ReversibleBlock(nn.Module):
    """y₁ = x₁ + F(x₂), y₂ = x₂ + G(y₁) (Gomez et al., 2017, eq. 6), on two halves of the channels.

    Args:
        f: the residual function F; keeps the shape of its input.
        g: the residual function G; likewise.
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the halves (y₁, y₂), all of one shape ``(N, C / 2, H, W)``."""
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)

    def inverse(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (x₁, x₂) that gave (y₁, y₂) in the same mode; running statistics do not move."""
        with _replayed(_modes(self)):
            x2 = y2 - self.g(y1)
            return y1 - self.f(x2), x2


class ReversibleChain(nn.Sequential):
    """Reversible blocks in a row, ``(N, C, H, W)`` to the same shape.

    With ``save_memory`` autograd keeps the output of the whole chain and nothing else: the
    backward pass goes from block to block, recovers each input and differentiates F and G
    (Gomez et al., 2017, algorithm 1), at the price of one more forward pass. The gradients are
    those of plain autograd up to rounding; in half precision recovered inputs are rounded too,
    which adds less than half precision costs anyway. F and G may hold no dropout, which would
    draw anew; running statistics move once, in the forward pass.

    Hooks on modules inside see no graph in the forward pass and are called again in the backward
    pass; whoever looks inside the chain, or differentiates twice, sets ``save_memory`` to False.

    Args:
        blocks: the blocks.
        save_memory: store only the output.
    """

    def __init__(self, *blocks: ReversibleBlock, save_memory: bool = True) -> None:
        super().__init__(*blocks)
        self.save_memory = save_memory

    @property
    def blocks(self) -> list[ReversibleBlock]:
        """The blocks in order."""
        return cast("list[ReversibleBlock]", list(self))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C, H, W)``; C is even."""
        return self._saving(x) if self.save_memory and torch.is_grad_enabled() else self._plain(x)

    def inverse(self, y: Tensor) -> Tensor:
        """Return the input ``(N, C, H, W)`` that gave an output in the same mode; statistics do not move."""
        y1, y2 = y.chunk(2, dim=1)
        for block in reversed(self.blocks):
            y1, y2 = block.inverse(y1, y2)
        return torch.cat((y1, y2), dim=1)

    def _plain(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        for block in self.blocks:
            x1, x2 = block(x1, x2)
        return torch.cat((x1, x2), dim=1)

    @torch.compiler.disable  # a compiler would trace the backward pass too, and keep what it saves
    def _saving(self, x: Tensor) -> Tensor:
        calls = [_Call.of(function) for block in self.blocks for function in (block.f, block.g)]
        return _Reversible.apply(self, calls, x, *(p for call in calls for p in call.parameters))


class _Reversible(torch.autograd.Function):
    """A chain whose backward pass starts from its output alone.

    The parameters are inputs and their gradients are returned, so that hooks of autograd (DDP,
    clipping) see each once, as with any other layer.
    """

    @staticmethod
    def forward(
        ctx: Any, chain: ReversibleChain, calls: list[_Call], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.calls, ctx.modes, ctx.precision = calls, _modes(chain), _Precision(x.device.type)
        with ctx.precision.restored():
            y = chain._plain(x)
        # not saved through ctx: these are no activations, and live as long as the network
        ctx.constants = [*parameters, *_statistics_in_use(ctx.modes)]
        ctx.versions = [constant._version for constant in ctx.constants]
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        if any(constant._version != version for constant, version in zip(ctx.constants, ctx.versions)):
            raise RuntimeError(
                "parameters or running statistics of a reversible chain were changed in place between its "
                "forward pass and its backward pass, which computes the activations again"
            )
        y1, y2 = ctx.saved_tensors[0].chunk(2, dim=1)
        d1, d2 = gradients[0].chunk(2, dim=1)
        found: list[list[Tensor | None]] = []
        with _replayed(ctx.modes), ctx.precision.restored():
            for f, g in zip(ctx.calls[-2::-2], ctx.calls[::-2]):
                value, d, of_g = g.differentiate(y1, d2)  # y₂ = x₂ + G(y₁)
                y2, d1 = y2 - value, d1 + d
                value, d, of_f = f.differentiate(y2, d1)  # y₁ = x₁ + F(x₂)
                y1, d2 = y1 - value, d2 + d
                found += [of_g, of_f]
        dx = torch.cat((d1, d2), dim=1) if ctx.needs_input_grad[2] else None
        return None, None, dx, *(d for group in reversed(found) for d in group)


@dataclass(frozen=True)
class _Call:
    """F or G with the parameters of one forward pass."""

    function: nn.Module
    names: list[str]
    parameters: list[Tensor]
    needed: list[bool]

    @classmethod
    def of(cls, function: nn.Module) -> _Call:
        named = dict(function.named_parameters())
        return cls(function, list(named), list(named.values()), [p.requires_grad for p in named.values()])

    def differentiate(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Return the value at x, and the gradients with respect to x and to each parameter."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            # aliases: hooks on the parameters themselves are for the gradients that the chain returns
            aliases = [p.detach().requires_grad_(n) for p, n in zip(self.parameters, self.needed)]
            value = functional_call(self.function, dict(zip(self.names, aliases)), (x,))
        wanted = [x, *(alias for alias in aliases if alias.requires_grad)]
        dx, *rest = torch.autograd.grad(value, wanted, gradient.to(value.dtype), allow_unused=True)
        found = iter(rest)
        return value.detach(), dx, [next(found) if n else None for n in self.needed]


class _Precision:
    """Autocast as it is now, to be entered again."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.available = torch.amp.is_autocast_available(device)
        if self.available:
            self.enabled = torch.is_autocast_enabled(device)
            self.dtype = torch.get_autocast_dtype(device)

    def restored(self) -> contextlib.AbstractContextManager[Any]:
        if not self.available:
            return contextlib.nullcontext()
        # no cache: each weight is used once, and its cast copy would stay until autocast ends
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=False)


def _modes(module: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(m, m.training) for m in module.modules()]


def _statistics_in_use(modes: list[tuple[nn.Module, bool]]) -> list[Tensor]:
    return [b for m, training in modes if isinstance(m, _BatchNorm) and not training for b in m.buffers()]


@contextlib.contextmanager
def _replayed(modes: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Put modules in the modes of an earlier pass; BatchNorm gives the same and moves no statistics."""
    before = [(m, m.training) for m, _ in modes]
    tracking = [
        m for m, training in modes if training and isinstance(m, _BatchNorm) and m.track_running_stats
    ]
    try:
        for module, training in modes:
            module.training = training
        for norm in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for module, training in before:
            module.training = training
        for norm in tracking:
            norm.track_running_stats = True


class RevNet18(Backbone):
    """Reversible counterpart of our ResNet-18: its 3×3 stem, stages, down-sampling, widths 64-128-256-512.

    A stage is two blocks; those that keep their shape (both of the first stage, the second of the
    others) are reversible, those that halve and widen are plain. All are pre-activation, so the stem
    is a convolution alone and the last stage ends with BatchNorm and ReLU. The paper's own networks
    are deeper (RevNet-38 to 164); F and G are its basic functions of two convolutions on half of the
    channels each, which leaves a reversible block with half of the weights of a ResNet's.

    Global average pooling gives 512 features at width 64, for any image size from 8 pixels on.

    Args:
        in_channels: channels of the input images.
        width: channels of the first block, even.
        save_memory: compute the activations of reversible blocks again in the backward pass;
            False stores them, with the same gradients up to rounding.

    Raises:
        ConfigError: a width that cannot be halved.
    """

    block_names = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self, in_channels: PositiveInt = 3, width: PositiveInt = 64, save_memory: bool = True
    ) -> None:
        super().__init__()
        if width % 2:
            raise ConfigError(
                f"{width} channels cannot be halved, as reversible blocks do",
                where="backbone.width",
                instead=f"an even number, such as {width + 1}",
            )
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.layer1 = nn.Sequential(_chain(width, blocks=2, save_memory=save_memory))
        for i, name in enumerate(self.block_names[1:]):
            layers: list[nn.Module] = [
                TransitionBlock(widths[i], widths[i + 1], stride=2),
                _chain(widths[i + 1], blocks=1, save_memory=save_memory),
            ]
            if (
                name == self.block_names[-1]
            ):  # not in pool(): outside of all blocks it would freeze with the stem
                layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)]
            setattr(self, name, nn.Sequential(*layers))
        self.num_features = widths[-1]
        he_initialise(self)

    def stem(self, x: Tensor) -> Tensor:
        """Convolution; the first block begins with BatchNorm and ReLU."""
        return self.conv1(x)


def _chain(channels: int, blocks: int, save_memory: bool) -> ReversibleChain:
    half = channels // 2
    return ReversibleChain(
        *(ReversibleBlock(Residual(half, half), Residual(half, half)) for _ in range(blocks)),
        save_memory=save_memory,
    )
