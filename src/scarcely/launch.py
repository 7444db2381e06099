"""The ranks of a stage: one process a device, which die with this one and whose errors it tells."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scarcely import worker
from scarcely.callbacks.history import Row, as_scalars, read_rows
from scarcely.job import Job
from scarcely.loggers import current_loggers

GRACE = 3.0  # seconds that the other ranks get to say what went wrong, once one has failed


def launch(job: Job, folder: Path, accelerator: str, earlier: list[Row]) -> None:
    """Start one process a device for a stage and wait for all of them.

    Each rank is told everything by a file; none composes the configuration, chooses a folder or
    takes a lock of its own. They die with this process.

    Raises:
        UserError: what a rank raised, if the user can mend it.
    """
    worker.write_job(folder, job, accelerator, earlier)
    world = job.trainer["devices"]
    print(_shares(job), file=sys.stderr, flush=True)
    threads = job.trainer["threads"] or max(1, torch.get_num_threads() // world)  # of what this process has
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    try:
        for rank in range(world):
            env = os.environ | worker.environment(rank, world, port)
            env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
            command = [sys.executable, "-m", "scarcely.worker", str(folder)]
            processes.append(subprocess.Popen(command, env=env, preexec_fn=_tied_to_this_process()))
        failed = _wait(processes, _forwarding(job, folder))
    finally:
        for process in processes:  # at once: a rank without the others would wait for them
            process.kill()
            process.wait()
    if failed is not None:
        worker.raise_error(folder, world, job.name)


def _shares(job: Job) -> str:
    """Say which numbers of a stage are those of all devices together."""
    world, size = job.trainer["devices"], int(job.method.get("batch_size", 0))
    rate = (job.method.get("optimizer") or {}).get("lr")
    said = f"{job.name}: {world} devices, batch_size={size} in all, {size // world} on each"
    return said if rate is None else f"{said}; learning rate {rate:g}, of the whole batch"


def _wait(processes: list[subprocess.Popen[bytes]], forward: Callable[[], None]) -> int | None:
    """Return the rank that failed first, or None."""
    sent = time.monotonic()
    while True:
        codes = [p.poll() for p in processes]
        failed = next((rank for rank, code in enumerate(codes) if code not in (None, 0)), None)
        if failed is not None:
            # what it tripped over may have come from another, which is about to say so
            until = time.monotonic() + GRACE
            while time.monotonic() < until and any(p.poll() is None for p in processes):
                time.sleep(0.05)
            return failed
        if time.monotonic() - sent > 2 or all(code == 0 for code in codes):
            forward()
            sent = time.monotonic()
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def _forwarding(job: Job, folder: Path) -> Callable[[], None]:
    """Return what sends new rows to the loggers: they are open in this process, not in the ranks."""
    sent = len(read_rows(folder / "metrics.csv"))

    def forward() -> None:
        nonlocal sent
        loggers = current_loggers()
        rows = read_rows(folder / "metrics.csv") if loggers else []
        for row in rows[sent:]:
            for logger in loggers:
                logger.log_metrics(as_scalars(row), step=row["step"])
        sent = max(sent, len(rows))

    return forward


def _tied_to_this_process() -> Callable[[], None]:
    """Return what a child does first: it dies with its parent (Linux) and leaves Ctrl-C to it.

    Without that, the ranks of a killed run would go on writing into its folder.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # not after the fork: it takes locks

    def tie() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if libc is not None:
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # it died before that
                os._exit(1)

    return tie
