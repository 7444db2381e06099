"""Results as tables: one run in the terminal, many runs as Markdown, and what each figure means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.metrics.decathlon import decathlon_score
from scarcely.reports.evidence import Evidence

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_WIDE = 400  # letters, more than any table has
_NAME = 16  # letters of a name that still can be read where the others are on lines below

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
    "mean/accuracy": "mean accuracy",
    "decathlon/score": "decathlon score S",
    "parameters/ratio": "parameters, × one network",
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
        "source_accuracy",
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
    (
        r"domain/.*/source_accuracy",
        "accuracy on the source, by its own classifier, of the network that was trained on this domain",
    ),
    (r"mean/accuracy", "mean of the accuracies of all domains, small ones counting as much as large ones"),
    (
        r"decathlon/score",
        "points of all domains together: 1,000 for one without any error, 250 for half of its E_max, none "
        "from E_max on",
    ),
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
# The same where each domain has parts of its own, by the part that is scored.
_SCORED = {
    "test": "trained on its train and val parts, scored on its test part, which training never saw.",
    "val": "trained on its train part alone, scored on its val part, which the weights were not trained on.",
}


def describe_metric(name: str) -> str:
    """Explain a metric of ``results.json`` in half a sentence; empty for one that is not known."""
    return next((text for pattern, text in _MEANING if re.fullmatch(pattern, name)), "")


def describe_protocol(results: Mapping[str, Any]) -> str:
    """Say in words what a run was trained on and what it was scored on."""
    if results.get("domains"):
        return _domain_protocol(results)
    protocol = results.get("protocol")
    metrics = results.get("metrics") or {}
    discovers = any(key.startswith(("new/", "train/old/")) for key in metrics)
    protocols = _DISCOVERY_PROTOCOLS if discovers else _PROTOCOLS
    if "pseudo/accuracy" in metrics:
        protocols = _SCARCE_PROTOCOLS
    return protocols.get(str(protocol), "" if protocol is None else f"Protocol: {protocol}.")


def _domain_protocol(results: Mapping[str, Any]) -> str:
    rows, source = results["domains"], source_domain(results)
    told = []
    for part, how in _SCORED.items():
        names = [str(row["name"]) for row in rows if row.get("scored") == part]
        if names:
            whose = "Each domain" if len(names) == len(rows) else ", ".join(names)
            told.append(f"{whose}: {how}")
    if source is not None:
        told.append(f"All others start from the network of {source}.")
    return " ".join(told)


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


def source_domain(results: Mapping[str, Any]) -> str | None:
    """Name the domain whose network the others start from; None if none was trained as that in this run.

    It is the first, and what all others are trained by is not what it was trained by.
    """
    rows = results.get("domains") or []
    if not rows:
        return None
    first = str(rows[0]["name"])
    methods = {m for d, m in (_split(stage, rows) for stage in results.get("stages") or []) if d == first}
    return first if methods and str(results.get("method")) not in methods else None


def split_stage(stage: str, domains: Iterable[str]) -> tuple[str, str]:
    """Return the domain of a stage, empty if it is of none, and its method: ``("birds", "finetune")``."""
    domain = max((name for name in domains if stage.startswith(f"{name} ")), key=len, default="")
    # Behind the method may stand what was tried, "decay 0.0005".
    return (domain, stage.removeprefix(f"{domain} ").split(" ")[0]) if domain else ("", stage)


def _split(stage: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    return split_stage(str(stage.get("name", "stage")), [str(row["name"]) for row in rows])


def domain_points(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the points that each domain brings to S; none where E_max is not known (chapter 3, eq. 1)."""
    limits = results.get("max_errors") or {}
    return {
        row["name"]: decathlon_score({"": 1 - row["accuracy"]}, {"": limits[row["name"]]})
        for row in results.get("domains") or []
        if limits.get(row["name"])
    }


