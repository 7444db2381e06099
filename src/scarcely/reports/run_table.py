"""`scripts/table.py`: any set of runs as one table, beside the paper's figures."""

from __future__ import annotations

import csv
import fnmatch
import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.errors import ConfigError
from scarcely.files import write_atomically
from scarcely.reports.grids import markdown_table, mean_std
from scarcely.reports.runs import Point, Run, differences, find_runs, notes_on, order, same, shown, unfinished
from scarcely.reports.saliency_scores import judged
from scarcely.reports.wording import is_fraction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USAGE = """\
python scripts/table.py RUNS... metrics=acc,nmi columns=data out=table.md figure=table.png

mean ± standard deviation over the seeds, the best of each column in bold, the paper's figure beside it

  RUNS      folders of runs, or folders that hold such
  metrics   of results.json, with * for any letters; those that the runs are judged by if not given
  rows      settings that tell rows apart; those in which the runs differ if not given, the seed never
  columns   a setting: a column for each of its values, e.g. columns=data
  out       a file, .md, .csv or .tex; standard output in Markdown if not given
  figure    a picture of the same, png, pdf or svg
"""
_FORMATS = ("md", "csv", "tex")
# What runs are judged by, the most telling first; further ones are asked for by name.
_JUDGED = (
    *("acc", "nmi", "ari", "new/acc", "test/old/acc", "test/new/acc", "test/all/acc"),
    *("test/accuracy", "test/map", "pseudo/accuracy", "mean/accuracy", "decathlon/score", "parameters/ratio"),
    *("kmeans/acc", "kmeans/features/new/acc"),
)
# Of the first less is better, of the last nothing is best.
LESS, _NEITHER = ("error", "ece", "loss", "/undefined"), ("parameters/ratio", "kmeans/")
_MOST_BARS = 60
_SEEDS = ("data.labels_seed",)  # which samples are labelled, of runs with few labels


class Key(NamedTuple):
    """What a column holds: a metric, where columns are told apart by a setting of runs with this value."""

    metric: str
    value: Any = None


@dataclass
class Cell:
    """One figure of several runs.

    Attributes:
        values: (n,) of each run.
        paper: the figure of the paper, with its standard deviation or NaN; None where it has none.
        best: no other row of the same data has a better mean.
    """

    values: list[float] = field(default_factory=list)
    paper: tuple[float, float] | None = None
    best: bool = False

    @property
    def mean(self) -> float:
        """Mean over the runs, NaN without any."""
        return float(np.mean(self.values)) if self.values else math.nan


