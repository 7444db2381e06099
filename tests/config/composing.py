"""Configurations composed once a session: a composition takes a sixth of a second."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any
from unittest.mock import patch

from scarcely.config import compose
from scarcely.config.check import check

_compose_again = cache(lambda overrides, again=compose.compose_with: again(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    # the pretext of a data set is the same in all of its runs
    with patch.object(compose, "compose_with", lambda o: copy.deepcopy(_compose_again(tuple(o)))):
        return compose.compose_run(overrides)


def composed(*overrides: str) -> dict[str, Any]:
    """Return a configuration that may be changed."""
    return copy.deepcopy(_composed(overrides))


def sound(*overrides: str) -> dict[str, Any]:
    """Return a configuration that passes the check."""
    config = composed(*overrides)
    check(config)
    return config
