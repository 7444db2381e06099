"""Whole arrays as samples, and reading them from ``.npz`` files that people prepare themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scarcely.data.samples import Samples
from scarcely.errors import DataError

__all__ = ["checked_samples", "image_samples", "read_arrays"]


def image_samples(images: np.ndarray | Tensor, labels: object) -> Samples:
    """Make samples of whole arrays.

    Args:
        images: (N, H, W) or (N, H, W, C) uint8.
        labels: (N,) integers, -1 where unknown.
    """
    inputs = torch.as_tensor(images)
    if inputs.ndim == 3:
        inputs = inputs.unsqueeze(3)
    return Samples(inputs.contiguous(), torch.as_tensor(labels, dtype=torch.int64))


def checked_samples(path: Path, images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]) -> Samples:
    """Make samples of arrays that were read from `path`.

    Args:
        path: named in the error.
        images: to be (N, *shape) uint8.
        labels: to be (N,) integers.
        shape: of one image.

    Raises:
        DataError: another shape or type.
    """
    fits = images.shape[1:] == shape and images.dtype == np.uint8
    if not fits or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds images {images.shape} {images.dtype} and labels {labels.shape} {labels.dtype}",
            where="data.root",
            instead=f"images (N, {', '.join(map(str, shape))}) uint8 and labels (N,) integers",
        )
    return image_samples(images, labels)


def read_arrays(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read arrays of an ``.npz`` file by name; nothing pickled is ever loaded.

    Args:
        path: the file.
        required: names that must be there.
        optional: names read where they are there.

    Raises:
        DataError: no such file, not an ``.npz`` file, an array missing or pickled.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(getattr(file, "files", ()))  # a lone .npy array has none
            missing = [name for name in required if name not in names]
            if missing:
                raise DataError(
                    f"{path} has no array {missing[0]}",
                    where="data.root",
                    instead=f"an .npz file with the arrays {', '.join(required)}",
                )
            return {name: file[name] for name in (*required, *optional) if name in names}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own errors
        reason = str(error)
        if "allow_pickle" in reason:
            reason = "it holds pickled objects; save texts as arrays of fixed-width strings"
        raise DataError(
            f"cannot read {path}: {reason}", where="data.root", instead="a file written by numpy.savez"
        ) from error
