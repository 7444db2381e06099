"""Out of memory, told in words: what did not fit, and what to lower."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from scarcely.errors import UserError

_ON_THE_CPU = ("DefaultCPUAllocator: can't allocate memory", "Storage size calculation overflowed")


class OutOfMemory(UserError):
    """Something does not fit into the memory of the device or the machine."""


@contextlib.contextmanager
def told(what: str, *, where: str, instead: str) -> Iterator[None]:
    """Say what was being done when the memory was used up.

    Args:
        what: the work, as "stage cluster, 256 samples a step".
        where: settings that it depends on.
        instead: what would need less.

    Raises:
        OutOfMemory: the block did not fit into memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        device = full(error)
        if device is None:
            raise
        raise OutOfMemory(f"out of memory {device}: {what}", where=where, instead=instead) from error


def full(error: BaseException) -> str | None:
    """Return which memory an error says is full, in words; None if it is another error."""
    if isinstance(error, torch.OutOfMemoryError):
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return f"on the GPU, which has {total / 2**30:.0f} GiB"
    if isinstance(error, MemoryError) or any(text in str(error) for text in _ON_THE_CPU):
        return "of the machine"
    return None
