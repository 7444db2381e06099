"""The pointing game as table 3 of chapter 8, in the terminal and in the page; the rest of a run in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports.saliency_scores import (
    META,
    Score,
    best_combined,
    best_layer,
    by_layer,
    center,
    identities,
    pointing_rows,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

CENTER = "pointing at the centre"


class Cell(NamedTuple):
    """A cell of a table of the page: its text, a softer line below, and whether it stands out."""

    text: str
    below: str = ""
    bold: bool = False


class Grid(NamedTuple):
    """A table of the page, names in its first column."""

    heading: str
    sentence: str
    head: list[str]
    rows: list[list[Cell]]
    folded: bool = False  # shown when it is asked for


def share(value: float | None, stderr: float | None = None) -> str:
    """Write a share in percent with its standard error: ``90.2 ± 1.3``."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def shares(score: Score | None) -> tuple[str, str]:
    """Write a score on all images and on the difficult subset."""
    if score is None:
        return "–", "–"
    return share(score.all, score.all_stderr), share(score.difficult, score.difficult_stderr)


def named(weighting: str) -> str:
    """Write a combination for people: ``product, accuracy``."""
    return weighting.replace("-", ", ", 1)


def terminal_table(metrics: Mapping[str, Any], title: Text | str) -> Table:
    """Arrange the pointing game for the terminal: of each method its best layer and its best combination."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # Without frames and with one blank on either side of a column it fits into eighty letters.
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.collapse_padding = True
    grid.add_column("pointing game in %", overflow="fold")
    grid.add_column("best layer,\nbest weighting", overflow="fold")
    grid.add_column("all", justify="right", no_wrap=True)
    grid.add_column("difficult", justify="right", no_wrap=True)
    for row in pointing_rows(metrics):
        lines = [
            (score, bold) for score, bold in ((row.best_layer, ""), (row.best_combined, "bold")) if score
        ]
        for number, (score, bold) in enumerate(lines):
            name = Text("" if number else row.method)
            grid.add_row(name, Text(named(score.where)), *shares(score), style=bold)
    grid.add_row(CENTER, "", *shares(center(metrics)))
    return grid


def pointing_grid(metrics: Mapping[str, Any]) -> Grid:
    """Arrange the pointing game for the page: a row a method, columns its best layer and each combination."""
    rows = pointing_rows(metrics)
    weightings = list(dict.fromkeys(name for row in rows for name in row.combined))
    lines = []
    for row in rows:
        single, best = row.best_layer, row.best_combined
        cells = [Cell(row.method), Cell(single.where if single else "–"), _cell(single)]
        cells += [_cell(row.combined.get(name), best) for name in weightings]
        lines.append(cells)
    middle = [Cell(CENTER), Cell("–"), _cell(center(metrics))]
    lines.append(middle + [Cell("") for _ in weightings])
    return Grid(
        "Pointing game",
        "Share of pairs of an image and a class whose map is brightest on an object of the class, in percent "
        "± standard error, the mean over classes: of all pairs, and below it of the difficult ones (small "
        "objects beside other classes). First the best single layer, then layers combined; bold is the best "
        "combination of a method. What is best was chosen on these very images.",
        ["", "best layer", "its score", *map(named, weightings)],
        lines,
    )


def _cell(score: Score | None, best: Score | None = None) -> Cell:
    text, below = shares(score)
    return Cell(text, "" if below == "–" else below, score is not None and score is best)


def headlines(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, dict[str, str]]]:
    """Return what a saliency run is judged by: key, name, value, and what stands beside it."""
    rows = pointing_rows(metrics)
    baseline = center(metrics)
    found = []
    for name, best, key in (
        ("pointing game, best single layer", best_layer(rows), ""),
        ("pointing game, best combination of layers", best_combined(rows), "combined-"),
    ):
        if best is not None:
            method, score = best
            told = {f"{method}, {named(score.where)}; of difficult pairs": _percent(score.difficult)}
            told[CENTER] = f"{_percent(baseline.all)}; of difficult pairs {_percent(baseline.difficult)}"
            found.append((f"pointing/{method}/{key}{score.where}/all", name, _percent(score.all), told))
    return found


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f} %"


def summary(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say in a line each what the evaluations beside the pointing game found, and how many pairs it had."""
    lines = [
        ("pairs", _pairs(metrics)),
        ("class sensitivity", _sensitivity(by_layer(metrics, "sensitivity"))),
        ("randomised", _randomised(by_layer(metrics, "randomization"))),
        ("meta-saliency", _meta(by_layer(metrics, "meta"))),
        ("virtual identity", _identity(metrics)),
    ]
    return [(name, text) for name, text in lines if text]


def _pairs(metrics: Mapping[str, Any]) -> str:
    if "pointing/pairs" not in metrics:
        return ""
    text = f"{metrics['pointing/pairs']:,.0f} of an image and a class"
    if "pointing/pairs_difficult" in metrics:
        text += f", {metrics['pointing/pairs_difficult']:,.0f} of them difficult"
    if metrics.get("pointing/skipped"):
        text += f"; {metrics['pointing/skipped']:,.0f} skipped, all objects of the class marked difficult"
    if metrics.get("pointing/left_out"):
        text += f"; {metrics['pointing/left_out']:,.0f} left out, the network has no such class"
    return text


