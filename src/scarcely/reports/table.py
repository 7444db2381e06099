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
    from rich.table import Table

_WIDE = 400  # letters, more than any table has

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
    "decathlon/score": "decathlon score",
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
    (
        r"kmeans/features/new/.*",
        "the same of k-means on the features that this stage started from, the baseline of the method",
    ),
    (r"kmeans/new/.*", "the same of k-means on the raw inputs of the unlabelled classes"),
    (r"kmeans/.*", "the same of k-means, the baseline"),
    (r"clusters/used", "clusters that any sample is in"),
    (r"confident/(acc|accuracy)", "accuracy of the samples predicted above 0.9 alone"),
    (r"confident/share", "share of the samples predicted above 0.9"),
    (r"test/acc", f"accuracy on the test split, which was not trained on; {_MATCHED}"),
    (r"test/accuracy", "share of the test split that the classifier gets right"),
    (r"1-test/accuracy", "share of the test split that the classifier gets wrong"),
    (
        r"test/ece",
        "how far confidence and accuracy on the test split are apart, the mean over 15 bins of confidence "
        "weighted by their sizes (expected calibration error); 0 is best",
    ),
    (
        r"pseudo/accuracy",
        "share of the unlabelled training samples that the finished network gets right, by their hidden "
        "labels",
    ),
    (r"new/acc", f"accuracy on the unlabelled classes of the train split; {_MATCHED}"),
    (r"new/nmi", "mutual information of clusters and classes on the unlabelled classes; 0 is chance"),
    (r"new/ari", "pairs of unlabelled samples that clusters and classes agree on, corrected for chance"),
    (r"test/old/accuracy", "accuracy on the labelled classes of the test split, without any matching"),
    (r"train/old/accuracy", "accuracy on the labelled classes of the train split, without any matching"),
    (
        r"(train|test)/all/acc",
        "mean over all samples of the accuracies of old and new classes, each matched within their group",
    ),
    (
        r"(train|test)/(old|new)/acc",
        "accuracy on that part of the split, predictions matched within the part alone",
    ),
    (
        r"(train|test)/all/acc_joint",
        "accuracy on old and new classes of the split, one matching for both",
    ),
    (
        r"(train|test)/(old|new)/acc_joint",
        "accuracy on that part of the split under the one matching of all classes, old and new",
    ),
    (r"train/accuracy", "share of the labelled training samples that the classifier gets right"),
    (
        r"pretext/accuracy",
        "accuracy at the pretext's own task, on the augmented images of the epoch taken over",
    ),
    (r"pretext/epoch", "epochs of the pretext after which its weights were taken over"),
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
# The same where new classes are discovered: what was trained on is labelled in part.
_DISCOVERY_PROTOCOLS = {
    "all": (
        "Trained on all samples there are, with the labels of the old classes alone. The headline is of the "
        "unlabelled samples of the new classes, the same that were trained on; their labels serve the score "
        "alone."
    ),
    "split": (
        "Trained on the train split, with the labels of the old classes alone. The headline is of the "
        "unlabelled classes of the train split, whose labels serve the score alone; figures of the test "
        "split are of samples that training never saw."
    ),
}
# The same where few samples of each class keep their labels.
_SCARCE_PROTOCOLS = {
    "all": (
        "Trained on all samples there are, of which few have a label. Figures under train/ are of these few, "
        "those under pseudo/ of the unlabelled ones, whose labels serve the score alone."
    ),
    "split": (
        "Trained on the train split, of which few samples have a label. Figures under train/ are of these "
        "few, those under pseudo/ of the unlabelled ones, whose labels serve the score alone, and those "
        "under test/ of the test split, which training never saw."
    ),
}


def describe_metric(name: str) -> str:
    """Explain a metric of ``results.json`` in half a sentence; empty for one that is not known."""
    return next((text for pattern, text in _MEANING if re.fullmatch(pattern, name)), "")


