"""Layers by name or glob."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from scarcely.errors import ConfigError

INPUT = "input"


def resolve_layers(model: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """Find modules by their names.

    Args:
        model: whose modules.
        layers: names as ``named_modules`` gives them, ``input`` for the image itself, or globs, in which no
            wildcard crosses a dot: ``layer*`` is the stages of a ResNet, ``layer*.*`` their blocks.

    Returns:
        Names without repetition: the image first, then in the order in which the model registers them.

    Raises:
        ConfigError: a name or a glob that matches nothing, or no name at all.
    """
    names = [INPUT, *(name for name, _ in model.named_modules(remove_duplicate=False) if name)]
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise ConfigError("no layer was named", where="layers", instead=_examples(names))
    found: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if name == pattern or _matches(name, pattern)}
        if not matches:
            close = get_close_matches(pattern, names, n=3, cutoff=0.4)
            raise ConfigError(
                f"no layer is called {pattern!r}",
                where="layers",
                instead=", ".join(close) if close else _examples(names),
            )
        found |= matches
    return [name for name in names if name in found]


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _examples(names: list[str]) -> str:
    top = [name for name in names if "." not in name]
    return f"a name or a glob, such as {', '.join(top[:8])}"
