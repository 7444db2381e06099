"""Results as tables: one run in the terminal, many runs as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports import saliency_table
from scarcely.reports.domain_rows import domain_grid, domain_points, source_domain, split_stage
from scarcely.reports.evidence import Evidence
from scarcely.reports.grids import cell, markdown_table, mean_std, print_grid
from scarcely.reports.saliency_scores import is_saliency, is_saliency_metric, judged
from scarcely.reports.stage_rows import StageRow, stage_rows, stage_sentence
from scarcely.reports.wording import (
    describe_metric,
    describe_protocol,
    format_metric,
    format_seconds,
    is_fraction,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "OLD_NEW_COLUMNS",
    "Headline",
    "OldNewRow",
    "StageRow",
    "cell",
    "describe_metric",
    "describe_protocol",
    "domain_grid",
    "domain_points",
    "format_metric",
    "format_seconds",
    "headline_metrics",
    "is_fraction",
    "markdown_table",
    "mean_std",
    "metric_name",
    "old_new_metrics",
    "other_metrics",
    "print_class_count",
    "print_grid",
    "print_results",
    "results_table",
    "run_title",
    "size_sentence",
    "source_domain",
    "split_stage",
    "stage_rows",
    "stage_sentence",
]

# What a run is judged by, and how it is called; 1-METRIC is what is left of it.
_HEADLINE = {
    "acc": "ACC",
    "nmi": "NMI",
    "ari": "ARI",
    "test/acc": "ACC, test split",
    "new/acc": "ACC, new classes",
    "new/nmi": "NMI, new classes",
    "new/ari": "ARI, new classes",
    "test/accuracy": "accuracy, test split",
    "1-test/accuracy": "error, test split",
    "test/map": "mean average precision, test split",
    "mean/accuracy": "mean accuracy",
    "decathlon/score": "decathlon score S",
    "parameters/ratio": "parameters, × one network",
}
_FURTHER = {
    "test/old/acc": "ACC, old classes of the test split",
    "test/new/acc": "ACC, new classes of the test split",
    "test/all/acc": "ACC, old and new classes of the test split",
    "pseudo/accuracy": "accuracy, unlabelled samples",
}
# What stands beside it, and what it is called.
_BASELINES = {
    "kmeans/": "k-means on raw inputs",
    "kmeans/features/": "k-means on the features before this stage",
}
# Three ways to score old and new classes together: what they are called, and what they are.
OLD_NEW_COLUMNS = {
    "acc": (
        "ACC, each group assigned by itself",
        "old and new classes each pick their predictions, so that one may serve both: never below the next",
    ),
    "acc_joint": (
        "ACC, all classes assigned at once",
        "one assignment, in which each prediction stands for one class, old or new",
    ),
    "accuracy": (
        "accuracy by name, nothing assigned",
        "predictions of old classes mean what they are called; new classes have no names",
    ),
}
_PARTS = {"test": "test split", "train": "trained on"}


class Headline(NamedTuple):
    """One figure that a run is judged by, written for people."""

    key: str
    name: str
    value: str
    baselines: dict[str, str]  # the same figure of a baseline, by its name


def metric_name(key: str) -> str:
    """Return what a figure that runs are judged by is called; any other by its key."""
    return (_HEADLINE | _FURTHER).get(key, key)


def headline_metrics(metrics: Mapping[str, Any]) -> list[Headline]:
    """Pick the figures that a run is judged by, with those of its baseline beside each."""
    rows = [Headline(*row) for row in saliency_table.headlines(metrics)]
    for key, name in _HEADLINE.items():
        known = {
            told: format_metric(key, metrics[prefix + key])
            for prefix, told in _BASELINES.items()
            if prefix + key in metrics
        }
        metric = key.removeprefix("1-")
        value = metrics.get(metric)
        if key != metric and isinstance(value, (int, float)):
            value = 1 - value
        if metric in metrics or known:
            rows.append(Headline(key, name, format_metric(key, value), known))
    return rows


class OldNewRow(NamedTuple):
    """The scores of one group of classes, one a column of `OLD_NEW_COLUMNS`."""

    part: str
    group: str
    values: list[str]


def old_new_metrics(metrics: Mapping[str, Any]) -> list[OldNewRow]:
    """Arrange the scores of old and new classes together, those of the test split first.

    Returns:
        A row a group of each split; none for a run that does not tell old and new classes apart.
    """
    rows = []
    for part in _PARTS:
        if f"{part}/all/acc_joint" not in metrics:
            continue
        for group in ("old", "new", "all"):
            keys = [f"{part}/{group}/{column}" for column in OLD_NEW_COLUMNS]
            values = [format_metric(key, metrics[key]) if key in metrics else "–" for key in keys]
            if any(key in metrics for key in keys):
                told = "old and new" if group == "all" else group
                rows.append(OldNewRow(_PARTS[part], f"{told} classes", values))
    return rows


def other_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the metrics that none of the others shows, named and written for people."""
    shown = {*_HEADLINE, *(prefix + key for key in _HEADLINE for prefix in _BASELINES)}
    for part in _PARTS:
        if f"{part}/all/acc_joint" in metrics:
            shown |= {f"{part}/{g}/{c}" for g in ("old", "new", "all") for c in OLD_NEW_COLUMNS}
    if "mean/accuracy" in metrics:
        shown |= {key for key in metrics if re.fullmatch(r"domain/.*/(source_)?accuracy", key)}
    shown |= {key for key in metrics if is_saliency_metric(key)}
    return [(key, format_metric(key, value)) for key, value in metrics.items() if key not in shown]


