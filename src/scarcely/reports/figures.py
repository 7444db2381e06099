"""The pictures of a run: one function a figure, arrays in, a matplotlib ``Figure`` out.

Figures are made with matplotlib's object API. Nothing goes through pyplot, so nothing is shared: they
can be drawn in a thread, and none needs to be closed. Text from outside (class names, stages) is shown
as it is, never read as a formula. Where there is nothing to show a function returns None, or a figure
that says so; each says which.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports.evidence import Evidence, confusion_counts
from scarcely.seeds import derive_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

DPI = 110
INK, MUTED, GRID = "#24292f", "#6e7781", "#d8dee4"
RIGHT, WRONG, UNKNOWN = "#3f90da", "#bd1f01", "#c4c9cf"
# Ten colours that stay apart for colour-blind eyes and in grey (Petroff, arXiv:2107.02270).
TEN = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
CONFIDENT = 0.9  # LSD-C, figure 4b
MANY = 20  # above this many classes or clusters, numbers and names no longer fit beside each other
SCORES = frozenset({"acc", "nmi", "ari", "accuracy", "acc_joint"})


# --- Who is matched to whom ---------------------------------------------------------------------------


class Matching(NamedTuple):
    """Clusters brought beside their classes.

    Attributes:
        rows: (C,) order of the classes: those with a cluster first, in their own order.
        columns: (K,) order of the clusters, so that matched pairs lie on the diagonal; left-over
            clusters come last, the largest first.
        class_of: (K,) class of each cluster, -1 for one left over.
        identity: the "clusters" are the predictions of a classifier, nothing was matched.
    """

    rows: np.ndarray
    columns: np.ndarray
    class_of: np.ndarray
    identity: bool = False

    def right(self, counts: np.ndarray) -> int:
        """Count the samples on the diagonal: those in the cluster of their class."""
        matched = np.flatnonzero(self.class_of >= 0)
        return int(counts[self.class_of[matched], matched].sum())


def match_clusters(counts: np.ndarray, *, identity: bool = False) -> Matching:
    """Match clusters and classes one to one so that most samples agree (Hungarian algorithm).

    Args:
        counts: (C, K) confusion counts.
        identity: columns are classes already (a classifier): keep them where they are.
    """
    num_classes, num_clusters = counts.shape
    class_of = np.full(num_clusters, -1)
    if identity:
        paired = np.arange(min(num_classes, num_clusters))
        class_of[paired] = paired
    else:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(counts, maximize=True)
        class_of[columns] = rows
    cluster_of = np.full(num_classes, -1)
    matched = np.flatnonzero(class_of >= 0)
    cluster_of[class_of[matched]] = matched
    row_order = np.concatenate([np.flatnonzero(cluster_of >= 0), np.flatnonzero(cluster_of < 0)])
    left_over = np.flatnonzero(class_of < 0)
    left_over = left_over[np.argsort(-counts[:, left_over].sum(axis=0), kind="stable")]
    diagonal = cluster_of[row_order]
    return Matching(row_order, np.concatenate([diagonal[diagonal >= 0], left_over]), class_of, identity)


class _Groups(NamedTuple):
    """Predictions sorted out for one bar or one row a cluster."""

    labels: np.ndarray  # (N,)
    counts: np.ndarray  # (C, K)
    sizes: np.ndarray  # (K,)
    order: np.ndarray  # (K,) as on the diagonal; the largest first where nothing is labelled
    class_of: np.ndarray  # (K,) all -1 where nothing is labelled
    word: str  # what a prediction is called

    @property
    def known(self) -> bool:
        return bool(self.counts.sum())

    @property
    def few(self) -> bool:
        """Whether every class in every bar can be told apart."""
        return max(self.counts.shape) <= MANY


def _group(
    predicted: np.ndarray,
    labels: np.ndarray | None,
    num_classes: int,
    num_clusters: int,
    matching: Matching | None,
) -> _Groups:
    labels = np.full(len(predicted), -1) if labels is None else np.asarray(labels)
    counts = confusion_counts(labels, predicted, num_classes, num_clusters)
    sizes = np.bincount(predicted[predicted >= 0], minlength=counts.shape[1])
    if counts.sum():
        matching = matching or match_clusters(counts)
    elif matching is None or not matching.identity:
        by_size, nobody = np.argsort(-sizes, kind="stable"), np.full(len(sizes), -1)
        return _Groups(labels, counts, sizes, by_size, nobody, "cluster")
    word = "class" if matching.identity else "cluster"
    return _Groups(labels, counts, sizes, matching.columns, matching.class_of, word)


# --- Shared drawing -----------------------------------------------------------------------------------


def palette(size: int) -> np.ndarray:
    """Return (size, 3) colours in [0, 1]: up to ten are safe for colour-blind eyes.

    More than ten follow the golden angle around the hues of OKLCH and step through four lightnesses, so
    that neighbours differ in lightness even where their hues look alike.
    """
    if size <= len(TEN):
        from matplotlib.colors import to_rgb

        return np.array([to_rgb(color) for color in TEN[:size]]).reshape(-1, 3)
    index = np.arange(size)
    hue = 2 * np.pi * ((0.1 + index * 0.618033988749895) % 1.0)
    lightness = np.array([0.62, 0.80, 0.45, 0.70])[index % 4]
    a, b = 0.13 * np.cos(hue), 0.13 * np.sin(hue)
    # OKLab to linear sRGB: the constants of Ottosson's definition of the space.
    root = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(root**3 @ to_linear.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def plain(text: object, limit: int | None = None) -> str:
    """Make any text drawable: no unprintable characters, not longer than ``limit``."""
    clean = "".join(char if char.isprintable() else "\ufffd" for char in str(text))
    return clean if limit is None or len(clean) <= limit else clean[: limit - 1] + "…"


def _safe(text: object, limit: int | None = None) -> str:
    """As `plain`, and with dollars escaped: matplotlib would read a formula between two of them."""
    return plain(text, limit).replace("$", r"\$")


def _class_name(classes: Sequence[str], index: int, limit: int = 18) -> str:
    return _safe(classes[index], limit) if index < len(classes) else f"class {index}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "n/a"


def _new_figure(width: float, height: float, title: str, *, arranged: bool = True) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layout: Any = "constrained" if arranged else "none"
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    # Given a height, the arrangement would leave no room for the title; without, nobody else places it.
    top = None if arranged else 1 - 6 / (height * DPI)
    figure.suptitle(title, x=0.01, y=top, ha="left", va="top", fontsize=11, fontweight="bold", color=INK)
    return figure


def _note(title: str, text: str) -> Figure:
    """Make a figure that says why there is no picture."""
    figure = _new_figure(7, 1.4, title, arranged=False)
    figure.text(0.5, 0.4, text, ha="center", va="center", fontsize=10, color=MUTED)
    return figure


def _settle(figure: Figure) -> Figure:
    """Arrange once and keep it: else every drawing (file, logger) would, which takes most of its time."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    return figure


