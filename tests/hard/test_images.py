"""Image files of every sort of damage: each is decoded as it looks, or named."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely.data.decode import decode_cached, decode_image
from scarcely.data.imagefolder import EXTENSIONS
from scarcely.errors import DataError
from tests.data.files import noise
from tests.hard.test_annotations import damaged_bytes

CASES = int(os.environ.get("SCARCELY_CASES", "400"))  # of each format
FORMATS = {
    "jpg": "JPEG",
    "png": "PNG",
    "bmp": "BMP",
    "webp": "WEBP",
    "gif": "GIF",
    "tif": "TIFF",
    "ppm": "PPM",
}


def image(seed: int = 0, shape: tuple[int, ...] = (24, 32, 3)) -> Image.Image:
    return Image.fromarray(noise(seed, *shape))


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def decoded(path: Path, cache: Path, size: int = 8) -> np.ndarray | str:
    """Return the pixels of a file, or the message that names it."""
    told, found = None, torch.empty(0)
    try:
        found = decode_cached([path], size, 3, cache).images
    except DataError as error:
        told = error
    if told is not None:
        assert path.name in told.what
        assert told.instead
        return told.what
    assert found.shape == (1, size, size, 3)
    return found[0].numpy().copy()


# -- what a picture can be -----------------------------------------------------------------------


def variants() -> dict[str, tuple[str, bytes]]:
    """Return unusual files, by what they are: their names and contents."""
    plain, grey = image(), Image.fromarray(noise(1, 24, 32))
    sixteen = Image.fromarray(noise(1, 24, 32).astype(np.uint16) * 257)
    frames = [image(s) for s in range(3)]
    all_frames = {"save_all": True, "append_images": frames[1:]}
    return {
        "palette PNG": ("a.png", encoded(plain.convert("P"), "PNG")),
        "palette PNG, one colour transparent": ("a.png", encoded(plain.convert("P"), "PNG", transparency=3)),
        "palette PNG of two colours": ("a.png", encoded(plain.convert("P", colors=2), "PNG")),
        "CMYK JPEG": ("a.jpg", encoded(plain.convert("CMYK"), "JPEG")),
        "CMYK TIFF": ("a.tif", encoded(plain.convert("CMYK"), "TIFF")),
        "YCbCr TIFF": ("a.tif", encoded(plain.convert("YCbCr"), "TIFF")),
        "LAB TIFF": ("a.tif", encoded(plain.convert("LAB"), "TIFF")),
        "16-bit PNG": ("a.png", encoded(sixteen, "PNG")),
        "16-bit TIFF": ("a.tif", encoded(sixteen, "TIFF")),
        "16-bit PGM": ("a.pgm", encoded(sixteen, "PPM")),
        "1-bit PNG": ("a.png", encoded(grey.convert("1"), "PNG")),
        "1-bit TIFF of a fax": ("a.tif", encoded(grey.convert("1"), "TIFF", compression="group4")),
        "grey JPEG": ("a.jpg", encoded(grey, "JPEG")),
        "grey PNG with transparency": ("a.png", encoded(plain.convert("LA"), "PNG")),
        "animated GIF": ("a.gif", encoded(frames[0], "GIF", **all_frames)),
        "animated PNG": ("a.png", encoded(frames[0], "PNG", **all_frames)),
        "animated WebP": ("a.webp", encoded(frames[0], "WEBP", lossless=True, **all_frames)),
        "TIFF of several pages": ("a.tif", encoded(frames[0], "TIFF", **all_frames)),
        "progressive JPEG": ("a.jpg", encoded(plain, "JPEG", progressive=True)),
        "interlaced GIF": ("a.gif", encoded(plain, "GIF", interlace=1)),
        "PNG called JPEG": ("a.jpg", encoded(plain, "PNG")),
        "JPEG called PNG": ("a.png", encoded(plain, "JPEG", quality=100)),
        "WebP called BMP": ("a.bmp", encoded(plain, "WEBP", lossless=True)),
        "GIF called PPM": ("a.PPM", encoded(plain, "GIF")),
        "JPEG with text behind it": ("a.jpg", encoded(plain, "JPEG", quality=100) + b"hello" * 100),
        "one pixel": ("a.png", encoded(image(0, (1, 1, 3)), "PNG")),
        "one column": ("a.png", encoded(image(0, (300, 1, 3)), "PNG")),
    }  # fmt: skip


NOT_IMAGES = {
    "empty": b"",
    "text": b"hello, world\n" * 50,
    "zeros": bytes(5000),
    "an EPS that would start Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
    "PDF": b"%PDF-1.4\n1 0 obj<<>>endobj\n",
    "HTML of a failed download": b"<!DOCTYPE html><html><body>404</body></html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "a PNG without pixels": b"\x89PNG\r\n\x1a\n",
    "the head of a JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF",
}


def test_every_sort_of_picture_is_decoded_to_what_it_shows(tmp_path):
    for what, (name, content) in variants().items():
        (tmp_path / name).write_bytes(content)
        found = decoded(tmp_path / name, tmp_path / "cache")
        assert isinstance(found, np.ndarray), (what, found)
        with Image.open(tmp_path / name) as opened:
            opened.seek(0)
            side = min(opened.size)
            left, top = ((length - side) // 2 for length in opened.size)
            if what in ("16-bit PNG", "16-bit TIFF", "16-bit PGM"):
                seen = Image.fromarray(
                    (np.asarray(opened).astype(np.float64) / 257).astype(np.uint8)
                ).convert("RGB")
            elif opened.has_transparency_data:
                seen = Image.alpha_composite(
                    Image.new("RGBA", opened.size, "white"), opened.convert("RGBA")
                ).convert("RGB")
            else:
                seen = opened.convert("RGB")
        box = (left, top, left + side, top + side)
        expected = np.asarray(seen.resize((8, 8), Image.Resampling.BILINEAR, box=box)).astype(int)
        # a large JPEG is decoded at a lower resolution: close, not equal
        assert np.abs(found - expected).max() <= (40 if name.endswith("jpg") else 2), what
        assert np.abs(found - expected).mean() < 10, what


@pytest.mark.parametrize("what", NOT_IMAGES)
def test_what_is_no_image_is_named_whatever_its_ending(tmp_path, what):
    for ending in EXTENSIONS:
        path = tmp_path / f"file.{ending}"
        path.write_bytes(NOT_IMAGES[what])
        assert isinstance(decoded(path, tmp_path / "cache"), str), ending


# -- size ----------------------------------------------------------------------------------------


def blank_png(width: int, height: int) -> bytes:
    """Return a black grey PNG without ever having its pixels in memory."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.slow
