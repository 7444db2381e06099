"""A run over several domains: what each reached, what is left of the source, and how they were trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports.figures import style
from scarcely.reports.table import split_stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DARK = "#1c5d99"  # `style.RIGHT`, darker: the source
_PANELS = {"loss": "loss", "accuracy": "accuracy in training", "lr": "learning rate"}


def domain_accuracies(
    rows: Sequence[Mapping[str, Any]],
    source: str | None = None,
    max_errors: Mapping[str, float] | None = None,
    points: Mapping[str, float] | None = None,
) -> Figure:
    """Draw a bar a domain: its accuracy, what it brings to the score, and what it left of the source.

    Args:
        rows: of each domain ``name``, ``accuracy`` in [0, 1] and perhaps ``source_accuracy``, that of its
            network on the source.
        source: name of the domain that the others start from, if there is one.
        max_errors: by domain, the error E_max in [0, 1] from which on it brings no points.
        points: by domain, of 1,000 each.

    Returns:
        The figure; its panels on the score and on the source are there where their numbers are.
    """
    names = [str(row["name"]) for row in rows]
    accuracies = [float(row["accuracy"]) for row in rows]
    left = [math.nan if row.get("source_accuracy") is None else float(row["source_accuracy"]) for row in rows]
    brought = [(points or {}).get(name, math.nan) for name in names]
    title = f"Mean accuracy over {len(names)} domains: {100 * np.mean(accuracies):.1f} %"
    if np.isfinite(brought).all():
        title += f", score S = {sum(brought):,.0f} of {1000 * len(names):,}"
    widths = {"accuracy": 1.5}
    widths |= {"points": 1.0} if np.isfinite(brought).any() else {}
    widths |= {"left": 1.2} if np.isfinite(left).any() else {}
    figure = style.new_figure(2.2 + 2.3 * sum(widths.values()), 1.2 + 0.29 * len(names), title)
    grid = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=list(widths.values()))[0]
    panels = dict(zip(widths, grid))
    colors = [_DARK if name == source else style.RIGHT for name in names]
    _bars(panels["accuracy"], "accuracy", accuracies, colors)
    for place, name in enumerate(names):
        if (limit := (max_errors or {}).get(name, 1.0)) < 1:
            edges = [place - 0.4, place + 0.4]
            panels["accuracy"].plot([1 - limit] * 2, edges, color=style.INK, linewidth=1.4)
    if "points" in panels:
        _bars(panels["points"], "points of 1,000", brought, colors, points=True)
    if "left" in panels:
        _left(panels["left"], left, accuracies[names.index(source)] if source in names else None)
    told = [style.safe(name, 18) + (" (source)" if name == source else "") for name in names]
    grid[0].set_yticks(range(len(names)), told)
    grid[0].set_ylim(len(names) - 0.4, -0.6)
    return style.settle(figure)


def _left(axes: Axes, values: Sequence[float], before: float | None) -> None:
    """Draw what the networks of other domains reach on the source, and what its own did."""
    _bars(axes, "what is left of the source", values, [style.TEN[1]] * len(values), reach=before or 0.0)
    if before is not None:
        axes.axvline(before, color=_DARK, linewidth=1.3, linestyle=(0, (4, 2)))
        told = f"before: {100 * before:.1f} %"
        axes.set_title(told, loc="right", fontsize=8, color=_DARK, fontweight="bold")


def _bars(
    axes: Axes,
    title: str,
    values: Sequence[float],
    colors: Sequence[Any],
    *,
    points: bool = False,
    reach: float = 0.0,
) -> None:
    """Draw horizontal bars, of fractions or of points, their values beside them, up to ``reach`` at least."""
    from matplotlib.ticker import PercentFormatter

    end = 1000.0 if points else 1.0
    known = np.nan_to_num(np.array(values))
    axes.barh(range(len(values)), known, height=0.66, color=colors)
    beside: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
    beside |= {"fontsize": 7.5, "color": style.INK, "zorder": 4}
    beside |= {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8}}  # a line may pass behind
    for place, value in enumerate(values):
        text = f"{value:,.0f}" if points else f"{100 * value:.1f} %"
        axes.annotate(text if math.isfinite(value) else "–", (known[place], place), **beside)
    style.clean_axes(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=style.GRID, linewidth=0.6)
    highest = max(float(known.max()), reach, end / 50)
    right = 1.25 * (
        1.15 * highest if highest < 0.6 * end else end
    )  # a fifth for the number behind the longest
    axes.set_xlim(0, right)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= min(right, 1.001 * end)])
    if not points:
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    style.panel_title(axes, title)


class _Line(NamedTuple):
    """One training: where it belongs, and its rows by epoch."""

    domain: str
    method: str
    rows: dict[float, Mapping[str, Any]]
    taken: bool  # the last of its method on this domain; those before were tried

    def values(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the epochs in which a number was measured, and that number, perhaps not finite."""
        found = [
            (e, float(r[key])) for e, r in sorted(self.rows.items()) if isinstance(r.get(key), (int, float))
        ]
        return np.array([e for e, _ in found]), np.array([v for _, v in found])


