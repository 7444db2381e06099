"""Runs as they lie in folders: what each found, in what they differ, and groups of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scarcely.errors import ConfigError, DataError

# Settings that say how or where a run was made, not what was run.
_BOOKKEEPING = (
    *("run_dir", "output_dir", "cache_dir", "command", "resume", "expected", "seed"),
    *("plan", "reference"),
    *(
        "compare_kmeans",
        "report",
        "environment.",
        "recipe.",
        "hydra.",
        "logger.",
        "data.root",
        "data.resident",
    ),
)


@dataclass(frozen=True)
class Run:
    """A run that has begun.

    Attributes:
        folder: where it is.
        results: content of its results.json, empty before it is finished.
        settings: its configuration by dotted keys, and ``method``, ``data``, ``protocol``, ``seed``.
    """

    folder: Path
    results: dict[str, Any]
    settings: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return bool(self.results)

    @property
    def metrics(self) -> dict[str, Any]:
        """The scores."""
        return self.results.get("metrics") or {}


def find_runs(folders: Iterable[str]) -> list[Run]:
    """Return the finished runs in and below folders, each once, in the order of the folders.

    Raises:
        DataError: there is none, or one cannot be read.
        ConfigError: no folder is given.
    """
    found: dict[Path, Path] = {}
    for folder in existing(folders):
        below = [place for place in _below(folder) if (place / "results.json").is_file()]
        if not below and is_run(folder):
            raise DataError(
                f"the run in {folder} is not finished",
                where="RUNS",
                instead="finished runs; its own command with resume=true goes on with it",
            )
        if not below:
            raise DataError(
                f"there is no finished run in {folder}",
                where="RUNS",
                instead="a folder with results.json in it",
            )
        for place in below:
            found.setdefault(place.resolve(), place)
    return [read_run(folder) for folder in found.values()]


def unfinished(folders: Iterable[str]) -> list[str]:
    """Say how many runs in and below folders have begun and not ended; nothing if there is none."""
    number = sum(not (folder / "results.json").exists() for folder in run_folders(folders))
    return [f"{number} unfinished run{' is' if number == 1 else 's are'} left out"] if number else []


def existing(folders: Iterable[str]) -> list[Path]:
    """Return folders given by a user as paths.

    Raises:
        DataError: one is not there.
        ConfigError: none is given.
    """
    given = [Path(folder).expanduser() for folder in folders]
    if not given:
        raise ConfigError("no folder of runs is given", where="RUNS", instead="folders of finished runs")
    for folder in given:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}", where="RUNS", instead="folders of finished runs")
    return given


def run_folders(folders: Iterable[str]) -> list[Path]:
    """Return where runs have begun, finished or not, in and below folders, each once, in their order.

    Raises:
        DataError: a folder is not there.
        ConfigError: none is given.
    """
    found: dict[Path, Path] = {}
    for folder in existing(folders):
        for place in _below(folder):
            found.setdefault(place.resolve(), place)
    return list(found.values())


def is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder, finished or not."""
    return any((folder / name).is_file() for name in ("config.yaml", "results.json"))


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        if "config.yaml" in files or "results.json" in files:
            yield Path(place)


