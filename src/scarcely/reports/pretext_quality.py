"""How good a pretext was after some epochs, and what came of it (thesis, chapter 5, table 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scarcely.errors import DataError
from scarcely.reports import table
from scarcely.reports.runs import Point, Run, notes_on

if TYPE_CHECKING:
    from rich.console import Console

ROTATION = "rotation accuracy"
_METRIC = "test/accuracy"
_NAMES = {"supervised": "labelled set alone"}  # the paper's word for it
_APART = ("pretext_epoch", "stages.pretext.epochs", "stages.pretext.keep", "pretext")


def collect(runs: Sequence[Run]) -> list[Point]:
    """Group the accuracies of runs by the epoch of the pretext that they began with.

    Args:
        runs: from `find_runs`; those without a pretext of rotations or a test accuracy are left out.

    Returns:
        Points, ``x`` the epoch and how many the pretext had, ``line`` the accuracy of what: of rotations
        first, then of each method.

    Raises:
        DataError: no run has both.
    """
    points: dict[tuple[str, tuple[int, int]], Point] = {}
    for run in runs:
        final, epoch = run.metrics.get(_METRIC), run.metrics.get("pretext/epoch")
        whole = next((s["epochs"] for s in run.results.get("stages") or [] if s["name"] == "pretext"), None)
        if not isinstance(final, (int, float)) or not math.isfinite(final) or epoch is None or whole is None:
            continue
        method = str(run.results.get("method"))
        at = (int(epoch), int(whole))
        for line, value in (
            (ROTATION, run.metrics["pretext/accuracy"]),
            (_NAMES.get(method, method), final),
        ):
            point = points.setdefault((line, at), Point(at, line, [], []))
            if line == ROTATION and run.results.get("seed") in [r.results.get("seed") for r in point.runs]:
                continue  # the pretext of a seed is one network, however many runs begin with it
            point.runs.append(run)
            point.values.append(float(value))
    if not points:
        raise DataError(
            f"no run began with a pretext of rotations and has a {_METRIC}",
            where="RUNS",
            instead="runs with pretext_epoch=60, say (see docs/scarce.md)",
        )
    return sorted(points.values(), key=lambda p: (p.line != ROTATION, str(p.line), p.x))


def notes(runs: Sequence[Run], points: Sequence[Point]) -> list[str]:
    """Return what should be known before the table is believed."""
    scored = [point for point in points if point.line != ROTATION]
    return notes_on(runs, scored, _APART, f"they have no {_METRIC}, or no pretext of rotations")


def print_tables(points: Sequence[Point], console: Console | None = None) -> None:
    """Print a row a quantity, a column an epoch of the pretext: mean ± standard deviation (number of runs).

    Args:
        points: from `collect`.
        console: where to; standard output if not given.
    """
    data = ", ".join(sorted({str(run.results.get("data")) for point in points for run in point.runs}))
    table.print_grid(f"Accuracy on {data} in %, by epochs of the pretext", *_grid(points), console)


def markdown(points: Sequence[Point]) -> str:
    """Write the same table as Markdown."""
    return table.markdown_table(*_grid(points))


def _grid(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    columns = sorted({point.x for point in points})
    several = len({whole for _, whole in columns}) > 1
    cells = {(point.line, point.x): table.cell(point.values) for point in points}
    lines = dict.fromkeys(point.line for point in points)
    head = [f"{epoch} of {whole}" if several else str(epoch) for epoch, whole in columns]
    return ["epochs", *head], [
        [line, *(cells.get((line, column), "–") for column in columns)] for line in lines
    ]