@dataclass
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        names: values of the settings that tell rows apart.
        runs: which runs.
        cells: a figure for each column.
    """

    names: tuple[Any, ...]
    runs: list[Run]
    cells: dict[Key, Cell]


@dataclass
class RunTable:
    """Rows of runs, columns of metrics.

    Attributes:
        settings: what tells rows apart.
        by: the setting that tells columns apart, None for the metrics alone.
        columns: in order.
        rows: in the order in which they were found.
    """

    settings: list[str]
    by: str | None
    columns: list[Key]
    rows: list[Row]


def collect(
    runs: Sequence[Run],
    metrics: Sequence[str] = (),
    rows: Sequence[str] = (),
    by: str | None = None,
) -> RunTable:
    """Arrange runs.

    Args:
        runs: from `find_runs`.
        metrics: names or patterns; `_JUDGED`, what an experiment expects, and of saliency runs the best
            layer and the best combination of each method, if empty.
        rows: dotted settings that tell rows apart; those in which the runs differ if empty.
        by: a setting with a column for each value.

    Raises:
        ConfigError: no run has such a setting or metric.
    """
    known = {key for run in runs for key in run.settings}
    for where, key in [*(("rows", key) for key in rows), *([("columns", by)] if by else [])]:
        if key not in known:
            raise ConfigError(
                f"no run has a setting {key!r}",
                where=where,
                instead=", ".join(_distinguishing(runs)) or "method",
            )
    chosen = choose_metrics(runs, metrics)
    settings = [key for key in (rows or _distinguishing(runs)) if key != by]
    values = sorted({repr(_value(r, by)): _value(r, by) for r in runs}.values(), key=order)
    table = RunTable(settings, by, [Key(m, v) for v in (values if by else [None]) for m in chosen], [])
    found: dict[str, Row] = {}
    for run in runs:
        names = tuple(same(run.settings.get(key)) for key in settings)
        row = found.setdefault(repr(names), Row(names, [], {key: Cell() for key in table.columns}))
        row.runs.append(run)
        for metric in chosen:
            cell = row.cells[Key(metric, _value(run, by))]
            value = run.metrics.get(metric)
            if isinstance(value, (int, float)) and math.isfinite(value):
                cell.values.append(float(value))
            cell.paper = cell.paper or _paper(run, metric)
    table.rows = list(found.values())
    table.columns = [key for key in table.columns if any(row.cells[key].values for row in table.rows)]
    _mark_best(table)
    return table


def _value(run: Run, by: str | None) -> Any:
    return None if by is None else same(run.settings.get(by))


def _distinguishing(runs: Sequence[Run]) -> list[str]:
    """Return the settings that tell rows apart: method and data, then what differs where these do not."""
    first = [
        key for key in ("method", "data", "protocol") if len({repr(r.settings.get(key)) for r in runs}) > 1
    ]
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(repr([run.settings.get(key) for key in first]), []).append(run)
    more = dict.fromkeys(key for group in alike.values() for key in differences(group, (*first, *_SEEDS)))
    # A group that was chosen tells what differs within it.
    told = [key for key in more if not any(key.startswith(f"{other}.") for other in more)]
    return [*first, *told] or ["method", "data"]


def choose_metrics(runs: Sequence[Run], wanted: Sequence[str] = ()) -> list[str]:
    """Return the metrics to show: those of these names or patterns, else those that runs are judged by.

    Raises:
        ConfigError: no run has one that is wanted.
    """
    found = list(dict.fromkeys(key for run in runs for key in run.metrics))
    if not wanted:
        expected = dict.fromkeys(key for run in runs for key in _expected(run))
        chosen = [key for key in found if key in expected]
        usual = [*_JUDGED, *judged([run.metrics for run in runs])]
        return chosen + [key for key in usual if key in found and key not in chosen] or found[:6]
    chosen = []
    for pattern in wanted:
        matching = [key for key in found if fnmatch.fnmatchcase(key, pattern)]
        if not matching:
            raise ConfigError(
                f"no run has a metric {pattern!r}", where="metrics", instead=f"of {', '.join(found[:12])}"
            )
        chosen += [key for key in matching if key not in chosen]
    return chosen


def _expected(run: Run) -> dict[str, Any]:
    expected = run.results.get("expected")
    return expected if isinstance(expected, dict) else {}


def _paper(run: Run, metric: str) -> tuple[float, float] | None:
    expected = _expected(run)
    value = expected.get(metric)
    if not isinstance(value, (int, float)):
        return None
    deviation = expected.get("std")
    return float(value), float(deviation) if isinstance(deviation, (int, float)) else math.nan


def _mark_best(table: RunTable) -> None:
    for key in table.columns:
        if any(word in key.metric for word in _NEITHER):
            continue
        sign = -1 if any(word in key.metric for word in LESS) else 1
        rivals: dict[Any, list[Cell]] = {}
        for row in table.rows:
            if row.cells[key].values:
                rivals.setdefault(repr(row.runs[0].settings.get("data")), []).append(row.cells[key])
        for cells in rivals.values():
            highest = max(sign * cell.mean for cell in cells)
            for cell in cells:
                cell.best = len(cells) > 1 and sign * cell.mean == highest


# -- as text -------------------------------------------------------------------------------------


def _scale(metric: str) -> tuple[float, int]:
    return (100.0, 1) if is_fraction(metric) else (1.0, 2)


def _text(cell: Cell, runs: int, metric: str, bold: Callable[[str], str]) -> str:
    if not cell.values:
        return ""
    text = mean_std(cell.values, *_scale(metric))
    text = bold(text) if cell.best else text
    return text if len(cell.values) == runs else f"{text} (n={len(cell.values)})"


def _paper_text(cell: Cell, metric: str) -> str:
    if cell.paper is None:
        return ""
    scale, decimals = _scale(metric)
    value, deviation = (number * scale for number in cell.paper)
    return f"{value:.{decimals}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{decimals}f}")


def _grid(table: RunTable, bold: Callable[[str], str]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of texts: settings, metrics, the paper's figures, runs and seeds."""
    of_paper = [key for key in table.columns if any(row.cells[key].paper for row in table.rows)]
    head = [key.rpartition(".")[2] if key.count(".") else key for key in table.settings]
    if len(set(head)) < len(head):
        head = list(table.settings)
    for key in table.columns:
        name = _column(table, key)
        head += [name, f"{name}, paper"] if key in of_paper else [name]
    body = []
    for row in table.rows:
        cells = []
        usual = max(len(row.cells[key].values) for key in table.columns) if table.by else len(row.runs)
        for key in table.columns:
            cell = row.cells[key]
            cells.append(_text(cell, usual, key.metric, bold))
            cells += [_paper_text(cell, key.metric)] if key in of_paper else []
        seeds = sorted({run.results.get("seed") for run in row.runs}, key=order)
        body.append([*map(shown, row.names), *cells, str(len(row.runs)), ", ".join(map(str, seeds))])
    return [*head, "runs", "seeds"], body


