"""Results as tables: one run in the terminal, many runs as Markdown, and what each figure means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports.evidence import Evidence

if TYPE_CHECKING:
    from rich.console import Console

# What a run is judged by, and how it is called.
_HEADLINE = {
    "acc": "ACC",
    "nmi": "NMI",
    "ari": "ARI",
    "test/acc": "ACC, test split",
    "new/acc": "ACC, new classes",
    "test/accuracy": "accuracy, test split",
    "decathlon/score": "decathlon score",
}
_FRACTIONS = frozenset(
    {
        "acc",
        "nmi",
        "ari",
        "accuracy",
        "acc_joint",
        "all",
        "difficult",
        "precision",
        "recall",
        "positive",
        "share",
    }
)
_MATCHED = "each cluster stands for one class, matched so that most samples agree (Hungarian algorithm)"
# The first pattern that fits a metric's name explains it.
_MEANING: tuple[tuple[str, str], ...] = (
    (r"acc", f"share of samples in the cluster of their class; {_MATCHED}"),
    (
        r"nmi",
        "mutual information of clusters and classes, divided by the mean of their entropies; 0 is chance",
    ),
    (
        r"ari",
        "pairs of samples that clusters and classes agree on, corrected for chance (adjusted Rand index)",
    ),
    (r"kmeans/.*", "the same of k-means, the baseline"),
    (r"confident/(acc|accuracy)", "accuracy of the samples predicted above 0.9 alone"),
    (r"confident/share", "share of the samples predicted above 0.9"),
    (r"test/acc", f"accuracy on the test split, which was not trained on; {_MATCHED}"),
    (r"test/accuracy", "share of the test split that the classifier gets right"),
    (r"pseudo/accuracy", "share of the pseudo-labels that are right"),
    (r"new/acc", f"accuracy on the unlabelled classes of the train split; {_MATCHED}"),
    (r"test/old/accuracy", "accuracy on the labelled classes of the test split, without any matching"),
    (r"test/(old|new|all)/acc", "accuracy on that part of the test split, clusters matched within the part"),
    (r"test/all/acc_joint", "accuracy on old and new classes of the test split, one matching for both"),
    (r"domain/.*/accuracy", "share of this domain's test images that are classified right"),
    (r"decathlon/score", "the decathlon's score over all domains; 10,000 would be no error at all"),
    (r"parameters/ratio", "parameters of all domains together against one network, heads left out"),
    (r"pointing/.*", "share of objects that the brightest point of the map falls on (pointing game)"),
    (
        r"sensitivity/.*",
        "rank correlation between the maps of the likeliest and the least likely class; lower is better",
    ),
)
_PROTOCOLS = {
    "all": (
        "Trained on all samples there are and scored on the same samples after the last epoch; a method "
        "without supervision saw no label, they serve the score alone."
    ),
    "split": (
        "Trained on the train split alone. Figures without a prefix are of that split, those under test/ of "
        "the test split, which training never saw."
    ),
}


def describe_metric(name: str) -> str:
    """Explain a metric of ``results.json`` in half a sentence; empty for one that is not known."""
    return next((text for pattern, text in _MEANING if re.fullmatch(pattern, name)), "")


def describe_protocol(results: Mapping[str, Any]) -> str:
    """Say in words what a run was trained on and what it was scored on."""
    protocol = results.get("protocol")
    return _PROTOCOLS.get(str(protocol), "" if protocol is None else f"Protocol: {protocol}.")


def format_metric(name: str, value: Any) -> str:
    """Write a metric for people: fractions as percent with one decimal, scores as they are."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return "n/a"
    if name.split("/")[-1] in _FRACTIONS:
        return f"{100 * value:.1f} %"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
    )


