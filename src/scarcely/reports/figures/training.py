"""Scalars over the epochs: losses, scores, learning rate, and the quality of pairwise labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORES = frozenset({"acc", "nmi", "ari", "accuracy", "acc_joint"})


class _Stage(NamedTuple):
    name: str
    rows: dict[float, dict[str, Any]]  # by epoch
    first: float
    length: float
    left: float  # where its band begins on the shared axis, and how wide it is
    width: float

    def at(self, epoch: float) -> float:
        return self.left + (epoch - self.first + 0.5) / self.length * self.width


def _stages(history: Sequence[Mapping[str, Any]]) -> list[_Stage]:
    """Lay the stages side by side, in the order in which they first appear.

    Rows of the same epoch are merged (training and validation may be logged apart; after a resume the
    later row counts). A band is as wide as its stage is long, but never so narrow that it cannot be read.
    """
    by_stage: dict[str, dict[float, dict[str, Any]]] = {}
    for position, row in enumerate(history):
        epoch = row.get("epoch", position)
        if isinstance(epoch, (int, float)) and math.isfinite(epoch):
            merged = by_stage.setdefault(str(row.get("stage", "")), {})
            merged.setdefault(epoch, {}).update(row)
    lengths = {name: max(rows) - min(rows) + 1 for name, rows in by_stage.items()}
    floor = 0.15 * sum(lengths.values())
    stages, left = [], 0.0
    for name, rows in by_stage.items():
        width = max(lengths[name], floor)
        stages.append(_Stage(name, dict(sorted(rows.items())), min(rows), lengths[name], left, width))
        left += width
    return stages


def _values(stage: _Stage, key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [
        (stage.at(epoch), float(row[key]))
        for epoch, row in stage.rows.items()
        if isinstance(row.get(key), (int, float))
    ]
    return np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])


def _keys(history: Sequence[Mapping[str, Any]], wanted: Callable[[str], bool]) -> list[str]:
    """Return the keys wanted that hold a finite number somewhere, in the order of their first appearance."""
    found: dict[str, None] = {}
    for row in history:
        for key, value in row.items():
            if key not in found and wanted(key) and isinstance(value, (int, float)) and math.isfinite(value):
                found[key] = None
    return list(found)


class _Panel(NamedTuple):
    title: str
    keys: list[str]
    percent: bool = False
    may_be_log: bool = False


def _draw_panel(axes: Axes, stages: list[_Stage], panel: _Panel) -> None:
    """Draw one colour a quantity, one line a stage, stages side by side in bands."""
    from matplotlib.ticker import NullFormatter, PercentFormatter

    shown = panel.keys[: len(style.TEN)]
    finite: list[float] = []
    for color, key in zip(style.TEN, shown):
        for stage in stages:
            x, y = _values(stage, key)
            lost = ~np.isfinite(y)
            finite.extend(y[~lost])
            marker = "o" if (~lost).sum() <= 12 else None
            # The total is what is minimised, its parts explain it: they stay thinner.
            width = 1.8 if "/" not in key or len(shown) == 1 else 1.2
            axes.plot(x, np.where(lost, np.nan, y), color=color, linewidth=width, marker=marker, ms=3.5)
            edge = axes.get_xaxis_transform()  # x in data, y in fractions of the panel
            axes.plot(x[lost], np.full(lost.sum(), 0.03), "x", color=style.WRONG, transform=edge)
    if panel.may_be_log and min(finite) > 0 and max(finite) > 100 * min(finite):
        axes.set_yscale("log")
        # The usual 10⁻² is a formula, and matplotlib's reader of formulas may not run in two threads.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif max(finite) - min(finite) < 1e-9:
        # A constant deserves a line in the middle, not an axis of rounding errors around it.
        margin = abs(finite[0]) * 0.5 or 1.0
        axes.set_ylim(finite[0] - margin, finite[0] + margin)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    style.clean_axes(axes)
    style.panel_title(axes, panel.title)
    _draw_bands(axes, stages)
    if len(shown) > 1:
        legend_above(axes, shown, len(panel.keys) - len(shown))


def _draw_bands(axes: Axes, stages: list[_Stage]) -> None:
    """Mark where stages begin and number the epochs of each from its own start."""
    from matplotlib.ticker import MaxNLocator

    ticks, names = [], []
    end = stages[-1].left + stages[-1].width
    below = axes.get_xaxis_transform()
    for number, stage in enumerate(stages):
        if number:
            axes.axvline(stage.left, color=style.MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        if number % 2:
            axes.axvspan(stage.left, stage.left + stage.width, color="#f3f5f7", zorder=0)
        last = stage.first + stage.length - 1
        bins = max(1, round(7 * stage.width / end))
        for tick in MaxNLocator(bins, integer=True).tick_values(stage.first, last):
            if stage.first <= tick <= last:
                ticks.append(stage.at(tick))
                names.append(f"{tick:.0f}")
        text = f"epoch of {style.safe(stage.name, 22)}" if stage.name else "epoch"
        middle = stage.left + stage.width / 2
        axes.text(middle, -0.13, text, transform=below, ha="center", va="top", fontsize=8, color=style.MUTED)
    axes.set_xticks(ticks, names)
    axes.set_xlim(0, end)


def legend_above(axes: Axes, keys: list[str], more: int) -> None:
    """Name lines of the first of `style.TEN` above a panel: inside, no corner is free for certain."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, linewidth=2) for color in style.TEN[: len(keys)]]
    names = [style.safe(key, 24) for key in keys]
    if more:
        handles.append(Line2D([], [], linestyle="none"))
        names.append(f"and {more} more")
    # About seventy letters fit beside the title; the stroke of a line takes the room of four.
    room = 70 // (sum(len(name) + 4 for name in names) / len(names))
    columns = max(1, min(len(names), int(room)))
    legend = axes.legend(
        handles,
        names,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        ncols=columns,
        fontsize=7.5,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.2,
    )
    legend.set_in_layout(columns < len(names))  # one row has the height of the title