def _column(table: RunTable, key: Key) -> str:
    if table.by is None:
        return key.metric
    name = f"{table.by.rpartition('.')[2]}={shown(key.value)}"
    return name if len({other.metric for other in table.columns}) == 1 else f"{name} {key.metric}"


def markdown(table: RunTable) -> str:
    """Write a table as Markdown; fractions in percent."""
    return markdown_table(*_grid(table, "**{}**".format))


def latex(table: RunTable) -> str:
    """Write a table as a LaTeX tabular with the rules of the booktabs package; fractions in percent."""
    # Bold is marked by a letter that nothing else holds, since braces are escaped.
    head, body = _grid(table, "\x02{}\x03".format)
    lines = [
        rf"\begin{{tabular}}{{{'l' * len(table.settings)}{'r' * (len(head) - len(table.settings))}}}",
        r"\toprule",
        *(_latex_row(cells) + (r" \midrule" if i == 0 else "") for i, cells in enumerate([head, *body])),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    letter: f"\\{letter}" for letter in "&%$#_{}"
}


def _latex_row(cells: Sequence[str]) -> str:
    escaped = ["".join(_LATEX.get(letter, letter) for letter in " ".join(cell.split())) for cell in cells]
    bold = [cell.replace("\x02", r"\textbf{").replace("\x03", "}") for cell in escaped]
    return " & ".join(cell.replace("±", r"$\pm$") for cell in bold) + r" \\"


