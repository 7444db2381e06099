"""The evaluations of saliency maps as charts (chapter 8, figures 3, 6 and 7, and of its supplement 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcely.reports.figures import style
from scarcely.reports.saliency_scores import (
    META,
    Pointing,
    Score,
    best_combined,
    best_layer,
    by_layer,
    center,
    pointing_rows,
    shown_module,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ALL, _DIFFICULT, _META = style.TEN[0], style.TEN[1], style.TEN[6]
_DARK = {_ALL: "#1c5d99", _DIFFICULT: "#8f5a00"}  # the same for lines over bars
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_PANELS = 4  # side by side
_TICKS = 9  # names of modules below an axis
# What each weighting is called in a legend, in the order of the paper.
_WEIGHTINGS = {
    "spread": "feature spread",
    "accuracy": "linear probe's accuracy",
    "linear": "linear",
    "uniform": "uniform",
}


def pointing_game(metrics: Mapping[str, Any]) -> Figure | None:
    """Draw the pointing game of each method at each layer and of its best combination (figure 3).

    Bars are shares of all pairs and of the difficult ones with their standard errors, dashed lines those of
    the centre of each image.

    Args:
        metrics: of a saliency run.

    Returns:
        The figure, a panel a method; None where nothing was pointed at.
    """
    from matplotlib.ticker import PercentFormatter

    rows = pointing_rows(metrics)
    if not rows:
        return None
    layers = list(dict.fromkeys(layer for row in rows for layer in row.layers))
    baseline = center(metrics)
    figure, panels = _panels(len(rows), _pointing_title(rows, baseline), 1.75, extra=0.55)
    for axes, row in zip(panels, rows, strict=False):
        scores = [row.layers.get(layer) for layer in layers]
        best = row.best_combined
        names = [*map(shown_module, layers), *([best.where.replace("-", "\n", 1)] if best else [])]
        places = [*range(len(layers)), *([len(layers) + 0.6] if best else [])]
        _pointing_bars(axes, places, [*scores, *([best] if best else [])])
        for value, color in ((baseline.all, _ALL), (baseline.difficult, _DIFFICULT)):
            if value is not None:
                axes.axhline(value, color=_DARK[color], linewidth=1.2, linestyle=(0, (4, 2)), zorder=3)
        style.clean_axes(axes)
        axes.set_ylim(0, 1)
        axes.set_xlim(-0.6, len(layers) + (1.2 if any(row.combined for row in rows) else -0.4))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        _name_ticks(axes, places, names)
        style.panel_title(axes, style.safe(row.method, 31))
    kinds = {"all pairs": _ALL, "difficult pairs": _DIFFICULT}
    _legend(figure, kinds, dashed="pointing at the centre" if baseline.all is not None else "")
    return style.settle(figure)


def _pointing_title(rows: Sequence[Pointing], baseline: Score) -> str:
    known = [pair for pair in (best_layer(rows), best_combined(rows)) if pair is not None]
    if not known:
        return "Pointing game"
    method, best = max(known, key=lambda pair: pair[1].all or 0.0)
    where = shown_module(best.where).replace("-", ", ", 1)
    title = f"Pointing game: highest for {style.safe(method, 32)}, {style.safe(where, 24)}"
    title += f": {100 * (best.all or 0.0):.1f} %"
    return title + ("" if baseline.all is None else f", the centre {100 * baseline.all:.1f} %")


def _pointing_bars(axes: Axes, places: Sequence[float], scores: Sequence[Score | None]) -> None:
    bar: dict[str, Any] = {"width": 0.38, "error_kw": {"elinewidth": 0.9, "ecolor": style.INK}}
    for shift, color, kind in ((-0.2, _ALL, "all"), (0.2, _DIFFICULT, "difficult")):
        values = [math.nan if s is None else _or_nan(getattr(s, kind)) for s in scores]
        errors = [0.0 if s is None else (getattr(s, f"{kind}_stderr") or 0.0) for s in scores]
        axes.bar(np.array(places) + shift, values, yerr=errors, color=color, **bar)
    for place, score in zip(places, scores, strict=True):
        if score is None:
            axes.text(place, 0.02, "none", rotation=90, fontsize=7, color=style.MUTED, ha="center")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def sensitivity_bars(metrics: Mapping[str, Any]) -> Figure | None:
    """Draw how alike the maps of the likeliest and the least likely class are, perhaps with meta-saliency.

    Bars are absolute rank correlations (figure 7); a minus behind one says that it is negative (figure 6).

    Returns:
        The figure, a panel a layer; None where this was not measured.
    """
    found = by_layer(metrics, "sensitivity")
    plain = [method for method in found if not method.endswith(META)]
    plain += [m.removesuffix(META) for m in found if m.endswith(META) and m.removesuffix(META) not in plain]
    layers = list(dict.fromkeys(layer for values in found.values() for layer in values))
    if not plain or not layers:
        return None
    has_meta = any(method + META in found for method in plain)
    figure, panels = _panels(
        len(layers), _sensitivity_title(found, plain), 0.55 + 0.2 * len(plain), wide=True, sharey=True
    )
    kinds = {"without meta-saliency": ("", _ALL), "with meta-saliency": (META, _META)}
    for axes, layer in zip(panels, layers, strict=False):
        for number, (suffix, color) in enumerate(kinds.values()):
            if suffix and not has_meta:
                continue
            shift = (number - 0.5) * 0.4 if has_meta else 0.0
            for place, method in enumerate(plain):
                value = found.get(method + suffix, {}).get(layer)
                if value is None:
                    continue
                axes.barh(place + shift, abs(value), height=0.38 if has_meta else 0.7, color=color)
                if value < 0:
                    axes.text(abs(value) + 0.01, place + shift, "−", fontsize=8, va="center", color=style.INK)
        style.clean_axes(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=style.GRID, linewidth=0.6)
        axes.set_xlim(0, 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        style.panel_title(axes, style.safe(shown_module(layer), 30))
    panels[0].set_yticks(range(len(plain)), [style.safe(method, 32) for method in plain])
    panels[0].set_ylim(len(plain) - 0.4, -0.6)
    if has_meta:
        _legend(figure, {name: color for name, (_, color) in kinds.items()})
    return style.settle(figure)


def _sensitivity_title(found: Mapping[str, Mapping[str, float]], plain: Sequence[str]) -> str:
    title = "Class sensitivity: absolute correlation of the likeliest and the least likely class"
    less, of = 0, 0
    for method in plain:
        with_meta, without = found.get(method + META, {}), found.get(method, {})
        common = with_meta.keys() & without.keys()
        if common:
            of += 1
            less += np.mean([abs(with_meta[c]) for c in common]) < np.mean([abs(without[c]) for c in common])
    return title + (f"\nmeta-saliency lowers it for {less} of {of} methods" if of else "")


def randomization_curves(entries: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw the correlation with the trained network's map against the modules that are randomised.

    Args:
        entries: each ``method``, ``layer``, ``modules`` in the order in which they are randomised, the
            first none, and ``mean`` and perhaps ``stderr`` over the images after each.

    Returns:
        The figure, a panel a layer and a line a method, dashed with meta-saliency; None without entries.
    """
    layers = list(dict.fromkeys(str(entry["layer"]) for entry in entries))
    if not layers:
        return None
    looks = _looks([str(entry["method"]) for entry in entries])
    figure, panels = _panels(
        len(layers),
        "Likeness to the trained network's map",
        2.4,
        wide=True,
        extra=0.7,
    )
    for axes, layer in zip(panels, layers, strict=False):
        own = [entry for entry in entries if str(entry["layer"]) == layer]
        for entry in own:
            means = _numbers(entry["mean"])
            steps = np.arange(len(means))
            look = looks[str(entry["method"])]
            axes.plot(steps, means, markevery=max(1, len(means) // 6), **look)
            errors = _numbers(entry.get("stderr") or [math.nan] * len(means))
            if np.isfinite(errors).any():
                band: dict[str, Any] = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
                axes.fill_between(steps, means - errors, means + errors, **band)
        _correlation_axis(axes, [value for entry in entries for value in entry["mean"]])  # a common axis
        modules = [shown_module(name) or "none" for name in own[0]["modules"]]
        ticks = style.thin(len(modules), _TICKS)
        _name_ticks(axes, ticks.tolist(), [modules[t] for t in ticks], slanted=True)
        axes.set_ylabel("rank correlation", fontsize=8)
        style.panel_title(axes, style.safe(shown_module(layer), 30))
    _method_legend(figure, looks)
    return style.settle(figure)


def epoch_curves(entries: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw the correlation of maps with and without meta-saliency over the epochs of training.

    Args:
        entries: each ``method``, ``layer``, ``epoch`` and of each epoch ``train`` and ``test``.

    Returns:
        The figure, a panel a layer, solid on training and dashed on test images; None without entries.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    layers = list(dict.fromkeys(str(entry["layer"]) for entry in entries))
    if not layers:
        return None
    looks = _looks([str(entry["method"]) for entry in entries])
    figure, panels = _panels(
        len(layers), "Maps with and without meta-saliency while training", 2.2, wide=True
    )
    shown = [v for e in entries for part in ("train", "test") for v in e.get(part) or []]  # on a common axis
    for axes, layer in zip(panels, layers, strict=False):
        own = [entry for entry in entries if str(entry["layer"]) == layer]
        for entry in own:
            for part, line in (("train", "-"), ("test", (0, (4, 2)))):
                look = looks[str(entry["method"])] | {"linestyle": line}
                axes.plot(entry["epoch"], _numbers(entry.get(part) or [None] * len(entry["epoch"])), **look)
        _correlation_axis(axes, shown, 0.8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_ylabel("rank correlation", fontsize=8)
        style.panel_title(axes, style.safe(shown_module(layer), 30))
    kinds = [
        Line2D([], [], color=style.MUTED, label="training images"),
        Line2D([], [], color=style.MUTED, linestyle=(0, (4, 2)), label="test images"),
    ]
    _method_legend(figure, looks, kinds)
    return style.settle(figure)


def weight_curves(weights: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """Draw how much each layer counts in each weighting, each scaled to the sum 1.

    Args:
        weights: of each weighting the weight of each layer, by depth.

    Returns:
        The figure; None without weights.
    """
    kinds = [name for name in (*_WEIGHTINGS, *weights) if weights.get(name)]
    kinds = list(dict.fromkeys(kinds))
    if not kinds:
        return None
    layers = list(dict.fromkeys(layer for name in kinds for layer in weights[name]))
    title = _weights_title(weights, kinds)
    figure = style.new_figure(max(1.8 + 0.85 * len(layers), _width_of(title)), 3.3, title)
    axes = figure.subplots()
    for number, (name, color) in enumerate(zip(kinds, style.palette(len(kinds)))):
        values = np.array([float(weights[name].get(layer, math.nan)) for layer in layers])
        total = np.nansum(values)
        values = values / total if total > 0 else values
        look: dict[str, Any] = {"marker": _MARKS[number % len(_MARKS)], "ms": 5.5, "linewidth": 1.6}
        axes.plot(range(len(layers)), values, color=color, label=_WEIGHTINGS.get(name, name), **look)
    style.clean_axes(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("weight", fontsize=8)
    _name_ticks(axes, range(len(layers)), [shown_module(layer) for layer in layers])
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return style.settle(figure)


def _weights_title(weights: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> str:
    told = []
    for name in kinds:
        if name in ("spread", "accuracy"):
            top = max(weights[name], key=lambda layer: weights[name][layer])
            told.append(f"{style.safe(shown_module(top), 20)} by {_WEIGHTINGS[name]}")
    return "Weights of the layers" + (f", highest:\n{', '.join(told)}" if told else "")


def _panels(
    number: int, title: str, height: float, *, wide: bool = False, sharey: bool = False, extra: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Make panels in rows, each so many inches high, ``extra`` for names below it; those left over hidden."""
    columns = min(number, 3 if wide else _PANELS)
    lines = math.ceil(number / columns)
    columns = math.ceil(number / lines)
    width = max(1.2 + 9.2 / (3 if wide else _PANELS) * columns, _width_of(title))
    figure = style.new_figure(width, 0.9 + lines * (height + 0.3 + extra), title)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True if sharey else "row")
    for axes in grid.ravel()[number:]:
        axes.set_visible(False)
    return figure, list(grid.ravel()[:number])


def _width_of(title: str) -> float:
    """Return the inches that a figure needs for its title, and at least for a legend."""
    return max(6.0, 0.3 + 0.094 * max(map(len, title.split("\n"))))


def _looks(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give each method a colour and a mark of its own, and the same with meta-saliency a dashed line."""
    plain = list(dict.fromkeys(method.removesuffix(META) for method in methods))
    colors = dict(zip(plain, style.palette(len(plain))))
    return {
        method: {
            "color": colors[method.removesuffix(META)],
            "marker": _MARKS[plain.index(method.removesuffix(META)) % len(_MARKS)],
            "ms": 4,
            "linewidth": 1.4,
            "linestyle": (0, (4, 2)) if method.endswith(META) else "-",
        }
        for method in dict.fromkeys(methods)
    }


def _correlation_axis(axes: Axes, values: Sequence[Any], low: float = 0.0) -> None:
    """Make room for the correlations, from ``low`` on at least."""
    style.clean_axes(axes)
    low = float(style.finite(_numbers(values)).min(initial=low))
    axes.set_ylim(low - 0.05, 1.03)
    if low <= 0:
        axes.axhline(0, color=style.MUTED, linewidth=0.8)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([math.nan if value is None else float(value) for value in values])


def _name_ticks(axes: Axes, places: Sequence[float], names: Sequence[str], *, slanted: bool = False) -> None:
    names = [_end(name, 24) for name in names]
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    slanted = slanted or longest * len(names) > 34
    look: dict[str, Any] = {"fontsize": 7}
    if slanted:
        names = [name.replace("\n", ", ") for name in names]
        look |= {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(list(places), [style.safe_lines(name) for name in names], **look)


def _end(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def _legend(figure: Figure, colors: Mapping[str, Any], dashed: str = "") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=color, label=name) for name, color in colors.items()]
    if dashed:
        handles.append(Line2D([], [], color=style.MUTED, linestyle=(0, (4, 2)), label=dashed))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


def _method_legend(figure: Figure, looks: Mapping[str, Mapping[str, Any]], more: Sequence[Any] = ()) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=style.safe(name, 36), **look) for name, look in looks.items()]
    longest = max(map(len, looks), default=1)
    columns = max(1, min(len(handles) + len(more), int(figure.get_figwidth() * 13 / (longest + 7))))
    look: dict[str, Any] = {"ncols": columns, "fontsize": 8, "frameon": False}
    figure.legend(handles=[*handles, *more], loc="outside lower center", **look)
