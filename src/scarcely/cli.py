"""The command line: help without imports, Hydra without tracebacks, exit codes that mean something."""

from __future__ import annotations

import os
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
    # Hydra reports errors itself and exits 1 unless asked for the full error; what the user
    # wished is kept aside, for this process and for those that it starts
    wants = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ[_WANTS_TRACEBACK] = "1" if wants else ""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before = sys.argv
    try:
        sys.argv = [before[0], *prepare_arguments(arguments)]
        _hydra_main()
        return OK
    except UserError as error:
        return _mendable(str(error), wants)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command with resume=true goes on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if _of_hydra(error):
            return _mendable(_hydra_message(error), wants)
        traceback.print_exception(error)
        return CRASHED
    finally:
        sys.argv = before
        os.environ["HYDRA_FULL_ERROR"] = "1" if wants else "0"


_FAILED: list[Exception] = []


def _hydra_main() -> None:
    import hydra

    from scarcely.config.paths import conf_dir

    _FAILED.clear()
    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)()
    if _FAILED:
        raise _FAILED[0]


def task(cfg: Any) -> float | None:
    """Run one job of Hydra; a sweep goes on after a job that failed.

    A single run keeps its error for `main`: Hydra would add a line of its own.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from scarcely.run import run

    settings = HydraConfig.get()
    os.environ["HYDRA_FULL_ERROR"] = os.environ.get(_WANTS_TRACEBACK, "") or "0"
    overrides = list(map(str, settings.overrides.task))
    sweeping = settings.mode == RunMode.MULTIRUN
    try:
        results = run(cfg, overrides, dict(settings.runtime.choices), ["python", "train.py", *overrides])
        return results["metrics"].get("acc")
    except Exception as error:
        if not sweeping:
            _FAILED.append(error)
            return None
        print(f"\njob {' '.join(overrides)} failed:", file=sys.stderr, flush=True)
        if _of_hydra(error):
            error = UserError(_hydra_message(error))
        if not isinstance(error, UserError):
            traceback.print_exc()
        print(error, file=sys.stderr, flush=True)
        raise error from None
    finally:
        os.environ["HYDRA_FULL_ERROR"] = "1"


def run_command(
    usage: str,
    required: set[str],
    defaults: Mapping[str, str],
    command: Callable[[dict[str, str]], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a small ``key=value`` command with the same errors and exit codes as ``train.py``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or any(a in ("-h", "--help") for a in arguments):
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
    """Make arguments fit Hydra's grammar: quote what is no expression, let stages be named freely."""
    return [_prepare(a) for a in arguments]


def _prepare(argument: str) -> str:
    if argument.startswith("-") or "=" not in argument:
        return argument
    key, value = argument.split("=", 1)
    if key.startswith("stages."):
        key = f"++{key}"  # a stage's settings are those of its method: any may be given
        argument = f"{key}={value}"
    if not value or value[0] in "'\"":
        return argument
    if _parses(argument) and not (
        any(c in value for c in ",: ") and os.path.exists(os.path.expanduser(value))
    ):
        return argument
    quoted = (
        value.replace("\\", "\\\\").replace("'", "\\'") if value.endswith("\\") else value.replace("'", "\\'")
    )
    quoted = f"{key}='{quoted}'"
    return quoted if _parses(quoted) else argument


def _parses(argument: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _of_hydra(error: BaseException) -> bool:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, HydraException | OmegaConfBaseException)


def _hydra_message(error: BaseException) -> str:
    """Say in our words what Hydra or OmegaConf found wrong."""
    from scarcely.config.help import options_of

    text = str(error).strip()
    cause = error.__cause__
    if cause is not None and str(cause).strip() and str(cause).strip() not in text:
        text = f"{text}\n{str(cause).strip()}"
    import difflib
    import re

    missing = re.search(r"Could not find '([\w/.-]+)/([^'/]+)'", text)
    if missing:
        group, name = missing.groups()
        options = options_of(group)
        close = difflib.get_close_matches(name, options, n=3) or options
        return f"there is no {group}={name}\n  where:   {group}\n  instead: {', '.join(close)}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown.group(1)
        return f"there is no setting {key!r}\n  where:   {key}\n  instead: {_nearest(key)}"
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:6])


def _nearest(key: str) -> str:
    import difflib

    from scarcely.config.help import known_keys

    keys = known_keys()
    close = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    return " or ".join(close) if close else "see python train.py --help"


def _mendable(message: str, wants_traceback: bool) -> int:
    if wants_traceback:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return MENDABLE
