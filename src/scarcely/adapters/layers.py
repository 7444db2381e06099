"""The layers of a network that belong to domains: adapted convolutions, normalisation, classifiers.

Each such layer, a site, holds one module a domain. All sites of a network share one `Selection`, which says
what is to run: a domain, or which rows of the batch are of which domain.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from scarcely.adapters.svd import check_rank
from scarcely.errors import ConfigError
from scarcely.spec import Literal, Positive, UnitInterval

# On a CPU oneDNN writes beyond the weight gradient of a strided 1×1 convolution, channels last, that reads
# fewer channels than this (torch 2.15 with AVX-512: a crash): what the stride leaves out is cut away before.
_FEWEST_STRIDED = 16


@dataclass
class Selection:
    """What the sites of a network run.

    Attributes:
        current: the domain of the whole batch.
        parts: domains and their rows, which follow each other, where the batch is of several.
        classes: width of the logits of a batch of several domains.
    """

    current: str
    parts: list[tuple[str, slice]] | None = None
    classes: int = 0


@dataclass(frozen=True)
class Design:
    """What an adapter is.

    Attributes:
        kind: in series with the convolution, or parallel to it.
        init: He-normal, or zero: then training begins at the identity.
        residual: series adapters are added to what they adapt.
        rank: of α; None for a matrix of full rank.
    """

    kind: Literal["series", "parallel"]
    init: Literal["he", "zero"] = "he"
    residual: bool = True
    rank: int | None = None


class Site(nn.Module):
    """A layer with one module a domain; a domain without any runs what the network had before."""

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection
        self.members = nn.ModuleDict()

    def fresh(self, num_classes: int) -> nn.Module:
        """Return what a new domain begins with."""
        raise NotImplementedError

    def signature(self) -> str:
        """Return what a domain's file must agree on."""
        raise NotImplementedError

    def member(self, name: str) -> nn.Module | None:
        """Return the domain's module, if it has one."""
        return self.members[name] if name in self.members else None  # noqa: SIM401 (ModuleDict has no get)

    def install(self, name: str, member: nn.Module) -> None:
        """Give a domain its module, in the mode of this layer."""
        self.members[name] = member.train(self.training)


class DomainNorm(Site):
    """BatchNorm of each domain: its affine parameters and its running statistics.

    Attributes:
        original: that of the network; domains begin with copies of it.
        folded: merged into the convolution before it.
    """

    def __init__(self, original: _BatchNorm, selection: Selection) -> None:
        super().__init__(selection)
        self.original = original
        self.folded = False
        self.train(original.training)

    def fresh(self, num_classes: int) -> nn.Module:
        """Return a copy of the network's own."""
        return copy.deepcopy(self.original).requires_grad_(True)

    def signature(self) -> str:
        """Return the channels."""
        return f"BatchNorm({self.original.num_features})"

    def of(self, name: str) -> nn.Module:
        """Return the domain's, or the network's own."""
        if name in self.members:
            return self.members[name]
        return self.original

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each sample with its domain's BatchNorm."""
        if self.folded:
            return x
        parts = self.selection.parts
        if parts is None:
            return self.of(self.selection.current)(x)
        return torch.cat([self.of(name)(x[rows]) for name, rows in parts])


class DomainHead(Site):
    """A linear classifier a domain.

    Attributes:
        num_features: D, of its input.
    """

    def __init__(self, num_features: int, bias: bool, selection: Selection, like: Tensor) -> None:
        super().__init__(selection)
        self.num_features, self.bias = num_features, bias
        self.register_buffer("_like", like.new_empty(0), persistent=False)  # follows device and type

    def fresh(self, num_classes: int) -> nn.Module:
        """Return a new classifier."""
        like = self._like
        assert isinstance(like, Tensor)
        return nn.Linear(self.num_features, num_classes, self.bias, device=like.device, dtype=like.dtype)

    def signature(self) -> str:
        """Return the size of the features."""
        return f"Linear({self.num_features}, classes)"

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (N, classes); of several domains filled up with −inf."""
        parts = self.selection.parts
        if parts is None:
            return self.members[self.selection.current](x)
        logits = [self.members[name](x[rows]) for name, rows in parts]
        return torch.cat(
            [F.pad(y, (0, self.selection.classes - y.shape[1]), value=-torch.inf) for y in logits]
        )


class Dense(nn.Module):
    """α as it is, (C_out, C_in)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        """Return α."""
        return self.weight


