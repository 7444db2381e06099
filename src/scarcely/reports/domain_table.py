"""Methods on several domains, many runs: the tables of chapter 3 (1 and 2) and 4 (1), and their picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scarcely.errors import ConfigError, DataError
from scarcely.metrics.decathlon import decathlon_score, max_errors_of
from scarcely.reports import table
from scarcely.reports.figures import style
from scarcely.reports.runs import Point, Run, differences, notes_on, same, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

# Settings in which the runs of a row may differ: the samples drawn by a seed, its source, what S is made of.
_APART = ("data.labels_seed", "ckpt", "method.reference")
# Likewise, but then it is told: how a run was computed.
_COMPUTED = ("trainer.", "eval_every", "embedding_size", "data.workers", "min_matched")
_NAMED = 4  # settings in the name of a row; runs that differ in more are better named by their folders
_COLUMNS = 5  # panels side by side


@dataclass
class Row:
    """The runs of one method with the same settings.

    Attributes:
        name: the method, and the settings in which it differs from its other rows.
        runs: of several seeds.
        scores: S of each, None where E_max is not known.
        computed: how many of these the runs did not have themselves.
    """

    name: str
    runs: list[Run]
    scores: list[float | None]
    computed: int

    def accuracies(self, domain: str) -> list[float]:
        """Return the accuracy on a domain of each run that has it."""
        return [accuracies_of(run)[domain] for run in self.runs if domain in accuracies_of(run)]

    def left(self, domain: str) -> list[float]:
        """Return the accuracy on the source, after training on a domain, of each run that has it."""
        rows = (row for run in self.runs for row in run.results["domains"] if row["name"] == domain)
        return [float(row["source_accuracy"]) for row in rows if row.get("source_accuracy") is not None]

    @property
    def means(self) -> list[float]:
        """The mean accuracy over all domains of each run."""
        return [float(np.mean(list(accuracies_of(run).values()))) for run in self.runs]

    @property
    def known_scores(self) -> list[float]:
        """S of each run that has one."""
        return [score for score in self.scores if score is not None]

    @property
    def domains(self) -> set[str]:
        """Names of the domains that all of its runs have."""
        return set.intersection(*(set(accuracies_of(run)) for run in self.runs))


def accuracies_of(run: Run) -> dict[str, float]:
    """Return the accuracy of a run on each domain; of one that is not over several domains, nothing."""
    return {str(row["name"]): float(row["accuracy"]) for row in run.results.get("domains") or []}


def collect(runs: Sequence[Run]) -> list[Row]:
    """Group runs over several domains by their method, and by the settings in which those of one differ.

    Args:
        runs: from `find_runs`; those that are not over several domains are left out.

    Returns:
        Rows in the order in which their first runs come.

    Raises:
        DataError: no run is over several domains, or they are of different data sets.
    """
    told = [run for run in runs if accuracies_of(run)]
    if not told:
        raise DataError(
            "no run is over several domains",
            where="RUNS",
            instead="runs of method=finetune data=decathlon, say",
        )
    names = sorted({str(run.results.get("data")) for run in told})
    if len(names) > 1:
        raise DataError(
            f"these runs are of different data sets: {', '.join(names)}",
            where="RUNS",
            instead="the runs of one of them at a time",
        )
    methods = {_method(run) for run in told}
    telling = {method: _telling([run for run in told if _method(run) == method]) for method in methods}
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in told:
        keys = telling[_method(run)]
        values = (repr(same(run.settings.get(key))) for key in keys)
        groups.setdefault((_method(run), *values), []).append(run)
    rows = []
    for members in groups.values():
        name, scores = _name(members[0], telling[_method(members[0])]), [_score(run, told) for run in members]
        computed = sum(score is not None and not _has_score(run) for run, score in zip(members, scores))
        rows.append(Row(name, members, scores, computed))
    return rows


def _method(run: Run) -> str:
    return str(run.results.get("method", "run"))


def _name(run: Run, keys: Sequence[str]) -> str:
    """Name a row by its method and the settings that tell it from other rows of that method."""
    if len(keys) > _NAMED:
        return f"{_method(run)} ({run.folder})"
    last = [key.rpartition(".")[2] for key in keys]
    told = [
        f"{key if last.count(word) > 1 else word} = {shown(same(run.settings.get(key)))}"
        for key, word in zip(keys, last)
    ]
    return ", ".join([_method(run), *told])


def _telling(runs: Sequence[Run]) -> list[str]:
    differing = differences(runs, (*_APART, *_COMPUTED))
    # A group that was chosen and the settings within it: the settings say enough.
    return [key for key in differing if not any(other.startswith(f"{key}.") for other in differing)]


def _has_score(run: Run) -> bool:
    return isinstance(run.metrics.get("decathlon/score"), (int, float))


def _score(run: Run, runs: Sequence[Run]) -> float | None:
    """Return S of a run; where it has none, against the fine-tuned networks of the same seed."""
    if _has_score(run):
        return float(run.metrics["decathlon/score"])
    limits = _limits(run, runs)
    if limits is None:
        return None
    try:
        return decathlon_score({name: 1 - a for name, a in accuracies_of(run).items()}, limits)
    except ConfigError:
        return None  # fine-tuning made no error on a domain, and twice none is no limit


def _is_finetuned(run: Run) -> bool:
    return _method(run) == "finetune" and run.settings.get("method.last") is None  # the whole network


def _limits(run: Run, runs: Sequence[Run]) -> dict[str, float] | None:
    """Return E_max of each domain by the finetune run of the same seed that is most like a run."""
    names = accuracies_of(run)
    finetuned = [
        other
        for other in runs
        if _is_finetuned(other)
        and other.results.get("seed") == run.results.get("seed")
        and set(names) <= set(accuracies_of(other))
    ]
    if not finetuned:
        return None
    nearest = min(finetuned, key=lambda other: len(differences([run, other], ("method", "method.", *_APART))))
    return max_errors_of({name: 1 - accuracies_of(nearest)[name] for name in names})


def notes(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """Return what should be known before the table is believed."""
    points = [Point(None, row.name, row.runs, row.means) for row in rows]
    told = notes_on(runs, points, _APART, "they are not over several domains")
    kept = [run for row in rows for run in row.runs]
    told += _not_alike(kept, rows) + _twice(rows) + _scored(kept)
    names = _domains(rows)
    for row in rows:
        if missing := [name for name in names if name not in row.domains]:
            told.append(f"{row.name}: without {', '.join(missing)}; its mean and S are of fewer domains")
    return told + _on_scores(rows)


def _not_alike(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    methods = {_method(run) for run in runs}
    named = {key for method in methods for key in _telling([r for r in runs if _method(r) == method])}
    differing = differences(runs, ("method", "method.", *named, *_APART, *_COMPUTED))
    keys = [key for key in differing if all(key in run.settings for run in runs)]
    some = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
    return [f"the rows differ in more than their method: {some}"] if keys and len(rows) > 1 else []


def _twice(rows: Sequence[Row]) -> list[str]:
    seeds = [(row.name, [run.results.get("seed") for run in row.runs]) for row in rows]
    return [
        f"{name}: {len(all_) - len(set(all_))} of its runs repeat a seed, the deviation is too small"
        for name, all_ in seeds
        if len(set(all_)) < len(all_)
    ]


def _scored(runs: Sequence[Run]) -> list[str]:
    parts: dict[str, set[str]] = {}
    for run in runs:
        for row in run.results["domains"]:
            parts.setdefault(str(row["name"]), set()).add(str(row.get("scored")))
    mixed = [name for name, found in parts.items() if len(found) > 1]
    return (
        [f"some runs are scored on the val part and others on the test part of {', '.join(mixed)}"]
        if mixed
        else []
    )


def _on_scores(rows: Sequence[Row]) -> list[str]:
    told = []
    if computed := sum(row.computed for row in rows):
        whose = f"{computed} run{'' if computed == 1 else 's'}"
        told.append(f"S of {whose} is computed here, with E_max from the finetune run of the same seed")
    seeds = {
        str(run.results.get("seed"))
        for row in rows
        for run, score in zip(row.runs, row.scores)
        if score is None
    }
    if seeds:
        told.append(f"some runs have no S, for want of a finetune run of seed {', '.join(sorted(seeds))}")
    limits: dict[Any, set[str]] = {}
    for run in (run for row in rows for run in row.runs):
        for name, limit in (run.results.get("max_errors") or {}).items():
            limits.setdefault((run.results.get("seed"), name), set()).add(f"{limit:.6f}")
    if any(len(found) > 1 for found in limits.values()):
        told.append("S of runs of one seed is against different E_max: they cannot be compared by it")
    return told


def _domains(rows: Sequence[Row]) -> list[str]:
    """Name all domains, in the order of the run that has most."""
    each = [list(accuracies_of(run)) for row in rows for run in row.runs]
    return list(dict.fromkeys(name for names in sorted(each, key=len, reverse=True) for name in names))


def _source(rows: Iterable[Row]) -> str | None:
    sources = (table.source_domain(run.results) for row in rows for run in row.runs)
    return next((source for source in sources if source is not None), None)


def _multiple(row: Row) -> str:
    ratios = [float(run.metrics["parameters/ratio"]) for run in row.runs if "parameters/ratio" in run.metrics]
    if not ratios:
        return "–"
    text = f"{ratios[0]:.2f}" if np.ptp(ratios) < 0.005 else table.mean_std(ratios, scale=1.0, decimals=2)
    return f"{text}×"


def _cell(values: Sequence[float], row: Row, scale: float = 100.0, decimals: int = 1) -> str:
    if not values:
        return "–"
    text = table.mean_std(values, scale, decimals)
    return text if len(values) == len(row.runs) else f"{text} (n={len(values)})"


def accuracy_grid(rows: Sequence[Row], *, bold: bool = False) -> tuple[list[str], list[list[str]]]:
    """Arrange table 1: parameters, accuracy on each domain in %, their mean, and S.

    Args:
        rows: from `collect`.
        bold: mark the best mean and the best S, as Markdown, among the rows that have all domains.

    Returns:
        The head and the rows; mean ± standard deviation over the runs.
    """
    names = _domains(rows)
    scored = any(row.known_scores for row in rows)
    head = ["method", "parameters", *names, "mean", *(["S"] if scored else []), "runs"]
    whole = [row for row in rows if row.domains == set(names)] if bold and len(rows) > 1 else []
    best_mean = max((round(100 * float(np.mean(row.means)), 1) for row in whole), default=math.inf)
    best_score = max(
        (round(float(np.mean(row.known_scores))) for row in whole if row.known_scores), default=math.inf
    )
    lines = []
    for row in rows:
        mean, score = _cell(row.means, row), _cell(row.known_scores, row, 1.0, 0)
        if row in whole and round(100 * float(np.mean(row.means)), 1) == best_mean:
            mean = f"**{mean}**"
        if row in whole and row.known_scores and round(float(np.mean(row.known_scores))) == best_score:
            score = f"**{score}**"
        cells = [_cell(row.accuracies(name), row) for name in names]
        lines.append(
            [row.name, _multiple(row), *cells, mean, *([score] if scored else []), str(len(row.runs))]
        )
    return head, lines


def forgetting_grid(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]] | None:
    """Arrange table 2: accuracy on the source / on the domain, in %, after training on each domain.

    Returns:
        The head and the rows, those of methods whose networks were tried on the source again; None if
        there is none.
    """
    known = [row for row in rows if any(row.left(name) for name in row.domains)]
    names = [name for name in _domains(rows) if any(row.left(name) for row in known)]
    if not known:
        return None
    source = _source(known)
    lines = []
    for row in known:
        before = _cell(row.accuracies(source), row) if source is not None else "–"
        cells = [
            f"{_cell(row.left(name), row)} / {_cell(row.accuracies(name), row)}" if row.left(name) else "–"
            for name in names
        ]
        lines.append([row.name, before, *cells])
    return ["method", f"{source or 'source'} before", *names], lines


def _titles(rows: Sequence[Row]) -> tuple[str, str]:
    data = rows[0].runs[0].results.get("data")
    source = _source(rows) or "the source"
    return (
        f"Accuracy on {data} in %",
        f"Accuracy on {source} / on the domain in %, after training on the domain",
    )


def print_tables(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print both tables, the second where the accuracies on the source are known.

    Args:
        rows: from `collect`.
        console: where to; standard output if not given, at any width where that is no terminal.
    """
    for title, grid in zip(_titles(rows), (accuracy_grid(rows), forgetting_grid(rows))):
        if grid is not None:
            table.print_grid(title, *grid, console)


