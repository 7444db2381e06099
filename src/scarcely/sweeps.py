"""Jobs of a sweep: which packages start them, what they share, and how failures are told where it began."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback

from scarcely.errors import ConfigError


class Plugin(NamedTuple):
    """A package of Hydra's, and what is set here where the command leaves it to the package.

    Attributes:
        package: below ``hydra_plugins``.
        extra: of this project, which installs it.
        settings: overrides, where the command does not give the same.
    """

    package: str
    extra: str
    settings: tuple[str, ...]


_GPUS = "hydra.launcher.gpus_per_node=${trainer.devices}"  # of one task: the run starts a process a device
PLUGINS = {
    "hydra/launcher=joblib": Plugin(
        "hydra_joblib_launcher",
        "joblib",
        (
            "hydra.launcher.n_jobs=2",  # one a core would fill the memory of a GPU
            # runs that were found finished take no time, and joblib would give one worker many of the others
            "hydra.launcher.batch_size=1",
        ),
    ),
    "hydra/launcher=submitit_local": Plugin(
        "hydra_submitit_launcher",
        "submitit",
        (_GPUS, "hydra.launcher.timeout_min=10080"),  # a week: nothing starts such a job again
    ),
    "hydra/launcher=submitit_slurm": Plugin(
        "hydra_submitit_launcher",
        "submitit",
        (
            _GPUS,
            "hydra.launcher.timeout_min=240",  # of one start: short jobs wait less in a queue
            "hydra.launcher.max_num_timeout=10",  # then it is queued again: runs go on where they were
        ),
    ),
    "hydra/sweeper=optuna": Plugin(
        "hydra_optuna_sweeper",
        "optuna",
        (
            "hydra.sweeper.direction=maximize",  # scores are, and Optuna minimises
            "hydra.sweeper.max_failure_rate=1.0",  # a trial that fails is told and left out
            "+hydra.callbacks.best._target_=scarcely.sweeps.Best",  # says which trial was best
        ),
    ),
}
# the same proposals again: a study that was killed finds its trials with resume=true
_SEED = "hydra.sweeper.sampler.seed=0"  # of Optuna's usual sampler: not all have one
# what a sweeper maximises: the first of these that a run has
SCORES = ("new/acc", "acc", "test/accuracy", "test/map", "pseudo/accuracy", "mean/accuracy")
LAUNCHER = "SCARCELY_LAUNCHER"  # the process that a sweep was started in
FAILED: list[Failed] = []
AGAIN = "instead: the same command with resume=true finishes what is missing"


class Failed(Exception):
    """A job of a sweep that failed.

    It enters itself in `FAILED` of the process that makes it, and so also of the one that it is sent to:
    a launcher gives what jobs return to the sweeper, and the sweeper to nobody.

    Args:
        job: its overrides.
        told: what went wrong, where the job could not say so on this screen; else empty.
        mendable: by the user.
    """

    def __init__(self, job: str, told: str, mendable: bool) -> None:
        super().__init__(job, told, mendable)
        self.job, self.told, self.mendable = job, told, mendable
        FAILED.append(self)


class Best(Callback):
    """Says which trial of an Optuna study was best."""

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Print what the sweeper wrote in the folder of the sweep."""
        path = Path(config.hydra.sweep.dir) / "optimization_results.yaml"
        print(f"\n{path}\n{path.read_text()}", end="")


