"""Test error against the number of labels per class, a line a method (thesis, chapter 5, figure 2)."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scarcely.errors import DataError
from scarcely.reports import table
from scarcely.reports.figures import style
from scarcely.reports.runs import Point, Run, notes_on, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

METRIC = "test/accuracy"
ALL = math.inf  # labels per class of a run that is supervised by all of them
# Settings in which the runs of one cell may differ: which samples are labelled, and what the row is named by.
_APART = ("data.labels_seed", "data.labels_file", "ckpt", "refine", "pretext")


def labels_of(run: Run) -> float | None:
    """Return how many labels of each class a run learnt from, `ALL` if supervised by all of them.

    Returns:
        The number; None where it is not the same for all classes, or not known.
    """
    settings = run.settings
    few = settings.get("data.labels_per_class")
    if isinstance(few, (int, float)) and not isinstance(few, bool):
        return float(few)
    if settings.get("data.labels_file") is not None:
        return _counted(run.folder / "labelled.csv")
    partly = ("data.labelled", "data.labelled_classes", "data.unlabelled_classes")
    if run.results.get("method") != "supervised" or run.results.get("protocol") != "split":
        return None
    return None if any(settings.get(key) is not None for key in partly) else ALL


def _counted(path: Path) -> float | None:
    """Return how often every class stands in a list of labelled samples; None if not equally often."""
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            counts = set(Counter(row.get("class") for row in csv.DictReader(file)).values())
    except (OSError, csv.Error):
        return None
    return float(counts.pop()) if len(counts) == 1 else None


def name_of(run: Run, *, follow: bool = True) -> str:
    """Name the row of a run: ``mean_teacher + rotnet``, ``alternating_ssl refines mean_teacher + rotnet``.

    Args:
        run: a finished run.
        follow: look up what a checkpoint is; its path alone would be another for every seed.
    """
    method, settings = str(run.results.get("method", "run")), run.settings
    if settings.get("refine"):
        return f"{method} refines {_origin(settings['refine'], follow)}"
    if settings.get("ckpt"):
        return f"{method} from {_origin(settings['ckpt'], follow)}"
    pretext = settings.get("pretext")
    before = settings.get("method.before")
    if pretext in (None, "none") or (isinstance(before, list) and "pretext" not in before):
        return method
    pretext = str(pretext)
    return f"{method} + {_origin(pretext, follow) if '/' in pretext or '.' in pretext else pretext}"


def _origin(path: Any, follow: bool) -> str:
    """Name the run that a checkpoint is of."""
    place = Path(str(path)).expanduser()
    folder = place if place.is_dir() else place.parent
    if not follow or not (folder / "results.json").is_file():
        return "a checkpoint"
    return name_of(read_run(folder), follow=False)


def collect(runs: Sequence[Run]) -> list[Point]:
    """Group the test errors of runs by method and number of labels.

    Args:
        runs: from `find_runs`; those without a test accuracy or a number of labels are left out.

    Returns:
        Points, ``line`` the name of the method and ``x`` the labels per class, `ALL` behind all numbers;
        lines in the order of the alphabet.

    Raises:
        DataError: no run learnt from few labels, or the runs are of different data sets.
    """
    points: dict[tuple[str, float], Point] = {}
    for run in runs:
        accuracy, labels = run.metrics.get(METRIC), labels_of(run)
        if labels is None or not isinstance(accuracy, (int, float)) or not math.isfinite(accuracy):
            continue
        line = name_of(run)
        point = points.setdefault((line, labels), Point(labels, line, [], []))
        point.runs.append(run)
        point.values.append(1 - accuracy)
    if not any(labels < ALL for _, labels in points):
        raise DataError(
            f"no run has learnt from few labels and has a {METRIC}",
            where="RUNS",
            instead="runs with data.labels_per_class=10, say",
        )
    names = sorted({str(run.results.get("data")) for point in points.values() for run in point.runs})
    if len(names) > 1:
        raise DataError(
            f"these runs are of different data sets: {', '.join(names)}",
            where="RUNS",
            instead="the runs of one of them at a time",
        )
    return [points[key] for key in sorted(points)]


def notes(runs: Sequence[Run], points: Sequence[Point]) -> list[str]:
    """Return what should be known before the figure is believed."""
    lacking = f"they have no {METRIC}, or it is not known how many labels of each class they had"
    return notes_on(runs, points, _APART, lacking)


def _grid(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Return the head of the table and its rows: test error in percent, by labels per class."""
    counts = sorted({point.x for point in points})
    cells = {(point.line, point.x): table.cell(point.values) for point in points}
    rows = [
        [line, *(cells.get((line, count), "–") for count in counts)]
        for line in dict.fromkeys(point.line for point in points)
    ]
    return ["method", *map(_count, counts)], rows


