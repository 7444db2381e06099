"""Which points a labeler connects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scarcely.reports.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def connections(
    points: np.ndarray, adjacencies: Mapping[str, np.ndarray], labels: np.ndarray | None = None
) -> Figure:
    """Draw which points each labeler connects (LSD-C, the figure of the two moons).

    The first panel is the data. Self-pairs are left out and each pair is counted once.

    Args:
        points: (N, 2).
        adjacencies: name of a labeler → (N, N) bool, connected in either direction.
        labels: (N,) classes, -1 where unknown; an edge between two classes is wrong.

    Returns:
        The figure; one that says so if there are no points.
    """
    points = np.asarray(points, dtype=float)
    if not len(points):
        return style.note("Connections", "There are no points.")
    labels = np.full(len(points), -1) if labels is None else np.asarray(labels)
    known = bool((labels >= 0).any())
    colors = np.tile(np.array([0.43, 0.47, 0.51]), (len(points), 1))
    if known:
        colors[labels >= 0] = style.palette(int(labels.max()) + 1)[labels[labels >= 0]]
    panels = 1 + len(adjacencies)
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure = style.new_figure(3.6 * columns, 0.4 + 3.0 * rows, "Pairs that each labeler connects")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    style.panel_title(grid[0], f"{len(points):,} points" + (", by class" if known else ""))
    grid[0].scatter(points[:, 0], points[:, 1], s=9, c=colors, linewidths=0)
    for axes, (name, adjacency) in zip(grid[1:], adjacencies.items()):
        _draw_edges(axes, points, np.asarray(adjacency, dtype=bool), labels, style.safe(name, 20))
    for axes in grid[:panels]:
        axes.set_aspect("equal", adjustable="datalim")
        style.bare_axes(axes)
    for axes in grid[panels:]:
        axes.remove()
    if known:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=style.RIGHT, linewidth=2),
            Line2D([], [], color=style.WRONG, linewidth=2),
        ]
        names = ["within a class", "between classes"]
        figure.legend(handles, names, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    return style.settle(figure)


def _draw_edges(axes: Axes, points: np.ndarray, adjacency: np.ndarray, labels: np.ndarray, name: str) -> None:
    from matplotlib.collections import LineCollection

    first, second = np.nonzero(np.triu(adjacency | adjacency.T, k=1))
    judged = (labels[first] >= 0) & (labels[second] >= 0)
    wrong = judged & (labels[first] != labels[second])
    right = f", {style.percent(judged.sum() - wrong.sum(), judged.sum())} right" if judged.any() else ""
    style.panel_title(axes, f"{name}: {len(first):,} edges{right}")
    axes.scatter(points[:, 0], points[:, 1], s=5, c=style.UNKNOWN, linewidths=0, zorder=1)
    # The wrong ones above: they are few, and the point of the picture.
    for layer, chosen, color in ((2, ~wrong, style.RIGHT), (3, wrong, style.WRONG)):
        segments = np.stack([points[first[chosen]], points[second[chosen]]], axis=1)
        axes.add_collection(LineCollection(list(segments), colors=color, linewidths=1.1, zorder=layer))
