import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely.data.decode import decode_cached, decode_image, load_images
from scarcely.errors import DataError

from .files import noise, write_image

SOURCES = str(Path(__file__).resolve().parents[2] / "src")


@pytest.fixture
def folder(tmp_path):
    """Five images of 8 x 8 pixels in a folder of their own."""
    for number in range(5):
        write_image(tmp_path / "images" / f"{number}.png", seed=number)
    return tmp_path / "images"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def python(code, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# One image


def test_an_image_of_the_wanted_size_keeps_its_pixels(tmp_path):
    pixels = write_image(tmp_path / "a.png", shape=(16, 16, 3))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 16), pixels)


@pytest.mark.parametrize("shape", [(8, 20, 3), (20, 8, 3)])
def test_the_central_square_is_cut(tmp_path, shape):
    pixels = write_image(tmp_path / "a.png", shape=shape)
    centre = pixels[:, 6:14] if shape[1] == 20 else pixels[6:14]
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 8), centre)


def test_a_shrunk_image_is_averaged_and_not_sampled(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(np.uint8(board)).save(tmp_path / "a.png")
    # A checkerboard of single pixels is grey from afar; taking every eighth pixel gives black or white.
    inner = decode_image(tmp_path / "a.png", 8, 1)[1:-1, 1:-1].astype(int)
    assert np.abs(inner - 127).max() <= 4


def test_a_large_jpeg_is_close_to_a_full_decode(tmp_path):
    smooth = np.random.default_rng(0).uniform(0, 255, (6, 6, 3)).astype(np.uint8)
    Image.fromarray(smooth).resize((512, 512), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    # Decoding at an eighth replaces one average by two in a row: a few grey values.
    assert np.abs(decode_image(tmp_path / "a.jpg", 32) - whole).mean() < 2


def test_the_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees: the left becomes the top
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    turned = decode_image(tmp_path / "a.png", 8)
    assert turned[:4].min() == 255
    assert turned[4:].max() == 0


def test_a_broken_exif_block_does_not_spoil_the_image(tmp_path):
    pixels = noise(0, 8, 8, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0MM")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 8), pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 4, 8))  # black on the left, nothing on the right
    if mode == "P":
        clear = clear.convert("RGB").quantize(4)
        clear.putpixel((7, 7), 3)
        data = np.zeros((8, 8), np.uint8)
        data[:, 4:] = 3
        clear = Image.fromarray(data, "P")
        clear.putpalette([0, 0, 0] * 4)
        clear.save(tmp_path / "a.png", transparency=3)
    else:
        clear.convert(mode).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png", 8)
    assert decoded[:, :4].max() == 0
    assert decoded[:, 4:].min() == 255


def test_sixteen_bits_become_eight_without_clipping(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png", 8, 1)[..., 0]
    np.testing.assert_allclose(decoded, values / 257, atol=0.51)  # rounding to whole values


def test_every_other_mode_becomes_rgb_or_grey(tmp_path):
    colour = Image.new("RGB", (8, 8), (200, 30, 60))
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    colour.quantize(2).save(tmp_path / "palette.gif")
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.pgm")
    for name in ("cmyk.jpg", "palette.gif"):
        decoded = decode_image(tmp_path / name, 8, 3)
        assert np.abs(decoded[4, 4].astype(int) - (200, 30, 60)).max() <= 6, name  # JPEG rounds
        assert decode_image(tmp_path / name, 8, 1).shape == (8, 8, 1)
    assert decode_image(tmp_path / "bit.png", 8, 3).min() == 255
    for channels in (1, 3):
        decoded = decode_image(tmp_path / "grey.pgm", 8, channels)
        assert decoded.shape == (8, 8, channels)
        assert (decoded == 77).all()


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), (grey, grey, grey)) for grey in (0, 128, 255)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / f"a.{ending}", 8).max() <= 2


def test_pixels_without_an_agreed_range_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="floating-point"):
        decode_image(tmp_path / "a.tif", 8)


def test_a_very_long_image_is_cut_before_it_is_resized(tmp_path):
    Image.new("L", (20_000, 2), 7).save(tmp_path / "a.png")
    assert (decode_image(tmp_path / "a.png", 64) == 7).all()


# The cache


def test_images_come_back_in_the_order_of_the_list(folder, tmp_path):
    names = names_in(folder)[::-1]
    decoded = decode_cached(names, 8, 3, tmp_path / "cache", root=folder)
    assert decoded.images.shape == (5, 8, 8, 3)
    assert decoded.images.dtype == torch.uint8
    assert decoded.failed == {}
    for image, number in zip(decoded.images, (4, 3, 2, 1, 0), strict=True):
        np.testing.assert_array_equal(image, noise(number, 8, 8, 3))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_threads_changes_nothing(tmp_path, workers):
    names = [f"{number}.png" for number in range(200)]
    for number, name in enumerate(names):
        write_image(tmp_path / name, seed=number, shape=(4, 4, 3))
    decoded = decode_cached(names, 4, 3, tmp_path / "cache", root=tmp_path, workers=workers)
    expected = np.stack([noise(number, 4, 4, 3) for number in range(200)])
    np.testing.assert_array_equal(decoded.images, expected)