def _count(labels: float) -> str:
    return "all" if labels == ALL else f"{labels:g}"


def _title(points: Sequence[Point]) -> str:
    return f"Test error on {points[0].runs[0].results.get('data')} in %, by labels per class"


def print_tables(points: Sequence[Point], console: Console | None = None) -> None:
    """Print a row a method, a column a number of labels: mean ± standard deviation (number of runs).

    Args:
        points: from `collect`.
        console: where to; standard output if not given, at any width where that is no terminal.
    """
    table.print_grid(_title(points), *_grid(points), console)


def markdown(points: Sequence[Point]) -> str:
    """Write the same table as Markdown."""
    return table.markdown_table(*_grid(points))


def draw(points: Sequence[Point]) -> Figure:
    """Draw the mean test error against labels per class, error bars of a standard deviation.

    The numbers of labels are on a logarithmic axis. A dashed line with a star is the error with all labels.

    Args:
        points: from `collect`.
    """
    from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter

    counts = sorted({point.x for point in points if point.x < ALL})
    few = [point for point in points if point.x < ALL]
    lines = list(dict.fromkeys(point.line for point in few))
    colors = dict(zip(lines, style.palette(len(lines))))
    figure = style.new_figure(8.4, 4.6, _finding(points, counts[0]))
    axes = figure.subplots()
    handles: list[Any] = []  # in this order, which a legend of its own would not keep
    for number, line in enumerate(lines):
        own = [point for point in few if point.line == line]
        bars = axes.errorbar(
            [point.x for point in own], [point.mean for point in own], [point.std for point in own],
            color=colors[line], linewidth=1.8, elinewidth=1.2, capsize=3, capthick=1.2,
            marker="osD^vPX"[number % 7], ms=5.5, label=style.safe(line, 44), zorder=3,
        )  # fmt: skip
        handles.append(bars)
    for point in points:
        if point.x == ALL:
            dashed: dict[str, Any] = {"linewidth": 1.3, "linestyle": (0, (5, 3)), "clip_on": False}
            dashed |= {"marker": "*", "ms": 11, "markeredgecolor": "white", "markevery": [1]}
            dashed |= {"color": colors.get(point.line, style.INK)}
            across = axes.get_yaxis_transform()  # x in fractions of the panel, y in data
            told = f"{style.safe(point.line, 44)}, all labels: {table.mean_std(point.values)} %"
            handles += axes.plot([0, 1], [point.mean] * 2, transform=across, label=told, **dashed)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(counts, [_count(count) for count in counts])
    axes.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    highest = max(point.mean + point.std for point in points)
    axes.set_ylim(0, min(1.02, 1.08 * highest) or 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    style.clean_axes(axes)
    axes.set_xlabel("labels per class", fontsize=9)
    axes.set_ylabel("test error", fontsize=9)
    axes.set_title(_averaged(points), loc="left", fontsize=8.5, color=style.MUTED)
    figure.legend(handles=handles, loc="outside lower center", fontsize=8, frameon=False, ncols=2)
    return style.settle(figure)


def _averaged(points: Iterable[Point]) -> str:
    counts = [len(point.values) for point in points]
    runs = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
    told = f"each point: {runs} run{'' if runs == '1' else 's'}"
    return told + (", mean ± standard deviation" if max(counts) > 1 else "")


def _finding(points: Sequence[Point], fewest: float) -> str:
    """Say which method needs labels least: the one of the lowest mean where there are fewest."""
    of_fewest = [point for point in points if point.x == fewest]
    best = min(of_fewest, key=lambda point: point.mean)
    data = style.safe(best.runs[0].results.get("data"), 20)
    title = f"Test error on {data} with {fewest:g} label{'' if fewest == 1 else 's'} per class"
    named = style.safe(best.line, 40)
    is_best = f" is lowest for {named}" if len(of_fewest) > 1 else f" of {named}"
    title += f"{is_best}: {table.mean_std(best.values)} %"
    return title if len(title) <= 80 else title.replace(is_best, f"\n{is_best.strip()}")