def with_settings(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with what is set here for the launcher and the sweeper that they name.

    Raises:
        ConfigError: the package of one is not installed, or there is no Slurm here.
    """
    given = {argument.lstrip("+").partition("=")[0] for argument in arguments}
    completed = []
    for argument in arguments:
        completed.append(argument)
        plugin = PLUGINS.get(argument)
        if plugin is None:
            continue
        if not _installed(f"hydra_plugins.{plugin.package}"):
            raise ConfigError(
                f"{argument} needs a package that is not installed",
                where=argument.partition("=")[0],
                instead=f"pip install 'scarcely[{plugin.extra}]'",
            )
        if argument.endswith("slurm") and shutil.which("sbatch") is None and "-m" in arguments:
            raise ConfigError(
                "this machine has no command sbatch: it cannot give jobs to Slurm",
                where="hydra/launcher",
                instead="the login node of the cluster, or hydra/launcher=submitit_local",
            )
        own = plugin.settings
        if plugin.extra == "optuna" and "hydra/sweeper/sampler" not in given:
            own += (_SEED,)
        completed += [setting for setting in own if setting.lstrip("+").partition("=")[0] not in given]
    return completed


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not one plugin is installed
        return False


def score_of(metrics: Mapping[str, float]) -> float:
    """Return what a sweeper maximises.

    Raises:
        ConfigError: the run has no such score.
    """
    for name in SCORES:
        if name in metrics:
            return metrics[name]
    raise ConfigError(
        "a run of this method has no score that a sweeper could maximise",
        where="hydra/sweeper, method",
        instead=f"a method whose results.json has one of {', '.join(SCORES)}, or no hydra/sweeper",
    )


def settle(launcher: str, trainer: Mapping[str, Any]) -> None:
    """Prepare this process to run one of several jobs at a time on a machine; do nothing in any other.

    It dies with the process that started the sweep (Linux): what would go on training after that would
    hold the folders that the next command wants. It has as many threads as ``OMP_NUM_THREADS`` says, which
    is its share of the cores if the user gave none. Where there are more GPUs than a run asks for, each
    process takes its own.

    Args:
        launcher: class of Hydra's launcher.
        trainer: its configuration, not checked yet.
    """
    parent = int(os.environ.get(LAUNCHER, "0"))
    if "joblib" not in launcher or parent in (0, os.getpid()):
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before that
            os._exit(1)
    # joblib shares out the cores by several variables, of which torch follows MKL's, and users give OpenMP's
    if threads := os.environ.get("OMP_NUM_THREADS"):
        os.environ["MKL_NUM_THREADS"] = threads
    devices = trainer.get("devices")
    if trainer.get("accelerator") != "cpu" and isinstance(devices, int) and devices > 0:
        import multiprocessing

        import torch

        number = multiprocessing.current_process()._identity[0] - 1
        found = ",".join(str(i) for i in range(torch.cuda.device_count()))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", found)
        os.environ["CUDA_VISIBLE_DEVICES"] = share(visible, number, devices)


def share(visible: str, number: int, devices: int) -> str:
    """Return the GPUs of one of several processes; all that are visible where they do not suffice.

    Args:
        visible: names of GPUs, separated by commas.
        number: of the process, from 0; beyond the last GPU they are shared.
        devices: that a process asks for.
    """
    names = visible.split(",")
    groups = len(names) // devices
    if groups == 0:
        return visible
    first = number % groups * devices
    return ",".join(names[first : first + devices])


def lost_job(error: Exception) -> str:
    """Return what to say of a job that ended without a word, as one that is killed; else nothing."""
    if not type(error).__module__.startswith(("joblib.", "submitit.")):
        return ""
    first = str(error).strip().partition("\n")[0]
    return f"a job of the sweep was killed, perhaps for want of memory: {first}\n  {AGAIN}"


def job_of_cluster(launcher: str) -> Any:
    """Return submitit's description of the job that this process is, or None where it is none of its jobs."""
    if "submitit" not in launcher or "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    import submitit

    return submitit.JobEnvironment()


def starts_again(job: Any) -> bool:
    """Whether a cluster starts this process once more, after a preemption or a time limit.

    Then it has to go on by itself: the command is the one that began it.

    Args:
        job: what `job_of_cluster` returned; without submitit Slurm counts the starts.
    """
    if job is None:
        return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    begun = job.paths.folder / f"{job.job_id}_begun"
    again: bool = begun.exists()
    begun.touch()
    return again
