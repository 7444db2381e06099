"""Folders as they lie on real disks: closed, linked in circles, full of files, with any name."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scarcely.data.imagefolder import ImageFolder, list_images, scan
from scarcely.errors import DataError
from tests.data.files import RGB, write_image
from tests.hard.runs import with_pictures
from tests.runs import Process, command_line

FOLDER = (
    *("method=supervised", "data=imagefolder", "data.size=8", "fast=true", "trainer=cpu"),
    *("backbone.width=4", "embedding_size=0", "compare_kmeans=false"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "cache"))


def photos(root: Path, classes: tuple[str, ...] = ("a", "b"), each: int = 6) -> Path:
    for c, name in enumerate(classes):
        for i in range(each):
            write_image(root / name / f"{i}.png", c * each + i)
    return root


def start(tmp_path: Path, *arguments: str, target=command_line) -> Process:
    given = [*FOLDER, f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}", *arguments]
    return Process(target, given, log=tmp_path / "log", env={"SCARCELY_CACHE": str(tmp_path / "cache")})


def refused(process: Process) -> str:
    """Return the one message that a command ends with."""
    assert process.wait() == 2, process.output
    assert "Traceback" not in process.output
    assert len(re.findall("^error: ", process.output, re.MULTILINE)) == 1, process.output
    assert re.search(r"^  where:   \S", process.output, re.MULTILINE), process.output
    return process.output


# -- permissions ---------------------------------------------------------------------------------


class _Head(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def as_an_owner(arguments: list[str]) -> int:
    """Run the command as one to whom permissions apply: of root's privileges without those over files."""
    libc, head, found = ctypes.CDLL(None), _Head(0x20080522, 0), (_Capabilities * 2)()
    assert libc.capget(ctypes.byref(head), found) == 0
    for number in (1, 2):  # DAC_OVERRIDE, DAC_READ_SEARCH
        found[0].effective &= ~(1 << number)
        found[0].permitted &= ~(1 << number)
    assert libc.capset(ctypes.byref(head), found) == 0
    return command_line(arguments)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the capabilities of Linux")
@pytest.mark.parametrize("closed", ["photos", "photos/b", "photos/b/2.png"])
def test_what_may_not_be_read_is_named(tmp_path, closed):
    photos(tmp_path / "photos")
    (tmp_path / closed).chmod(0)
    try:
        told = refused(start(tmp_path, f"data.root={tmp_path / 'photos'}", target=as_an_owner))
    finally:
        (tmp_path / closed).chmod(0o755)
    assert closed.rpartition("/")[2] in told
    assert "ermission" in told, told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the capabilities of Linux")
@pytest.mark.parametrize("closed", ["run_dir", "cache_dir", "SCARCELY_CACHE"])
def test_a_place_that_may_not_be_written_is_named(tmp_path, closed):
    photos(tmp_path / "photos")
    place = tmp_path / "closed"
    place.mkdir(mode=0o555)
    env = {"SCARCELY_CACHE": str(place if closed == "SCARCELY_CACHE" else tmp_path / "cache")}
    places = {"run_dir": tmp_path / "run", "cache_dir": tmp_path / "cache"} | {closed: place / "below"}
    given = [f"{key}={path}" for key, path in places.items() if key != "SCARCELY_CACHE"]
    clusters = ("method=lsdc", "method.labeler.k=3", "pretext=rotnet")  # with a stage that goes to the cache
    arguments = [*FOLDER[1:], f"data.root={tmp_path / 'photos'}", *given, *clusters]
    told = refused(Process(as_an_owner, arguments, log=tmp_path / "log", env=env))
    assert str(place) in told, told
    assert "ermission" in told, told


# -- links ---------------------------------------------------------------------------------------


def test_links_in_circles_are_gone_through_once(tmp_path):
    root = photos(tmp_path / "photos", each=2)
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "b" / "across").symlink_to(root / "a")
    (root / "b" / "here").symlink_to(root / "b" / "here")
    for i in range(50):  # a chain that is no circle
        (tmp_path / f"link{i}").symlink_to(root / "b" if i == 0 else tmp_path / f"link{i - 1}")
    (root / "c").symlink_to(tmp_path / "link30")
    started = time.monotonic()
    classes, listings = scan(root)
    assert time.monotonic() - started < 5
    assert classes == ("a", "b", "c")
    files = listings["train"].files
    assert len(files) == len(set(files))
    assert {f for f in files if f.startswith("a/")} >= {"a/0.png", "a/1.png"}
    # a link to a file that links to itself is no picture, and is told when it is decoded
    (root / "a" / "loop.png").symlink_to(root / "a" / "loop.png")
    data = ImageFolder(augmentation=RGB, root=str(root), size=8)
    with pytest.raises(DataError, match=r"loop\.png"):
        data.setup()


