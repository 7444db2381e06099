"""A fit leaves the process that it runs in as it was."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np


@contextmanager
def undisturbed(*, quiet: bool) -> Iterator[None]:
    """Leave random states, threads, warnings, loggers and Hydra as they were; say nothing if `quiet`."""
    import torch
    from hydra.core.singleton import Singleton

    from scarcely import run, stages  # noqa: F401  what they import sets loggers up

    named = [*logging.root.manager.loggerDict, "lightning.pytorch", "lightning.fabric"]
    levels = {name: logging.getLogger(name).level for name in named}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    benchmark, hydra = torch.backends.cudnn.benchmark, Singleton.get_state()
    environment = dict(os.environ)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            if quiet:
                stack.enter_context(redirect_stdout(StringIO()))
                stack.enter_context(redirect_stderr(StringIO()))
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark
        Singleton.set_state(hydra)
        os.environ.clear()
        os.environ.update(environment)
