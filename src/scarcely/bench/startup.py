"""From the command to its help and to its first step, against an interpreter that only imports libraries."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from scarcely.bench.rows import Row, Settings, take_turns

MOST_HELP_SECONDS = 1.0
# what a script pays that imports at its top whatever some command of it may need
IMPORTS = "import os, hydra, pytorch_lightning, torch, torchvision; os._exit(0)"
HELP = "import sys; from scarcely.cli import main; sys.exit(main(['--help']))"
# ends with the first step: no further one, no report, no clean-up (nor above)
FIRST_STEP = """\
import os, sys
from scarcely.callbacks.history import History
History.on_train_batch_end = lambda *_: os._exit(0)
from scarcely.cli import main
sys.exit(main(sys.argv[1:]) or "no step was taken")
"""


def measure(settings: Settings, threads: int) -> list[Row]:
    """Compare the help, and the default run up to its first step, with importing the libraries of a run."""
    start = partial(run_python, threads=threads, device=settings.device)
    imports, show_help = partial(start, IMPORTS), partial(start, HELP)
    with tempfile.TemporaryDirectory() as folder:
        runs = (Path(folder) / str(i) for i in itertools.count())

        def first_step() -> None:
            run, trainer = next(runs), "gpu" if settings.device == "cuda" else "cpu"
            start(FIRST_STEP, f"run_dir={run}", f"cache_dir={run}-cache", f"trainer={trainer}")

        for program in (imports, show_help, first_step):  # the files are in the system's cache afterwards
            program()
        help_turns = take_turns(show_help, imports, settings)
        step_turns = take_turns(first_step, imports, settings)
    shared: dict[str, Any] = {
        "measure": "startup",
        "threads": threads,
        "device": settings.device,
        "note": "plain: imports alone",
    }
    return [
        Row.of_times(
            *help_turns,
            name="train.py --help",
            target=f"below {MOST_HELP_SECONDS:g} s",
            met=help_turns[0].median < MOST_HELP_SECONDS,
            **shared,
        ),
        Row.of_times(*step_turns, name="train.py to the end of its first step", **shared),
    ]


def run_python(program: str, *arguments: str, threads: int, device: str) -> None:
    """Run a program in an interpreter of its own.

    Raises:
        RuntimeError: it failed.
    """
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"a program that was to be timed failed:\n{done.stderr[-2000:]}")
