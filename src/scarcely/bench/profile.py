"""``scripts/profile_step.py``: where the time of a training step goes, of any method on any data."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scarcely.errors import ConfigError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from scarcely.data.module import DataModule
    from scarcely.job import Job
    from scarcely.profiling import StepProfile

USAGE = """\
python scripts/profile_step.py method=M data=D [KEY=VALUE ...]

Any setting of train.py, such as batch_size=64, trainer=gpu or backbone.width=16, and:
  steps=10        steps that are timed, after a few that warm up
  stage=          the stage to look at; the last one without
  clock=wall      wall | cpu: processor time, for a CPU that others use as well
  out=            a file for a chrome trace of the steps whose operators are counted

Stages before that one are not trained: their random weights are handed over. Data that are not there are
replaced by random images of their size.
"""
DEFAULTS = {"steps": "10", "stage": "", "clock": "wall", "out": ""}
SHOWN = 15  # operators
_STEPS_OF_NOISE = 20  # an epoch of random images


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure, print the tables, and return the exit code."""
    from scarcely.cli import run_command

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded: threads as in a run
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = [a for a in arguments if a.partition("=")[0] in DEFAULTS or a in ("-h", "--help")]
    overrides = [a for a in arguments if a not in own]
    return run_command(USAGE, set(), DEFAULTS, partial(_command, overrides), own)


