"""Figures of several runs: a metric against a setting, error against labels, old beside new classes."""

from __future__ import annotations

import difflib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcely.errors import ConfigError, DataError
from scarcely.files import write_atomically
from scarcely.reports import table
from scarcely.reports.evidence import Evidence
from scarcely.reports.figures import old_and_new, old_new_of, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USAGE = """\
python scripts/figure.py curve RUNS... x=method.labeler.k y=new/acc out=k.png
python scripts/figure.py embedding RUN1 RUN2 out=embedding.png
python scripts/figure.py labels RUNS... out=labels.png

curve: a metric against a setting, mean ± standard deviation over the seeds, each run a dot
  RUNS      folders of runs, or folders that hold such
  x         a setting of config.yaml, e.g. method.labeler.k, or method, data, protocol, seed
  y         a metric of results.json; 1-METRIC draws the error
  by        another setting: a line for each of its values, e.g. by=data
  out       the picture to write: png, pdf or svg

embedding: old and new classes in one t-SNE, a panel a run (of methods that discover classes)
  RUNS      one to six runs, e.g. with and without method.incremental=true
  out       the picture to write

labels: test error against labels per class, a line a method (with or without a pretext), dashed: all labels
  RUNS      folders of runs of one data set, or folders that hold such; several seeds are averaged
  out       the picture to write (or --out FILE); without it the table alone
  markdown  true (or --markdown): the table as Markdown
"""
_USAGE_OF = dict(zip(("curve", "embedding", "labels"), USAGE.splitlines()))
# Settings that say how or where a run was made, not what was run.
_BOOKKEEPING = (
    *("run_dir", "output_dir", "cache_dir", "command", "resume", "expected", "seed", "plan"),
    *("compare_kmeans", "environment.", "recipe.", "hydra.", "logger.", "data.root", "data.resident"),
)
_FORMATS = ("png", "pdf", "svg")
_MOST = 6  # panels of embeddings


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        results: content of its results.json.
        settings: its configuration by dotted keys, and ``method``, ``data``, ``protocol``, ``seed``.
    """

    folder: Path
    results: dict[str, Any]
    settings: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """The scores."""
        return self.results.get("metrics") or {}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse a command, folders and ``key=value`` arguments, draw, and return the exit code."""
    from scarcely.cli import run_command

    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        return run_command(USAGE, {"out"}, {}, lambda _: None, arguments)
    word, *rest = arguments
    if word not in _USAGE_OF:
        wrong = ConfigError(f"there is no figure {word!r}", instead="curve, embedding or labels")
        return run_command("", set(), {}, partial(_refuse, wrong), [])
    required, defaults, command = _COMMANDS[word]
    if word == "labels":
        rest = _as_settings(rest)
    # A folder may have '=' in its name: only what is a setting of the command is one.
    settings = [
        a for a in rest if "=" in a and (a.partition("=")[0] in (*required, *defaults) or _no_path(a))
    ]
    folders = [a for a in rest if a not in settings]
    usage = _USAGE_OF[word]
    if required and not settings:
        missing = ConfigError(f"{', '.join(sorted(required))} must be given", instead=usage)
        return run_command("", set(), {}, partial(_refuse, missing), [])
    return run_command(usage, required, defaults, partial(command, folders=folders), settings)


def _as_settings(arguments: Sequence[str]) -> list[str]:
    """Write ``--out FILE``, ``--out=FILE`` and ``--markdown`` as settings."""
    given = ["markdown=true" if argument == "--markdown" else argument for argument in arguments]
    given = [argument.removeprefix("--") if argument.startswith("--out=") else argument for argument in given]
    while "--out" in given[:-1]:
        at = given.index("--out")
        given[at : at + 2] = [f"out={given[at + 1]}"]
    return given


def _no_path(argument: str) -> bool:
    return not os.path.lexists(os.path.expanduser(argument))


def _refuse(error: ConfigError, _: dict[str, str]) -> None:
    raise error


def _curve(arguments: dict[str, str], folders: Sequence[str]) -> None:
    out = _target(arguments["out"])
    runs = find_runs(folders)
    x, y, by = arguments["x"], arguments["y"], arguments["by"] or None
    points = collect(runs, x, y, by)
    write_figure(curve(points, x, y, by), out)
    print(table_of(points, x, y, by), end="")
    for note in notes(runs, points, x, by):
        print(f"note: {note}", file=sys.stderr)
    print(f"{sum(len(p.values) for p in points)} runs: {out}", file=sys.stderr)