def curves(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw losses, scores, learning rate and ramp-up over the epochs, stages side by side.

    Values that were not finite are crosses on the lower edge.

    Args:
        history: rows with ``stage``, ``epoch`` and numbers.

    Returns:
        The figure, or None if no row holds any of these.
    """
    panels = [
        _Panel(
            "loss", _keys(history, lambda k: k.startswith("loss") or k.endswith("/loss")), may_be_log=True
        ),
        _Panel("score", _keys(history, lambda k: k.split("/")[-1] in SCORES), percent=True),
        _Panel("learning rate", _keys(history, lambda k: k == "lr" or k.startswith(("lr/", "lr-")))),
        _Panel("ramp-up of the consistency", _keys(history, lambda k: k.startswith("rampup"))),
    ]
    panels = [panel for panel in panels if panel.keys]
    stages = _stages(history)
    if not panels or not stages:
        return None
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    title = "Training: " + ", then ".join(_stage_title(stage) for stage in stages)
    lost = sum(1 for row in history for v in row.values() if isinstance(v, float) and not math.isfinite(v))
    if lost:
        title += f"; {lost} value{'s' if lost > 1 else ''} not finite"
    figure = style.new_figure(10, 0.5 + 2.6 * rows, title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels):
        _draw_panel(axes, stages, panel)
    for axes in grid[len(panels) :]:
        axes.remove()
    return style.settle(figure)


def _stage_title(stage: _Stage) -> str:
    epochs = len(stage.rows)
    return f"{style.safe(stage.name, 22) or 'one stage'} ({epochs} epoch{'' if epochs == 1 else 's'})"


def pseudo_labels(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw the share of pairs called positive, and how many of those are right, over the epochs.

    Args:
        history: rows with ``stage``, ``epoch``, ``pairs/positive`` and, where labels are known,
            ``pairs/precision`` and ``pairs/recall``, all in [0, 1].

    Returns:
        The figure, or None if no row holds any of these.
    """
    wanted = {
        "pairs/positive": "pairs called positive",
        "pairs/precision": "precision: positive pairs of one class",
        "pairs/recall": "recall: pairs of one class found",
    }
    keys = [key for key in wanted if _keys(history, lambda k, key=key: k == key)]  # type: ignore[misc]
    # Stages without pairs (the pretext) would only be empty bands.
    stages = _stages([row for row in history if any(key in row for key in keys)])
    if not keys or not stages:
        return None
    last = [
        f"{key.split('/')[1]} {100 * values[-1]:.1f} %"
        for key in keys
        if len(values := style.finite(_values(stages[-1], key)[1]))
    ]
    figure = style.new_figure(10, 3.0, "Pairwise pseudo-labels: " + ", ".join(last) + " at the end")
    for axes, key in zip(np.atleast_1d(figure.subplots(1, len(keys))), keys):
        _draw_panel(axes, stages, _Panel(wanted[key], [key], percent=True))
        # From 0, or a change of half a percent would fill the panel.
        highest = axes.get_ylim()[1]
        small = key == "pairs/positive" or (key == "pairs/recall" and highest < 0.5)  # rare by design
        axes.set_ylim(0, 1.15 * highest if small else 1.02)
    return style.settle(figure)