# -- many ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_100000_tiny_files(tmp_path):
    """They are listed, decoded once, and found again at once."""
    pixels = [write_image(tmp_path / f"{s}.png", s, (4, 4, 3)) for s in range(7)]
    contents = [(tmp_path / f"{s}.png").read_bytes() for s in range(7)]
    root = tmp_path / "many"
    for c in range(10):
        (root / f"class {c}").mkdir(parents=True)
        for i in range(10_000):
            (root / f"class {c}" / f"{i:05}.png").write_bytes(contents[(c + i) % 7])
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        data = ImageFolder(augmentation=RGB, root=str(root), size=4)
        data.setup()
        seconds.append(time.monotonic() - started)
        train = data.parts["train"]
        assert len(train) == 100_000
        assert train.labels.bincount().tolist() == [10_000] * 10
        for row in (0, 12_345, 99_999):
            np.testing.assert_array_equal(
                train.inputs[row].numpy(), pixels[(row // 10_000 + row % 10_000) % 7]
            )
    print(f"100,000 files: {seconds[0]:.1f} s, then {seconds[1]:.1f} s")
    assert seconds[1] < min(30, seconds[0])


@pytest.fixture
def deep(tmp_path):
    """A tree of more levels than a path may name, or than Python would remove one by one."""
    root = tmp_path / "deep"
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("deeper", dir_fd=descriptor)
        below = os.open("deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    yield root
    subprocess.run(["rm", "-rf", root], check=True)


@pytest.mark.slow
def test_a_tree_of_a_thousand_levels(deep):
    write_image(deep / "0.png")
    with pytest.raises(DataError, match="File name too long") as caught:
        list_images(deep, deep)
    assert caught.value.instead


# -- names ---------------------------------------------------------------------------------------

NAMES = (
    *("with space", " leading", "trailing ", "it's", 'say "hi"', "a=b", "a,b", "[1]", "{x}", "$HOME", "`id`"),
    *(
        "-rf",
        "#1",
        "100%",
        "a\\b",
        "a;b",
        "a|b",
        "*",
        "?",
        "~",
        "&amp;",
        "<script>alert(1)<",
        "éèê",
        "写真",
        "עברית",
    ),
    *("😀", "e\u0301", "a\tb", "a\nb", "\u202egnp", "null", "None", "nan", "0", "x" * 200),
)


@pytest.mark.slow
def test_classes_and_files_of_any_name(tmp_path):
    """Through a whole run with its report, and every name comes back from its files."""
    root = tmp_path / 'pho\'tos = a, "b" é\n[1]'
    for c, name in enumerate(NAMES):
        for i, file in enumerate(("0.png", f"{NAMES[-1 - c][:100]}.PNG")):
            write_image(root / name / file, 2 * c + i)
    run = tmp_path / "run"
    process = start(tmp_path, f"data.root={root}", target=with_pictures)
    assert process.wait(300) == 0, process.output
    with np.load(run / "predictions.npz") as arrays:
        assert sorted(arrays["classes"].tolist()) == sorted(NAMES)
    page = next(run.glob("*.html")).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert json.loads((run / "results.json").read_text())["samples"] == 2 * len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["class", "file", "root"])
def test_names_that_are_no_text(tmp_path, where):
    """Bytes that no encoding explains: the run takes them or says which name it is."""
    odd = os.fsdecode(b"caf\xe9 \xff")
    root = tmp_path / (odd if where == "root" else "photos")
    for part in ("train", "test"):
        photos(root / part, ("a", odd if where == "class" else "b"))
    if where == "file":
        write_image(root / "train" / "a" / f"{odd}.png", 99)
    process = start(tmp_path, f"data.root={root}", "data.labels_per_class=2")
    code = process.wait()
    assert "Traceback" not in process.output, process.output
    if code == 0:
        with open(
            tmp_path / "run" / "labelled.csv", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            assert len(list(csv.reader(file))) == 5
    else:
        assert code == 2, process.output
        assert "caf" in process.output
