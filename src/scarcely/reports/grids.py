"""Tables as text: in the terminal at any width, and as Markdown; means over runs in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDE = 400  # letters, more than any table has
_NAME = 16  # letters of a name that still can be read where the others are on lines below


def mean_std(values: Iterable[float], scale: float = 100.0, decimals: int = 1) -> str:
    """Write mean ± standard deviation over runs: ``81.7 ± 0.9``.

    The deviation is that of a sample (n − 1), so one run has none: ``81.7``.

    Args:
        values: one figure a run. One that is not finite makes the whole ``n/a``: leaving a failed run
            out would flatter the method.
        scale: 100 writes fractions as percent.
        decimals: digits after the point.
    """
    array = np.array([float("nan") if value is None else value for value in values], dtype=float) * scale
    if not len(array) or not np.isfinite(array).all():
        return "n/a"
    mean = f"{array.mean():.{decimals}f}"
    return mean if len(array) == 1 else f"{mean} ± {array.std(ddof=1):.{decimals}f}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table as Markdown."""
    lines = [_markdown_row(head), "|" + " --- |" * len(head), *map(_markdown_row, rows)]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def cell(values: Sequence[float]) -> str:
    """Write fractions as a mean ± standard deviation in percent, and how many runs they are of."""
    return f"{mean_std(values)} ({len(values)} run{'' if len(values) == 1 else 's'})"


def print_grid(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None
) -> None:
    """Print a table of `cell` texts, names in its first column; too wide, with line breaks, or in parts.

    Args:
        title: above it.
        head: name of each column.
        rows: texts, as many as the head has.
        console: where to; standard output if not given, at any width where that is no terminal.
    """
    from rich.console import Console

    if console is None:
        console = Console()
        console = console if console.is_terminal else Console(width=_WIDE)
    options = console.options.update(max_width=_WIDE)
    longest = max(len(row[0]) for row in rows)
    for narrow, name in ((False, longest), (True, min(longest, _NAME))):
        grid = _grid(title, head, rows, narrow=narrow)
        if console.measure(grid, options=options).maximum - longest + name <= console.width:
            console.print(grid)
            return
    for number, part in enumerate(_parts(head, rows, console.width)):
        chosen = [[cells[i] for i in part] for cells in (head, *rows)]
        console.print(_grid("" if number else title, chosen[0], chosen[1:], narrow=False))


def _parts(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Share out the columns of a table among tables that fit, each with the first column."""
    widths = [max(map(len, cells)) + 3 for cells in zip(head, *rows, strict=True)]
    parts: list[list[int]] = [[0]]
    for column in range(1, len(head)):
        if len(parts[-1]) > 1 and sum(widths[i] for i in (*parts[-1], column)) + 1 > width:
            parts.append([0])
        parts[-1].append(column)
    return parts


def _grid(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, narrow: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(title, style="bold"), title_justify="left")
    grid.add_column(head[0], overflow="fold")
    for name in head[1:]:
        grid.add_column(name, justify="right")
    for name, *cells in rows:
        if narrow:  # a line break where it is read best
            cells = [text.replace(" (", "\n(").replace("± ", "±") for text in cells]
        grid.add_row(Text(name), *cells)
    return grid