def size_sentence(evidence: Evidence) -> str:
    """Say how large the clusters (or predicted classes) are; empty if nothing was predicted."""
    if evidence.predicted is None or not len(evidence.predicted):
        return ""
    predicted = np.asarray(evidence.predicted)
    sizes = np.bincount(predicted[predicted >= 0], minlength=evidence.num_clusters)
    what = "classes" if evidence.kind == "classification" else "clusters"
    text = f"{len(sizes)} {what}, {sizes.min():,} to {sizes.max():,} samples"
    if (sizes == 0).any():
        text += f", {(sizes == 0).sum()} empty"
    return text + (": " + ", ".join(map(str, sizes)) if len(sizes) <= 20 else "")


def print_results(run: Evidence | Mapping[str, Any], console: Console | None = None) -> None:
    """Print what a run reached: scores beside the baseline, cluster sizes, stages, place of the report.

    Args:
        run: the evidence, or the content of ``results.json`` alone (then without sizes and place).
        console: where to; standard output if not given.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Names come from the user's folders: Text keeps rich from reading "[red]" in them as markup.
    console = console or Console()
    results = run.results if isinstance(run, Evidence) else run
    metrics = results.get("metrics") or {}
    title = Text(run_title(results), style="bold")
    headline = headline_metrics(metrics)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    if results.get("domains"):
        console.print(_domain_table(results, title), "")
        for row in headline:
            facts.add_row(row.name, Text(row.value, style="bold"))
    elif is_saliency(metrics):
        console.print(saliency_table.terminal_table(metrics, title), "")
        for row in headline:
            if not is_saliency_metric(row.key):  # of a classifier that the run has trained
                facts.add_row(row.name, Text(row.value, style="bold"))
        for name, text in saliency_table.summary(metrics):
            facts.add_row(name, text)
    elif headline:
        table = Table(title=title, title_justify="left")
        baselines = [name for name in _BASELINES.values() if any(name in row.baselines for row in headline)]
        table.add_column("", no_wrap=True)
        table.add_column("this run", justify="right", style="bold", no_wrap=True)
        for name in baselines:
            table.add_column(name, justify="right")
        for row in headline:
            table.add_row(row.name, row.value, *(row.baselines.get(name, "–") for name in baselines))
        console.print(table)
    else:
        console.print(title)

    together = old_new_metrics(metrics)
    if together:
        told = "Old and new classes together: any sample may be given any of them"
        table = Table(title=told, title_justify="left", title_style="bold")
        table.add_column("", no_wrap=True)
        for name, _ in OLD_NEW_COLUMNS.values():
            table.add_column(name, justify="right")
        for number, scores in enumerate(together):
            last = number + 1 == len(together) or together[number + 1].part != scores.part
            table.add_row(f"{scores.part}, {scores.group}", *scores.values, end_section=last)
        console.print(table)

    for key, value in other_metrics(metrics):
        facts.add_row(Text(key), value)
    if isinstance(run, Evidence) and (sizes := size_sentence(run)):
        facts.add_row("sizes", sizes)
    if protocol := describe_protocol(results):
        facts.add_row("scored", Text(protocol))
    for stage in stage_rows(results):
        facts.add_row("stage", Text(stage_sentence(stage)))
    console.print(facts)
    if isinstance(run, Evidence):
        page = run.run_dir / "report.html"
        # Unwrapped, so that the path can be clicked and copied.
        console.print(Text(f"report: {page}" if page.is_file() else f"run: {run.run_dir}"), soft_wrap=True)


def _domain_table(results: Mapping[str, Any], title: Text) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    head, rows = domain_grid(results)
    # Without frames and with one blank on either side of a column it fits into eighty letters.
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.collapse_padding = True
    grid.add_column(head[0], overflow="fold")
    for name in head[1:]:
        grid.add_column(name, justify="right", no_wrap=True)
    for name, *cells in rows:
        grid.add_row(Text(name), *cells)
    return grid


def print_class_count(estimate: Mapping[str, Any], console: Console | None = None) -> None:
    """Print how many new classes were estimated, and the figures of the numbers around.

    Args:
        estimate: ``num_new``, the choice, and by candidate ``candidates``, ``anchor_accuracy`` in [0, 1] and
            ``silhouette`` in [−1, 1]; perhaps ``plausible``, the candidates that are about as good.
        console: where to; standard error if not given.
    """
    from rich.console import Console
    from rich.table import Table

    console = console or Console(stderr=True)
    choice = int(estimate["num_new"])
    candidates = [int(k) for k in estimate.get("candidates") or []]
    told = f"{choice} new class{'' if choice == 1 else 'es'} estimated"
    plausible = [int(k) for k in estimate.get("plausible") or []]
    if len(plausible) > 1:
        told += f", {min(plausible)} to {max(plausible)} are plausible"
    if not candidates:
        console.print(told, style="bold")
        return
    table = Table(title=told, title_justify="left", title_style="bold")
    for name in ("new classes", "accuracy on known classes", "silhouette"):
        table.add_column(name, justify="right")
    nearest = min(range(len(candidates)), key=lambda i: abs(candidates[i] - choice))
    shown = {0, len(candidates) - 1, *range(max(0, nearest - 4), min(len(candidates), nearest + 5))}
    nothing: list[Any] = [None] * len(candidates)
    accuracies = estimate.get("anchor_accuracy") or nothing
    silhouettes = estimate.get("silhouette") or nothing
    before = -1
    for i in sorted(shown):
        if i > before + 1:
            table.add_row("…", "…", "…")
        before = i
        chosen = candidates[i] == choice
        table.add_row(
            f"{'→ ' if chosen else ''}{candidates[i]}",
            format_metric("accuracy", accuracies[i]),
            format_metric("silhouette", silhouettes[i]),
            style="bold" if chosen else None,
        )
    console.print(table)


def run_title(results: Mapping[str, Any]) -> str:
    """Name a run: ``lsdc on digits, seed 0``."""
    title = f"{results.get('method', 'run')} on {results.get('data', 'unknown data')}"
    return title + (f", seed {results['seed']}" if "seed" in results else "")


def results_table(
    runs: Sequence[Mapping[str, Any]],
    metrics: Sequence[str] | None = None,
    group_by: Sequence[str] = ("method", "data", "protocol"),
) -> str:
    """Write many runs as one Markdown table: mean ± standard deviation over the seeds of each group.

    Args:
        runs: contents of ``results.json``.
        metrics: columns; if not given all that occur, those that runs are judged by first; of saliency runs
            only the best layer and the best combination of each method.
        group_by: top-level keys that tell groups apart; runs that agree in all are averaged. Add a key
            (the labeler, say) where runs of one method differ in more than their seed.

    Returns:
        The table, a row a group in the order of first appearance; with the number of runs, their seeds
        and the mean time of all stages. A cell names its own number of runs where it has fewer.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(str(run.get(key, "")) for key in group_by), []).append(run)
    if metrics is None:
        found = dict.fromkeys(key for run in runs for key in run.get("metrics") or {})
        known = (prefix + key for prefix in ("", *_BASELINES) for key in _HEADLINE)
        first = [key for key in known if key in found]
        first += judged([run.get("metrics") or {} for run in runs])
        metrics = [*first, *(key for key in found if key not in first and not is_saliency_metric(key))]
    head = [*group_by, *metrics, "runs", "seeds", "time"]
    rows = []
    for names, members in groups.items():
        cells = [_metric_cell(key, members) for key in metrics]
        seeds = ", ".join(sorted({str(run["seed"]) for run in members if "seed" in run}, key=_natural))
        times = [sum(stage.get("seconds") or 0.0 for stage in run.get("stages") or []) for run in members]
        rows.append([*names, *cells, str(len(members)), seeds, format_seconds(np.mean(times))])
    return markdown_table(head, rows)


def _metric_cell(key: str, runs: Sequence[Mapping[str, Any]]) -> str:
    values = [run["metrics"][key] for run in runs if key in (run.get("metrics") or {})]
    if not values:
        return ""
    text = mean_std(values) if is_fraction(key) else mean_std(values, scale=1.0, decimals=2)
    return text if len(values) == len(runs) else f"{text} (n={len(values)})"


def _natural(text: str) -> tuple[bool, float, str]:
    """Sort 2 before 10, and numbers before words."""
    return (not text.isdigit(), float(text) if text.isdigit() else 0.0, text)