def as_csv(table: RunTable) -> str:
    """Write a table as CSV: a line a row and column, mean, standard deviation and paper as numbers."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    by = [] if table.by is None else [table.by]
    writer.writerow([*table.settings, *by, "metric", "mean", "std", "n", "best", "paper", "paper_std"])
    for row in table.rows:
        for key in table.columns:
            cell = row.cells[key]
            if not cell.values:
                continue
            std = float(np.std(cell.values, ddof=1)) if len(cell.values) > 1 else math.nan
            numbers = [
                cell.mean,
                std,
                len(cell.values),
                int(cell.best),
                *(cell.paper or (math.nan, math.nan)),
            ]
            names = [*map(shown, row.names), *([shown(key.value)] if by else []), key.metric]
            writer.writerow([*names, *("" if number != number else f"{number:.10g}" for number in numbers)])
    return buffer.getvalue()


# -- as a picture --------------------------------------------------------------------------------


def draw(table: RunTable) -> Figure:
    """Draw a panel a column: a bar a row with its standard deviation, the paper's figure as a line.

    Raises:
        ConfigError: more bars than can be read.
    """
    from matplotlib.ticker import PercentFormatter

    from scarcely.reports.figures import style

    columns, rows = table.columns, table.rows
    if len(columns) * len(rows) > _MOST_BARS:
        raise ConfigError(
            f"{len(rows)} rows of {len(columns)} columns are too many for a picture",
            where="figure",
            instead=f"fewer metrics or runs: at most {_MOST_BARS} bars",
        )
    names = [style.safe(", ".join(map(shown, row.names)), 40) for row in rows]
    figure = style.new_figure(7.6, 0.8 + len(columns) * (0.5 + 0.32 * len(rows)), "")
    for axes, key in zip(np.atleast_1d(figure.subplots(len(columns))), columns, strict=True):
        for place, row in enumerate(rows):
            cell = row.cells[key]
            if not cell.values:
                continue
            spread = float(np.std(cell.values, ddof=1)) if len(cell.values) > 1 else 0.0
            color = style.RIGHT if cell.best else style.UNKNOWN
            axes.barh(place, cell.mean, 0.7, xerr=spread, color=color, ecolor=style.INK, capsize=2)
            if cell.paper is not None:
                axes.plot([cell.paper[0]] * 2, [place - 0.42, place + 0.42], color=style.WRONG, linewidth=2)
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.invert_yaxis()
        if is_fraction(key.metric):
            axes.xaxis.set_major_formatter(PercentFormatter(1))
        title = _column(table, key)
        if any(row.cells[key].paper for row in rows):
            title += "   (red: the paper)"
        axes.set_title(style.safe(title), loc="left", fontsize=9)
        style.clean_axes(axes)
    return style.settle(figure)


# -- the command ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Parse folders and ``key=value`` arguments, write, and return the exit code."""
    from scarcely.cli import run_command
    from scarcely.reports.compare import split_folders

    arguments = list(sys.argv[1:] if argv is None else argv)
    defaults = dict.fromkeys(("metrics", "rows", "columns", "out", "figure"), "")
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        return run_command(USAGE, {"RUNS"}, {}, lambda _: None, arguments)
    folders, settings = split_folders(arguments, defaults)
    return run_command(USAGE, set(), defaults, partial(_command, folders=folders), settings)


def _command(arguments: dict[str, str], folders: Sequence[str]) -> None:
    from scarcely.reports.compare import picture_target, write_figure

    out = _text_target(arguments["out"]) if arguments["out"] else None
    figure = picture_target(arguments["figure"], "figure") if arguments["figure"] else None
    runs = find_runs(folders)
    metrics, rows = (
        [part.strip() for part in arguments[key].split(",") if part.strip()] for key in ("metrics", "rows")
    )
    table = collect(runs, metrics, rows, arguments["columns"] or None)
    if figure is not None:
        write_figure(draw(table), figure)
    write = {"": markdown, "md": markdown, "csv": as_csv, "tex": latex}[out.suffix[1:] if out else ""]
    if out is None:
        print(write(table), end="")
    else:
        write_atomically(out, write(table))
    points = [Point(row.names, None, row.runs, []) for row in table.rows]
    apart = [
        *_SEEDS,
        *table.settings,
        *(f"{key}." for key in table.settings),
        *([table.by] if table.by else []),
    ]
    for note in [*notes_on(runs, points, apart, "", "; rows=... tells them apart"), *unfinished(folders)]:
        print(f"note: {note}", file=sys.stderr)
    print(f"{len(runs)} runs, {len(table.rows)} rows{f': {out}' if out else ''}", file=sys.stderr)


def _text_target(out: str) -> Path:
    path = Path(out).expanduser()
    if path.suffix[1:] not in _FORMATS or path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(
            f"cannot write {out!r}",
            where="out",
            instead=f"a file in a folder that exists, ending in .{', .'.join(_FORMATS)}",
        )
    return path
