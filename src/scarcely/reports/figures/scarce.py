"""Few labels: what each phase of a cycle reaches, which pseudo-labels switch, whether confidence is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcely.reports.figures import style
from scarcely.reports.figures.montages import tile_of
from scarcely.reports.figures.training import legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 15  # of confidence, as test/ece
_FEW, _PALE = 10, "#b9d8f2"  # samples below which a bin's accuracy says little, and its colour
_ACCURACIES = {
    "phase_one/accuracy": "test, after phase one",
    "phase_two/accuracy": "test, after phase two",
    "pseudo/labels_accuracy": "pseudo-labels",
}
_COLUMNS, _ROWS = 9, 5  # of the gallery
_FRAME, _BELOW, _CELL, _HEAD = 3, 48, 104, 58  # pixels: around a tile, text below it, narrowest cell, title


def phases(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw by cycle the accuracies of both phases and of the pseudo-labels, and how many of these switched.

    Args:
        history: rows with ``cycle`` and any of ``phase_one/accuracy``, ``phase_two/accuracy`` (of the test
            split), ``pseudo/labels_accuracy`` and ``pseudo/switched``, all in [0, 1].

    Returns:
        The figure, or None if no row of a cycle holds any of these.
    """
    accuracies = {
        name: curve for key, name in _ACCURACIES.items() if len((curve := by_cycle(history, key))[0])
    }
    cycles, shares = by_cycle(history, "pseudo/switched")
    if not accuracies and not len(cycles):
        return None
    figure = style.new_figure(10, 3.6, _phases_title(accuracies))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for color, marker, (x, values) in zip(style.TEN, "os^", accuracies.values()):
        left.plot(x, values, color=color, linewidth=1.8, marker=marker, ms=4.5)
    right.bar(cycles, shares, 0.7, color=style.MUTED)
    if accuracies:
        legend_above(left, list(accuracies), 0)
    else:
        _say_nothing(left, "no labels to judge by")
    if not len(cycles):
        _say_nothing(right, "one cycle: nothing to compare with")
    last = max([1.0, *cycles, *(x for curve in accuracies.values() for x in curve[0])])
    for axes, title, first in ((left, "accuracy", 0), (right, "pseudo-labels that switched", 1)):
        _scale(axes, title, first, last)
    right.set_ylim(0, max(0.01, 1.12 * max(shares, default=0.0)))
    for x, share in zip(cycles, shares) if len(cycles) <= 16 else ():
        figures = f"{100 * share:.1f}" if share < 0.0995 else f"{100 * share:.0f}"
        right.annotate(figures, (x, share), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    return style.settle(figure)


def by_cycle(history: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the cycles in which a quantity was measured, rising, and its last finite value in each."""
    found = {
        float(row["cycle"]): float(row[key])
        for row in history
        if isinstance(row.get("cycle"), (int, float))
        and isinstance(row.get(key), (int, float))
        and math.isfinite(row["cycle"])
        and math.isfinite(row[key])
    }
    return np.array(sorted(found)), np.array([found[cycle] for cycle in sorted(found)])


def _phases_title(accuracies: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    of_test = [
        f"{100 * accuracies[name][1][-1]:.1f} % after {phase}"
        for name, phase in zip(_ACCURACIES.values(), ("phase one", "phase two"))
        if name in accuracies
    ]
    if of_test:
        return f"Test accuracy in the last cycle: {', '.join(of_test)}"
    named = [f"{100 * values[-1]:.1f} % of the pseudo-labels are right" for _, values in accuracies.values()]
    return f"In the last cycle {named[0]}" if named else "Pseudo-labels by cycle"


def _scale(axes: Axes, title: str, first: float, last: float) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    style.clean_axes(axes)
    style.panel_title(axes, title)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.set_xlim(first - 0.6, last + 0.6)
    axes.set_xlabel("cycle", fontsize=9)


def _say_nothing(axes: Axes, why: str) -> None:
    axes.set_yticks([])
    axes.text(
        *(0.5, 0.5, why), transform=axes.transAxes, ha="center", va="center", fontsize=9, color=style.MUTED
    )


def calibration(
    confidence: np.ndarray, correct: np.ndarray, ece: float | None = None, *, bins: int = BINS
) -> Figure | None:
    """Draw accuracy against confidence, a reliability diagram, with the size of each bin below.

    Args:
        confidence: (T,) probabilities of what was predicted; those that are not finite are left out.
        correct: (T,) whether it was right.
        ece: expected calibration error as it was measured; that of the bins if not given.
        bins: of equal width from 0 to 1.

    Returns:
        The figure, or None if there is no sample.
    """
    from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

    confidence = np.asarray(confidence, dtype=np.float64)
    known = np.isfinite(confidence)
    confidence, correct = confidence[known], np.asarray(correct, dtype=np.float64)[known]
    if not len(confidence):
        return None
    sizes, accuracy, mean = reliability(confidence, correct, bins)
    if ece is None:
        ece = float(np.nansum(sizes * np.abs(accuracy - mean)) / sizes.sum())
    title = f"Calibration of the test split: expected calibration error (ECE) {ece:.3g}"
    figure = style.new_figure(9, 5.6, title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middle, width = (np.arange(bins) + 0.5) / bins, 1 / bins
    for bar, size in zip(upper.bar(middle, np.nan_to_num(accuracy), 0.9 * width), sizes):
        bar.set_facecolor(style.RIGHT if size >= _FEW else _PALE)
    filled = sizes > 0
    upper.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    upper.hlines(
        *(mean[filled], (middle - 0.45 * width)[filled], (middle + 0.45 * width)[filled]),
        color=style.WRONG,
        linewidth=1.8,
    )
    lower.bar(middle, sizes, 0.9 * width, color=style.UNKNOWN)
    for x, size in zip(middle, sizes):
        if size:
            lower.annotate(
                f"{size:,}", (x, size), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    for axes in (upper, lower):
        style.clean_axes(axes)
    upper.set_ylim(0, 1.02)
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    upper.set_ylabel("accuracy", fontsize=9)
    share, sure = f"{100 * correct.mean():.1f} %", f"{100 * confidence.mean():.1f} %"
    style.panel_title(upper, f"{len(confidence):,} samples, {share} right at a mean confidence of {sure}")
    figure.legend(
        *_calibration_legend(bool((sizes[filled] < _FEW).any())),
        loc="outside right upper",
        fontsize=8,
        frameon=False,
    )
    lower.set_ylim(0, 1.25 * sizes.max())
    lower.yaxis.set_major_locator(NullLocator())
    lower.set_ylabel("samples", fontsize=9)
    lower.set_xlabel("confidence", fontsize=9)
    lower.set_xlim(0, 1)
    lower.set_xticks(np.linspace(0, 1, 6))
    lower.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f}%"))
    return style.settle(figure)


def reliability(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return by bin of confidence, [i/bins, (i + 1)/bins), how many samples, their accuracy and confidence.

    Returns:
        (bins,) int64, and twice (bins,) with NaN where there is no sample.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    sizes = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(place, weights=correct, minlength=bins) / sizes
        return sizes, accuracy, np.bincount(place, weights=confidence, minlength=bins) / sizes


def _calibration_legend(few: bool) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: dict[str, Any] = {"accuracy": Patch(color=style.RIGHT)}
    if few:
        entries[f"fewer than {_FEW} samples"] = Patch(color=_PALE)
    entries["mean confidence"] = Line2D([], [], color=style.WRONG, linewidth=1.8)
    dashes: Any = (0, (4, 3))
    entries["perfect calibration"] = Line2D([], [], color=style.MUTED, linewidth=1, linestyle=dashes)
    return list(entries.values()), list(entries)


def switched(
    images: np.ndarray,
    switched_in: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
) -> Figure | None:
    """Draw the images whose pseudo-label switched last, with what they are called now.

    The latest cycle comes first, and within it the samples of which the network is least sure.

    Args:
        images: (N, H, W, C) uint8, or (N, H, W); only the images shown are read.
        switched_in: (N,) cycle of the last switch, 0 for never.
        predicted: (N,) class of each sample now.
        confidence: (N,) its probability.
        labels: (N,) true classes, -1 where unknown.
        classes: names of the classes.

    Returns:
        The figure, or None if no label ever switched.
    """
    last, predicted = np.asarray(switched_in), np.asarray(predicted)
    truth = np.full(len(last), -1) if labels is None else np.asarray(labels)
    sure = np.zeros(len(last)) if confidence is None else np.nan_to_num(np.asarray(confidence, dtype=float))
    changed = np.flatnonzero(last > 0)
    if not len(changed):
        return None
    order = changed[np.lexsort((sure[changed], -last[changed]))]
    shown = order[: _COLUMNS * _ROWS]
    final = last == last.max()
    number = f"{len(changed):,} of {len(last):,} pseudo-labels switched"
    title = f"{number}, {final.sum():,} of them in cycle {last.max()}, the latest"
    groups = {f"those that switched in cycle {last.max()}": final, "those that never switched": last == 0}
    shares = {name: _right(predicted, truth, members) for name, members in groups.items()}
    told = ", ".join(f"{share} of {name}" for name, share in shares.items() if share)
    wrong = (truth >= 0) & (truth != predicted)
    notes = [
        (f"cycle {last[i]}", style.class_name(classes, int(predicted[i]), 14), _true_class(classes, truth[i]))
        for i in shown
    ]
    return _draw_gallery(images, shown, notes, wrong[shown], (title, f"right now: {told}" if told else ""))


def _right(predicted: np.ndarray, truth: np.ndarray, members: np.ndarray) -> str:
    known = members & (truth >= 0)
    return style.percent(float((predicted == truth)[known].sum()), float(known.sum())) if known.any() else ""


def _true_class(classes: Sequence[str], label: int) -> str:
    return "" if label < 0 else f"truly {style.class_name(classes, int(label), 10)}"


def _draw_gallery(
    images: np.ndarray,
    shown: np.ndarray,
    notes: list[tuple[str, str, str]],
    wrong: np.ndarray,
    titles: tuple[str, str],
) -> Figure:
    """Paint the gallery as one array, as the montage does: an axes for each image would take seconds."""
    tiles = {int(index): tile_of(images[index]) for index in np.sort(shown)}  # in file order
    high = max(tile.shape[0] for tile in tiles.values()) + 2 * _FRAME
    wide = max(tile.shape[1] for tile in tiles.values()) + 2 * _FRAME
    cell, row = max(wide + 8, _CELL), high + _BELOW
    columns = min(_COLUMNS, len(shown))
    canvas = np.full((row * math.ceil(len(shown) / columns), cell * _COLUMNS, 3), 255, dtype=np.uint8)
    red = [int(style.WRONG[i : i + 2], 16) for i in (1, 3, 5)]
    width, height = canvas.shape[1], canvas.shape[0] + _HEAD
    figure = style.new_figure(width / style.DPI, height / style.DPI, titles[0], arranged=False)
    figure.text(0.01, 1 - 34 / height, titles[1], va="center", fontsize=8.5, color=style.MUTED)
    for number, index in enumerate(shown):
        top, left = number // columns * row, number % columns * cell
        tile = tiles[int(index)]
        x = left + (cell - tile.shape[1]) // 2
        y = top + (high - tile.shape[0]) // 2
        if wrong[number]:
            canvas[y - _FRAME : y + tile.shape[0] + _FRAME, x - _FRAME : x + tile.shape[1] + _FRAME] = red
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        colors = (style.MUTED, style.INK, style.WRONG if wrong[number] else style.MUTED)
        for line, (text, color) in enumerate(zip(notes[number], colors)):
            figure.text(
                (left + cell / 2) / width,
                1 - (_HEAD + top + high + 7 + 12 * line) / height,
                text,
                ha="center",
                va="center",
                fontsize=7.5,
                fontweight="bold" if line == 1 else "normal",
                color=color,
            )
    axes = figure.add_axes((0, 0, 1, canvas.shape[0] / height))
    axes.imshow(canvas, aspect="auto", interpolation="nearest")
    axes.set_axis_off()
    return figure
