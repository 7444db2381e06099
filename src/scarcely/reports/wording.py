"""What the figures of a run mean in words, and how numbers are written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from scarcely.reports.domain_rows import source_domain
from scarcely.reports.saliency_scores import is_saliency

_FRACTIONS = frozenset(
    {
        "acc",
        "nmi",
        "ari",
        "accuracy",
        "source_accuracy",
        "source_accuracy_before",
        "predicted_accuracy",
        "acc_joint",
        "all",
        "difficult",
        "all_stderr",
        "difficult_stderr",
        "pointing",
        "map",
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
    (
        r"(train|test)/map",
        "mean over the classes of the average precision with which images are ranked by the probability of "
        "the class",
    ),
    (r"(train|test)/ap/.*", "average precision with which images are ranked by the probability of the class"),
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
    (
        r"domain/.*/predicted_accuracy",
        "the same where the domain of an image is predicted too; under a wrong one it is an error",
    ),
    (
        r"mean/predicted_accuracy",
        "mean of the accuracies of all domains where the domain of an image is predicted too",
    ),
    (
        r"decathlon/score_predicted",
        "points of all domains together where the domain of an image is predicted too",
    ),
    (r"domain_prediction/accuracy", "share of the test images of all domains whose domain is predicted"),
    (
        r"round_robin/source_accuracy_before",
        "accuracy on the source before all domains were trained in turn",
    ),
    (
        r"round_robin/source_accuracy",
        "accuracy on the source after all domains were trained in turn, which moves the convolutions that "
        "they share",
    ),
    (
        r"pointing/center/.*",
        "the same where the centre of every image is pointed at, whatever it shows: the baseline",
    ),
    (
        r"pointing/(skipped|left_out|pairs|pairs_difficult)",
        "image and class pairs of the pointing game",
    ),
    (
        r"pointing/.*_stderr",
        "standard error of the share of objects that the brightest point of the map falls on",
    ),
    (r"pointing/.*", "share of objects that the brightest point of the map falls on (pointing game)"),
    (r"sensitivity/.*/undefined", "maps of which one is constant, so that they have no correlation"),
    (
        r"sensitivity/.*",
        "rank correlation between the maps of the likeliest and the least likely class; 0 is best, where "
        "both are alike the map says little of the class",
    ),
    (r"meta/.*", "rank correlation between the maps with and without meta-saliency"),
    (
        r"randomization/.*",
        "rank correlation between the map and that of a network whose weights are all random; a map that "
        "shows what was learned is near 0",
    ),
    (
        r"identity/.*/pointing",
        "pointing game of the virtual identity less that of the real convolution",
    ),
    (r"identity/.*", "rank correlation between the maps of the virtual identity and the real convolution"),
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
# The same where maps of a trained network are judged.
_SALIENCY_PROTOCOLS = {
    "all": "Nothing was trained: the maps are of a network that was, on all images there are.",
    "split": (
        "Nothing was trained: the maps are of a network that was, on images of the test part; layers were "
        "weighted on images of the train part."
    ),
}
# The same where that network was trained by the run itself.
_TRAINED_FIRST_PROTOCOLS = {
    "all": "The maps are of a classifier that was trained first, on all images there are: the same images.",
    "split": (
        "The maps are of a classifier that was trained first, on the train part, on whose images layers were "
        "weighted too; all figures are of images of the test part."
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
    if is_saliency(metrics):
        trained = len(results.get("stages") or []) > 1
        protocols = _TRAINED_FIRST_PROTOCOLS if trained else _SALIENCY_PROTOCOLS
    return protocols.get(str(protocol), "" if protocol is None else f"Protocol: {protocol}.")


def _domain_protocol(results: Mapping[str, Any]) -> str:
    rows, source = results["domains"], source_domain(results)
    told = []
    for part, how in _SCORED.items():
        names = [str(row["name"]) for row in rows if row.get("scored") == part]
        if names:
            whose = "Each domain" if len(names) == len(rows) else ", ".join(names)
            told.append(f"{whose}: {how}")
    chosen = [str(r["name"]) for r in rows if r.get("scored") and r.get("decay_chosen_on") == r["scored"]]
    if chosen:
        told.append(
            f"The weight decay of {', '.join(chosen)} was chosen on these images: accuracies are too high."
        )
    if source is not None:
        told.append(f"All others start from the network of {source}.")
    return " ".join(told)


def is_fraction(name: str) -> bool:
    """Return whether a metric, or 1 less it, lies between 0 and 1 and is written as percent."""
    return name.removeprefix("1-").split("/")[-1] in _FRACTIONS or "/ap/" in name


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
