"""Confusion of classes and clusters, for all samples and for the confident ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scarcely.reports.evidence import confusion_counts
from scarcely.reports.figures import style
from scarcely.reports.figures.matching import Matching, match_clusters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONFIDENT = 0.9  # LSD-C, figure 4b


def confusion(
    counts: np.ndarray,
    classes: Sequence[str] = (),
    title: str = "Confusion",
    *,
    matching: Matching | None = None,
    identity: bool = False,
) -> Figure | None:
    """Draw confusion counts with the clusters beside their classes (LSD-C, figure 4).

    The colour is the share of the class; up to ten classes a cell shows its count, up to twenty the
    percentage, above that nothing.

    Args:
        counts: (C, K) counts, classes in rows.
        classes: names of the classes; missing ones are numbered.
        title: first words of the title; the share on the diagonal is added.
        matching: from `match_clusters` or `match_old_new`; made from ``counts`` if not given.
        identity: of that matching: columns are classes already.

    Returns:
        The figure, or None if there is no class, no cluster or nothing counted.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or not counts.size or counts.sum() == 0:
        return None
    matching = matching or match_clusters(counts, identity=identity)
    where = "on the diagonal" if matching.identity or matching.named else "in the cluster of their class"
    title = (
        f"{title}: {style.percent(matching.right(counts), counts.sum())} of {counts.sum():,} samples {where}"
    )
    return _draw_confusion(counts, classes, title, matching, counts.sum(axis=1))


def _draw_confusion(
    counts: np.ndarray, classes: Sequence[str], title: str, matching: Matching, totals: np.ndarray
) -> Figure:
    """Draw (C, K) counts, coloured by their share of the (C,) totals."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    shown = counts[np.ix_(matching.rows, matching.columns)]
    share = shown / np.maximum(totals[matching.rows], 1)[:, None]
    num_rows, num_columns = shown.shape
    most = max(num_rows, num_columns)
    cell = 0.8 if most <= 5 else 0.5 if most <= 10 else 0.4 if most <= style.MANY else 8.2 / most
    names = [style.class_name(classes, int(c)) for c in matching.rows]
    if most <= style.MANY:
        names = [f"{name} ({totals[c]:,})" for name, c in zip(names, matching.rows)]
    beside = 1.4 + 0.08 * max(map(len, names))  # colours on the right, names on the left
    width, height = max(cell * num_columns + beside, 4.8), max(cell * num_rows + 1.1, 2.4)
    if len(title) > 11 * width:
        title = title.replace(": ", ":\n", 1)
    figure = style.new_figure(width, height, title)
    axes = figure.subplots()
    # Errors are spread thin: the power brings a confusion of 2 % out of the white.
    norm = PowerNorm(0.6, 0, 1)
    long = most > 3 * min(num_rows, num_columns)  # squares would leave a strip that nobody can read
    image = axes.imshow(
        share, cmap="Blues", norm=norm, interpolation="nearest", aspect="auto" if long else "equal"
    )
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3.2 / height), aspect=16, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    bar.set_label("share of the class", fontsize=8, color=style.INK)
    bar.ax.tick_params(labelsize=7, color=style.GRID)
    bar.outline.set_visible(False)
    if most <= style.MANY:
        _write_cells(axes, shown, share, as_counts=most <= 10)
    diagonal = int((matching.class_of >= 0).sum())
    if diagonal < num_columns:
        axes.axvline(diagonal - 0.5, color=style.INK, linewidth=1)
    if diagonal < num_rows:
        axes.axhline(diagonal - 0.5, color=style.INK, linewidth=1)
    if 0 < matching.named < most:  # between old and new
        for line in (axes.axvline, axes.axhline):
            line(matching.named - 0.5, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))

    font = 8.0 if most <= style.MANY else 7.0 if most <= 60 else 5.5
    rows, columns = style.thin(num_rows), style.thin(num_columns)
    axes.set_yticks(rows, [names[i] for i in rows], fontsize=font)
    predictions = matching.columns[columns]
    if matching.named:
        told = [_old_or_cluster(classes, int(k), matching.named) for k in predictions]
        if most > style.MANY:
            axes.set_xticks(columns, told, fontsize=font, rotation=90)
        else:
            style.slanted_ticks(axes, told, font)
        axes.set_xlabel("predicted: a known class by name, or a cluster of new ones")
    elif not matching.identity:
        turn = 90 if most > 40 else 0
        axes.set_xticks(columns, [str(k) for k in predictions], fontsize=font, rotation=turn)
        axes.set_xlabel("cluster" + ("; left over beyond the line" if diagonal < num_columns else ""))
    elif most > style.MANY:
        axes.set_xticks(
            columns, [style.class_name(classes, int(c)) for c in predictions], fontsize=font, rotation=90
        )
        axes.set_xlabel("predicted class")
    else:
        style.slanted_ticks(axes, [style.class_name(classes, int(c)) for c in predictions], font)
        axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (samples)" if most <= style.MANY else "true class")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(fontsize=9, color=style.INK)
    axes.tick_params(which="both", length=0, colors=style.INK)
    axes.spines[:].set_visible(False)
    return style.settle(figure)


def _old_or_cluster(classes: Sequence[str], prediction: int, num_known: int) -> str:
    if prediction < num_known:
        return style.class_name(classes, prediction)
    return f"cluster {prediction - num_known}"


def _write_cells(axes: Axes, counts: np.ndarray, share: np.ndarray, *, as_counts: bool) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            text = f"{count:d}" if as_counts else f"{100 * share[row, column]:.0f}"
            color = "white" if share[row, column] > 0.5 else style.INK  # where the colour map turns dark
            size = 8 if as_counts and count < 100_000 else 7
            cell = axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
            cell.set_in_layout(False)  # it lies within the axes: no need to measure each
    axes.set_xticks(np.arange(1, counts.shape[1]) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, counts.shape[0]) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)


def confident_confusion(
    predicted: np.ndarray,
    confidence: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str] = (),
    num_clusters: int = 0,
    *,
    threshold: float = CONFIDENT,
    matching: Matching | None = None,
) -> Figure | None:
    """Draw the confusion of the samples predicted above ``threshold`` (LSD-C, figure 4b).

    The title tells their share and accuracy. Clusters keep the class that all samples gave them, and the
    colour is the share of the whole class: a class that the network is unsure about turns pale.

    Args:
        predicted: (N,) clusters.
        confidence: (N,) probabilities of them.
        labels: (N,) classes, -1 where unknown.
        classes: names of the classes.
        num_clusters: K.
        threshold: what counts as confident.
        matching: that of all samples; made from them if not given.

    Returns:
        The figure, one that says so if no sample is that confident, or None if no sample has a label.
    """
    predicted, labels, confidence = np.asarray(predicted), np.asarray(labels), np.asarray(confidence)
    everything = confusion_counts(labels, predicted, len(classes), num_clusters)
    if everything.sum() == 0:
        return None
    matching = matching or match_clusters(everything)
    sure = confidence > threshold
    counts = confusion_counts(labels[sure], predicted[sure], *everything.shape)
    whom = "samples" if everything.sum() == len(labels) else "labelled samples"
    title = f"Predicted above {threshold:g}: {style.percent(counts.sum(), everything.sum())} of the {whom}"
    if counts.sum() == 0:
        best = style.finite(confidence.astype(float))
        most = f" The most confident has {best.max():.2f}." if len(best) else ""
        return style.note(title, f"No labelled sample is predicted above {threshold:g}.{most}")
    title += f",\n{style.percent(matching.right(counts), counts.sum())} of these right"
    return _draw_confusion(counts, classes, title, matching, everything.sum(axis=1))