def to_png(figure: Figure) -> bytes:
    """Draw a figure once; ``savefig`` would draw it twice, to measure it first."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def headline(figure: Figure) -> str:
    """Return the title drawn over a figure as plain text."""
    return figure.get_suptitle().replace(r"\$", "$")


def _clean_axes(axes: Axes) -> None:
    """Take away the ink that carries no data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(labelsize=8, colors=INK, length=2.5, color=GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _bare_axes(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(GRID)


def _panel_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9, color=INK)


# --- Curves -------------------------------------------------------------------------------------------


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

    shown = panel.keys[: len(TEN)]
    finite: list[float] = []
    for color, key in zip(TEN, shown):
        for stage in stages:
            x, y = _values(stage, key)
            lost = ~np.isfinite(y)
            finite.extend(y[~lost])
            marker = "o" if (~lost).sum() <= 12 else None
            # The total is what is minimised, its parts explain it: they stay thinner.
            width = 1.8 if "/" not in key or len(shown) == 1 else 1.2
            axes.plot(x, np.where(lost, np.nan, y), color=color, linewidth=width, marker=marker, ms=3.5)
            edge = axes.get_xaxis_transform()  # x in data, y in fractions of the panel
            axes.plot(x[lost], np.full(lost.sum(), 0.03), "x", color=WRONG, transform=edge)
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
    _clean_axes(axes)
    _panel_title(axes, panel.title)
    _draw_bands(axes, stages)
    if len(shown) > 1:
        _legend_above(axes, shown, len(panel.keys) - len(shown))


def _draw_bands(axes: Axes, stages: list[_Stage]) -> None:
    """Mark where stages begin and number the epochs of each from its own start."""
    from matplotlib.ticker import MaxNLocator

    ticks, names = [], []
    end = stages[-1].left + stages[-1].width
    below = axes.get_xaxis_transform()
    for number, stage in enumerate(stages):
        if number:
            axes.axvline(stage.left, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        if number % 2:
            axes.axvspan(stage.left, stage.left + stage.width, color="#f3f5f7", zorder=0)
        last = stage.first + stage.length - 1
        bins = max(1, round(7 * stage.width / end))
        for tick in MaxNLocator(bins, integer=True).tick_values(stage.first, last):
            if stage.first <= tick <= last:
                ticks.append(stage.at(tick))
                names.append(f"{tick:.0f}")
        text = f"epoch of {_safe(stage.name, 22)}" if stage.name else "epoch"
        middle = stage.left + stage.width / 2
        axes.text(middle, -0.13, text, transform=below, ha="center", va="top", fontsize=8, color=MUTED)
    axes.set_xticks(ticks, names)
    axes.set_xlim(0, end)


def _legend_above(axes: Axes, keys: list[str], more: int) -> None:
    """Name the lines above the panel: inside, no corner is free of them for certain."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, linewidth=2) for color in TEN[: len(keys)]]
    names = [_safe(key, 24) for key in keys]
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
    figure = _new_figure(10, 0.5 + 2.6 * rows, title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels):
        _draw_panel(axes, stages, panel)
    for axes in grid[len(panels) :]:
        axes.remove()
    return _settle(figure)


def _stage_title(stage: _Stage) -> str:
    epochs = len(stage.rows)
    return f"{_safe(stage.name, 22) or 'one stage'} ({epochs} epoch{'' if epochs == 1 else 's'})"


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
        "pairs/precision": "precision: share of them that are of one class",
        "pairs/recall": "recall: share of the pairs of one class that were found",
    }
    keys = [key for key in wanted if _keys(history, lambda k, key=key: k == key)]  # type: ignore[misc]
    # Stages without pairs (the pretext) would only be empty bands.
    stages = _stages([row for row in history if any(key in row for key in keys)])
    if not keys or not stages:
        return None
    last = [
        f"{key.split('/')[1]} {100 * values[-1]:.1f} %"
        for key in keys
        if len(values := _finite(_values(stages[-1], key)[1]))
    ]
    figure = _new_figure(10, 3.0, "Pairwise pseudo-labels: " + ", ".join(last) + " at the end")
    for axes, key in zip(np.atleast_1d(figure.subplots(1, len(keys))), keys):
        _draw_panel(axes, stages, _Panel(wanted[key], [key], percent=True))
        # From 0, or a change of half a percent would fill the panel.
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1] if key == "pairs/positive" else 1.02)
    return _settle(figure)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


# --- Confusion ----------------------------------------------------------------------------------------


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
        matching: from `match_clusters`; made from ``counts`` if not given.
        identity: of that matching: columns are classes already.

    Returns:
        The figure, or None if there is no class, no cluster or nothing counted.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or not counts.size or counts.sum() == 0:
        return None
    matching = matching or match_clusters(counts, identity=identity)
    where = "on the diagonal" if matching.identity else "in the cluster of their class"
    title = f"{title}: {_percent(matching.right(counts), counts.sum())} of {counts.sum():,} samples {where}"
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
    cell = 0.8 if most <= 5 else 0.5 if most <= 10 else 0.4 if most <= MANY else 8.2 / most
    names = [_class_name(classes, int(c)) for c in matching.rows]
    if most <= MANY:
        names = [f"{name} ({totals[c]:,})" for name, c in zip(names, matching.rows)]
    beside = 1.4 + 0.08 * max(map(len, names))  # colours on the right, names on the left
    width, height = max(cell * num_columns + beside, 4.8), max(cell * num_rows + 1.1, 2.4)
    if len(title) > 11 * width:
        title = title.replace(": ", ":\n", 1)
    figure = _new_figure(width, height, title)
    axes = figure.subplots()
    # Errors are spread thin: the power brings a confusion of 2 % out of the white.
    norm = PowerNorm(0.6, 0, 1)
    long = most > 3 * min(num_rows, num_columns)  # squares would leave a strip that nobody can read
    image = axes.imshow(
        share, cmap="Blues", norm=norm, interpolation="nearest", aspect="auto" if long else "equal"
    )
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3.2 / height), aspect=16, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    bar.set_label("share of the class", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, color=GRID)
    bar.outline.set_visible(False)
    if most <= MANY:
        _write_cells(axes, shown, share, as_counts=most <= 10)
    diagonal = int((matching.class_of >= 0).sum())
    if diagonal < num_columns:
        axes.axvline(diagonal - 0.5, color=INK, linewidth=1)
    if diagonal < num_rows:
        axes.axhline(diagonal - 0.5, color=INK, linewidth=1)

    font = 8.0 if most <= MANY else 7.0 if most <= 60 else 5.5
    rows, columns = _thin(num_rows), _thin(num_columns)
    axes.set_yticks(rows, [names[i] for i in rows], fontsize=font)
    predictions = matching.columns[columns]
    if not matching.identity:
        turn = 90 if most > 40 else 0
        axes.set_xticks(columns, [str(k) for k in predictions], fontsize=font, rotation=turn)
        axes.set_xlabel("cluster" + ("; left over beyond the line" if diagonal < num_columns else ""))
    elif most > MANY:
        axes.set_xticks(
            columns, [_class_name(classes, int(c)) for c in predictions], fontsize=font, rotation=90
        )
        axes.set_xlabel("predicted class")
    else:
        _slanted_ticks(axes, [_class_name(classes, int(c)) for c in predictions], font)
        axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (samples)" if most <= MANY else "true class")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(fontsize=9, color=INK)
    axes.tick_params(which="both", length=0, colors=INK)
    axes.spines[:].set_visible(False)
    return _settle(figure)


def _write_cells(axes: Axes, counts: np.ndarray, share: np.ndarray, *, as_counts: bool) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            text = f"{count:d}" if as_counts else f"{100 * share[row, column]:.0f}"
            color = "white" if share[row, column] > 0.5 else INK  # where the colour map turns dark
            size = 8 if as_counts and count < 100_000 else 7
            cell = axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
            cell.set_in_layout(False)  # it lies within the axes: no need to measure each
    axes.set_xticks(np.arange(1, counts.shape[1]) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, counts.shape[0]) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)


def _slanted_ticks(axes: Axes, names: Sequence[str], size: float) -> None:
    """Write names below the axis so that long ones do not run into each other."""
    slanted = max(map(len, names), default=0) * len(names) > 80
    axes.set_xticks(
        np.arange(len(names)),
        names,
        fontsize=size,
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )


def _thin(number: int, limit: int = 100) -> np.ndarray:
    """Choose the ticks to write out where there is no room for all."""
    return np.arange(0, number, math.ceil(number / limit) or 1)


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
    title = f"Predicted above {threshold:g}: {_percent(counts.sum(), everything.sum())} of the {whom}"
    if counts.sum() == 0:
        best = _finite(confidence.astype(float))
        most = f" The most confident has {best.max():.2f}." if len(best) else ""
        return _note(title, f"No labelled sample is predicted above {threshold:g}.{most}")
    title += f",\n{_percent(matching.right(counts), counts.sum())} of these right"
    return _draw_confusion(counts, classes, title, matching, everything.sum(axis=1))


# --- Cluster sizes ------------------------------------------------------------------------------------


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
    groups = _group(predicted, labels, len(classes), num_clusters, matching)
    number, sizes, order = len(groups.sizes), groups.sizes, groups.order
    if not number:
        return None
    empty = int((sizes == 0).sum())
    plural = "es" if groups.word == "class" else "s"
    title = (
        f"{number} {groups.word}{plural if number > 1 else ''} of {sizes.min():,} to {sizes.max():,} samples"
    )
    title += f", {empty} empty" if empty else ", none empty"
    figure = _new_figure(10, 4.4 if groups.few and len(groups.counts) > 12 else 3.6, title)
    axes = figure.subplots()
    bottom = np.zeros(number)
    for color, heights in _stack(groups):  # in the order of the bars
        width = 0.8 if number <= 60 else 1.0
        axes.bar(np.arange(number), heights, width, bottom=bottom, color=color)
        bottom += heights
    fair = len(predicted) / number
    axes.axhline(fair, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    text = f" N/K = {fair:,.0f}" if fair >= 10 else f" N/K = {fair:.1f}"
    axes.text(1.0, fair, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=INK)
    for place in np.flatnonzero(sizes[order] == 0):
        text = "empty" if number <= MANY else "0"
        axes.text(float(place), 0, text, ha="center", va="bottom", fontsize=7, color=WRONG, fontweight="bold")
    _clean_axes(axes)
    _name_bars(axes, groups, classes)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, number - 0.4)
    axes.set_ylim(0, 1.04 * max(fair, sizes.max()))
    axes.set_ylabel("samples", fontsize=9)
    if groups.known:
        _legend_beside(figure, groups, classes)
    return _settle(figure)


def _stack(groups: _Groups) -> list[tuple[Any, np.ndarray]]:
    """Cut the bars into (colour, (K,) heights), from below: the own class, the others, unlabelled."""
    counts, class_of = groups.counts[:, groups.order], groups.class_of[groups.order]
    known = counts.sum(axis=0)
    unlabelled = groups.sizes[groups.order] - known
    if not groups.known:
        return [(RIGHT, unlabelled)]
    own = np.where(class_of >= 0, counts[np.maximum(class_of, 0), np.arange(len(class_of))], 0)
    if not groups.few:
        return [(RIGHT, own), (TEN[1], known - own), (UNKNOWN, unlabelled)]
    colors = palette(len(counts))
    parts: list[tuple[Any, np.ndarray]] = [(colors[np.maximum(class_of, 0)], own)]
    parts += [(colors[c], np.where(class_of == c, 0, heights)) for c, heights in enumerate(counts)]
    return [*parts, (UNKNOWN, unlabelled)]


def _name_bars(axes: Axes, groups: _Groups, classes: Sequence[str]) -> None:
    number = len(groups.sizes)
    if number > MANY:
        shown = _thin(number)
        size, turn = (8.0, 0) if number <= 40 else (5.5, 90)
        axes.set_xticks(shown, [str(k) for k in groups.order[shown]], fontsize=size, rotation=turn)
        axes.set_xlabel(groups.word, fontsize=9)
        return
    names = []
    for k, c in zip(groups.order, groups.class_of[groups.order]):
        name = _class_name(classes, int(c), 14) if c >= 0 else ""
        names.append(str(k) if c < 0 else name if groups.word == "class" else f"{k} → {name}")
    _slanted_ticks(axes, names, 8)
    arrow = " → the class matched to it" if groups.known and groups.word == "cluster" else ""
    axes.set_xlabel(groups.word + arrow, fontsize=9)


def _legend_beside(figure: Figure, groups: _Groups, classes: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    num_classes = len(groups.counts)
    if groups.few:
        entries = [(_class_name(classes, c), color) for c, color in enumerate(palette(num_classes))]
    else:
        entries = [(f"class of the {groups.word}", RIGHT), ("other classes", TEN[1])]
    if groups.sizes.sum() > groups.counts.sum():
        entries.append(("unlabelled", UNKNOWN))
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


# --- Embedding ----------------------------------------------------------------------------------------


def embedding(
    features: np.ndarray,
    labels: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
    classes: Sequence[str] = (),
    num_clusters: int = 0,
    *,
    matching: Matching | None = None,
    seed: int = 0,
    limit: int = 1000,
    iterations: int = 400,
) -> Figure | None:
    """Draw features in the plane, coloured by class and by cluster.

    t-SNE (van der Maaten and Hinton, 2008) of a seeded sample, after PCA to 30 dimensions; features that
    are two-dimensional already are drawn as they are. A cluster has the colour of its class.

    Args:
        features: (M, D). Rows that are not finite are left out.
        labels: (M,) classes, -1 where unknown (grey).
        predicted: (M,) clusters.
        classes: names of the classes.
        num_clusters: K.
        matching: class of each cluster; made from these samples if not given.
        seed: of the sample and of t-SNE.
        limit: samples drawn at most; 1000 take about three seconds of one core.
        iterations: of t-SNE; twice as many lower its loss by 6 % and take half as long again.

    Returns:
        The figure, or None if no row is finite.
    """
    features = np.asarray(features, dtype=np.float32)
    features = features.reshape(len(features), int(np.prod(features.shape[1:])))
    rows = np.flatnonzero(np.isfinite(features).all(axis=1))
    if not len(rows) or not features.shape[1]:
        return None
    total = len(rows)
    if total > limit:
        rng = np.random.default_rng(derive_seed("embedding", seed))
        rows = np.sort(rng.choice(rows, limit, replace=False))
    flat = features.shape[1] == 2
    points = features[rows] if flat else _to_plane(features[rows], seed % 2**32, iterations)
    labels = np.full(len(rows), -1) if labels is None else np.asarray(labels)[rows]
    known = bool((labels >= 0).any())
    num_classes = max(len(classes), int(labels.max()) + 1) if known else 0

    panels: list[_Coloring] = []
    if predicted is not None:
        groups = _group(np.asarray(predicted)[rows], labels, len(classes), num_clusters, matching)
        # Without labels, and for clusters left over, there is no class to take a colour from.
        own = np.where(groups.class_of < num_classes, groups.class_of, -1)
        left_over = np.flatnonzero(own < 0)
        own[left_over] = num_classes + np.arange(len(left_over))
        colors = palette(num_classes + len(left_over))
        named = groups.word == "class"
        names = [_class_name(classes, k, 12) if named else str(k) for k in range(len(own))]
        title = f"by predicted {groups.word}" if named else "by cluster"
        title += ", in the colour of its class" if known and not named else ""
        panels.append(_Coloring(title, np.asarray(predicted)[rows], colors[own], names))
    else:
        colors = palette(num_classes)
    if known:
        names = [_class_name(classes, c, 12) for c in range(num_classes)]
        panels.insert(0, _Coloring("by class", labels, colors, names))
    if not panels:
        panels.append(_Coloring("unlabelled", labels, colors, []))

    how = "the two features" if flat else "t-SNE of the features"
    of = f" of {total:,}" if len(rows) < total else ""
    figure = _new_figure(5 * len(panels), 5.1, f"{len(rows):,}{of} samples: {how}")
    for axes, coloring in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels):
        _scatter(axes, points, coloring)
        if flat:
            axes.set_aspect("equal", adjustable="datalim")
    return _settle(figure)


class _Coloring(NamedTuple):
    title: str
    groups: np.ndarray  # (M,), -1 is drawn grey
    colors: np.ndarray  # (G, 3)
    names: list[str]  # of the groups


def _scatter(axes: Axes, points: np.ndarray, coloring: _Coloring) -> None:
    known = coloring.groups >= 0
    colors = np.tile(np.array([0.84, 0.85, 0.87]), (len(points), 1))
    colors[known] = coloring.colors[coloring.groups[known]]
    order = np.argsort(known, kind="stable")  # grey below, so that unlabelled samples hide nobody
    size = 9 if len(points) > 300 else 18
    x, y = points[order].T
    axes.scatter(x, y, s=size, c=colors[order], alpha=0.85, linewidths=0)
    present = np.unique(coloring.groups[known])
    if len(present) <= MANY:
        from matplotlib.patheffects import withStroke

        halo = [withStroke(linewidth=2.5, foreground="white")]
        font: dict[str, Any] = {"fontsize": 8, "fontweight": "bold", "color": INK}
        for group in present:
            members = points[coloring.groups == group]
            # On a member: the middle of a crescent is not in it.
            x, y = members[np.abs(members - np.median(members, axis=0)).sum(axis=1).argmin()]
            axes.text(x, y, coloring.names[group], ha="center", va="center", path_effects=halo, **font)
    _bare_axes(axes)
    _panel_title(axes, coloring.title)


def _to_plane(features: np.ndarray, seed: int, iterations: int) -> np.ndarray:
    """Reduce (M, D) to (M, 2): PCA, then t-SNE where there is anything to spread."""
    number = len(features)
    features = features - features.mean(axis=0)
    spread = float(np.abs(features).max(initial=0.0))
    if spread == 0.0:
        return np.zeros((number, 2), dtype=np.float32)
    # Features of the order of 1e20 would overflow when squared.
    features = features / spread
    from sklearn.decomposition import PCA

    kept = min(30, *features.shape)
    reduced = PCA(kept, svd_solver="full" if kept < 30 else "auto", random_state=seed).fit_transform(features)
    if number >= 5 and np.isfinite(reduced).all():
        from sklearn.manifold import TSNE

        # PCA at the small scale that t-SNE wants; sklearn's own start divides by a spread that may be 0.
        start = np.zeros((number, 2), dtype=np.float32)
        start[:, : min(kept, 2)] = reduced[:, :2]
        start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
        tsne = TSNE(
            perplexity=min(30.0, (number - 1) / 3),
            init=start,
            learning_rate="auto",
            max_iter=iterations,
            random_state=seed,
            n_jobs=1,
        )
        plane = tsne.fit_transform(reduced.astype(np.float32))
        if np.isfinite(plane).all():
            return plane
    plane = np.zeros((number, 2), dtype=np.float32)
    plane[:, : min(kept, 2)] = reduced[:, :2]
    return plane


# --- Montage ------------------------------------------------------------------------------------------

_MOST, _LEAST = 9, 5  # images of each kind in a row
_FRAME, _GAP, _LABEL, _HEAD = 3, 22, 150, 54  # pixels: around a tile, between the kinds, names, title


def montage(
    images: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray | None = None,
    num_clusters: int = 0,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    *,
    matching: Matching | None = None,
    rows_per_page: int = 20,
    most_rows: int = 100,
) -> list[Figure]:
    """Draw a row of images a cluster: the most confident, then the least confident; red frames are errors.

    Args:
        images: (N, H, W, C) uint8, or (N, H, W); only the images shown are read.
        predicted: (N,) clusters.
        confidence: (N,) probabilities; without them images are spread evenly over the cluster.
        num_clusters: K; empty clusters keep their row.
        labels: (N,) classes, -1 where unknown; where known, an image outside its cluster's class is framed.
        classes: names of the classes.
        matching: class of each cluster and order of the rows; made from the labels if not given.
        rows_per_page: clusters on one figure.
        most_rows: clusters shown at all.

    Returns:
        One figure a page; no figure if there is no image.
    """
    predicted = np.asarray(predicted)
    if not len(predicted) or not len(images):
        return []
    groups = _group(predicted, labels, len(classes), num_clusters, matching)
    number = len(groups.sizes)
    order = groups.order[:most_rows]
    pages = [order[start : start + rows_per_page] for start in range(0, len(order), rows_per_page)]
    title = f"Images of each {groups.word}" if number <= most_rows else f"Images of {most_rows} of {number:,}"
    heads = ("most confident", "least confident") if confidence is not None else ("samples", "")
    figures = []
    for page, clusters in enumerate(pages, start=1):
        rows = [_montage_row(predicted, confidence, groups, int(k), classes) for k in clusters]
        numbered = f"{title}, page {page} of {len(pages)}" if len(pages) > 1 else title
        figures.append(_draw_montage(images, rows, heads, numbered))
    return figures


class _MontageRow(NamedTuple):
    name: str
    size: str
    most: np.ndarray
    least: np.ndarray
    wrong: frozenset[int]

    def places(self, step: int) -> Iterator[tuple[int, int]]:
        """Yield (left edge in pixels, image)."""
        for position, index in enumerate(self.most):
            yield position * step, int(index)
        for position, index in enumerate(self.least):
            yield (_MOST + position) * step + _GAP, int(index)


def _montage_row(
    predicted: np.ndarray,
    confidence: np.ndarray | None,
    groups: _Groups,
    cluster: int,
    classes: Sequence[str],
) -> _MontageRow:
    members = np.flatnonzero(predicted == cluster)
    if confidence is not None:
        sure = np.nan_to_num(np.asarray(confidence)[members].astype(float))
        members = members[np.argsort(-sure, kind="stable")]
        least = members[_MOST:][-_LEAST:][::-1]
    else:
        spread = np.linspace(0, len(members) - 1, min(_MOST + _LEAST, len(members)))
        members = members[spread.round().astype(int)]
        least = members[_MOST:]
    shown = np.concatenate([members[:_MOST], least])
    own = int(groups.class_of[cluster])
    truth = groups.labels[shown]
    wrong = shown[(truth >= 0) & (truth != own)] if own >= 0 else shown[:0]
    number = int(groups.sizes[cluster])
    name = f"{groups.word} {cluster}" if own < 0 else _class_name(classes, own, 17)
    size = f"{number:,} sample{'' if number == 1 else 's'}"
    if own >= 0 and groups.word == "cluster":
        size = f"cluster {cluster}: {number:,}"
    return _MontageRow(name, size, members[:_MOST], least, frozenset(wrong.tolist()))


def _draw_montage(images: np.ndarray, rows: list[_MontageRow], heads: tuple[str, str], title: str) -> Figure:
    """Paint the page as one array and show it pixel by pixel: hundreds of axes would take seconds."""
    # In file order: the images may be a memory map on a slow disk.
    shown = sorted({int(index) for row in rows for index in (*row.most, *row.least)})
    tiles = {index: _tile(images[index]) for index in shown}
    high = max((tile.shape[0] for tile in tiles.values()), default=32) + 2 * _FRAME
    wide = max((tile.shape[1] for tile in tiles.values()), default=32) + 2 * _FRAME
    # Below a row, room for two lines of text at least; beside a tile, enough to tell its frame from the next.
    step, beside = max(high + 4, 36), wide + 2
    canvas = np.full((step * len(rows), beside * (_MOST + _LEAST) + _GAP, 3), 255, dtype=np.uint8)
    red = [int(WRONG[i : i + 2], 16) for i in (1, 3, 5)]
    for number, row in enumerate(rows):
        for left, index in row.places(beside):
            top, tile = number * step, tiles[index]
            if index in row.wrong:
                canvas[top : top + high, left : left + wide] = red
            y, x = top + (high - tile.shape[0]) // 2, left + (wide - tile.shape[1]) // 2
            canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile

    width, height = canvas.shape[1] + _LABEL, canvas.shape[0] + _HEAD
    figure = _new_figure(width / DPI, height / DPI, title, arranged=False)
    axes = figure.add_axes((_LABEL / width, 0, canvas.shape[1] / width, canvas.shape[0] / height))
    axes.imshow(canvas, aspect="auto", interpolation="nearest")
    axes.set_axis_off()

    def write(x: float, y: float, text: str, **style: Any) -> None:
        """Write at a pixel of the page, counted from its upper left corner."""
        figure.text(x / width, 1 - y / height, text, va="center", **style)

    for left, head in zip((0, beside * _MOST + _GAP), heads):
        write(_LABEL + left + _FRAME, _HEAD - 11, head, fontsize=8.5, color=MUTED)
    for number, row in enumerate(rows):
        middle = _HEAD + number * step + high / 2
        edge = _LABEL - 8
        write(edge, middle - 8, row.name, ha="right", fontsize=8.5, fontweight="bold", color=INK)
        write(edge, middle + 8, row.size, ha="right", fontsize=7.5, color=MUTED)
        if not len(row.most):
            write(_LABEL + _FRAME, middle, "empty", fontsize=8.5, color=WRONG)
    return figure


def _tile(image: np.ndarray) -> np.ndarray:
    """Bring one image to (h, w, 3) uint8, its longer side between 42 and 72 pixels."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    image = np.repeat(image[:, :, :1], 3, axis=2) if image.shape[2] < 3 else image[:, :, :3]
    longest = max(image.shape[:2])
    if longest <= 42:
        factor = round(56 / longest) or 1  # whole pixels stay square and sharp
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    if longest <= 72:
        return image
    from PIL import Image

    height, width = (max(1, round(64 * side / longest)) for side in image.shape[:2])
    small = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small)


# --- Connections --------------------------------------------------------------------------------------


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
        return _note("Connections", "There are no points.")
    labels = np.full(len(points), -1) if labels is None else np.asarray(labels)
    known = bool((labels >= 0).any())
    colors = np.tile(np.array([0.43, 0.47, 0.51]), (len(points), 1))
    if known:
        colors[labels >= 0] = palette(int(labels.max()) + 1)[labels[labels >= 0]]
    panels = 1 + len(adjacencies)
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure = _new_figure(3.6 * columns, 0.4 + 3.0 * rows, "Pairs that each labeler connects")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    _panel_title(grid[0], f"{len(points):,} points" + (", by class" if known else ""))
    grid[0].scatter(points[:, 0], points[:, 1], s=9, c=colors, linewidths=0)
    for axes, (name, adjacency) in zip(grid[1:], adjacencies.items()):
        _draw_edges(axes, points, np.asarray(adjacency, dtype=bool), labels, _safe(name, 20))
    for axes in grid[:panels]:
        axes.set_aspect("equal", adjustable="datalim")
        _bare_axes(axes)
    for axes in grid[panels:]:
        axes.remove()
    if known:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=RIGHT, linewidth=2), Line2D([], [], color=WRONG, linewidth=2)]
        names = ["within a class", "between classes"]
        figure.legend(handles, names, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    return _settle(figure)


def _draw_edges(axes: Axes, points: np.ndarray, adjacency: np.ndarray, labels: np.ndarray, name: str) -> None:
    from matplotlib.collections import LineCollection

    first, second = np.nonzero(np.triu(adjacency | adjacency.T, k=1))
    judged = (labels[first] >= 0) & (labels[second] >= 0)
    wrong = judged & (labels[first] != labels[second])
    right = f", {_percent(judged.sum() - wrong.sum(), judged.sum())} right" if judged.any() else ""
    _panel_title(axes, f"{name}: {len(first):,} edges{right}")
    axes.scatter(points[:, 0], points[:, 1], s=5, c=UNKNOWN, linewidths=0, zorder=1)
    # The wrong ones above: they are few, and the point of the picture.
    for layer, chosen, color in ((2, ~wrong, RIGHT), (3, wrong, WRONG)):
        segments = np.stack([points[first[chosen]], points[second[chosen]]], axis=1)
        axes.add_collection(LineCollection(list(segments), colors=color, linewidths=1.1, zorder=layer))


# --- All of them --------------------------------------------------------------------------------------


def build_figures(evidence: Evidence, *, seed: int | None = None) -> dict[str, Figure]:
    """Make every figure that a run has evidence for, the most telling first.

    A figure that fails is replaced by one that says why, with the traceback in the log: hours of
    training are not lost to a picture.

    Args:
        evidence: what the run left behind.
        seed: of the embedding; the run's own if not given.

    Returns:
        Figures by name, which is also the stem of their file: ``confusion``, ``confident``,
        ``test-confusion``, ``sizes``, ``montage`` (then ``montage-2`` and on), ``embedding``,
        ``pairs``, ``curves``; only those that there are.
    """
    if seed is None:
        given = evidence.results.get("seed")
        seed = given if isinstance(given, int) else 0
    identity = evidence.kind == "classification"
    word = "Classes" if identity else "Clusters and classes"
    classes, clusters = evidence.classes, evidence.num_clusters
    predicted, confidence, labels = evidence.predicted, evidence.confidence, evidence.labels
    counts = evidence.counts
    matching = None if counts is None else match_clusters(counts, identity=identity)
    if identity and matching is None:  # nothing to compare with, yet predictions have names
        matching = match_clusters(np.zeros((len(classes), max(clusters, len(classes)))), identity=True)
    figures: dict[str, Figure] = {}

    def add(name: str, make: Callable[..., Figure | list[Figure] | None], *args: Any, **options: Any) -> None:
        try:
            made = make(*args, **options)
        except Exception as error:
            log.warning("The figure '%s' could not be drawn.", name, exc_info=True)
            made = _note(name, _safe(f"could not be drawn: {type(error).__name__}: {error}", 100))
        pages = made if isinstance(made, list) else [] if made is None else [made]
        for page, figure in enumerate(pages, start=1):
            figures[name if page == 1 else f"{name}-{page}"] = figure

    if counts is not None:
        add("confusion", confusion, counts, classes, word, matching=matching)
        if confidence is not None:
            known = (predicted, confidence, labels, classes, clusters)
            add("confident", confident_confusion, *known, matching=matching)
    if evidence.test is not None:
        unseen = np.asarray(evidence.test["counts"])
        add("test-confusion", confusion, unseen, classes, f"{word} of the test split", identity=identity)
    if predicted is not None:
        add("sizes", cluster_sizes, predicted, labels, classes, clusters, matching=matching)
        if evidence.images is not None:
            shown = (evidence.images, predicted, confidence, clusters, labels, classes)
            add("montage", montage, *shown, matching=matching)
    if evidence.features is not None:
        index = evidence.feature_index
        subset = [None if array is None else np.asarray(array)[index] for array in (labels, predicted)]
        features = (evidence.features, *subset, classes, clusters)
        add("embedding", embedding, *features, matching=matching, seed=seed)
    add("pairs", pseudo_labels, evidence.history)
    add("curves", curves, evidence.history)
    return figures
