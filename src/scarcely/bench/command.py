"""How fast the project is: ratios to plain implementations, measured in the same run.

A machine is not as fast tomorrow as it is today, so both sides of a ratio take turns on the same
inputs, after a warm-up in which their results are compared. What each side is stands in docs/speed.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from scarcely.bench.rows import MEASURES, Row, Settings, print_table
from scarcely.errors import ConfigError

USAGE = """\
python scripts/bench.py [KEY=VALUE ...]

  repeats=3        turns of each side, after one to warm up
  threads=1,all    how many threads to use; the table has rows for each
  device=auto      auto | cpu | gpu
  clock=wall       wall | cpu: processor time, for a machine that others use as well (threads=1, device=cpu)
  batch=           images in a whole training step; 256 on a GPU, 64 on the CPU
  only=            some of pairs,input,workers,step,overhead,framework,methods,epochs,
                   phases,adapters,saliency,growth,processes,startup
  out=outputs/bench.json   the same numbers as JSON
"""
DEFAULTS = {
    "repeats": "3",
    "threads": "1,all",
    "device": "auto",
    "clock": "wall",
    "batch": "",
    "only": "",
    "out": "outputs/bench.json",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``key=value`` arguments, measure, print the table, and return the exit code."""
    from scarcely.cli import run_command

    # read when torch is loaded: threads as in a run, and no notes of the profiler
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return run_command(USAGE, set(), DEFAULTS, _command, argv)


def _command(arguments: Mapping[str, str]) -> None:
    from scarcely.files import write_atomically

    out, by_default = Path(arguments["out"]).expanduser(), arguments["out"] == DEFAULTS["out"]
    if out.is_dir() or not (by_default or out.absolute().parent.is_dir()):
        raise ConfigError(f"cannot write {out}", where="out", instead="a file in a folder that exists")
    settings = settings_of(arguments)
    if by_default:
        out.parent.mkdir(exist_ok=True)
    given = [f"{key}={value}" for key, value in arguments.items() if value != DEFAULTS[key]]
    content = circumstances(settings, " ".join(["python scripts/bench.py", *given]))
    content["rows"] = [asdict(row) for row in bench(settings)]
    text = json.dumps(content, indent=1)
    write_atomically(out, text)
    print_table(content)
    print(out, file=sys.stderr)


def settings_of(arguments: Mapping[str, str]) -> Settings:
    """Read what was given on the command line.

    Raises:
        ConfigError: a value out of its range.
    """
    only = tuple(arguments["only"].split(",")) if arguments["only"] else MEASURES
    for name in only:
        if name not in MEASURES:
            raise ConfigError(
                f"nothing named {name!r} is measured", where="only", instead=", ".join(MEASURES)
            )
    if arguments["device"] not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"device={arguments['device']}", where="device", instead="auto, cpu or gpu")
    if arguments["clock"] not in ("wall", "cpu"):
        raise ConfigError(f"clock={arguments['clock']}", where="clock", instead="wall or cpu")
    threads = [
        _cores() if text == "all" else _whole(text, "threads", 1) for text in arguments["threads"].split(",")
    ]
    repeats = _whole(arguments["repeats"], "repeats", 1)
    # kNN labels need more samples than neighbours
    batch = _whole(arguments["batch"], "batch", Settings.k + 1) if arguments["batch"] else None

    import torch

    gpu = torch.cuda.is_available()
    if arguments["device"] == "gpu" and not gpu:
        raise ConfigError("there is no GPU", where="device", instead="device=cpu")
    device = "cuda" if gpu and arguments["device"] != "cpu" else "cpu"
    if device == "cuda" and arguments["clock"] == "cpu":
        raise ConfigError(
            "processor time says nothing about a GPU", where="clock", instead="clock=wall, or device=cpu"
        )
    return Settings(
        only=only,
        repeats=repeats,
        threads=tuple(dict.fromkeys(threads)),
        device=device,
        clock=arguments["clock"],
        batch=batch or (256 if device == "cuda" else 64),
    )


def _whole(text: str, where: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{where}={text}", where=where, instead=f"a whole number, at least {least}")
    return int(text)


def _cores() -> int:
    """Return the cores that this process may use: taskset and containers allow fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def bench(settings: Settings) -> list[Row]:
    """Measure everything that is asked for."""
    import torch

    # the rate of the input is one of a core; what has several processes is measured as a user has it
    as_used = ("workers", "overhead", "processes", "startup")
    threads_of = {"input": (1,)} | dict.fromkeys(as_used, settings.threads[-1:])
    rows = []
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    try:
        torch.set_float32_matmul_precision("high")  # as in a run; for both sides
        for name in settings.only:
            measure = import_module(f"scarcely.bench.{name}").measure
            for threads in threads_of.get(name, settings.threads):
                print(f"{name}, threads: {threads}", file=sys.stderr, flush=True)
                torch.set_num_threads(threads)
                rows += measure(settings, threads)
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        torch.backends.cudnn.benchmark = before[2]
    return rows


def circumstances(settings: Settings, command: str) -> dict[str, Any]:
    """Return when, where and how something is measured."""
    from scarcely.run import environment

    return {
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "processor": environment("cpu")["device"],
        "usable_cores": _cores(),
        "gpu": environment("cuda")["device"] if settings.device == "cuda" else None,
        "environment": environment(settings.device),
        "settings": asdict(settings),
    }