def _embedding(arguments: dict[str, str], folders: Sequence[str]) -> None:
    out = _target(arguments["out"])
    runs = find_runs(folders)
    if len(runs) > _MOST:
        raise ConfigError(
            f"{len(runs)} runs are too many for one picture", instead=f"at most {_MOST} of them"
        )
    panels = {}
    for run, name in zip(runs, names_of(runs), strict=True):
        features = old_new_of(Evidence.load(run.folder))
        if features is None:
            raise DataError(
                f"{run.folder} kept no features of old and new classes",
                where=str(run.folder / "predictions.npz"),
                instead="a run that discovers new classes, with embedding_size above 0",
            )
        panels[name] = features
    seed = runs[0].results.get("seed")
    figure = old_and_new(panels, seed=seed if isinstance(seed, int) else 0)
    if figure is None:
        raise DataError("the features of these runs are not finite", where=", ".join(folders))
    write_figure(figure, out)
    print(f"{len(runs)} runs: {out}", file=sys.stderr)


def _labels(arguments: dict[str, str], folders: Sequence[str]) -> None:
    from scarcely.reports import label_sweep

    out = _target(arguments["out"]) if arguments["out"] else None
    if arguments["markdown"] not in ("true", "false"):
        raise ConfigError(
            f"markdown = {arguments['markdown']!r} is not possible", where="markdown", instead="true or false"
        )
    runs = find_runs(folders)
    points = label_sweep.collect(runs)
    if out is not None:
        write_figure(label_sweep.draw(points), out)
    if arguments["markdown"] == "true":
        print(label_sweep.markdown(points), end="")
    else:
        label_sweep.print_table(points)
    for note in [*label_sweep.notes(runs, points), *unfinished(folders)]:
        print(f"note: {note}", file=sys.stderr)
    told = "out=labels.png draws them" if out is None else str(out)
    print(f"{sum(len(p.values) for p in points)} runs: {told}", file=sys.stderr)


_COMMANDS: dict[str, tuple[set[str], dict[str, str], Callable[..., None]]] = {
    "curve": ({"x", "y", "out"}, {"by": ""}, _curve),
    "embedding": ({"out"}, {}, _embedding),
    "labels": (set(), {"out": "", "markdown": "false"}, _labels),
}


# --- Runs


def find_runs(folders: Iterable[str]) -> list[Run]:
    """Return the finished runs in and below folders, each once, in the order of the folders.

    Raises:
        DataError: there is none, or one cannot be read.
        ConfigError: no folder is given.
    """
    found: dict[Path, Path] = {}
    given = [Path(folder).expanduser() for folder in folders]
    if not given:
        raise ConfigError("no folder of runs is given", where="RUNS", instead="folders of finished runs")
    for folder in given:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}", where="RUNS", instead="folders of finished runs")
        below = sorted(folder.rglob("results.json"))
        if not below and (folder / "config.yaml").is_file():
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
        found |= {path.parent.resolve(): path.parent for path in below if path.parent.resolve() not in found}
    return [read_run(folder) for folder in found.values()]


