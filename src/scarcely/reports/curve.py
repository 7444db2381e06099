"""A metric of several runs against one of their settings, as a figure and a table."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcely.errors import ConfigError, DataError
from scarcely.reports import table
from scarcely.reports.figures import style
from scarcely.reports.runs import Point, Run, differences, is_number, notes_on, order, same, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        at, line = same(run.settings[x]), None if by is None else same(run.settings.get(by))
        point = points.setdefault((repr(line), repr(at)), Point(at, line, [], []))
        point.runs.append(run)
        point.values.append(1 - value if y.startswith("1-") else float(value))
    if not points:
        raise DataError(f"no run has both {x} and {metric}", where="RUNS")
    return sorted(points.values(), key=lambda p: (order(p.line), order(p.x)))


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

    numeric = all(is_number(point.x) for point in points)
    lines = list({repr(point.line): point.line for point in points}.values())
    values = list({repr(point.x): point.x for point in sorted(points, key=lambda p: order(p.x))}.values())
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