def read_run(folder: Path) -> Run:
    """Read a run; one that is not finished has no results.

    Raises:
        DataError: its files cannot be read, or do not hold what a run writes.
    """
    from omegaconf import OmegaConf

    results: Any = {}
    config: Any = {}
    try:
        if (folder / "results.json").exists():
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        if (folder / "config.yaml").is_file():
            config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
    except Exception as error:  # the system, json, yaml and omegaconf each have their own
        raise DataError(f"this run cannot be read: {error}", where=str(folder)) from error
    if not isinstance(results, dict) or not isinstance(config, dict):
        raise DataError("this run cannot be read: not a mapping", where=str(folder))
    for key, kind, told in (("metrics", dict, "mapping"), ("stages", list, "list")):
        if not isinstance(results.get(key) or kind(), kind):
            raise DataError(f"this run cannot be read: {key} is no {told}", where=f"{folder}/results.json")
    if not all(isinstance(stage, dict) for stage in results.get("stages") or []):
        raise DataError("this run cannot be read: a stage is no mapping", where=f"{folder}/results.json")
    # The groups too, by their names: method.labeler is its _target_'s last word.
    named = {k: results[k] for k in ("method", "data", "protocol", "seed") if k in results}
    return Run(folder, results, {**_flat(config), **named})


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted keys, and the names of the mappings by theirs."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    name = values.get("name", values.get("_target_"))
    if prefix and isinstance(name, str):
        flat[prefix] = name.rpartition(".")[2]
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def same(value: Any) -> Any:
    """Return a value that can be counted: lists as text, 5.0 as 5."""
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(value: Any) -> str:
    """Write the value of a setting: YAML's words, and the last part of a dotted path."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text.rpartition(".")[2] if text.startswith("scarcely.") else text


def differences(runs: Sequence[Run], apart_from: Iterable[str] = ()) -> list[str]:
    """Return the settings in which runs differ, those left out that only say where or how they were made."""
    nothing = object()
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    skipped = (*_BOOKKEEPING, *apart_from)
    return [
        key
        for key in keys
        if not any(key == s or (s.endswith(".") and key.startswith(s)) for s in skipped)
        and len({repr(same(run.settings.get(key, nothing))) for run in runs}) > 1
    ]


def names_of(runs: Sequence[Run]) -> list[str]:
    """Name runs by what they differ in, else by their folders; no two alike."""
    differing = differences(runs)
    # A group that was chosen and the settings within it: the settings say enough.
    told = [k for k in differing if not any(other.startswith(f"{k}.") for other in differing)]
    if 0 < len(told) <= 3:
        names = [", ".join(f"{k} = {shown(run.settings.get(k))}" for k in told) for run in runs]
        if len(set(names)) == len(runs):
            return names
    names = [run.folder.name for run in runs]
    return names if len(set(names)) == len(runs) else [str(run.folder) for run in runs]


@dataclass
class Point:
    """The runs of one value of x, on one line.

    Attributes:
        x: the value of the setting.
        line: that of ``by``, None where there is none.
        runs: which runs.
        values: (n,) the metric of each.
    """

    x: Any
    line: Any
    runs: list[Run]
    values: list[float]

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation of a sample, 0 of a single run."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0


def is_number(value: Any) -> bool:
    """Whether a setting has a place on an axis."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def order(value: Any) -> tuple[bool, float, str]:
    """Return what sorts settings: numbers by size, then words by the alphabet."""
    return (not is_number(value), float(value) if is_number(value) else 0.0, shown(value))


def notes_on(
    runs: Sequence[Run], points: Sequence[Point], apart_from: Iterable[str], lacking: str, mend: str = ""
) -> list[str]:
    """Return what should be known before a figure is believed: runs left out, runs that are not alike.

    Args:
        runs: all that were found.
        points: those that are shown.
        apart_from: settings in which the runs of a point may differ.
        lacking: why the others are not shown.
        mend: what could be done about runs that are not alike.
    """
    told = []
    left_out = len(runs) - sum(len(point.runs) for point in points)
    if left_out:
        told.append(f"{left_out} of {len(runs)} runs are left out: {lacking}")
    if any(run.settings.get("fast") is True for point in points for run in point.runs):
        told.append("some are fast runs, whose figures mean nothing")
    settings = tuple(apart_from)
    mixed = dict.fromkeys(key for point in points for key in differences(point.runs, settings))
    if mixed:
        some = ", ".join(list(mixed)[:4]) + (f" and {len(mixed) - 4} more" if len(mixed) > 4 else "")
        told.append(f"means are over runs that differ in more than their seed: {some}{mend}")
    return told