def unfinished(folders: Iterable[str]) -> list[str]:
    """Say how many runs in and below folders have begun and not ended; nothing if there is none."""
    given = (Path(folder).expanduser() for folder in folders)
    begun = {path.parent.resolve() for folder in given for path in folder.rglob("config.yaml")}
    number = sum(not (folder / "results.json").exists() for folder in begun)
    return [f"{number} unfinished run{' is' if number == 1 else 's are'} left out"] if number else []


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        DataError: its files cannot be read.
    """
    from omegaconf import OmegaConf

    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        config: Any = {}
        if (folder / "config.yaml").is_file():
            config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
    except Exception as error:  # the system, json, yaml and omegaconf each have their own
        raise DataError(f"this run cannot be read: {error}", where=str(folder)) from error
    if not isinstance(results, dict) or not isinstance(config, dict):
        raise DataError("this run cannot be read: not a mapping", where=str(folder))
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


def _same(value: Any) -> Any:
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
        and len({repr(_same(run.settings.get(key, nothing))) for run in runs}) > 1
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


# --- A metric against a setting


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


def collect(runs: Sequence[Run], x: str, y: str, by: str | None = None) -> list[Point]:
    """Group runs by a setting, and by another one.

    Args:
        runs: from `find_runs`; those without the setting or the metric are left out.
        x, by: dotted keys.
        y: a metric, or ``1-`` and a metric.

    Returns:
        Points in the order of the lines, then of x: numbers by size, words by the alphabet.

    Raises:
        ConfigError: no run has such a setting or metric.
    """
    settings = {key for run in runs for key in run.settings}
    for where, key in (("x", x), ("by", by)):
        if key is not None and key not in settings:
            raise ConfigError(
                f"no run has a setting {key!r}",
                where=where,
                instead=_suggestion(key, settings, differences(runs)),
            )
    metric = y.removeprefix("1-")
    metrics = {key for run in runs for key in run.metrics}
    if metric not in metrics:
        raise ConfigError(
            f"no run has a metric {metric!r}",
            where="y",
            instead=_suggestion(metric, metrics, sorted(metrics)),
        )
    points: dict[tuple[Any, Any], Point] = {}
    for run in runs:
        value = run.metrics.get(metric)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or x not in run.settings:
            continue
        at, line = _same(run.settings[x]), None if by is None else _same(run.settings.get(by))
        point = points.setdefault((repr(line), repr(at)), Point(at, line, [], []))
        point.runs.append(run)
        point.values.append(1 - value if y.startswith("1-") else float(value))
    if not points:
        raise DataError(f"no run has both {x} and {metric}", where="RUNS")
    return sorted(points.values(), key=lambda p: (_order(p.line), _order(p.x)))


def _suggestion(key: str, known: Iterable[str], fallback: Sequence[str]) -> str:
    """Name what was probably meant: what is spelt alike or ends alike, or else some of the fallback."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.6)
    last = key.rpartition(".")[2].rpartition("/")[2]
    ends = [
        n for n in names if n.replace("/", ".").rpartition(".")[2] == last and not n.startswith("recipe.")
    ]
    meant = list(dict.fromkeys([*ends, *close]))[:4]
    if meant:
        return " or ".join(meant)
    more = f" and {len(fallback) - 12} more" if len(fallback) > 12 else ""
    return f"one of {', '.join(fallback[:12])}{more}" if fallback else "a setting of config.yaml"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, float, str]:
    return (not _is_number(value), float(value) if _is_number(value) else 0.0, shown(value))


def table_of(points: Sequence[Point], x: str, y: str, by: str | None = None) -> str:
    """Write the points as Markdown: a row a point, with the number of runs and their seeds."""
    keys = [key for key in (by, x) if key is not None]
    rows = [
        {**run.results, x: shown(point.x), **({by: shown(point.line)} if by else {}), "metrics": {y: value}}
        for point in points
        for run, value in zip(point.runs, point.values, strict=True)
    ]
    return table.results_table(rows, [y], list(dict.fromkeys(keys)))


def notes(runs: Sequence[Run], points: Sequence[Point], x: str, by: str | None = None) -> list[str]:
    """Return what should be known before the figure is believed: runs left out, runs that are not alike."""
    lacking = "they lack the setting or the metric"
    return notes_on(runs, points, _around(x, by), lacking, "; by=... tells them apart")


