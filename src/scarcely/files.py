"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from scarcely.errors import WriteError

FULL = (errno.ENOSPC, errno.EDQUOT)
_AGAIN = "then the same command again (of train.py with resume=true: it goes on from the last checkpoint)"


def write_atomically(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> Path:
    """Write a file beside its target, sync it, and rename it: the old one survives any failure.

    Args:
        path: the target; its folder is made.
        content: bytes, text (UTF-8), or what is called with the open binary file.

    Returns:
        The target.

    Raises:
        WriteError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    # the process id keeps two writers of the same target out of each other's part
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            if callable(content):
                content(file)
            else:
                # names of files may be bytes that no encoding explains: they come out as they came in
                raw = content.encode(errors="surrogateescape") if isinstance(content, str) else content
                file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        cause = _failed_write(error)
        if cause is None:
            raise
        full = cause.errno in FULL
        kept = "; the previous one is whole" if path.is_file() else ""
        raise WriteError(
            f"could not write {path.name}: {'the disk is full' if full else cause.strerror or cause}{kept}",
            where=str(path.parent),
            instead=f"{'free some space' if full else 'mend that'}, {_AGAIN}",
        ) from error
    return path


@contextlib.contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Say that the disk is full where others than `write_atomically` meet it: a new folder, a logger.

    Args:
        folder: that is written to.

    Raises:
        WriteError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        place = str(error.filename or folder)
        raise WriteError("the disk is full", where=place, instead=f"free some space, {_AGAIN}") from error


def write_json(path: Path, content: Any) -> Path:
    """Write plain containers as JSON, atomically; what JSON has no form for is written as text."""
    return write_atomically(path, json.dumps(content, indent=1, default=str) + "\n")


def _failed_write(error: BaseException | None) -> OSError | None:
    # torch's zip writer hides the error of a failing write behind a RuntimeError of its own
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left; the caller holds the folder's lock."""
    for part in [*folder.glob(".*.part"), *folder.glob("figures/.*.part")]:
        part.unlink(missing_ok=True)