def _lines(history: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> list[_Line]:
    by_stage: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in history:
        epoch = row.get("epoch")
        if isinstance(epoch, (int, float)) and math.isfinite(epoch):
            rows = by_stage.setdefault(str(row.get("stage", "")), {})
            rows[epoch] = {**rows.get(epoch, {}), **row}
    places = {stage: split_stage(stage, domains) for stage in by_stage}
    last = {place: stage for stage, place in places.items()}
    return [_Line(*places[stage], rows, last[places[stage]] == stage) for stage, rows in by_stage.items()]


def domain_curves(history: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> Figure | None:
    """Draw loss, accuracy and learning rate over the epochs: a line a domain, a column a method.

    Args:
        history: rows with ``stage`` (``DOMAIN METHOD``, perhaps more words behind), ``epoch`` and numbers.
        domains: names, in the order of their colours.

    Returns:
        The figure, or None if no row holds any of these.
    """
    from matplotlib.ticker import PercentFormatter

    lines = _lines(history, domains)
    keys = [key for key in _PANELS if any(np.isfinite(line.values(key)[1]).any() for line in lines)]
    methods = list(dict.fromkeys(line.method for line in lines))
    if not keys:
        return None
    colors = {"": style.INK} | dict(zip(domains, style.palette(len(domains))))
    trained = len({line.domain for line in lines})
    title = f"Training on {trained} domain{'' if trained == 1 else 's'}: " + ", then ".join(
        style.safe(method, 30) for method in methods
    )
    heights = [0.55 if key == "lr" else 1.0 for key in keys]
    size = (max(6.5, 1.0 + 4.2 * len(methods)), 1.4 + 2.1 * sum(heights))
    figure = style.new_figure(*size, title)
    grid = figure.subplots(
        len(keys), len(methods), sharex="col", sharey="row", squeeze=False, height_ratios=heights
    )
    for column, method in enumerate(methods):
        own = [line for line in lines if line.method == method]
        of = len({line.domain for line in own})
        named = own[0].domain if of == 1 else f"{of} domains"
        style.panel_title(grid[0][column], f"{style.safe(method, 30)}, {style.safe(named, 24)}".rstrip(", "))
        for axes, key in zip(grid[:, column], keys):
            _draw(axes, own, key, colors)
        grid[-1][column].set_xlabel("epoch", fontsize=8)
    for axes, key in zip(grid[:, 0], keys):
        axes.set_ylabel(_PANELS[key], fontsize=8)
        if key == "accuracy":
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        elif key == "loss":
            axes.set_ylim(bottom=0)  # of all columns, so not before the last is drawn
    _legend(figure, {name: colors[name] for name in domains if any(line.domain == name for line in lines)})
    return style.settle(figure)


def _draw(axes: Axes, lines: Sequence[_Line], key: str, colors: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in lines:
        x, y = line.values(key)
        lost = ~np.isfinite(y)
        # Learning rates are mostly the same: the colour of the last would be taken for its own.
        color = style.MUTED if key == "lr" else colors[line.domain]
        look: dict[str, Any] = {"color": color, "linewidth": 1.5 if line.taken else 1.0}
        look |= {
            "alpha": 1.0 if line.taken else 0.35,
            "marker": "o" if (~lost).sum() <= 5 else None,
            "ms": 3.5,
        }
        axes.plot(x, np.where(lost, np.nan, y), **look)
        edge = axes.get_xaxis_transform()  # x in data, y in fractions of the panel
        axes.plot(x[lost], np.full(lost.sum(), 0.03), "x", color=style.WRONG, transform=edge)
    style.clean_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    epochs = [epoch for line in lines for epoch in line.rows]
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)


def _legend(figure: Figure, colors: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, linewidth=2.2) for color in colors.values()]
    names = [style.safe(name, 20) for name in colors]
    room = max(1, int(figure.get_figwidth() * 13 / (max(map(len, names), default=1) + 6)))
    # As many in each row, that none stands alone in the last.
    columns = math.ceil(len(names) / math.ceil(len(names) / room)) if names else 1
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