def domain_grid(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Arrange what is known of each domain of a run over several.

    The parameters of its own are given as a multiple of one network, where that of the source was trained
    in the same run, or else as their number.

    Returns:
        The head of the table and its rows, a row a domain; columns that would be empty are left out.
    """
    rows, source = results.get("domains") or [], source_domain(results)
    limits = results.get("max_errors") or {}
    one = rows[0].get("parameters") if source is not None else None
    columns: dict[str, list[str]] = {
        "domain": [row["name"] for row in rows],
        "classes": [_count(row.get("classes")) for row in rows],
        "training\nimages": [_count(row.get("train")) for row in rows],
        "accuracy\n%": [_in_percent(row.get("accuracy")) for row in rows],
        "E_max\n%": [_in_percent(limits.get(row["name"])) for row in rows],
        "source\nafter, %": [_in_percent(row.get("source_accuracy")) for row in rows],
        "own\nparameters": [_own(row.get("parameters"), one) for row in rows],
        "time\ns": [_count(row.get("seconds")) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cell != "–" for cell in cells)}
    if "source\nafter, %" in columns and source is not None:
        columns["source\nafter, %"][0] = "source"
    return list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)]


def _count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else "–"


def _in_percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "–"


def _own(parameters: Any, one: Any) -> str:
    if not isinstance(parameters, int) or not one:
        return _count(parameters)
    return f"{parameters / one:.3g}×"


def other_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the metrics that none of the others shows, named and written for people."""
    shown = {*_HEADLINE, *(prefix + key for key in _HEADLINE for prefix in _BASELINES)}
    for part in _PARTS:
        if f"{part}/all/acc_joint" in metrics:
            shown |= {f"{part}/{g}/{c}" for g in ("old", "new", "all") for c in OLD_NEW_COLUMNS}
    if "mean/accuracy" in metrics:
        shown |= {key for key in metrics if re.fullmatch(r"domain/.*/(source_)?accuracy", key)}
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
        # Unwrapped, so that the path can be clicked and copied.
        console.print(Text(f"report: {run.run_dir / 'report.html'}"), soft_wrap=True)


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


class StageRow(NamedTuple):
    """A stage, or all of one method where a run has them on many domains, written for people."""

    name: str
    parts: str  # what it is made of: "7 domains"
    epochs: str  # of each of these
    time: str
    note: str


def stage_rows(results: Mapping[str, Any]) -> list[StageRow]:
    """Describe the stages of a run, in their order; those of one method on several domains as one."""
    groups: dict[tuple[bool, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for stage in results.get("stages") or []:
        domain, method = _split(stage, results.get("domains") or [])
        groups.setdefault((domain != "", method), []).append((domain, stage))
    return [
        row
        for (grouped, method), members in groups.items()
        for row in (
            [_summary(method, members)]
            if grouped and len(members) > 1
            else [_stage_row(stage) for _, stage in members]
        )
    ]


def _stage_row(stage: Mapping[str, Any]) -> StageRow:
    epochs = "" if stage.get("epochs") is None else str(stage["epochs"])
    note = "from the cache" if stage.get("cached") else ""
    return StageRow(str(stage.get("name", "stage")), "", epochs, format_seconds(stage.get("seconds")), note)


def _summary(method: str, members: Sequence[tuple[str, Mapping[str, Any]]]) -> StageRow:
    domains = len({domain for domain, _ in members})
    parts = f"{domains} domain{'' if domains == 1 else 's'}"
    if len(members) > domains:
        parts += f", {len(members)} trainings"
    stages = [stage for _, stage in members]
    epochs = sorted({stage["epochs"] for stage in stages if stage.get("epochs") is not None})
    told = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else "".join(map(str, epochs))
    cached = sum(bool(stage.get("cached")) for stage in stages)
    note = f"{'all' if cached == len(stages) else cached} from the cache" if cached else ""
    time = format_seconds(sum(stage.get("seconds") or 0.0 for stage in stages))
    return StageRow(method, parts, told, time, note)


def stage_sentence(stage: StageRow) -> str:
    """Say how long a stage took: ``rotnet: 30 epochs, 8.3 s (from the cache)``."""
    epochs = stage.epochs and f"{stage.epochs} epoch{'' if stage.epochs == '1' else 's'}"
    epochs += " each" if stage.epochs and stage.parts else ""
    text = f"{stage.name}: " + ", ".join(part for part in (stage.parts, epochs, stage.time) if part)
    return text + (f" ({stage.note})" if stage.note else "")


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
    """Print a table of `cell` texts, names in its first column; too wide, with line breaks, or in parts.

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
    options = console.options.update(max_width=_WIDE)
    longest = max(len(row[0]) for row in rows)
    for narrow, name in ((False, longest), (True, min(longest, _NAME))):
        grid = _grid(title, head, rows, narrow=narrow)
        if console.measure(grid, options=options).maximum - longest + name <= console.width:
            console.print(grid)
            return
    for number, part in enumerate(_parts(head, rows, console.width)):
        chosen = [[cells[i] for i in part] for cells in (head, *rows)]
        console.print(_grid("" if number else title, chosen[0], chosen[1:], narrow=False))


def _parts(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Share out the columns of a table among tables that fit, each with the first column."""
    widths = [max(map(len, cells)) + 3 for cells in zip(head, *rows, strict=True)]
    parts: list[list[int]] = [[0]]
    for column in range(1, len(head)):
        if len(parts[-1]) > 1 and sum(widths[i] for i in (*parts[-1], column)) + 1 > width:
            parts.append([0])
        parts[-1].append(column)
    return parts


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
