"""Image files in their own size and proportions, and what their headers say."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scarcely.data.decode import FORMATS, flatten
from scarcely.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

__all__ = ["decode_whole", "upright_size", "wrong_size"]

_ORIENTATION = 0x0112  # tag of EXIF
_ON_THE_SIDE = (5, 6, 7, 8)  # its values that exchange height and width

log = logging.getLogger(__name__)


def decode_whole(path: Path) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8, turned and flattened as `decode_image` does.

    Raises:
        Exception: whatever Pillow raises on a damaged file.
    """
    from PIL import Image, ImageOps

    with Image.open(path, formats=FORMATS) as image:
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:  # the picture beside a broken EXIF block is still good
            log.debug("EXIF orientation of %s ignored: %s", path, error)
        return np.array(flatten(image).convert("RGB"))


def upright_size(path: Path) -> tuple[int, int] | None:
    """Return (H, W) of an image, turned as its EXIF orientation says; None if its header cannot be read."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = _orientation(image) in _ON_THE_SIDE
    except Exception:  # decoding will say what is wrong with it
        return None
    return (width, height) if turned else (height, width)


def _orientation(image: PILImage) -> int:
    from PIL import Image

    try:
        # Not PNG's own, which decodes the whole image first.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block turns nothing
        return 1


def wrong_size(path: Path, found: tuple[int, int], said: tuple[int, int]) -> DataError:
    """Return the error that an image has not the size, (H, W), that its annotation says."""
    turned = found == said[::-1]
    return DataError(
        f"the image has {found[1]} x {found[0]} pixels{' as it is to be seen' if turned else ''}, "
        f"its annotation says {said[1]} x {said[0]} (width x height)",
        where=str(path),
        instead="an annotation of the image the right way up; or an image without EXIF orientation, turned"
        " the way that was annotated"
        if turned
        else "the image that was annotated, at the same size",
    )
