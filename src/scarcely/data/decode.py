"""Images decoded once, into a memory-mapped uint8 cache from which later runs start at once."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from scarcely.data.samples import Samples
from scarcely.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

__all__ = ["DECODER_VERSION", "Decoded", "decode_cached", "decode_image", "default_cache_dir", "load_images"]

DECODER_VERSION = 1
"""Part of every cache key: raise it when `decode_image` gives other pixels."""

# Nothing else is tried on a file, whatever it is called: Pillow would hand an EPS file to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_CHUNK = 64
_MANY = 2000
# Below this size a file costs more Python than C, and threads only hand the interpreter lock around.
_SMALL_FILE = 16 << 10
# Sets up to this size are read into memory: copying them costs less than a background gather per batch.
_IN_MEMORY = 256 << 20

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


class Decoded(NamedTuple):
    """What `decode_cached` gives back.

    Attributes:
        images: (M, size, size, channels) uint8, memory-mapped copy-on-write: the M files that could
            be decoded, in the order of the list.
        failed: position in the list of each file that could not, and why.
        source: hash of the content of `images`, for `Samples.source`.
    """

    images: Tensor
    failed: dict[int, str]
    source: str


def default_cache_dir() -> Path:
    """Return the folder of the caches: ``$SCARCELY_CACHE``, or ``~/.cache/scarcely``."""
    return Path(os.environ.get("SCARCELY_CACHE") or "~/.cache/scarcely").expanduser()


def decode_image(path: str | Path, size: int, channels: Literal[1, 3] = 3) -> np.ndarray:
    """Decode one image file to a square.

    The first frame is taken, turned as its EXIF orientation says, laid on white where it is
    transparent, brought to 8 bits, cut to its central square and resized bilinearly with
    antialiasing (the short side becomes `size`). An image of that size already keeps its pixels.
    A much larger JPEG is decoded at a half, a quarter or an eighth, never below twice `size`.

    Args:
        path: a JPEG, PNG, BMP, WebP, GIF, TIFF or PNM file.
        size: side of the result, in pixels.
        channels: 1 for luma (ITU-R 601), 3 for RGB.

    Returns:
        (size, size, channels) uint8.

    Raises:
        ValueError: the pixels have no agreed range (floating-point, or integers beyond 16 bits).
        Exception: whatever Pillow raises on a damaged file.
    """
    from PIL import Image, ImageOps

    with Image.open(path, formats=FORMATS) as image:
        image.draft(image.mode, (2 * size, 2 * size))
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:
            # Cameras and editors write broken EXIF blocks; the picture beside it is still good.
            log.debug("EXIF orientation of %s ignored: %s", path, error)
        flat = flatten(image).convert("L" if channels == 1 else "RGB")
        width, height = flat.size
        if (width, height) != (size, size):
            # Cut first, then resize: the same picture, and a very long one costs no memory.
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
            flat = flat.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return np.array(flat, dtype=np.uint8).reshape(size, size, channels)


def decode_cached(
    files: Sequence[str | Path],
    size: int,
    channels: Literal[1, 3] = 3,
    cache_dir: str | Path | None = None,
    *,
    root: str | Path | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    workers: int = 0,
) -> Decoded:
    """Decode image files once; every later call maps the result.

    The cache is keyed by the name (relative to `root`), size and modification time of every file,
    by `size` and `channels`, and by the version of the decoder. It is written beside its place and
    renamed when complete, under a lock: an interrupted decode leaves nothing that looks complete,
    and processes that want the same images wait for the one that decodes.

    Args:
        files: image files, relative to `root` where it is given.
        size: side of the squares, in pixels (see `decode_image`).
        channels: 1 or 3.
        cache_dir: folder of the cache; ``decoded`` in `default_cache_dir` by default.
        root: folder of the files; moving it leaves the cache valid.
        on_error: ``raise`` on the first file that cannot be decoded, or ``skip`` such files.
        workers: decoding threads; 0 for the number of cores (one where files are tiny).

    Returns:
        The images as a memory map, the files skipped, and a hash of the content.

    Raises:
        DataError: a file cannot be decoded, or the cache cannot be written.
    """
    names = [os.fspath(file) for file in files]
    paths = [os.path.join(root, name) for name in names] if root is not None else names
    stats = [_stat(path) for path in paths]
    base = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir() / "decoded"
    entry = base / _key(names, stats, size, channels)

    decoded = _open_entry(entry, len(paths))
    if decoded is None:
        with _locked(entry):
            decoded = _open_entry(entry, len(paths))
            if decoded is None:
                if not workers:
                    tiny = sum(bytes_ for bytes_, _ in stats) < _SMALL_FILE * len(stats)
                    workers = 1 if tiny else _cores()
                _write_entry(entry, paths, size, channels, on_error, workers)
                decoded = _open_entry(entry, len(paths))
    if decoded is None:
        raise DataError(
            f"the decoded images in {entry} changed while they were read",
            where="SCARCELY_CACHE",
            instead="start again",
        )
    if decoded.failed and on_error == "raise":
        position, reason = min(decoded.failed.items())
        raise _unreadable(paths[position], reason)
    return decoded


def load_images(
    root: str | Path,
    names: Sequence[str],
    labels: Sequence[int],
    *,
    size: int,
    channels: Literal[1, 3] = 3,
    on_error: Literal["raise", "skip"] = "raise",
    workers: int = 0,
    cache_dir: str | Path | None = None,
) -> tuple[Samples, dict[str, str]]:
    """Read image files as samples, through the cache.

    Args:
        root: folder of the files.
        names: files relative to `root`.
        labels: class of each file, -1 where unknown.
        size: side of the squares, in pixels.
        channels: 1 or 3.
        on_error: ``skip`` leaves out files that cannot be decoded, with a warning that names some.
        workers: decoding threads; 0 for the number of cores.
        cache_dir: see `decode_cached`.

    Returns:
        The samples (in memory up to 256 MiB, above that mapped), and the reason for each file skipped.

    Raises:
        DataError: a file cannot be decoded, or the cache cannot be written.
    """
    decoded = decode_cached(names, size, channels, cache_dir, root=root, on_error=on_error, workers=workers)
    kept = [position for position in range(len(names)) if position not in decoded.failed]
    failed = {names[position]: reason for position, reason in decoded.failed.items()}
    if failed:
        shown = "; ".join(f"{name} ({reason})" for name, reason in list(failed.items())[:5])
        more = f"; and {len(failed) - 5:,} more" if len(failed) > 5 else ""
        warnings.warn(
            f"{len(failed):,} of {len(names):,} images in {root} skipped: {shown}{more}", stacklevel=2
        )
    mapped = decoded.images.nbytes > _IN_MEMORY
    samples = Samples(
        inputs=decoded.images if mapped else decoded.images.clone(),
        labels=torch.tensor([labels[position] for position in kept], dtype=torch.int64),
        names=tuple(names[position] for position in kept),
        source=decoded.source if mapped else None,
    )
    return samples, failed


def flatten(image: PILImage) -> PILImage:
    """Bring any mode to 8-bit grey or RGB, transparency laid on white."""
    from PIL import Image

    if image.mode in _SIXTEEN_BITS:
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("integer pixels beyond 16 bits; save the image with 8 or 16 bits")
        return Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")


def _stat(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return -1, -1  # decoding will say what is wrong with it
    return stat.st_size, stat.st_mtime_ns


def _key(names: list[str], stats: list[tuple[int, int]], size: int, channels: int) -> str:
    digest = hashlib.blake2b(f"{DECODER_VERSION}:{size}:{channels}".encode(), digest_size=16)
    for name, (bytes_, modified) in zip(names, stats, strict=True):
        digest.update(b"\0" + os.fsencode(name.replace(os.sep, "/")) + f"\0{bytes_}\0{modified}".encode())
    return digest.hexdigest()


def _open_entry(entry: Path, count: int) -> Decoded | None:
    """Map a complete entry of the cache; None where there is none, or a damaged one."""
    try:
        about = json.loads((entry / "about.json").read_text())
        shape = tuple(about["shape"])
        failed = {int(position): reason for position, reason in about["failed"].items()}
        data = entry / "images.u8"
        if data.stat().st_size != np.prod(shape, dtype=np.int64) or shape[0] + len(failed) != count:
            return None
        if not shape[0]:
            return Decoded(torch.empty(shape, dtype=torch.uint8), failed, about["source"])
        # Copy-on-write: torch wants writable memory, and nothing written may reach the file.
        return Decoded(torch.from_numpy(np.memmap(data, np.uint8, "c", shape=shape)), failed, about["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(entry.with_suffix(".lock"))
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _unwritable(entry.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def _write_entry(
    entry: Path,
    paths: list[str],
    size: int,
    channels: Literal[1, 3],
    on_error: Literal["raise", "skip"],
    workers: int,
) -> None:
    """Decode into ``ENTRY.partial`` and rename it; the caller holds the lock of the entry."""
    needed = len(paths) * size * size * channels
    partial = entry.with_suffix(".partial")
    try:
        for leftover in (entry, partial):  # a damaged entry, and what an interrupted decode left
            if leftover.exists():
                shutil.rmtree(leftover)
        free = shutil.disk_usage(entry.parent).free
        if free < needed:
            raise _full(entry.parent, needed, f"{free:,} are free")
        partial.mkdir()
    except OSError as error:
        raise _unwritable(entry.parent, error) from error

    log.info("decoding %s images into %s, once", f"{len(paths):,}", entry)
    failed: dict[int, str] = {}
    digest = hashlib.blake2b(digest_size=16)

    def decode(chunk: list[str]) -> list[np.ndarray | str]:
        return [_try_decode(path, size, channels) for path in chunk]

    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    try:
        with open(partial / "images.u8", "wb") as file, _progress(len(paths)) as advance:
            position = 0
            for results in _in_order(decode, chunks, workers):
                for result in results:
                    if isinstance(result, str):
                        if on_error == "raise":
                            raise _unreadable(paths[position], result)
                        failed[position] = result
                    else:
                        file.write(result.data)
                        digest.update(result.data)
                    position += 1
                advance(len(results))
            file.flush()
            os.fsync(file.fileno())
        about = {
            "shape": [len(paths) - len(failed), size, size, channels],
            "failed": failed,
            "source": digest.hexdigest(),
        }
        with open(partial / "about.json", "w") as file_about:
            json.dump(about, file_about)
            file_about.flush()
            os.fsync(file_about.fileno())
        os.rename(partial, entry)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(entry.parent, needed, f"{error.strerror or error}") from error
        raise _unwritable(entry.parent, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _try_decode(path: str, size: int, channels: Literal[1, 3]) -> np.ndarray | str:
    from PIL import UnidentifiedImageError

    try:
        return decode_image(path, size, channels)
    except UnidentifiedImageError:
        return "not an image"
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their parsers raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return reason or type(error).__name__


def _in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Iterator[_Result]:
    """Map with threads, in order, without running far ahead of whoever takes the results."""
    if workers == 1:
        yield from map(function, items)
        return
    from PIL import Image

    Image.init()  # the registry of formats is not filled thread-safely
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], Any]]:
    if total <= _MANY and not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=total <= _MANY) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _unreadable(path: str, reason: str) -> DataError:
    return DataError(
        f"cannot read the image {path}: {reason}",
        where="data.root",
        instead="replace or remove the file; data.on_error=skip leaves it out where there is that setting",
    )


def _full(folder: Path, needed: int, reason: str) -> DataError:
    return DataError(
        f"the decoded images do not fit into {folder}: {needed:,} bytes are needed, {reason}",
        where="SCARCELY_CACHE",
        instead="free the space, or set SCARCELY_CACHE to a folder on a larger disk",
    )


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"the folder {folder} for decoded images cannot be written: {error.strerror or error}",
        where="SCARCELY_CACHE",
        instead="set SCARCELY_CACHE to a folder that can be written",
    )