def format_seconds(seconds: Any) -> str:
    """Write a duration: ``8.3 s``, ``4 min 10 s``, ``2 h 05 min``."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "n/a"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Headline(NamedTuple):
    """One figure that a run is judged by, written for people."""

    key: str
    name: str
    value: str
    baseline: str  # of k-means on raw inputs; empty where it was not run


def headline_metrics(metrics: Mapping[str, Any]) -> list[Headline]:
    """Pick the figures that a run is judged by, with that of k-means on raw inputs beside each."""
    rows = []
    for key, name in _HEADLINE.items():
        baseline = f"kmeans/{key}"
        if key in metrics or baseline in metrics:
            known = format_metric(key, metrics[baseline]) if baseline in metrics else ""
            rows.append(Headline(key, name, format_metric(key, metrics.get(key)), known))
    return rows


def other_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the metrics that are not in `headline_metrics`, named and written for people."""
    shown = {*_HEADLINE, *(f"kmeans/{key}" for key in _HEADLINE)}
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
    if headline:
        table = Table(title=title, title_justify="left")
        has_baseline = any(row.baseline for row in headline)
        table.add_column("")
        table.add_column("this run", justify="right", style="bold")
        if has_baseline:
            table.add_column("k-means on raw inputs", justify="right")
        for row in headline:
            table.add_row(row.name, row.value, *([row.baseline or "–"] if has_baseline else []))
        console.print(table)
    else:
        console.print(title)

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for key, value in other_metrics(metrics):
        facts.add_row(Text(key), value)
    if isinstance(run, Evidence) and (sizes := size_sentence(run)):
        facts.add_row("sizes", sizes)
    if protocol := describe_protocol(results):
        facts.add_row("scored", Text(protocol))
    for stage in results.get("stages") or []:
        facts.add_row("stage", Text(stage_sentence(stage)))
    console.print(facts)
    if isinstance(run, Evidence):
        # Unwrapped, so that the path can be clicked and copied.
        console.print(Text(f"report: {run.run_dir / 'report.html'}"), soft_wrap=True)


def run_title(results: Mapping[str, Any]) -> str:
    """Name a run: ``lsdc on digits, seed 0``."""
    title = f"{results.get('method', 'run')} on {results.get('data', 'unknown data')}"
    return title + (f", seed {results['seed']}" if "seed" in results else "")


def stage_sentence(stage: Mapping[str, Any]) -> str:
    """Say how long a stage took: ``rotnet: 30 epochs, 8.3 s (from the cache)``."""
    epochs = stage.get("epochs")
    count = "" if epochs is None else f"{epochs} epoch{'' if epochs == 1 else 's'}, "
    text = f"{stage.get('name', 'stage')}: {count}{format_seconds(stage.get('seconds'))}"
    return text + (" (from the cache)" if stage.get("cached") else "")


def mean_std(values: Iterable[float], scale: float = 100.0, decimals: int = 1) -> str:
    """Write mean ± standard deviation over runs: ``81.7 ± 0.9``.

    The deviation is that of a sample (n − 1), so one run has none: ``81.7``.

    Args:
        values: one figure a run. One that is not finite makes the whole ``n/a``: leaving a failed run
            out would flatter the method.
        scale: 100 writes fractions as percent.
        decimals: digits after the point.
    """
    array = np.array([float("nan") if value is None else value for value in values], dtype=float) * scale
    if not len(array) or not np.isfinite(array).all():
        return "n/a"
    mean = f"{array.mean():.{decimals}f}"
    return mean if len(array) == 1 else f"{mean} ± {array.std(ddof=1):.{decimals}f}"


def results_table(
    runs: Sequence[Mapping[str, Any]],
    metrics: Sequence[str] | None = None,
    group_by: Sequence[str] = ("method", "data", "protocol"),
) -> str:
    """Write many runs as one Markdown table: mean ± standard deviation over the seeds of each group.

    Args:
        runs: contents of ``results.json``.
        metrics: columns; ACC, NMI, ARI, k-means and the test figures that occur if not given.
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
        first = [key for key in (*_HEADLINE, *(f"kmeans/{key}" for key in _HEADLINE)) if key in found]
        metrics = [*first, *(key for key in found if key not in first)]
    head = [*group_by, *metrics, "runs", "seeds", "time"]
    lines = [_markdown_row(head), "|" + " --- |" * len(head)]
    for names, members in groups.items():
        cells = [_metric_cell(key, members) for key in metrics]
        seeds = ", ".join(sorted({str(run["seed"]) for run in members if "seed" in run}, key=_natural))
        times = [sum(stage.get("seconds") or 0.0 for stage in run.get("stages") or []) for run in members]
        lines.append(
            _markdown_row([*names, *cells, str(len(members)), seeds, format_seconds(np.mean(times))])
        )
    return "\n".join(lines) + "\n"


def _metric_cell(key: str, runs: Sequence[Mapping[str, Any]]) -> str:
    values = [run["metrics"][key] for run in runs if key in (run.get("metrics") or {})]
    if not values:
        return ""
    fraction = key.split("/")[-1] in _FRACTIONS
    text = mean_std(values) if fraction else mean_std(values, scale=1.0, decimals=2)
    return text if len(values) == len(runs) else f"{text} (n={len(values)})"


def _natural(text: str) -> tuple[bool, float, str]:
    """Sort 2 before 10, and numbers before words."""
    return (not text.isdigit(), float(text) if text.isdigit() else 0.0, text)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
