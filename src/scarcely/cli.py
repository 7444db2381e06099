"""The command line: help without imports, Hydra without tracebacks, exit codes that mean something."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scarcely.errors import ConfigError, UserError

OK, CRASHED, MENDABLE, INTERRUPTED = 0, 1, 2, 130
_WANTS_TRACEBACK = "SCARCELY_TRACEBACK"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``train.py`` with these arguments and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(a in ("-h", "--help") for a in arguments):
        from scarcely.config.help import help_text

        print(help_text())
        return OK
    # idle threads that spin make a shared machine several times slower; read when torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Hydra reports errors itself and exits 1 unless asked for the full error; what the user
    # wished is kept aside, for this process and for those that it starts
    wish = os.environ.get("HYDRA_FULL_ERROR")
    wants = wish == "1"
    os.environ[_WANTS_TRACEBACK] = "1" if wants else ""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    from scarcely import sweeps  # not before the help: it needs Hydra

    os.environ[sweeps.LAUNCHER] = str(os.getpid())
    before = sys.argv
    sweeps.FAILED.clear()
    try:
        sys.argv = [before[0], *sweeps.with_settings(prepare_arguments(arguments))]
        _hydra_main()
        return _report_sweep() if sweeps.FAILED else OK
    except KeyboardInterrupt:
        print("\ninterrupted: the same command with resume=true goes on", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as error:  # Hydra's own options
        return error.code if isinstance(error.code, int) else CRASHED
    except Exception as error:
        if lost := sweeps.lost_job(error):
            print(f"error: {lost}", file=sys.stderr)
        if sweeps.FAILED:
            return _report_sweep()
        if lost:
            return CRASHED
        told = _told(error)
        if isinstance(told, UserError):
            return _mendable(str(told), wants)
        traceback.print_exception(error)
        return CRASHED
    finally:
        sys.argv = before
        os.environ.pop(sweeps.LAUNCHER, None)
        os.environ.pop(_WANTS_TRACEBACK, None)
        if wish is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = wish


_KEPT: list[Exception] = []  # the error of a single run


def _hydra_main() -> None:
    import hydra

    from scarcely.config.paths import conf_dir

    _KEPT.clear()
    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)()
    except (AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if _raised_by(error) in ("antlr4", "hydra", "omegaconf"):  # it stumbled over what was typed
            raise ConfigError(
                f"Hydra cannot read the command: {error}",
                where="the command",
                instead="KEY=VALUE, such as method=lsdc seed=1; python train.py --help lists the settings",
            ) from error
        raise
    if _KEPT:
        raise _KEPT[0]


def _raised_by(error: BaseException) -> str:
    """Return the package of the line that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def task(cfg: Any) -> Any:
    """Run one job of Hydra; a sweep goes on after a job that failed.

    A single run keeps its error for `main`: Hydra would add a line of its own.

    Returns:
        What a sweeper maximises, or the `sweeps.Failed` of a job that it need not know of.

    Raises:
        sweeps.Failed: a sweeper that learns from its jobs has to know.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from scarcely import sweeps
    from scarcely.run import run

    settings = HydraConfig.get()
    wants = os.environ.get(_WANTS_TRACEBACK, "")
    os.environ["HYDRA_FULL_ERROR"] = wants or "0"
    given: Any = OmegaConf.to_container(settings.overrides.task, resolve=False)
    overrides = [str(o) for o in given]
    sweeping = settings.mode == RunMode.MULTIRUN
    learns = sweeping and "Basic" not in settings.sweeper._target_
    if sweeping:
        sweeps.settle(settings.launcher._target_, cfg.trainer)
    job_of_cluster = sweeps.job_of_cluster(settings.launcher._target_)
    if sweeps.starts_again(job_of_cluster):
        cfg.resume = True
    try:
        results = run(cfg, overrides, dict(settings.runtime.choices), ["python", "train.py", *overrides])
        return sweeps.score_of(results["metrics"]) if learns else None
    except KeyboardInterrupt as error:
        if isinstance(error.__cause__, SystemExit) and job_of_cluster:
            raise error.__cause__ from None  # how submitit ends a job that it has queued again
        raise
    except Exception as error:
        if not sweeping:
            _KEPT.append(error)
            return None
        told = _told(error)
        mendable = isinstance(told, UserError)
        job = " ".join(overrides)
        print(f"\njob {job} failed:", file=sys.stderr, flush=True)
        if wants or not mendable:
            traceback.print_exc()
        if mendable:
            print(f"error: {told}", file=sys.stderr, flush=True)
        elsewhere = f"{told}\n  log:     {job_of_cluster.paths.stderr}" if job_of_cluster else ""
        failed = sweeps.Failed(job, elsewhere, mendable)
        if learns:
            raise failed from None
        return failed  # as an error it would keep Hydra from the batches that follow
    finally:
        os.environ["HYDRA_FULL_ERROR"] = "1"


def _report_sweep() -> int:
    """Say which jobs failed, at the end, below all that the others printed; return the exit code."""
    from scarcely.sweeps import FAILED

    print("\njobs that failed:", file=sys.stderr)
    for failed in FAILED:
        print(f"  {failed.job}", file=sys.stderr)
        if failed.told:
            print(f"error: {failed.told}", file=sys.stderr)
    return MENDABLE if all(failed.mendable for failed in FAILED) else CRASHED


def run_command(
    usage: str,
    required: set[str],
    defaults: Mapping[str, str],
    command: Callable[[dict[str, str]], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a small ``key=value`` command with the same errors and exit codes as ``train.py``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if (required and not arguments) or any(a in ("-h", "--help") for a in arguments):
        print(usage)
        return OK if arguments else MENDABLE
    wants = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        given = _key_values(arguments, required | set(defaults))
        missing = required - set(given)
        if missing:
            raise ConfigError(f"{', '.join(sorted(missing))} must be given", instead=usage.splitlines()[0])
        command({**defaults, **given})
        return OK
    except UserError as error:
        return _mendable(str(error), wants)
    except KeyboardInterrupt:
        return INTERRUPTED


def _key_values(arguments: Sequence[str], known: set[str]) -> dict[str, str]:
    from scarcely.config.check import suggest

    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r} is not of the form key=value", instead=", ".join(sorted(known)))
        if key not in known:
            raise ConfigError(f"there is no setting {key!r}", where=key, instead=suggest(key, known))
        given[key] = value
    return given


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Make arguments fit Hydra's grammar: quote what is no expression, let stages be named freely.

    Raises:
        ConfigError: an argument that is neither an option nor KEY=VALUE, or a group without an option.
    """
    sweeping = any(a in ("-m", "--multirun") for a in arguments)
    prepared = []
    for before, argument in zip(["", *arguments], arguments):
        argument = argument.removeprefix("+") if _group(argument.removeprefix("+")) else argument
        if argument.startswith("-") or (before.startswith("-") and before not in _FLAGS):
            prepared.append(argument)  # an option of Hydra, or its value
        else:
            prepared.append(_prepare(argument, sweeping))
    return prepared