def markdown(rows: Sequence[Row]) -> str:
    """Write the same tables as Markdown, a line above each, the best mean and the best S in bold."""
    grids = (accuracy_grid(rows, bold=True), forgetting_grid(rows))
    return "\n".join(
        f"{title}:\n\n{table.markdown_table(*grid)}"
        for title, grid in zip(_titles(rows), grids)
        if grid is not None
    )


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a panel a domain, one of the mean and one of S, and in each a line a method.

    Every panel has a scale of its own: methods differ less than domains. The bar is a standard deviation,
    a pale dot a run, and the grey line the fine-tuned networks, where they are among the rows.

    Args:
        rows: from `collect`.
    """
    source = _source(rows)
    panels: dict[str, list[list[float]]] = {}
    for name in _domains(rows):
        told = style.safe(name, 20) + (" (source), %" if name == source else ", %")
        panels[told] = [[100 * value for value in row.accuracies(name)] for row in rows]
    panels["mean, %"] = [[100 * value for value in row.means] for row in rows]
    if any(row.known_scores for row in rows):
        panels["score S"] = [row.known_scores for row in rows]
    lines = math.ceil(len(panels) / _COLUMNS)
    columns = math.ceil(len(panels) / lines)
    size = (2.4 + 1.95 * columns, 0.7 + lines * (0.75 + 0.26 * len(rows)))
    figure = style.new_figure(*size, _finding(rows))
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    reference = next((place for place, row in enumerate(rows) if _is_finetuned(row.runs[0])), None)
    for axes, (name, values) in zip(grid.ravel(), panels.items()):
        _panel(axes, values, reference)
        total = name in ("mean, %", "score S")
        axes.set_title(
            name, loc="left", fontsize=9, color=style.INK, fontweight="bold" if total else "normal"
        )
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    grid[0][0].set_yticks(range(len(rows)), [style.safe(row.name, 38) for row in rows])
    grid[0][0].set_ylim(len(rows) - 0.4, -0.6)
    return style.settle(figure)


def _panel(axes: Axes, values: Sequence[Sequence[float]], reference: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    if reference is not None and values[reference]:
        axes.axvline(float(np.mean(values[reference])), color=style.UNKNOWN, linewidth=1.2, zorder=1)
    reach = []
    for place, (found, color) in enumerate(zip(values, style.palette(len(values)))):
        if not found:
            continue
        mean = float(np.mean(found))
        std = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
        reach += [mean - std, mean + std, *found]
        if len(found) > 1:
            axes.plot(found, [place] * len(found), "o", color=color, ms=3, alpha=0.35, markeredgewidth=0)
        look: dict[str, Any] = {"fmt": "o", "ms": 5.5, "elinewidth": 1.4, "capsize": 2.5 if std else 0}
        axes.errorbar(mean, place, xerr=std, color=color, zorder=3, **look)
    style.clean_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if reach:
        # At least two points, or two seeds' noise would fill the panel.
        middle, half = (min(reach) + max(reach)) / 2, max(1.0, 0.6 * (max(reach) - min(reach)))
        axes.set_xlim(max(middle - half, -0.1 * half), middle + half)


def _finding(rows: Sequence[Row]) -> str:
    """Say which method has the best mean, and which the best S."""
    names = set(_domains(rows))
    whole = [row for row in rows if row.domains == names] or list(rows)
    best = max(whole, key=lambda row: float(np.mean(row.means)))
    mean = f"{table.mean_std(best.means)} %"
    if len(rows) == 1:
        return f"{style.safe(best.name, 60)}: mean accuracy {mean} over {len(names)} domains"
    title = f"The mean accuracy is highest for {style.safe(best.name, 40)}: {mean}"
    scored = [row for row in whole if row.known_scores]
    if not scored:
        return title
    first = max(scored, key=lambda row: float(np.mean(row.known_scores)))
    score = table.mean_std(first.known_scores, scale=1.0, decimals=0)
    return f"{title}\nthe score S for {style.safe(first.name, 40)}: {score} of {1000 * len(names):,}"
