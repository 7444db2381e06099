"""The command that writes a finished run as programs: torch.export and ONNX."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scarcely.errors import ConfigError, WriteError

USAGE = """\
python scripts/export.py ckpt=RUN out=FOLDER [formats=torch,onnx] [head=all|old|new] [domain=NAME]

  ckpt      the folder of a finished run, or its weights.pt
  out       the folder to write: model.pt2 (torch.export), model.onnx, and model.json, which says what goes
            in and what comes out; nothing may be in it yet
  formats=torch,onnx   which of the two
  head      of a run that discovered new classes: all of them, as scripts/predict.py names them; old: the
            known classes alone; new: the clusters of new classes alone
  domain    of a run over several domains: names, with commas between, or all; each has a folder in out
"""
DEFAULTS = {"formats": "torch,onnx", "head": "", "domain": ""}
NEEDED = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}
"""Packages beside torch that each format needs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``key=value`` arguments, export, and return the exit code."""
    from scarcely.cli import run_command

    return run_command(USAGE, {"ckpt", "out"}, DEFAULTS, _command, argv)


def _command(arguments: dict[str, str]) -> None:
    formats, head = _formats(arguments["formats"]), arguments["head"]
    if head not in ("", "all", "old", "new"):
        raise ConfigError(f"there is no head {head!r}", where="head", instead="all, old or new")
    out = Path(arguments["out"]).expanduser()
    _require_free(out)
    weights = _weights(arguments["ckpt"], arguments["domain"])
    from scarcely.programs import export

    with _whole_folder(out) as part:
        for name, ckpt in weights.items():
            told = export(ckpt, part / name, formats=formats, head=head)
            largest = max(max(apart.values()) for apart in told["check"]["differences"].values())
            print(
                f"{len(told['names'])} {told['kind']}, at most {largest:.1g} apart from the network: "
                f"{out / name}",
                file=sys.stderr,
            )


def _formats(given: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(given.split(",")))
    if unknown := [name for name in formats if name not in NEEDED]:
        raise ConfigError(
            f"there is no format {unknown[0]!r}", where="formats", instead="torch, onnx, or torch,onnx"
        )
    needed = [package for name in formats for package in NEEDED[name]]
    if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
        raise ConfigError(
            f"formats=onnx needs packages that are not installed: {', '.join(missing)}",
            where="formats",
            instead="pip install 'scarcely[onnx]', or formats=torch",
        )
    return formats


def _require_free(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out}", where="out", instead="a folder in one that exists")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"there is something in {out}", where="out", instead="a new folder")


def _weights(ckpt: str, domain: str) -> dict[str, Path]:
    """Return the weights file of each folder to write, relative to ``out``."""
    from scarcely import checkpoints

    found = {p.parent.name: p for p in sorted(Path(ckpt).expanduser().glob("domains/*/weights.pt"))}
    if not found:
        weights = checkpoints.find(ckpt)
        if domain:
            raise ConfigError(
                f"{ckpt} is no run over several domains", where="domain", instead="the same without domain"
            )
        return {"": weights}
    names = list(found) if domain == "all" else [name for name in domain.split(",") if name]
    unknown = [name for name in names if name not in found]
    if unknown or not names:
        raise ConfigError(
            f"{ckpt} has no domain {unknown[0]!r}" if unknown else f"{ckpt} holds a network for each domain",
            where="domain",
            instead=f"domain=all, or of {', '.join(found)}",
        )
    return {name: found[name] for name in names}


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder that becomes ``out`` when all is in it, and is removed if anything fails."""
    out = out.absolute()
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        yield part
        part.rename(out)
    except OSError as error:
        raise WriteError(
            f"could not write {out.name}: {error.strerror or error}",
            where=str(out.parent),
            instead="mend that",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