def spoil(path):
    """Overwrite a file with zeros such that its name, size and time stay."""
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_second_call_decodes_nothing(folder, tmp_path):
    first = decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder)
    for path in folder.iterdir():
        spoil(path)
    second = decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder)
    assert torch.equal(first.images, second.images)
    assert first.source == second.source


def test_a_moved_folder_keeps_its_cache(folder, tmp_path):
    first = decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder)
    moved = folder.rename(tmp_path / "moved")
    for path in moved.iterdir():
        spoil(path)
    assert torch.equal(
        first.images, decode_cached(names_in(moved), 8, 3, tmp_path / "cache", root=moved).images
    )


def test_a_changed_file_is_decoded_again(folder, tmp_path):
    first = decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder)
    pixels = write_image(folder / "2.png", seed=99)
    second = decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder)
    np.testing.assert_array_equal(second.images[2], pixels)
    assert torch.equal(first.images[3], second.images[3])
    assert first.source != second.source


@pytest.mark.parametrize("change", [{"size": 4}, {"channels": 1}])
def test_size_and_channels_have_caches_of_their_own(folder, tmp_path, change):
    wanted = {"size": 8, "channels": 3}
    decode_cached(names_in(folder), **wanted, cache_dir=tmp_path / "cache", root=folder)
    wanted |= change
    decoded = decode_cached(names_in(folder), **wanted, cache_dir=tmp_path / "cache", root=folder)
    assert decoded.images.shape == (5, wanted["size"], wanted["size"], wanted["channels"])


def test_the_source_tells_contents_apart_and_not_places(folder, tmp_path):
    one = decode_cached(names_in(folder), 8, 3, tmp_path / "one", root=folder)
    for path in folder.iterdir():
        path.touch()
    two = decode_cached(names_in(folder), 8, 3, tmp_path / "two", root=folder)
    assert one.source == two.source
    assert decode_cached(names_in(folder)[1:], 8, 3, tmp_path / "one", root=folder).source != one.source


def test_what_is_written_into_the_images_does_not_reach_the_cache(folder, tmp_path):
    first = decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder)
    before = first.images.clone()
    first.images.zero_()
    assert torch.equal(decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder).images, before)


def test_a_damaged_cache_is_decoded_again(folder, tmp_path):
    first = decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder)
    before = first.images.clone()
    data = next((tmp_path / "cache").glob("*/images.u8"))
    data.write_bytes(b"short")
    assert torch.equal(decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder).images, before)


def test_the_environment_says_where_the_cache_is(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "elsewhere"))
    decode_cached(names_in(folder), 8, root=folder)
    assert list((tmp_path / "elsewhere").glob("**/images.u8"))


# Files that cannot be decoded


