"""Masks as the annotations of COCO write them: polygons and run lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["decode_counts", "polygon_mask", "run_length_mask"]


def polygon_mask(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels whose centres lie inside of a polygon, by the even-odd rule.

    Pillow's own polygons reach up to a pixel further to the upper left than to the lower right.

    Args:
        polygon: (K, 2), the corners x, y in pixels from the upper left corner of the image.
        size: (H, W) of the image.

    Returns:
        (H, W) bool; of a polygon too thin to hold a centre, the pixels that its corners lie in.
    """
    height, width = size
    mask = np.zeros(size, dtype=bool)
    x, y = polygon.T.astype(np.float64)
    left, right = (int(edge) for edge in np.clip((np.floor(x.min()), np.ceil(x.max())), 0, width))
    top, bottom = (int(edge) for edge in np.clip((np.floor(y.min()), np.ceil(y.max())), 0, height))
    centers = np.arange(top, bottom)[:, None] + 0.5
    rows, edges = np.nonzero((y <= centers) != (np.roll(y, -1) <= centers))
    slopes = (np.roll(x, -1) - x)[edges] / (np.roll(y, -1) - y)[edges]
    crossings = x[edges] + (centers[rows, 0] - y[edges]) * slopes
    # From a crossing on, a row is inside where it was outside before.
    flips = np.zeros((bottom - top, right - left + 1), dtype=np.int32)
    np.add.at(flips, (rows, np.clip(np.ceil(crossings - 0.5), left, right).astype(np.int64) - left), 1)
    mask[top:bottom, left:right] = flips.cumsum(axis=1)[:, :-1] % 2 == 1
    if not mask.any():
        mask[np.clip(y, 0, height - 1).astype(np.int64), np.clip(x, 0, width - 1).astype(np.int64)] = True
    return mask


def run_length_mask(counts: Sequence[int] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of alternating run lengths, down the columns, zeros first.

    Args:
        counts: lengths of the runs.
        size: (H, W) of the image.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: a negative length, or not as many pixels as the image has.
    """
    height, width = size
    runs = np.asarray(counts, dtype=np.int64)
    if (runs < 0).any():
        raise ValueError("a run has a negative length")
    if runs.sum() != height * width:
        raise ValueError(f"the runs have {runs.sum()} pixels, not {height} x {width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def decode_counts(text: str) -> list[int]:
    """Return the run lengths that COCO's compressed text stands for.

    A character holds five bits of a number, the lowest first, and a sixth that says whether more follow;
    the highest bit of the last five is the sign. From the fourth on, a number is the difference from the
    run length two before it.

    Raises:
        ValueError: a character that does not occur in such texts, or the last number is not complete.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} does not occur in run lengths")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = shift = 0
    if shift:
        raise ValueError("the run lengths end within a number")
    return counts
