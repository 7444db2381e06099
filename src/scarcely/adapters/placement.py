"""Which convolutions of a network get adapters (chapter 4, section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from scarcely.backbones.base import Backbone
from scarcely.errors import ConfigError

THIRDS = ("early", "mid", "late")


def choose(network: nn.Module, where: str | Sequence[str]) -> list[str]:
    """Return the names of the convolutions that get adapters, in the order of the network.

    Args:
        network: any network.
        where: ``all`` convolutions with odd kernels larger than 1×1; of these those of the ``early``, ``mid``
            or ``late`` third of the network's stages, where it has at least three (the ``block_names`` of a
            `Backbone`, ``layer1`` to ``layer4`` of torchvision; what comes before the first stage belongs to
            it, and four stages are two, one and one), else of the convolutions; ``half``, which is the second
            convolution of each block; or names and globs of any convolutions.

    Raises:
        ConfigError: nothing is chosen.
    """
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    spatial = [name for name, conv in convs.items() if all(k % 2 and k > 1 for k in conv.kernel_size)]
    if where == "all":
        chosen = spatial
    elif where == "half":
        second = second_convs(network)
        chosen = [name for name in spatial if name in second]
    elif isinstance(where, str) and where in THIRDS:
        chosen = _thirds(network, spatial)[THIRDS.index(where)]
    else:
        patterns = [where] if isinstance(where, str) else list(where)
        unmatched = [p for p in patterns if not any(fnmatchcase(name, p) for name in convs)]
        if unmatched:
            raise ConfigError(
                f"no convolution is called {' or '.join(unmatched)}",
                where="where",
                instead="all, early, mid, late, half, or globs of names such as "
                + ", ".join(list(convs)[:3]),
            )
        chosen = [name for name in convs if any(fnmatchcase(name, p) for p in patterns)]
    if not chosen:
        raise ConfigError(
            f"{type(network).__name__} has no convolution for adapters ({where})",
            where="where",
            instead="a network with convolutions of odd kernels larger than 1×1, or the names of others",
        )
    return chosen


def second_convs(network: nn.Module) -> set[str]:
    """Return the second convolution of each block; in a network without blocks every second one.

    A block is a module with several convolutions of its own that is no plain chain of layers.
    """
    second = set()
    for path, module in network.named_modules():
        own = [name for name, child in module.named_children() if isinstance(child, nn.Conv2d)]
        if len(own) > 1 and not isinstance(module, nn.Sequential):
            second.add(f"{path}.{own[1]}" if path else own[1])
    if not second:
        second.update(
            [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)][1::2]
        )
    return second


def _thirds(network: nn.Module, convs: Sequence[str]) -> list[list[str]]:
    if isinstance(network, Backbone):
        names = list(network.block_names)
    else:
        names = [name for name, _ in network.named_children() if re.fullmatch(r"layer\d+", name)]
    stages: list[list[str]] = [[]]
    seen: set[str] = set()
    for conv in convs:
        block = conv.split(".", 1)[0]
        if block in names and block not in seen:
            if seen:
                stages.append([])
            seen.add(block)
        stages[-1].append(conv)
    if len(stages) < len(THIRDS):
        stages = [[conv] for conv in convs]
    size, extra = divmod(len(stages), len(THIRDS))
    ends = [size * (i + 1) + min(i + 1, extra) for i in range(len(THIRDS))]
    starts = [0, *ends[:-1]]
    return [[conv for stage in stages[a:b] for conv in stage] for a, b in zip(starts, ends)]
