"""Several runs started at once: in one folder, with one cache, with the same images."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from scarcely.callbacks.history import read_rows
from scarcely.errors import UserError
from scarcely.folder import RunFolder
from tests.hard.runs import difference
from tests.runs import start_run
from tests.test_folder import begin, config

TIMES = int(os.environ.get("SCARCELY_TIMES", "10"))
RUN = ("pretext=rotnet", "stages.pretext.epochs=2", "epochs=3")


# -- the folder ----------------------------------------------------------------------------------


def test_a_folder_that_another_run_took_meanwhile_is_not_trained_in(tmp_path, capsys):
    """Between the choice of a folder and its lock lie seconds in which data are read."""
    given = config(tmp_path, run_dir=str(tmp_path / "own"))
    slow = RunFolder.choose(given, "x")
    begin(RunFolder.choose(given, "x"), given, finish=True)
    before = {p: p.stat().st_mtime_ns for p in slow.path.iterdir()}
    with pytest.raises(UserError, match="meanwhile"), slow.opened(given):
        pytest.fail("it would write over the other run")
    assert {
        p: p.stat().st_mtime_ns for p in slow.path.iterdir() if p.name != ".lock"
    }.items() <= before.items()
    # nor by a run that goes on with what the other has begun, with other settings
    again = given | {"resume": True}
    slow = RunFolder.choose(again | {"run_dir": str(tmp_path / "other")}, "x")
    begin(RunFolder.choose(given | {"run_dir": str(tmp_path / "other")}, "x"), given | {"epochs": 4})
    with pytest.raises(UserError, match="epochs was 4 and is 3"), slow.opened(again):
        pytest.fail("it would go on with other settings")
    # or made its scores once more without a word
    slow = RunFolder.choose(again | {"run_dir": str(tmp_path / "third")}, "x")
    begin(RunFolder.choose(given | {"run_dir": str(tmp_path / "third")}, "x"), given, finish=True)
    with slow.opened(again):
        assert "this run is finished meanwhile" in capsys.readouterr().err


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    process = start_run(root / "run", *RUN, f"cache_dir={root / 'cache'}")
    assert process.wait() == 0, process.output
    return root


@pytest.mark.slow
def test_two_runs_started_at_once_in_one_folder(whole, tmp_path):
    """One trains, the other says who does: whatever the milliseconds between them, and with resume too."""
    draw = random.Random(0)
    finished_first = 0
    for number in range(TIMES):
        folder = tmp_path / str(number)
        given = [*RUN, f"cache_dir={tmp_path / f'cache{number}'}", *(["resume=true"] if number % 2 else [])]
        processes = []
        for log in ("a", "b"):
            processes.append(start_run(folder, *given, log=tmp_path / f"{number}{log}.log"))
            time.sleep(draw.choice([0.0, 0.05, 1.0]) * draw.random())
        codes = sorted(process.wait(300) for process in processes)
        outputs = [process.output for process in processes]
        assert codes[0] == 0, outputs
        assert codes[1] in (0, 2), outputs
        assert not any("Traceback" in output for output in outputs)
        if codes[1] == 2:
            told = next(output for output, p in zip(outputs, processes) if p.wait() == 2)
            assert "another process" in told or "holds a" in told, told
        else:  # the other had finished by then
            finished_first += 1
            assert any("this run is finished" in output for output in outputs)
        assert difference(folder, whole / "run") == ""
    assert finished_first < TIMES


@pytest.mark.slow
def test_the_same_command_twice_without_a_folder(whole, tmp_path):
    """Both choose the same name; the one that comes second must not write into the first's folder."""
    given = [*RUN, f"cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'outputs'}", "run_dir=null"]
    processes = [start_run(tmp_path / name, *given) for name in ("a", "b")]
    codes = sorted(process.wait(300) for process in processes)
    assert codes in ([0, 0], [0, 2]), [process.output for process in processes]
    runs = [path.parent for path in (tmp_path / "outputs").rglob("results.json")]
    assert len(runs) == codes.count(0)
    for run in runs:
        assert difference(run, whole / "run") == ""


@pytest.mark.slow
def test_a_folder_is_free_again_after_a_kill(tmp_path, whole):
    process = start_run(tmp_path / "run", *RUN, f"cache_dir={tmp_path / 'cache'}")
    while not (tmp_path / "run" / "config.yaml").exists():
        time.sleep(0.01)
    second = start_run(
        tmp_path / "run", *RUN, f"cache_dir={tmp_path / 'cache'}", "resume=true", log=tmp_path / "second.log"
    )
    assert second.wait() == 2, second.output
    assert "another process is running" in second.output
    process.send(signal.SIGKILL)
    process.wait()
    third = start_run(
        tmp_path / "run", *RUN, f"cache_dir={tmp_path / 'cache'}", "resume=true", log=tmp_path / "third.log"
    )
    assert third.wait() == 0, third.output
    assert difference(tmp_path / "run", whole / "run") == ""


# -- the cache -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_five_runs_that_want_one_pretext_train_it_once_though_the_first_is_killed(tmp_path, whole):
    cache = tmp_path / "cache"
    processes = [start_run(tmp_path / f"run{number}", *RUN, f"cache_dir={cache}") for number in range(5)]

    def pretext() -> int:
        return sum(len(read_rows(path)) for path in cache.glob("stages/*/metrics.csv"))

    while not pretext():
        time.sleep(0.005)
    trainer = next(p for p in processes if "another run trains" not in p.output)
    trainer.send(signal.SIGKILL)
    killed = trainer.wait() == -signal.SIGKILL
    codes = [process.wait(300) for process in processes]
    assert codes.count(0) == (4 if killed else 5), [process.output for process in processes]
    for number, code in enumerate(codes):
        if code == 0:
            assert difference(tmp_path / f"run{number}", whole / "run") == ""
    told = "".join(process.output for process in processes)
    assert told.count("pretext: trained in") <= 1
    results = [json.loads(path.read_text()) for path in tmp_path.glob("run*/results.json")]
    assert sum(not result["stages"][0]["cached"] for result in results) <= 1
