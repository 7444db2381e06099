"""Random numbers that are a function of where the run is, never of how it got there."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, e.g. ``(seed, stage, epoch)``.

    The same on every machine and in every process, so that neither an interruption nor the
    number of devices changes what is drawn.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
