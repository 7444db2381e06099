"""Sizes of the clusters, and the classes in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcely.reports.figures import style
from scarcely.reports.figures.matching import Groups, Matching, group_predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def cluster_sizes(
    predicted: np.ndarray,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    num_clusters: int = 0,
    *,
    matching: Matching | None = None,
) -> Figure | None:
    """Draw a bar a cluster, stacked by true class where known; a dashed line where all would be equal.

    Above twenty classes or clusters the stack has three parts only: the class of the cluster, the others,
    unlabelled.

    Args:
        predicted: (N,) clusters.
        labels: (N,) classes, -1 where unknown.
        classes: names of the classes.
        num_clusters: K; clusters that nobody is in keep their place and are named empty.
        matching: order of the bars; made from the labels if not given. Without labels the largest come first.

    Returns:
        The figure, or None if there is no sample or no cluster.
    """
    predicted = np.asarray(predicted)
    if not len(predicted):
        return None
    groups = group_predictions(predicted, labels, len(classes), num_clusters, matching)
    number, sizes, order = len(groups.sizes), groups.sizes, groups.order
    if not number:
        return None
    empty = int((sizes == 0).sum())
    plural = "es" if groups.word == "class" else "s"
    title = (
        f"{number} {groups.word}{plural if number > 1 else ''} of {sizes.min():,} to {sizes.max():,} samples"
    )
    title += f", {empty} empty" if empty else ", none empty"
    figure = style.new_figure(10, 4.4 if groups.few and len(groups.counts) > 12 else 3.6, title)
    axes = figure.subplots()
    bottom = np.zeros(number)
    for color, heights in _stack(groups):  # in the order of the bars
        width = 0.8 if number <= 60 else 1.0
        axes.bar(np.arange(number), heights, width, bottom=bottom, color=color)
        bottom += heights
    fair = len(predicted) / number
    axes.axhline(fair, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))
    text = f" N/K = {fair:,.0f}" if fair >= 10 else f" N/K = {fair:.1f}"
    axes.text(1.0, fair, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=style.INK)
    for place in np.flatnonzero(sizes[order] == 0):
        text = "empty" if number <= style.MANY else "0"
        axes.text(
            float(place), 0, text, ha="center", va="bottom", fontsize=7, color=style.WRONG, fontweight="bold"
        )
    style.clean_axes(axes)
    _name_bars(axes, groups, classes)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, number - 0.4)
    axes.set_ylim(0, 1.04 * max(fair, sizes.max()))
    axes.set_ylabel("samples", fontsize=9)
    if groups.known:
        _legend_beside(figure, groups, classes)
    return style.settle(figure)


def _stack(groups: Groups) -> list[tuple[Any, np.ndarray]]:
    """Cut the bars into (colour, (K,) heights), from below: the own class, the others, unlabelled."""
    counts, class_of = groups.counts[:, groups.order], groups.class_of[groups.order]
    known = counts.sum(axis=0)
    unlabelled = groups.sizes[groups.order] - known
    if not groups.known:
        return [(style.RIGHT, unlabelled)]
    own = np.where(class_of >= 0, counts[np.maximum(class_of, 0), np.arange(len(class_of))], 0)
    if not groups.few:
        return [(style.RIGHT, own), (style.TEN[1], known - own), (style.UNKNOWN, unlabelled)]
    colors = style.palette(len(counts))
    parts: list[tuple[Any, np.ndarray]] = [(colors[np.maximum(class_of, 0)], own)]
    parts += [(colors[c], np.where(class_of == c, 0, heights)) for c, heights in enumerate(counts)]
    return [*parts, (style.UNKNOWN, unlabelled)]


def _name_bars(axes: Axes, groups: Groups, classes: Sequence[str]) -> None:
    number = len(groups.sizes)
    if number > style.MANY:
        shown = style.thin(number)
        size, turn = (8.0, 0) if number <= 40 else (5.5, 90)
        axes.set_xticks(shown, [str(k) for k in groups.order[shown]], fontsize=size, rotation=turn)
        axes.set_xlabel(groups.word, fontsize=9)
        return
    names = []
    for k, c in zip(groups.order, groups.class_of[groups.order]):
        name = style.class_name(classes, int(c), 14) if c >= 0 else ""
        names.append(str(k) if c < 0 else name if groups.word == "class" else f"{k} → {name}")
    style.slanted_ticks(axes, names, 8)
    arrow = " → the class matched to it" if groups.known and groups.word == "cluster" else ""
    axes.set_xlabel(groups.word + arrow, fontsize=9)


def _legend_beside(figure: Figure, groups: Groups, classes: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    num_classes = len(groups.counts)
    if groups.few:
        entries = [
            (style.class_name(classes, c), color) for c, color in enumerate(style.palette(num_classes))
        ]
    else:
        entries = [(f"class of the {groups.word}", style.RIGHT), ("other classes", style.TEN[1])]
    if groups.sizes.sum() > groups.counts.sum():
        entries.append(("unlabelled", style.UNKNOWN))
    figure.legend(
        [Patch(color=color) for _, color in entries],
        # A label that begins with an underscore would be left out.
        [" " + name if name.startswith("_") else name for name, _ in entries],
        loc="outside right upper",
        fontsize=8,
        labelspacing=0.35,
        frameon=False,
        title="true class",
        title_fontsize=8,
    )