class LowRank(nn.Module):
    """α = β γᵀ, of β (C_out, K) and γ (C_in, K).

    Attributes:
        shared: β is one and the same parameter in all domains, and frozen.
    """

    def __init__(self, beta: Tensor, gamma: Tensor, shared: bool = False) -> None:
        super().__init__()
        self.beta = beta if isinstance(beta, nn.Parameter) else nn.Parameter(beta, requires_grad=not shared)
        self.gamma = nn.Parameter(gamma)
        self.shared = shared

    def forward(self) -> Tensor:
        """Return α: a product of small matrices, where two more convolutions would pass over the images."""
        return self.beta @ self.gamma.mT


class Adapter(nn.Module):
    """What one domain adds to one convolution: α, and in series the BatchNorm before it."""

    def __init__(self, alpha: Dense | LowRank, norm: nn.Module | None) -> None:
        super().__init__()
        self.alpha = alpha
        self.norm = norm

    def duplicate(self) -> Adapter:
        """Return a copy; a shared β stays shared."""
        kept = {id(self.alpha.beta): self.alpha.beta} if isinstance(self.alpha, LowRank) else {}
        return copy.deepcopy(self, kept if getattr(self.alpha, "shared", False) else {})


class AdaptedConv(Site):
    """A convolution that all domains share, with a 1×1 convolution α of each (chapter 4, figure 2).

    With h = conv(x): in series h + α(BN(h)), or α(BN(h)) alone without the residual connection; in
    parallel h + α(x), where α has the stride of the convolution and reads the centre of its window.
    α has the groups of the convolution: C_out × C_in / groups values, in series C_out × C_out / groups.

    Args:
        conv: the convolution.
        design: of the adapters.
        dropout: share of the channels of an adapter's input dropped in training.
        selection: of the network.
    """

    fused_weight: Tensor | None
    fused_bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, design: Design, dropout: UnitInterval, selection: Selection) -> None:
        super().__init__(selection)
        self.conv, self.design, self.dropout = conv, design, dropout
        self.crop = _beyond_same(conv)
        # beside the weights, not in their place: nothing has to be undone
        self.register_buffer("fused_weight", None, persistent=False)
        self.register_buffer("fused_bias", None, persistent=False)
        self.train(conv.training)

    @property
    def shape(self) -> tuple[int, int]:
        """Return that of α."""
        series = self.design.kind == "series"
        channels_in = self.conv.out_channels if series else self.conv.in_channels
        return self.conv.out_channels, channels_in // self.conv.groups

    def fresh(self, num_classes: int) -> nn.Module:
        """Return a new adapter; the BatchNorm of one in series is new as well."""
        like = self.conv.weight
        norm = None
        if self.design.kind == "series":
            norm = nn.BatchNorm2d(self.conv.out_channels, device=like.device, dtype=like.dtype)
        return Adapter(self.fresh_alpha(), norm)

    def fresh_alpha(self) -> Dense | LowRank:
        """Return α with entries of variance 2 / C_out (He et al., 2015, by the outputs), or zero."""
        rows, columns = self.shape
        std = math.sqrt(2 / rows)
        zero = self.design.init == "zero"

        def normal(n: int, m: int, std: Positive) -> Tensor:
            return self.conv.weight.new_empty(n, m).normal_(std=std)

        if self.design.rank is None:
            return Dense(self.conv.weight.new_zeros(rows, columns) if zero else normal(rows, columns, std))
        rank = min(self.design.rank, rows, columns)
        check_rank(rank, min(rows, columns))
        # of two zero factors neither would have a gradient
        beta = self.conv.weight.new_zeros(rows, rank) if zero else normal(rows, rank, std)
        return LowRank(beta, normal(columns, rank, 1 / math.sqrt(rank)))

    def signature(self) -> str:
        """Return the shape of α and the kernel that it stands beside."""
        kernel = "×".join(map(str, self.conv.kernel_size))
        return f"adapter {self.shape[0]}×{self.shape[1]} of a {kernel} convolution"

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C_out, H', W'): the convolution of all samples at once, adapted by domain."""
        if self.fused_weight is not None:
            return self.conv._conv_forward(x, self.fused_weight, self.fused_bias)
        h = self.conv(x)
        parts = self.selection.parts
        if parts is None:
            return self._adapt(self.selection.current, x, h)
        return torch.cat([self._adapt(name, x[rows], h[rows]) for name, rows in parts])

    def _adapt(self, name: str, x: Tensor, h: Tensor) -> Tensor:
        if name not in self.members:
            return h
        adapter = self.members[name]
        assert isinstance(adapter, Adapter)
        series = adapter.norm is not None
        stride: tuple[int, ...] = (1, 1) if series else self.conv.stride
        y = adapter.norm(h) if adapter.norm is not None else F.pad(x, self.crop) if any(self.crop) else x
        if self.dropout:
            y = F.dropout2d(y, self.dropout, self.training)
        if self.shape[1] < _FEWEST_STRIDED:
            y, stride = y[:, :, :: stride[0], :: stride[1]], (1, 1)
        y = F.conv2d(y, adapter.alpha()[:, :, None, None], stride=stride, groups=self.conv.groups)
        return h + y if self.design.residual or not series else y

    @torch.no_grad()
    def fuse(self, name: str, norm: nn.Module | None) -> None:
        """Compute the one convolution that does what the adapted one does for a domain in eval mode.

        Args:
            name: the domain.
            norm: the BatchNorm that follows in series, to be folded too.
        """
        adapter = self.members[name]
        assert isinstance(adapter, Adapter)
        alpha = adapter.alpha().double()
        weight = self.conv.weight.to(torch.float64, copy=True)
        bias = None if self.conv.bias is None else self.conv.bias.double()
        if adapter.norm is None:
            weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] += alpha
        else:
            weight, bias = self._fuse_series(alpha, adapter.norm, weight, bias)
            if norm is not None:
                scale, shift = _affine(norm)
                weight, bias = weight * scale[:, None, None, None], bias * scale + shift
        self.fused_weight = torch.empty_like(self.conv.weight).copy_(weight)  # in the same memory format
        self.fused_bias = None if bias is None else bias.to(self.conv.weight.dtype)

    def _fuse_series(
        self, alpha: Tensor, norm: nn.Module, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return M W and M b + α t, where BN(h) = s h + t, and M = α diag(s), plus I if residual."""
        groups = self.conv.groups
        scale, shift = (v.unflatten(0, (groups, 1, -1)) for v in _affine(norm))  # (G, 1, C_out / G)
        alpha = alpha.unflatten(0, (groups, -1))  # (G, C_out / G, C_out / G)
        mix = alpha * scale
        if self.design.residual:
            mix = mix + torch.eye(mix.shape[-1], dtype=mix.dtype, device=mix.device)
        fused = mix @ weight.flatten(1).unflatten(0, (groups, -1))
        fused_bias = (alpha * shift).sum(dim=2)
        if bias is not None:
            fused_bias = fused_bias + (mix * bias.unflatten(0, (groups, 1, -1))).sum(dim=2)
        return fused.flatten(0, 1).view_as(weight), fused_bias.flatten()

    def release(self) -> None:
        """Run the convolution and its adapter again."""
        self.fused_weight = self.fused_bias = None

    def require_centre(self, path: str) -> None:
        """Refuse to merge a parallel adapter where the kernel has no centre that meets its own pixel.

        Raises:
            ConfigError: an even kernel, or a padding that is not 'same'.
        """
        kernel = self.conv.kernel_size
        if self.design.kind == "parallel" and (any(k % 2 == 0 for k in kernel) or any(self.crop)):
            raise ConfigError(
                f"the adapter of {path} cannot be merged: its convolution has a kernel of "
                f"{kernel[0]}×{kernel[1]} and padding {self.conv.padding}",
                where="where",
                instead="parallel adapters on odd kernels with 'same' padding, or the network unmerged",
            )


def _beyond_same(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return what to pad the input of α with (negative: to cut), so that it meets the window's centre.

    Zeros for an odd kernel with 'same' padding.
    """
    sides: list[int] = []
    for i in (1, 0):  # torch pads the last dimension first
        reach = conv.dilation[i] * (conv.kernel_size[i] - 1)
        padding = (
            {"same": reach, "valid": 0}[conv.padding]
            if isinstance(conv.padding, str)
            else 2 * conv.padding[i]
        )
        sides += [-((reach - padding) // 2), -(reach - padding - (reach - padding) // 2)]
    return sides[0], sides[1], sides[2], sides[3]


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return s and t of BN(h) = s h + t in eval mode, in double precision, each (C,)."""
    assert isinstance(norm, _BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        raise ConfigError(
            "BatchNorm without running statistics cannot be merged",
            where="merge",
            instead="track_running_stats=True",
        )
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()