def test_a_picture_of_20000_pixels_a_side_is_refused_by_name_before_it_fills_the_memory(tmp_path):
    import resource

    path = tmp_path / "huge.png"
    path.write_bytes(blank_png(20_000, 20_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = decoded(path, tmp_path / "cache")
    assert isinstance(message, str)
    assert "400000000 pixels" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB, of 1.2 GB as RGB
    kept = decode_cached([path], 8, 3, tmp_path / "cache", on_error="skip")
    assert list(kept.failed) == [0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # half of what is refused
@pytest.mark.parametrize(("width", "height"), [(20_000, 5_000), (20_000, 8_000), (20_000, 3)])
def test_a_picture_of_20000_pixels_in_one_direction_is_decoded(tmp_path, width, height):
    path = tmp_path / "wide.png"
    path.write_bytes(blank_png(width, height))
    assert not np.asarray(decoded(path, tmp_path / "cache")).any()


def test_a_picture_that_lies_about_its_size_is_named(tmp_path):
    whole = blank_png(16, 16)
    for width, height in ((0, 16), (16, 0), (2**31 - 1, 2**31 - 1), (17, 16)):
        head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        content = whole[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + whole[33:]
        (tmp_path / "lie.png").write_bytes(content)
        assert isinstance(decoded(tmp_path / "lie.png", tmp_path / "cache"), str), (width, height)


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of truncated metadata
@pytest.mark.parametrize("ending", FORMATS)
def test_files_with_random_damage_are_decoded_or_named(tmp_path, ending):
    """A crash of a decoder would end this process, and an endless loop the patience of who waits."""
    draw = random.Random(0)
    wholes = [encoded(image(s), FORMATS[ending]) for s in range(3)]
    if ending in ("png", "gif", "tif"):
        wholes.append(encoded(image().convert("P"), FORMATS[ending]))
    (tmp_path / "folder").mkdir()
    names = []
    for case in range(CASES):
        names.append(f"{case:05}.{ending}")
        (tmp_path / "folder" / names[-1]).write_bytes(damaged_bytes(draw.choice(wholes), draw))
    found = decode_cached(names, 8, 3, tmp_path / "cache", root=tmp_path / "folder", on_error="skip")
    assert len(found.images) + len(found.failed) == CASES
    assert found.failed
    assert all(reason.strip() for reason in found.failed.values())
    # the same files again, alone: neither threads nor neighbours change what comes out
    kept = [i for i in range(CASES) if i not in found.failed]
    for row, i in enumerate(kept[:20]):
        np.testing.assert_array_equal(
            decode_image(tmp_path / "folder" / names[i], 8), found.images[row].numpy()
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # likewise
@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_that_ends_anywhere_is_named_or_whole(tmp_path, ending):
    """Cut after every byte of a small file: what misses pixels is never decoded as if it had them."""
    whole = encoded(image(0, (8, 8, 3)), FORMATS[ending])
    path = tmp_path / f"cut.{ending}"
    path.write_bytes(whole)
    expected = decode_image(path, 8)
    refused = 0
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        found = decoded(path, tmp_path / "cache")
        if isinstance(found, str):
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected, err_msg=str(end))
    assert refused > len(whole) // 2
