"""Small files in the real formats, and where real ones may lie."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from scarcely.data.augment import ImageAugmentation, VectorAugmentation

GREY = ImageAugmentation(mean=[0.5], std=[0.25])
RGB = ImageAugmentation(mean=[0.5] * 3, std=[0.25] * 3)
VECTORS = VectorAugmentation()


def real(name: str) -> Path:
    """Return a real file or folder by its name; skip the test where there is none."""
    places = [Path(__file__).resolve().parents[2].parent / "shared" / "data"]
    if os.environ.get("SCARCELY_TEST_DATA"):
        places.insert(0, Path(os.environ["SCARCELY_TEST_DATA"]))
    for place in places:
        if (place / name).exists():
            return place / name
    pytest.skip(f"no {name} in $SCARCELY_TEST_DATA")


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, seed: int = 0, shape: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    """Write noise in the format that the ending of `path` names; return its pixels."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(seed, *shape)
    Image.fromarray(pixels).save(path)
    return pixels


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an uncompressed idx file of unsigned bytes, as MNIST has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())
