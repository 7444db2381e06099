"""A disk that is full at every write of a run: one message, nothing lost, and with room it goes on."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.hard.runs import SCENARIOS, Scenario, difference
from tests.runs import Process

STEPS = int(os.environ.get("SCARCELY_STEPS", "24"))  # sizes of the disk, for each run
PAGE = 4096
_NEWNS, _NEWUSER, _PRIVATE, _REMOUNT = 0x20000, 0x10000000, 0x44000, 0x20

RUNS = {
    "clusters": SCENARIOS["lsdc with its report"],
    "discovery": SCENARIOS["ranking_statistics"],
    "domains": SCENARIOS["series_adapters"],
    "saliency": SCENARIOS["normgrad"],
    "several devices": Scenario((*SCENARIOS["supervised"].overrides, "trainer.devices=2", "epochs=2")),
    "tensorboard": Scenario((*SCENARIOS["supervised"].overrides, "logger=tensorboard", "epochs=2")),
}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _own_mounts() -> bool:
    """Leave the mounts of all other processes alone from now on; return whether that may be done."""
    libc = _libc()
    ids = os.getuid(), os.getgid()
    if libc.unshare(_NEWNS if ids[0] == 0 else _NEWNS | _NEWUSER):
        return False
    if ids[0]:  # to be root of one's own mounts
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {ids[0]} 1")
        Path("/proc/self/gid_map").write_text(f"0 {ids[1]} 1")
    return libc.mount(b"none", b"/", None, _PRIVATE, None) == 0


def _mount(folder: Path, options: str, *, again: bool = False) -> bool:
    flags = _REMOUNT if again else 0
    return _libc().mount(b"tmpfs", bytes(folder), b"tmpfs", flags, options.encode()) == 0


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def on_a_small_disk(disk: Path, options: str, kept: Path, scenario: Scenario, material: Path) -> int:
    """Run on a disk of its own, see what it left, make room and go on.

    What is printed between lines of ``===`` is what each part of it said.

    Args:
        disk: folder that the disk is seen in, by this process and those that it starts.
        options: of the disk, its size or the number of its files.
        kept: where the finished run is copied, of which the disk goes when this process ends.
        scenario: the run.
        material: see `Scenario`.
    """
    if not (_own_mounts() and _mount(disk, options)):
        return 77
    # a script finds what it wrote to the terminal; the cache of images fills the same disk
    os.environ["SCARCELY_CACHE"] = str(disk / "images")
    from tests.hard.runs import with_pictures
    from tests.runs import command_line

    main = with_pictures if scenario.pictures else command_line
    arguments = scenario.arguments(disk, material)
    print("===", flush=True)
    code = main(list(arguments))
    print("===", flush=True)
    if code not in (0, 2):
        return 10 + code
    left = sorted(p.relative_to(disk).as_posix() for p in disk.rglob("*") if p.is_file())
    print(f"code {code}, left: {' '.join(left)}", flush=True)
    if any(name.endswith(".part") for name in left):
        return 3
    if code and (disk / "run" / "results.json").exists():
        return 4
    if not _mount(disk, "size=1g,nr_inodes=100k", again=True):
        return 78
    if code:
        print("===", flush=True)
        code = main([*arguments, "resume=true"])
        if code:
            return 20 + code
    shutil.copytree(disk / "run", kept / "run", ignore=shutil.ignore_patterns("events.*"))
    return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory, material):
    """Each run with all the room that it wants, and how much and how many files that was."""
    found: dict[str, tuple[Path, int, int]] = {}

    def run(name: str) -> tuple[Path, int, int]:
        if name not in found:
            folder = tmp_path_factory.mktemp("whole")
            process = RUNS[name].start(folder, material)
            assert process.wait(600) == 0, process.output
            (folder / "cache").mkdir(exist_ok=True)
            for events in (folder / "run").rglob("events.*"):  # with the time in their names
                events.unlink()
            sizes = [p.stat().st_size for part in ("run", "cache") for p in (folder / part).rglob("*")]
            found[name] = folder, sum(-(-size // PAGE) for size in sizes), len(sizes)
        return found[name]

    return run


def try_sizes(name: str, sizes: list[str], whole, material: Path, tmp_path: Path) -> set[str]:
    """Run on disks of these sizes; return what was being written when they were full."""
    stopped_at: set[str] = set()
    expected = whole(name)[0]
    for number, options in enumerate(sizes):
        disk, kept = tmp_path / f"disk{number}", tmp_path / f"kept{number}"
        disk.mkdir()
        process = Process(
            on_a_small_disk, disk, options, kept, RUNS[name], material, log=tmp_path / f"log{number}"
        )
        code = process.wait(600)
        if code == 77:
            pytest.skip("this system lets nobody mount a disk of one's own")
        assert code == 0, f"{options}: {process.output}"
        said = process.output.split("===\n")[1]
        assert "Traceback" not in said, f"{options}: {said}"
        errors = re.findall(r"^error: (.*)$", said, re.MULTILINE)
        if errors:
            assert len(errors) == 1, said
            assert re.search(r"the disk is full|No space left|do not fit", errors[0]), said
            assert str(disk) in said
            stopped_at.add(errors[0].replace(str(disk), "DISK"))
        assert difference(kept / "run", expected / "run") == "", options
        shutil.rmtree(kept)
    return stopped_at


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs disks of a few kilobytes")
@pytest.mark.parametrize("name", RUNS)
def test_a_disk_that_is_full_at_any_write(name, whole, material, tmp_path):
    pages = whole(name)[1]
    sizes = sorted({max(1, round(pages * step / STEPS)) for step in range(STEPS + 1)})
    stopped = try_sizes(name, [f"size={PAGE * size}" for size in sizes], whole, material, tmp_path)
    print(f"{name}: {len(sizes)} sizes; {sorted(stopped)}")
    assert len(stopped) > 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs disks of a few kilobytes")
@pytest.mark.parametrize("name", ["clusters", "domains"])
def test_a_disk_without_room_for_another_name(name, whole, material, tmp_path):
    """Every new file and folder takes an inode: a disk may have no more of them and space enough."""
    files = whole(name)[2]
    counts = sorted({max(1, round(files * step / STEPS)) for step in range(STEPS + 1)})
    stopped = try_sizes(name, [f"size=1g,nr_inodes={n}" for n in counts], whole, material, tmp_path)
    print(f"{name}: {len(counts)} counts; {sorted(stopped)}")
    assert len(stopped) > 2
