"""Weights that grow with the epochs."""

from __future__ import annotations

import math

from scarcely.errors import ConfigError
from scarcely.spec import NonNegative


def sigmoid_rampup(epoch: float, length: NonNegative) -> float:
    """The ramp-up exp(−5 (1 − t/T)²) of the consistency weight (LSD-C, eq. 8).

    Args:
        epoch: t, from 0.
        length: T, in epochs. From T on the ramp-up is 1, so with T = 0 at once.

    Returns:
        A factor in [0, 1], to be multiplied by λ.

    Raises:
        ConfigError: the length is negative.
    """
    if length < 0:
        raise ConfigError(f"a ramp-up of {length} epochs", where="length", instead="a length of 0 or more")
    if epoch >= length:
        return 1.0
    progress = max(epoch, 0) / length
    return math.exp(-5 * (1 - progress) ** 2)
