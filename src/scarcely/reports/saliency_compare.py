"""Several saliency runs side by side: table 3 of chapter 8, a pair of columns a network, and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcely.errors import DataError
from scarcely.reports.figures import style
from scarcely.reports.grids import markdown_table, print_grid
from scarcely.reports.runs import Run, names_of
from scarcely.reports.saliency_scores import (
    Pointing,
    Score,
    best_combined,
    best_layer,
    center,
    is_saliency,
    pointing_rows,
)
from scarcely.reports.saliency_table import CENTER, named, share, shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

_SUBSETS = {"all": "all pairs", "difficult": "difficult pairs"}
_KINDS = ("best single layer", "best weighting")


@dataclass(frozen=True)
class Column:
    """The pointing game of one run.

    Attributes:
        name: what tells the run from the others.
        run: the run.
        methods: its methods by their names.
        center: the pointing game of the centre.
    """

    name: str
    run: Run
    methods: dict[str, Pointing]
    center: Score

    def best(self, method: str, kind: str) -> Score | None:
        """Return the best layer or the best weighting of a method; None where it has none."""
        row = self.methods.get(method)
        if row is None:
            return None
        return row.best_layer if kind == _KINDS[0] else row.best_combined


def collect(runs: Sequence[Run]) -> list[Column]:
    """Read the pointing game of each run that has one.

    Args:
        runs: from `find_runs`; those without a pointing game are left out.

    Raises:
        DataError: none has one.
    """
    told = [run for run in runs if pointing_rows(run.metrics)]
    if not told:
        raise DataError(
            "no run has a pointing game",
            where="RUNS",
            instead="runs of method=normgrad with pointing among method.evaluations",
        )
    columns = []
    for run, name in zip(told, names_of(told), strict=True):
        methods = {row.method: row for row in pointing_rows(run.metrics)}
        columns.append(Column(name, run, methods, center(run.metrics)))
    return columns


def notes(runs: Sequence[Run], columns: Sequence[Column]) -> list[str]:
    """Return what should be known before the table is believed."""
    told = []
    left_out = len(runs) - len(columns)
    if left_out:
        saliency = sum(is_saliency(run.metrics) for run in runs) - len(columns)
        without = f" ({saliency} are saliency runs without one)" if saliency > 0 else ""
        told.append(f"{left_out} of {len(runs)} runs are left out: they have no pointing game{without}")
    if any(column.run.settings.get("fast") is True for column in columns):
        told.append("some are fast runs, whose figures mean nothing")
    for key, what in (
        ("data", "data sets"),
        ("protocol", "protocols"),
        ("method.tolerance", "tolerances"),
        ("max_images", "numbers of images"),
    ):
        values = {repr(column.run.settings.get(key)) for column in columns}
        if len(values) > 1:
            told.append(f"the runs are of different {what}: {', '.join(sorted(values))}")
    pairs = {column.run.metrics.get("pointing/pairs") for column in columns}
    if len(pairs) > 1:
        told.append("the runs are scored on different numbers of pairs")
    return told


def _methods(columns: Sequence[Column]) -> list[str]:
    return list(dict.fromkeys(method for column in columns for method in column.methods))


def grids(columns: Sequence[Column], *, bold: bool = False) -> list[tuple[str, list[str], list[list[str]]]]:
    """Arrange table 3, once for all pairs and once for the difficult ones; the best is that on all pairs.

    Args:
        columns: from `collect`.
        bold: mark the best of each column, as Markdown.

    Returns:
        Title, head and rows of each: of each run the best single layer (b.s.) and the best weighting
        (b.w.), and where these were found.
    """
    tables = []
    for subset, title in _SUBSETS.items():
        head = ["", *(f"{column.name}, {kind}" for column in columns for kind in _KINDS)]
        best = {
            (column.name, kind): max(_values(column, kind, subset), default=None)
            for column in columns
            for kind in _KINDS
        }
        rows = []
        for method in _methods(columns):
            cells = []
            for column in columns:
                for kind in _KINDS:
                    score = column.best(method, kind)
                    text = _text(score, subset)
                    top = score is not None and getattr(score, subset) == best[column.name, kind]
                    cells.append(f"**{text}**" if bold and top and text != "–" else text)
            rows.append([method, *cells])
        middle = [shares(column.center)[subset == "difficult"] for column in columns]
        rows.append([CENTER, *(text for value in middle for text in (value, value))])
        tables.append((f"Pointing game in %, {title}, ± standard error", head, rows))
    return tables


def _values(column: Column, kind: str, subset: str) -> list[float]:
    found = (column.best(method, kind) for method in column.methods)
    return [
        getattr(score, subset) for score in found if score is not None and getattr(score, subset) is not None
    ]


def _text(score: Score | None, subset: str) -> str:
    if score is None or getattr(score, subset) is None:
        return "–"
    return f"{share(getattr(score, subset), getattr(score, f'{subset}_stderr'))} ({named(score.where)})"


def print_tables(columns: Sequence[Column], console: Console | None = None) -> None:
    """Print both tables.

    Args:
        columns: from `collect`.
        console: where to; standard output if not given, at any width where that is no terminal.
    """
    for title, head, rows in grids(columns):
        print_grid(title, head, rows, console)


def markdown(columns: Sequence[Column]) -> str:
    """Write both tables as Markdown, the best of each column in bold."""
    return "\n".join(
        f"{title}:\n\n{markdown_table(head, rows)}" for title, head, rows in grids(columns, bold=True)
    )


def draw(columns: Sequence[Column]) -> Figure:
    """Draw the best single layer and the best weighting of each method, a bar a run.

    Bars are shares with their standard errors; a dashed line is the centre of each image.

    Args:
        columns: from `collect`.
    """
    methods = _methods(columns)
    colors = style.palette(len(columns))
    size = (9.8, 1.3 + 2 * (0.45 + len(methods) * (0.16 + 0.13 * len(columns))))
    figure = style.new_figure(*size, _finding(columns))
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for line, (subset, title) in zip(grid, _SUBSETS.items(), strict=True):
        for axes, kind in zip(line, _KINDS, strict=True):
            _bars(axes, columns, methods, kind, subset, colors)
            style.panel_title(axes, f"{kind}, {title}")
    grid[0][0].set_yticks(range(len(methods)), [style.safe(method, 32) for method in methods])
    grid[0][0].set_ylim(len(methods) - 0.4, -0.6)
    _legend(figure, columns, colors)
    return style.settle(figure)


def _bars(
    axes: Axes, columns: Sequence[Column], methods: Sequence[str], kind: str, subset: str, colors: np.ndarray
) -> None:
    from matplotlib.ticker import PercentFormatter

    high = 0.8 / len(columns)
    for number, (column, color) in enumerate(zip(columns, colors, strict=True)):
        middle = getattr(column.center, subset)
        if middle is not None:  # of runs on the same images the same, so of no run's colour
            axes.axvline(middle, color=style.INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=3)
        for place, method in enumerate(methods):
            score = column.best(method, kind)
            if score is None or (value := getattr(score, subset)) is None:
                continue
            error = getattr(score, f"{subset}_stderr") or 0.0
            look: dict[str, Any] = {"height": 0.92 * high, "color": color}
            look |= {"xerr": error, "error_kw": {"elinewidth": 0.9, "ecolor": style.INK}}
            axes.barh(place - 0.4 + (number + 0.5) * high, value, **look)
    style.clean_axes(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=style.GRID, linewidth=0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def _legend(figure: Figure, columns: Sequence[Column], colors: np.ndarray) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(color=color, label=style.safe(column.name, 50)) for column, color in zip(columns, colors)
    ]
    handles.append(Line2D([], [], color=style.INK, linestyle=(0, (4, 2)), label=CENTER))
    longest = max(len(handle.get_label()) for handle in handles)
    room = max(1, min(len(handles), int(figure.get_figwidth() * 12 / (longest + 6))))
    figure.legend(handles=handles, loc="outside lower center", ncols=room, fontsize=8, frameon=False)


def _finding(columns: Sequence[Column]) -> str:
    """Say for which run and method the pointing game is highest."""
    found = [
        (best[1].all or 0.0, column.name, best[0], best[1].where)
        for column in columns
        for best in (best_layer(column.methods.values()), best_combined(column.methods.values()))
        if best is not None
    ]
    if not found:
        return "Pointing game"
    value, name, method, where = max(found)
    told = f", {style.safe(name, 50)}" if len(columns) > 1 else ""
    return f"Pointing game: highest for {style.safe(method)}, {named(where)}{told}: {100 * value:.1f} %"
