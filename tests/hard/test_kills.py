"""Runs of every method, killed at random moments of any stage, end as runs that were never interrupted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from functools import cache
from pathlib import Path

import pytest

from tests.hard.runs import SCENARIOS, difference
from tests.runs import Process, wait_until

KILLS = int(os.environ.get("SCARCELY_KILLS", "50"))
SEED = int(os.environ.get("SCARCELY_SEED", "0"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, material):
    """Each run once without an interruption, and the seconds that it took."""

    @cache
    def run(name: str) -> tuple[Path, float]:
        folder = tmp_path_factory.mktemp("whole")
        started = time.monotonic()
        process = SCENARIOS[name].start(folder, material)
        assert process.wait(600) == 0, process.output
        return folder, time.monotonic() - started

    return run


def stage_of(folder: Path) -> str:
    """Return what a run was at when it ended, for the record."""
    if not (folder / "run" / "config.yaml").exists():
        return "before"
    if (folder / "run" / "results.json").exists():
        return "after"
    files = [p for part in ("run", "cache") for p in (folder / part).rglob("*") if p.is_file()]
    last = max((p for p in files if p.name != ".lock"), key=lambda path: path.stat().st_mtime_ns)
    return last.relative_to(folder).as_posix()


def kill(process: Process, folder: Path, number: int, seconds: float) -> str | None:
    """Send a signal after some time; return what the run was at, or None if it ended before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.alive:
        time.sleep(0.002)
    if not process.alive:
        return None
    process.send(number)
    process.wait(60)
    return stage_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_random_moments_and_resumed_to_the_same_bits(name, uninterrupted, material, tmp_path):
    whole, seconds = uninterrupted(name)
    moment = random.Random(f"{SEED}{name}")
    place = sorted(SCENARIOS).index(name)
    wanted = KILLS // len(SCENARIOS) + (place < KILLS % len(SCENARIOS))
    kills, tries = 0, 0
    while kills < wanted:
        tries += 1
        assert tries < 20 * wanted, "it ends before it is killed"
        process = SCENARIOS[name].start(tmp_path, material, "resume=true", log=f"log{tries}")
        at = kill(process, tmp_path, signal.SIGKILL, seconds * moment.random())
        if at is None or at == "after":  # too late: begin anew
            assert process.wait() in (0, -signal.SIGKILL), process.output
            for part in ("run", "cache"):
                shutil.rmtree(tmp_path / part, ignore_errors=True)
        elif at != "before":
            kills += 1
            print(f"killed {name} at {at}")
    process = SCENARIOS[name].start(tmp_path, material, "resume=true")
    assert process.wait(600) == 0, process.output
    assert difference(tmp_path / "run", whole / "run") == ""
    assert difference(tmp_path / "cache", whole / "cache") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lsdc", "ranking_statistics", "parallel_adapters"])
def test_a_cluster_that_preempts_and_starts_again_gets_the_same_bits(name, uninterrupted, material, tmp_path):
    """SIGTERM, then the command as it was: what says that it goes on is the count of the cluster."""
    whole, seconds = uninterrupted(name)
    moment = random.Random(f"{SEED}{name}")
    codes = []
    for start in range(6):
        env = {"SLURM_RESTART_COUNT": str(start)}
        process = SCENARIOS[name].start(tmp_path, material, env=env, log=f"log{start}")
        if kill(process, tmp_path, signal.SIGTERM, seconds * (0.1 + 0.5 * moment.random())) is None:
            break
        codes.append(process.wait())
        assert "Traceback" not in process.output
    else:
        process = SCENARIOS[name].start(tmp_path, material, env={"SLURM_RESTART_COUNT": "6"})
    assert process.wait(600) == 0, process.output
    # 130 while it trains; before and after that the signal ends it as it ends any process
    assert codes
    assert set(codes) <= {130, -signal.SIGTERM}
    assert difference(tmp_path / "run", whole / "run") == ""
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]


@pytest.mark.slow
def test_many_kills_within_one_run(uninterrupted, material, tmp_path):
    """Eight in a row, each soon after the first sign of life: what a resume leaves is resumed too."""
    whole, seconds = uninterrupted("lsdc")
    moment = random.Random(SEED)
    for number in range(8):
        process = SCENARIOS["lsdc"].start(tmp_path, material, "resume=true", log=f"log{number}")
        wait_until(lambda: (tmp_path / "run" / "config.yaml").exists(), process)
        if kill(process, tmp_path, signal.SIGKILL, 0.2 * seconds * moment.random()) is None:
            break
    process = SCENARIOS["lsdc"].start(tmp_path, material, "resume=true")
    assert process.wait(600) == 0, process.output
    assert difference(tmp_path / "run", whole / "run") == ""