@pytest.fixture
def spoilt(folder):
    (folder / "1.png").write_text("no image at all")
    write_image(folder / "3.jpg", shape=(64, 64, 3))
    data = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(data[: len(data) // 2])
    (folder / "3.png").unlink()
    return folder


def test_the_first_bad_file_is_named_and_nothing_is_left(spoilt, tmp_path):
    with pytest.raises(DataError, match=r"1\.png: not an image"):
        decode_cached(names_in(spoilt), 8, 3, tmp_path / "cache", root=spoilt)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_truncated_jpeg_is_named(spoilt, tmp_path):
    with pytest.raises(DataError, match=r"3\.jpg: .*truncated"):
        decode_cached(["0.png", "3.jpg"], 8, 3, tmp_path / "cache", root=spoilt)


def test_a_link_that_leads_nowhere_is_named(folder, tmp_path):
    (folder / "5.png").symlink_to(folder / "gone.png")
    with pytest.raises(DataError, match=r"5\.png: No such file"):
        decode_cached(names_in(folder), 8, 3, tmp_path / "cache", root=folder)


def test_skipped_files_are_left_out_and_remembered(spoilt, tmp_path):
    for _ in range(2):  # decoded, then from the cache
        decoded = decode_cached(names_in(spoilt), 8, 3, tmp_path / "cache", root=spoilt, on_error="skip")
        assert sorted(decoded.failed) == [1, 3]
        for image, number in zip(decoded.images, (0, 2, 4), strict=True):
            np.testing.assert_array_equal(image, noise(number, 8, 8, 3))
    with pytest.raises(DataError, match=r"1\.png"):
        decode_cached(names_in(spoilt), 8, 3, tmp_path / "cache", root=spoilt)


def test_all_files_may_fail(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    decoded = decode_cached(["a.png", "b.png"], 8, 3, tmp_path / "cache", root=tmp_path, on_error="skip")
    assert decoded.images.shape == (0, 8, 8, 3)
    assert len(decoded.failed) == 2


def test_skips_are_counted_and_five_of_them_named(folder, tmp_path):
    for number in range(5, 12):
        (folder / f"bad{number}.png").write_text("x")
    names = names_in(folder)
    with pytest.warns(UserWarning, match="7 of 12 images") as warned:
        samples, failed = load_images(
            folder, names, range(12), size=8, on_error="skip", cache_dir=tmp_path / "cache"
        )
    assert str(warned[0].message).count("bad") == 5
    assert "2 more" in str(warned[0].message)
    assert len(failed) == 7
    assert samples.names == tuple(f"{number}.png" for number in range(5))
    assert samples.labels.tolist() == [names.index(name) for name in samples.names]


def test_large_sets_stay_mapped_and_small_ones_are_read(folder, tmp_path, monkeypatch):
    wanted = {"size": 8, "cache_dir": tmp_path / "cache"}
    small, _ = load_images(folder, names_in(folder), [0] * 5, **wanted)
    assert small.source is None
    monkeypatch.setattr("scarcely.data.decode._IN_MEMORY", 100)
    large, _ = load_images(folder, names_in(folder), [0] * 5, **wanted)
    assert large.source is not None
    assert torch.equal(small.inputs, large.inputs)


# Disks


def test_too_large_a_set_is_refused_before_anything_is_decoded(tmp_path):
    size = 10_000_000  # five images of 300 TB; the files are not there, so that decoding would fail otherwise
    names = [f"{number}.png" for number in range(5)]
    with pytest.raises(DataError, match=f"{5 * size * size * 3:,} bytes are needed") as error:
        decode_cached(names, size, 3, tmp_path / "cache", root=tmp_path)
    assert str(tmp_path / "cache") in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes")
def test_a_write_that_fails_half_way_removes_the_partial_file(tmp_path):
    names = [f"{number}.png" for number in range(100)]
    for number, name in enumerate(names):
        write_image(tmp_path / "images" / name, seed=number, shape=(32, 32, 3))
    code = """
import resource, sys
from scarcely.data.decode import decode_cached
from scarcely.errors import DataError
folder, cache = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))  # 307,200 bytes are needed
try:
    decode_cached([f"{number}.png" for number in range(100)], 32, 3, cache, root=folder)
except DataError as error:
    print(error)
"""
    process = python(code, tmp_path / "images", tmp_path / "cache")
    out, err = process.communicate(timeout=60)
    assert "307,200 bytes are needed" in out, err
    assert str(tmp_path / "cache") in out
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_a_folder_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written") as error:
        decode_cached(names_in(folder), 8, 3, tmp_path / "file" / "cache", root=folder)
    assert "SCARCELY_CACHE" in str(error.value)


# Several processes

DECODE = """
import logging, sys
from scarcely.data.decode import decode_cached
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
folder, cache, count, size = sys.argv[1:]
names = [f"{number}.png" for number in range(int(count))]
print("ready", flush=True)
sys.stdin.readline()
decoded = decode_cached(names, int(size), 3, cache, root=folder, workers=1)
print("source", decoded.source)
"""


def many(folder, count, side=256):
    """Names of many files, all links to one image that takes some milliseconds to decode."""
    write_image(folder / "0.png", shape=(side, side, 3))
    for number in range(1, count):
        os.link(folder / "0.png", folder / f"{number}.png")


@pytest.mark.slow
def test_two_processes_at_once_decode_once(tmp_path):
    many(tmp_path / "images", 100)
    both = [python(DECODE, tmp_path / "images", tmp_path / "cache", 100, 256) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120) for process in both]
    lines = [line for out, _ in outputs for line in out.splitlines()]
    assert sum(line.startswith("decoding") for line in lines) == 1, outputs
    sources = [line for line in lines if line.startswith("source")]
    assert len(sources) == 2
    assert len(set(sources)) == 1


def test_a_killed_decode_leaves_nothing_that_looks_complete(tmp_path):
    many(tmp_path / "images", 400)
    cache = tmp_path / "cache"
    process = python(DECODE, tmp_path / "images", cache, 400, 256)
    process.stdin.write("go\n")
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in cache.glob("*/images.u8")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    left = [path for path in cache.iterdir() if path.is_dir()]
    assert [path.suffix for path in left] == [".partial"]
    assert left[0].joinpath("images.u8").stat().st_size < 400 * 256 * 256 * 3

    # The next process finds the lock free, starts anew and finishes.
    names = [f"{number}.png" for number in range(400)]
    decoded = decode_cached(names, 256, 3, cache, root=tmp_path / "images")
    assert torch.equal(decoded.images[399], decoded.images[0])
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [""]