def describe_protocol(results: Mapping[str, Any]) -> str:
    """Say in words what a run was trained on and what it was scored on."""
    protocol = results.get("protocol")
    metrics = results.get("metrics") or {}
    discovers = any(key.startswith(("new/", "train/old/")) for key in metrics)
    protocols = _DISCOVERY_PROTOCOLS if discovers else _PROTOCOLS
    if "pseudo/accuracy" in metrics:
        protocols = _SCARCE_PROTOCOLS
    return protocols.get(str(protocol), "" if protocol is None else f"Protocol: {protocol}.")


def is_fraction(name: str) -> bool:
    """Return whether a metric, or 1 less it, lies between 0 and 1 and is written as percent."""
    return name.removeprefix("1-").split("/")[-1] in _FRACTIONS


def format_metric(name: str, value: Any) -> str:
    """Write a metric for people: fractions as percent with one decimal, scores as they are."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return "n/a"
    if is_fraction(name):
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
    baselines: dict[str, str]  # the same figure of k-means, by what it was run on


def headline_metrics(metrics: Mapping[str, Any]) -> list[Headline]:
    """Pick the figures that a run is judged by, with those of k-means beside each."""
    rows = []
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
    """Return the metrics that neither of the other two shows, named and written for people."""
    shown = {*_HEADLINE, *(prefix + key for key in _HEADLINE for prefix in _BASELINES)}
    for part in _PARTS:
        if f"{part}/all/acc_joint" in metrics:
            shown |= {f"{part}/{g}/{c}" for g in ("old", "new", "all") for c in OLD_NEW_COLUMNS}
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
        known = (prefix + key for prefix in ("", *_BASELINES) for key in _HEADLINE)
        first = [key for key in known if key in found]
        metrics = [*first, *(key for key in found if key not in first)]
    head = [*group_by, *metrics, "runs", "seeds", "time"]
    rows = []
    for names, members in groups.items():
        cells = [_metric_cell(key, members) for key in metrics]
        seeds = ", ".join(sorted({str(run["seed"]) for run in members if "seed" in run}, key=_natural))
        times = [sum(stage.get("seconds") or 0.0 for stage in run.get("stages") or []) for run in members]
        rows.append([*names, *cells, str(len(members)), seeds, format_seconds(np.mean(times))])
    return markdown_table(head, rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table as Markdown."""
    lines = [_markdown_row(head), "|" + " --- |" * len(head), *map(_markdown_row, rows)]
    return "\n".join(lines) + "\n"


def _metric_cell(key: str, runs: Sequence[Mapping[str, Any]]) -> str:
    values = [run["metrics"][key] for run in runs if key in (run.get("metrics") or {})]
    if not values:
        return ""
    text = mean_std(values) if is_fraction(key) else mean_std(values, scale=1.0, decimals=2)
    return text if len(values) == len(runs) else f"{text} (n={len(values)})"


def _natural(text: str) -> tuple[bool, float, str]:
    """Sort 2 before 10, and numbers before words."""
    return (not text.isdigit(), float(text) if text.isdigit() else 0.0, text)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def cell(values: Sequence[float]) -> str:
    """Write fractions as a mean ± standard deviation in percent, and how many runs they are of."""
    return f"{mean_std(values)} ({len(values)} run{'' if len(values) == 1 else 's'})"


def print_grid(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None
) -> None:
    """Print a table of `cell` texts, names in its first column; where it is too wide, with line breaks.

    Args:
        title: above it.
        head: name of each column.
        rows: texts, as many as the head has.
        console: where to; standard output if not given, at any width where that is no terminal.
    """
    from rich.console import Console

    if console is None:
        console = Console()
        console = console if console.is_terminal else Console(width=_WIDE)
    grid = _grid(title, head, rows, narrow=False)
    if console.measure(grid, options=console.options.update(max_width=_WIDE)).maximum > console.width:
        grid = _grid(title, head, rows, narrow=True)
    console.print(grid)


def _grid(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, narrow: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(title, style="bold"), title_justify="left")
    grid.add_column(head[0], overflow="fold")
    for name in head[1:]:
        grid.add_column(name, justify="right")
    for name, *cells in rows:
        if narrow:  # a line break where it is read best
            cells = [text.replace(" (", "\n(").replace("± ", "±") for text in cells]
        grid.add_row(Text(name), *cells)
    return grid