# what is no option of a group: Hydra takes names alone
_NO_NAME = re.compile(r"[-+]?[\d._]+(e[-+]?\d+)?|true|false|[-+]?nan|[-+]?inf", re.IGNORECASE)
# options of Hydra that no value follows
_FLAGS = {"-m", "--multirun", "-r", "--run", "--resolve", "--version", "--hydra-help", "--shell-completion"}
# settings that are paths, whatever they look like: run_dir=3 is a folder
_PATHS = {
    "run_dir",
    "output_dir",
    "cache_dir",
    "ckpt",
    "pretext",
    "data.root",
    "refine",
    "method.class_map",
    "method.layer_weights",
    "data.labels_file",
    "data.labelled",
    "data.unlabelled",
    "data.annotations",
}


def _prepare(argument: str, sweeping: bool) -> str:
    key, equals, value = argument.partition("=")
    if not key or (not equals and not key.startswith("~")):
        raise ConfigError(
            f"{argument!r} is not of the form KEY=VALUE",
            where="the command",
            instead="e.g. seed=1; quotes around a value with spaces: 'data.root=my photos'",
        )
    if not equals:
        return argument
    if key.startswith("stages."):
        key = f"++{key}"  # a stage's settings are those of its method: any may be given
        argument = f"{key}={value}"
    _refuse_no_option(argument)
    if not value or value[0] in "'\"":
        return argument
    if _parses(argument, is_path=key.lstrip("+") in _PATHS, sweeping=sweeping) and not (
        any(c in value for c in ",: ") and os.path.exists(os.path.expanduser(value))
    ):
        return argument
    quoted = (
        value.replace("\\", "\\\\").replace("'", "\\'") if value.endswith("\\") else value.replace("'", "\\'")
    )
    quoted = f"{key}='{quoted}'"
    return quoted if _parses(quoted) else argument


def _group(argument: str) -> str | None:
    from scarcely.config.help import GROUPS

    key = argument.partition("=")[0]
    return key if key in GROUPS else None


def _refuse_no_option(argument: str) -> None:
    from scarcely.config.help import options_of

    group, _, value = argument.partition("=")
    no_name = value in ("", "null") or value[0] in "[{" or _NO_NAME.fullmatch(value)
    if group == "stages" and no_name:
        raise ConfigError(
            f"stages = {value or 'nothing'} is not possible",
            where="stages",
            instead="stages.NAME.epochs=50 and the like",
        )
    if _group(argument) and no_name:
        leave_out = group in ("experiment", "recipe")
        raise ConfigError(
            f"{group}={value} chooses nothing",
            where=group,
            instead=f"~{group} leaves it out" if leave_out else f"{group}=" + ", ".join(options_of(group)),
        )


def _parses(argument: str, *, is_path: bool = False, sweeping: bool = False) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
        if is_path and not (sweeping and override.is_sweep_override()):
            return override.value() in (None, argument.partition("=")[2])
    except HydraException:
        return False
    return True


def _told(error: Exception) -> Exception:
    """Return Hydra's errors in our words, the user's that it has wrapped, and all others as they are."""
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    from scarcely.config.explain import explain

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return cause
    if too_large := _too_large(error):
        return too_large
    if isinstance(error, InstantiationException):
        return error  # a crash in a constructor
    return explain(error) if isinstance(error, HydraException | OmegaConfBaseException) else error


def _too_large(error: Exception) -> UserError | None:
    """Return what to say where something as large as the settings ask for does not fit into memory."""
    if "torch" not in sys.modules:
        return None
    from scarcely import memory

    device = memory.full(error)
    if device is None:
        return None
    return memory.OutOfMemory(
        f"out of memory {device}",
        where="backbone, data, method",
        instead="smaller sizes; HYDRA_FULL_ERROR=1 shows what did not fit",
    )


def _mendable(message: str, wants_traceback: bool) -> int:
    if wants_traceback:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return MENDABLE