def _command(overrides: Sequence[str], arguments: Mapping[str, str]) -> None:
    steps, out = arguments["steps"], Path(arguments["out"]).expanduser() if arguments["out"] else None
    if not steps.isdecimal() or int(steps) < 1:
        raise ConfigError(f"steps={steps}", where="steps", instead="a whole number, at least 1")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ConfigError(f"cannot write {out}", where="out", instead="a file in a folder that exists")
    if arguments["clock"] not in ("wall", "cpu"):
        raise ConfigError(f"clock={arguments['clock']}", where="clock", instead="wall or cpu")
    config = composed(overrides)
    with tempfile.TemporaryDirectory() as folder:
        job, data, noise = prepare(config, arguments["stage"], Path(folder))
        found = profile_step(job, data, Path(folder), int(steps), out, arguments["clock"])
    print_profile(found, job, noise)


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the checked configuration of a run."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from scarcely.cli import prepare_arguments
    from scarcely.config.check import check
    from scarcely.config.compose import compose_run
    from scarcely.config.explain import explain

    for override in overrides:
        if override.startswith("-"):
            raise ConfigError(f"{override} is no setting", where="the command", instead="KEY=VALUE")
    try:
        config = compose_run(prepare_arguments(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from None
    check(config)
    return config


def prepare(
    config: dict[str, Any], stage: str, folder: Path, steps: int = _STEPS_OF_NOISE
) -> tuple[Job, DataModule, str]:
    """Return a stage of a run, as the run would train it but for the weights that it starts from.

    Args:
        config: of the run, checked.
        stage: its name; empty for the last.
        folder: for the weights of the stages before it.
        steps: of an epoch, about, where random images stand in for the data.

    Returns:
        The stage; its data, set up; and what stands in for them, in words, if they are not there.

    Raises:
        UserError: anything that `scarcely.run.execute` would refuse, a stage that is not there or trains
            nothing by gradient, or several devices.
    """
    import torch

    from scarcely import stages

    _check_settings(config, stage)
    stages.quiet()
    accelerator = stages.accelerator_of(config["trainer"])
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    if config["method"]["task"] == "domains":
        job, data = _of_domains(config, stage, accelerator)
        return job, data, ""
    data = _instantiated(config["data"])
    noise = _read(data, config, steps)
    config["data"]["augmentation"] |= data.augmentation_settings()
    return _of_run(config, stage, data, folder), data, noise


def _check_settings(config: Mapping[str, Any], stage: str) -> None:
    planned = {s["name"]: s["method"] for s in config["plan"] if s["method"] is not None}
    if stage and stage not in planned:
        raise ConfigError(f"there is no stage {stage!r}", where="stage", instead=", ".join(planned))
    method = planned[stage] if stage else config["method"]
    if method["task"] == "saliency" or not method.get("epochs"):
        raise ConfigError(
            f"method={method['name']} takes no training steps",
            where="stage" if stage else "method",
            instead="a method that is trained by gradient",
        )
    if config["trainer"]["devices"] > 1:
        raise ConfigError(
            "the step of one process is looked at", where="trainer.devices", instead="trainer.devices=1"
        )


def _instantiated(config: Mapping[str, Any]) -> Any:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ if isinstance(error.__cause__, UserError) else error from None


def _read(data: DataModule, config: Mapping[str, Any], steps: int) -> str:
    """Read the data, or fill in random images if they are not there; return what these are of."""
    from scarcely.data.imagefolder import ImageFolder
    from scarcely.data.outline import outline_of

    outline = None if isinstance(data, ImageFolder) else outline_of(data)
    if outline is None:
        data.check()
        data.prepare_data()
    else:
        outline.fill(data, most=steps * int(config["method"].get("batch_size", 256)))
    data.setup()
    return "" if outline is None else outline.source


def _of_run(config: dict[str, Any], stage: str, data: DataModule, folder: Path) -> Job:
    """Return a stage of a run of one data set, with the random weights of the stage before it."""
    from scarcely import checkpoints, stages
    from scarcely.run import fit_data, make_jobs

    handed_over = None
    for job in make_jobs(config, data, fit_data(config, data)):
        if job.task == "count":
            continue
        job = replace(job, inherited=handed_over or job.inherited, snapshots=0)
        method = stages.build_method(job, data.input_shape)
        samples = len(data.pool(job.role, job.protocol))
        method.check(min(job.method["batch_size"], samples))
        if job.name == stage:
            break
        handed_over = str(folder / f"{job.name}.pt")
        checkpoints.save({"state_dict": method.state_dict()}, Path(handed_over))
    return job


def _of_domains(config: dict[str, Any], stage: str, accelerator: str) -> tuple[Job, DataModule]:
    """Return a stage of a run over several domains: of the first domain that it trains."""
    from scarcely.domains.chain import SOURCE, Chain
    from scarcely.domains.checks import check_chain, check_settings
    from scarcely.domains.jobs import Domains, is_a
    from scarcely.methods.domain_prediction import DomainPrediction
    from scarcely.methods.round_robin import RoundRobin

    data = _instantiated(config["data"])
    data.check()
    check_settings(config)
    domains = Domains.of(config, data, accelerator)
    chain = Chain(domains, config["plan"], config["ckpt"])
    check_chain(chain)
    names = [planned["name"] for planned in config["plan"]]
    number = names.index(stage) if stage else len(names) - 1
    method = config["plan"][number]["method"]
    if is_a(method, RoundRobin):
        return domains.round_robin(method, config["plan"][number + 1]["method"])
    if is_a(method, DomainPrediction):
        return domains.prediction(method, chain.scored)
    if names[number] == SOURCE and chain.source_method is not None and domains.source is not None:
        return domains.job(chain.source_method, domains.source), domains.data(domains.source)
    return domains.job(method, chain.targets[0]), domains.data(chain.targets[0])


def profile_step(
    job: Job, data: DataModule, folder: Path, steps: int = 10, trace: Path | None = None, clock: str = "wall"
) -> StepProfile:
    """Take a few steps of a stage, through all that a run has around them, and say where their time goes.

    Args:
        job: the stage.
        data: its data, set up.
        folder: for its record and its checkpoint.
        steps: that are timed.
        trace: file for a chrome trace.
        clock: ``wall``, or ``cpu`` for processor time, which says nothing of a GPU.

    Raises:
        ConfigError: processor time was asked for, and it is on a GPU.
    """
    import time
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from scarcely import stages
    from scarcely.profiling import StepProfiler

    accelerator = stages.accelerator_of(job.trainer)
    if accelerator == "cuda" and clock == "cpu":
        raise ConfigError("processor time says nothing of a GPU", where="clock", instead="clock=wall")
    timer = time.process_time if clock == "cpu" else time.perf_counter
    profiler = StepProfiler(steps, trace=trace, clock=timer)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # what a run says of its progress
        stages.train(job, folder, data, accelerator, callbacks=[profiler])
    return profiler.profile


# -- the tables -----------------------------------------------------------------------------------


def print_profile(found: StepProfile, job: Job, noise: str = "", console: Console | None = None) -> None:
    """Print what was found as tables.

    Args:
        found: the profile.
        job: the stage.
        noise: what random images stand in for; empty: the data are the data.
        console: where to.
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 130)  # a log file need not break lines
    cuda = found.launches is not None
    where = torch.cuda.get_device_name(0) if cuda else f"CPU, threads: {torch.get_num_threads()}"
    console.print(
        f"stage {job.name} of {job.method['name']} on {job.data.get('name')}: "
        f"batch size {job.method['batch_size']}, {job.trainer['precision']}"
        f"{', compiled' if job.trainer['compile'] else ''}; {where}",
        highlight=False,
    )
    if noise:
        console.print(f"The data are not there: random images, by {noise}.", highlight=False)
    total = sum(found.parts.values())
    table = Table(title=f"A step: {1e3 * found.step:.2f} ms", title_justify="left")
    for heading, justify in (("part", "left"), ("ms", "right"), ("share", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for part, seconds in found.parts.items():
        table.add_row(part, f"{1e3 * seconds:.2f}", f"{seconds / total:.1%}")
    console.print(table)
    if cuda:
        console.print(f"Each part waits for the one before: {1e3 * total:.2f} ms together.", highlight=False)

    launches = f", {found.launches:,.0f} kernel launches" if found.launches is not None else ""
    table = Table(title=f"{found.calls:,.0f} calls of operators{launches}", title_justify="left")
    table.add_column("operator, by itself")
    for heading in ("calls", "host ms", "share", *(["device ms", "share"] if cuda else [])):
        table.add_column(heading, justify="right")
    host = sum(row.host for row in found.operators)
    device = sum(row.device for row in found.operators)
    for row in found.operators[:SHOWN]:
        cells = [row.name, f"{row.calls:,.0f}", f"{1e3 * row.host:.2f}", f"{row.host / host:.1%}"]
        cells += [f"{1e3 * row.device:.2f}", f"{row.device / device:.1%}"] if cuda else []
        table.add_row(*cells)
    console.print(table)

    if found.waits is None:
        console.print("Whether the host waits is not known of a compiled network on the CPU.")
    elif not found.waits:
        console.print("Nothing in a step makes the host wait for the device.")
    else:
        table = Table(title="What makes the host wait for a GPU", title_justify="left")
        for heading in ("operator", "asked for by", "times a step"):
            table.add_column(heading)
        for wait, times in found.waits.most_common():
            table.add_row(wait.what, wait.line, str(times))
        console.print(table)
