"""Arrays of the user: what they must be, and what a network is given of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scarcely.errors import DataError

LEAST = 16  # pixels: room for the three poolings of small_cnn
UNLABELLED = -1


class ArrayError(DataError, ValueError):
    """Arrays that cannot be learnt from: scikit-learn's ValueError, with what would be right."""


def as_array(values: Any, where: str) -> np.ndarray:
    """Return an array of numbers.

    Raises:
        ArrayError: rows of different lengths, or objects that are no numbers.
    """
    if hasattr(values, "tocsr"):
        values = values.toarray()
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ArrayError(f"{where} is no array: {error}", where=where, instead="rows of one shape") from error
    if array.dtype.kind not in "biuf":
        complex_data = "Complex data not supported: " if array.dtype.kind == "c" else ""
        raise ArrayError(f"{complex_data}{where} holds {array.dtype}", where=where, instead="numbers")
    return array


def checked_inputs(X: Any) -> np.ndarray:
    """Return samples as numbers that have been looked at, images (N, H, W[, C]) or vectors (N, D).

    Raises:
        ArrayError: neither of the two, or numbers that cannot be.
    """
    array = as_array(X, "X")
    if array.ndim not in (2, 3, 4) or not array.size:
        raise ArrayError(f"X is {array.shape}", where="X", instead=_FORMS)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ArrayError("X holds NaN or infinity", where="X", instead="finite numbers")
    if array.ndim == 2:
        return array
    if array.ndim == 4 and array.shape[3] not in (1, 3):
        first = array.shape[1] in (1, 3)
        raise ArrayError(
            f"X is {array.shape}: images of {array.shape[3]} channels",
            where="X",
            instead="channels last: X.transpose(0, 2, 3, 1)" if first else "1 channel, or 3",
        )
    if array.shape[1] != array.shape[2]:
        raise ArrayError(
            f"X holds images of {array.shape[1]} by {array.shape[2]} pixels",
            where="X",
            instead="square images: cut off or fill up the longer side",
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ArrayError(f"X holds images of {array.dtype}", where="X", instead=_RANGE)
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ArrayError(f"X holds images from {low:g} to {high:g}", where="X", instead=_RANGE)
    return array


_FORMS = "images (N, H, W) or (N, H, W, C), or vectors (N, D)"
_RANGE = "uint8 from 0 to 255, or floats from 0 to 1 (X / X.max())"


def encode(inputs: np.ndarray) -> np.ndarray:
    """Return what a network is given: images (N, H, W, C) uint8 of 16 pixels at least, or vectors float32."""
    import torch
    from torch.nn.functional import interpolate

    if inputs.ndim == 2:
        return np.ascontiguousarray(inputs, dtype=np.float32)
    images = inputs if inputs.ndim == 4 else inputs[..., None]
    if images.dtype != np.uint8:
        images = (images * 255).round().astype(np.uint8)
    if images.shape[1] < LEAST:
        planes = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
        large = interpolate(planes, size=(LEAST, LEAST), mode="bilinear", align_corners=False)
        images = large.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(images)


def file_content(encoded: np.ndarray, labels: np.ndarray | None, names: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of the file that ``data=arrays`` reads, or ``data=tfidf``."""
    arrays: dict[str, Any] = {}
    if labels is not None:
        arrays |= {"labels": labels.astype(np.int64), "classes": np.array(names, dtype=np.str_)}
    if encoded.ndim == 4:
        return arrays | {"images": encoded}
    import scipy.sparse

    rows = scipy.sparse.csr_matrix(encoded)  # as scipy.sparse.save_npz writes it
    arrays |= {"format": np.array(b"csr"), "shape": np.array(rows.shape)}
    return arrays | {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr}


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Name a file by its content: a run that goes on in a folder goes on with the same samples."""
    digest = hashlib.blake2b(digest_size=6)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def require_count(count: Any, samples: int, name: str, of: str) -> None:
    """Check an argument that says how many groups there are.

    Raises:
        ArrayError: no whole number from 1 on, or more than there are samples.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ArrayError(f"{name} = {count!r}", where=name, instead="a whole number from 1 on")
    if count > samples:
        raise ArrayError(
            f"{name} = {count}, and there are {samples} {of}", where=name, instead=f"at most {samples}"
        )