def mean_absolute(values: Mapping[str, float]) -> float:
    """Return the mean over layers of the absolute correlation."""
    return float(np.mean(np.abs(list(values.values()))))


def _sensitivity(found: Mapping[str, Mapping[str, float]]) -> str:
    plain = {method: mean_absolute(values) for method, values in found.items() if not method.endswith(META)}
    if not plain:
        return ""
    text = f"maps of the likeliest and the least likely class correlate by {_extremes(plain)} (0 is best)"
    both = {m: found[m + META] for m in plain if m + META in found}
    if both:
        less = sum(mean_absolute(values) < plain[method] for method, values in both.items())
        text += f"; by less with meta-saliency for {less} of {len(both)} methods"
    return text


def _randomised(found: Mapping[str, Mapping[str, float]]) -> str:
    if not found:
        return ""
    means = {method: mean_absolute(values) for method, values in found.items()}
    return (
        f"maps of random weights correlate with those of the trained ones by {_extremes(means)} (0 is best)"
    )


def _extremes(means: Mapping[str, float]) -> str:
    low, high = min(means, key=lambda m: means[m]), max(means, key=lambda m: means[m])
    if low == high:
        return f"{means[low]:.2f} ({low})"
    return f"{means[low]:.2f} ({low}) to {means[high]:.2f} ({high})"


def _meta(found: Mapping[str, Mapping[str, float]]) -> str:
    values = [value for layers in found.values() for value in layers.values()]
    return f"maps with and without it correlate by {np.mean(values):.2f} on average" if values else ""


def _identity(metrics: Mapping[str, Any]) -> str:
    found = identities(metrics)
    alike = [rank for rank, _ in found.values() if rank is not None]
    gains = [gain for _, gain in found.values() if gain is not None]
    told = [f"its maps and those of the real convolutions correlate by {np.mean(alike):.2f}"] if alike else []
    told += [f"its pointing game is {100 * np.mean(gains):+.1f} points of theirs"] if gains else []
    return "; ".join(told)


_GRIDS = {
    "sensitivity": (
        "Class sensitivity",
        "Mean rank correlation between the maps of the likeliest and the least likely class.",
    ),
    "randomization": (
        "Randomised weights",
        "Mean rank correlation between the maps of the trained network and of one whose weights are all "
        "random.",
    ),
    "meta": (
        "With and without meta-saliency",
        "Mean rank correlation between the maps with and without meta-saliency.",
    ),
}


def detail_grids(metrics: Mapping[str, Any]) -> list[Grid]:
    """Arrange all figures that the pointing game's table leaves out, by method and layer."""
    grids = [_layers_grid(metrics)] if any(row.layers for row in pointing_rows(metrics)) else []
    for word, (heading, sentence) in _GRIDS.items():
        if found := by_layer(metrics, word):
            layers = list(dict.fromkeys(layer for values in found.values() for layer in values))
            rows = [
                [Cell(method), *(_correlation(values.get(layer)) for layer in layers)]
                for method, values in found.items()
            ]
            grids.append(Grid(heading, sentence, ["", *layers], rows, folded=True))
    undefined = {
        key.removesuffix("/undefined"): value
        for key, value in metrics.items()
        if key.startswith("sensitivity/") and key.endswith("/undefined") and value
    }
    if undefined:
        rows = [[Cell(key.removeprefix("sensitivity/")), Cell(f"{n:,.0f}")] for key, n in undefined.items()]
        sentence = "Pairs of maps of which one is constant; they are in no mean."
        grids.append(Grid("Class sensitivity not defined", sentence, ["", "pairs"], rows, folded=True))
    if found_identities := identities(metrics):
        rows = [
            [Cell(layer), _correlation(rank), Cell("–" if gain is None else f"{100 * gain:+.1f}")]
            for layer, (rank, gain) in found_identities.items()
        ]
        head = ["", "rank correlation", "difference in the pointing game, points"]
        sentence = (
            "NormGrad of a virtual identity behind a convolution against that of the convolution itself."
        )
        grids.append(Grid("Virtual identity", sentence, head, rows, folded=True))
    return grids


def _layers_grid(metrics: Mapping[str, Any]) -> Grid:
    rows = pointing_rows(metrics)
    layers = list(dict.fromkeys(layer for row in rows for layer in row.layers))
    lines = [
        [Cell(row.method), *(_cell(row.layers.get(layer), row.best_layer) for layer in layers)]
        for row in rows
        if row.layers
    ]
    sentence = (
        "As above for each single layer, in percent ± standard error; bold is a method's best, below it "
        "the difficult pairs."
    )
    return Grid("Pointing game of each layer", sentence, ["", *layers], lines, folded=True)


def _correlation(value: float | None) -> Cell:
    return Cell("–" if value is None else f"{value:+.2f}".replace("-", "−"))