def notes_on(
    runs: Sequence[Run], points: Sequence[Point], apart_from: Iterable[str], lacking: str, mend: str = ""
) -> list[str]:
    """As `notes`, for points that were grouped in any way.

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


def _around(x: str, by: str | None) -> list[str]:
    return [part for key in (x, by) if key for part in (key, f"{key}.")]


def curve(points: Sequence[Point], x: str, y: str, by: str | None = None) -> Figure:
    """Draw the mean of a metric against a setting, error bars of a standard deviation, each run a dot.

    Numbers that span more than a decade are on a logarithmic axis; words stand side by side.

    Args:
        points: from `collect`.
        x, y, by: what was asked for.
    """
    from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter

    numeric = all(_is_number(point.x) for point in points)
    lines = list({repr(point.line): point.line for point in points}.values())
    values = list({repr(point.x): point.x for point in sorted(points, key=lambda p: _order(p.x))}.values())
    places = {repr(v): float(v) if numeric else float(i) for i, v in enumerate(values)}
    figure = style.new_figure(7.6, 4.4, _finding(points, x, y, by))
    axes = figure.subplots()
    for number, (color, line) in enumerate(zip(style.palette(len(lines)), lines, strict=True)):
        own = [point for point in points if repr(point.line) == repr(line)]
        aside = 0.0 if numeric or len(lines) == 1 else 0.3 * (number / (len(lines) - 1) - 0.5)
        at = np.array([places[repr(point.x)] + aside for point in own])
        means, stds = np.array([p.mean for p in own]), np.array([p.std for p in own])
        name = None if by is None else f" {style.safe(shown(line), 30)}"  # "_..." would be left out
        axes.errorbar(
            at, means, stds,
            color=color, linewidth=1.8 if numeric else 0, elinewidth=1.2, capsize=3, capthick=1.2,
            marker="o" if numeric else "_", ms=5 if numeric else 14, markeredgewidth=2, label=name, zorder=3,
        )  # fmt: skip
        for place, point in zip(at, own, strict=True):
            if len(point.values) > 1:
                each = np.full(len(point.values), place)
                open_dot: dict[str, Any] = {"markeredgecolor": color, "markerfacecolor": "white", "ms": 4}
                axes.plot(each, point.values, "o", **open_dot, zorder=4)
    if numeric:
        numbers = [float(v) for v in values]
        if min(numbers) > 0 and max(numbers) > 10 * min(numbers):
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
        kept = _apart(numbers, log=axes.get_xscale() == "log")
        axes.set_xticks(kept, [f"{v:g}" for v in kept])
    else:
        style.slanted_ticks(axes, [style.safe(shown(v), 24) for v in values], 8)
        axes.set_xlim(-0.6, len(values) - 0.4)
    if table.is_fraction(y):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    style.clean_axes(axes)
    axes.set_xlabel(style.safe(x), fontsize=9)
    axes.set_ylabel(f"1 − {style.safe(y[2:])}" if y.startswith("1-") else style.safe(y), fontsize=9)
    if by is not None:
        legend: dict[str, Any] = {
            "title": style.safe(by),
            "title_fontsize": 8,
            "fontsize": 8,
            "frameon": False,
        }
        figure.legend(loc="outside right upper", **legend)
    counts = [len(point.values) for point in points]
    runs = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    told = f"each point: {runs} run{'' if runs == '1' else 's'}"
    told += " (rings), mean ± standard deviation" if max(counts) > 1 else ""
    axes.set_title(told, loc="left", fontsize=8.5, color=style.MUTED)
    return style.settle(figure)


def _apart(numbers: Sequence[float], *, log: bool) -> list[float]:
    """Choose the ticks that do not run into each other, from the left; the last is always one of them."""
    scale = np.log(numbers) if log else np.asarray(numbers)
    span = float(scale[-1] - scale[0]) or 1.0
    kept = [0]
    for i in range(1, len(numbers)):
        if (scale[i] - scale[kept[-1]]) / span >= 0.045:
            kept.append(i)
        elif i == len(numbers) - 1 and len(kept) > 1:
            kept[-1] = i
    return [numbers[i] for i in kept]


def _finding(points: Sequence[Point], x: str, y: str, by: str | None) -> str:
    """Say where the mean is best: the highest, of an error the lowest."""
    lowest = y.startswith("1-")
    best = (min if lowest else max)(points, key=lambda p: p.mean)
    scale, decimals, unit = (100.0, 1, " %") if table.is_fraction(y) else (1.0, 2, "")
    figure = table.mean_std(best.values, scale, decimals) + unit
    metric = style.safe(y[2:] if lowest else y, 30)
    where = f"{style.safe(x.rpartition('.')[2], 20)} = {style.safe(shown(best.x), 20)}"
    if by is not None:
        where += f" ({style.safe(shown(best.line), 20)})"
    if len(points) == 1:
        return f"{'error of ' if lowest else ''}{metric}: {figure} at {where}"
    return (
        f"{'error of ' if lowest else ''}{metric} is {'lowest' if lowest else 'highest'} at {where}: {figure}"
    )


# --- Files


def _target(out: str) -> Path:
    path = Path(out).expanduser()
    if not out or path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out!r}", where="out", instead="a file in a folder that exists")
    if path.suffix.lower().lstrip(".") not in _FORMATS:
        raise ConfigError(
            f"cannot write a picture as {path.name!r}",
            where="out",
            instead="a name that ends in .png, .pdf or .svg",
        )
    return path


def write_figure(figure: Figure, out: Path) -> Path:
    """Write a figure, atomically, in the format that the name says."""
    kind = out.suffix.lower().lstrip(".")
    if kind == "png":
        return write_atomically(out, style.to_png(figure))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return write_atomically(out, buffer.getvalue())
