"""Finished runs of every shape, made from real digits and seeded noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scarcely.reports import Evidence


def history(epochs: int = 6) -> list[dict[str, Any]]:
    """A pretext and a clustering stage, scores on every other epoch."""
    rows: list[dict[str, Any]] = [
        {"stage": "rotnet", "epoch": e, "loss": 1.4 / (e + 1), "lr": 0.1, "rotation/accuracy": 0.5}
        for e in range(3)
    ]
    for e in range(epochs):
        row = {"stage": "clustering", "epoch": e, "loss": 0.9 - 0.1 * e, "loss/consistency": 0.01, "lr": 0.1}
        row |= {"rampup": e / epochs, "pairs/positive": 0.1, "pairs/precision": 0.9}
        rows.append(row | ({"acc": 0.5 + 0.05 * e, "nmi": 0.4, "ari": 0.3} if e % 2 == 0 else {}))
    return rows


def results(**changes: Any) -> dict[str, Any]:
    return {
        "method": "lsdc",
        "data": "digits",
        "seed": 0,
        "protocol": "all",
        "command": "python train.py method=lsdc data=digits seed=0",
        "stages": [
            {"name": "rotnet", "seconds": 8.31, "epochs": 3, "cached": True},
            {"name": "clustering", "seconds": 71.9, "epochs": 6, "cached": False},
        ],
        "metrics": {"acc": 0.934, "nmi": 0.899, "ari": 0.871, "kmeans/acc": 0.791, "kmeans/nmi": 0.74},
        "environment": {"torch": "2.15", "device": "two cores"},
    } | changes


def digits_run(folder: Path, number: int = 100, **changes: Any) -> Evidence:
    """A clustering of real digits that gets most of them right, with renamed clusters."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(0)
    labels = data.target[:number]
    wrong = rng.random(number) < 0.15
    predicted = np.where(wrong, rng.integers(0, 10, number), rng.permutation(10)[labels])
    fields: dict[str, Any] = {
        "run_dir": folder,
        "config": {"seed": 0, "method": {"labeler": {"k": 20}}, "lr": 1e-4},
        "results": results(),
        "history": history(),
        "kind": "clustering",
        "predicted": predicted,
        "confidence": np.where(wrong, 0.6, rng.uniform(0.8, 1.0, number)),
        "labels": labels,
        "classes": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        "num_clusters": 10,
        "images": (data.images[:number, :, :, None] * 15).astype(np.uint8),
        "features": data.data[:number].astype(np.float32),
    }
    return Evidence(**(fields | changes))


def random_run(folder: Path, number: int, classes: int, clusters: int, /, **changes: Any) -> Evidence:
    """A run of any size on noise; labels and predictions have nothing to do with each other."""
    rng = np.random.default_rng(classes * 1000 + clusters)
    fields: dict[str, Any] = {
        "run_dir": folder,
        "config": {},
        "results": results(),
        "history": [],
        "kind": "clustering",
        "predicted": rng.integers(0, clusters, number),
        "confidence": rng.random(number),
        "labels": rng.integers(0, classes, number),
        "classes": tuple(f"class {c}" for c in range(classes)),
        "num_clusters": clusters,
        "images": rng.integers(0, 256, (number, 12, 12, 3), dtype=np.uint8),
        "features": rng.normal(size=(number, 2)).astype(np.float32),  # drawn as they are: no t-SNE
    }
    return Evidence(**(fields | changes))


def discovery_run(folder: Path, /, **changes: Any) -> Evidence:
    """A run that knows the even digits and has discovered the odd ones, all but a few samples."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(0)
    new, old = (np.flatnonzero(data.target % 2 == odd)[:120] for odd in (1, 0))
    labels = data.target[new] // 2
    clusters = rng.permutation(5)[labels]
    predicted = np.where(rng.random(120) < 0.1, rng.integers(0, 5, 120), clusters)
    features = data.data.astype(np.float32)
    pulled = (
        20 * np.eye(5, 64, dtype=np.float32)[labels]
    )  # training moves each class in a direction of its own
    fields: dict[str, Any] = {
        "run_dir": folder,
        "config": {},
        "results": results(method="ranking_statistics", protocol="split", metrics=DISCOVERED),
        "history": history(),
        "kind": "clustering",
        "predicted": predicted,
        "confidence": rng.uniform(0.3, 1.0, 120),
        "labels": labels,
        "classes": ("one", "three", "five", "seven", "nine"),
        "num_clusters": 5,
        "images": (data.images[new, :, :, None] * 15).astype(np.uint8),
        "features": features[new],
        "old_classes": ("zero", "two", "four", "six", "eight"),
        "old_features": features[old],
        "old_labels": data.target[old] // 2,
        "test": {
            "counts": np.roll(np.eye(10, dtype=int) * 9, 1, axis=0) + np.eye(10, dtype=int),
            "classes": ("zero", "two", "four", "six", "eight", "one", "three", "five", "seven", "nine"),
        },
        "snapshots": {
            "epochs": np.array([0, 3, 6]),
            "features": np.stack([features[new][:60] + share * pulled[:60] for share in (0, 1, 2)]),
            "index": np.arange(60),
        },
    }
    return Evidence(**(fields | changes))


def scarce_run(folder: Path, /, **changes: Any) -> Evidence:
    """A run of alternating optimisation: a classifier of the digits whose labels were hidden."""
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.1, 1.0, 200)
    fields: dict[str, Any] = {
        "kind": "classification",
        "config": {"data": {"labels_per_class": 5}},
        "results": results(method="alternating_ssl", protocol="split", metrics=SCARCE),
        "history": cycles(),
        "test_confidence": confidence,
        "test_correct": rng.random(200) < confidence,
        "switched_in": rng.choice([0, 1, 2], 100, p=[0.7, 0.2, 0.1]),
        "features": None,
    }
    run = digits_run(folder, **(fields | changes))
    if run.labels is not None:  # by name, not by cluster
        run.predicted = np.where(rng.random(100) < 0.9, run.labels, run.predicted)
    return run


def cycles(number: int = 3, length: int = 2) -> list[dict[str, Any]]:
    """The rows of alternating optimisation, with scores in the first and the last epoch of each cycle."""
    rows: list[dict[str, Any]] = []
    for epoch in range(number * length):
        cycle, within = divmod(epoch, length)
        better = 0.3 * cycle / number
        row: dict[str, Any] = {"stage": "alternating", "epoch": epoch, "loss": 1.0, "cycle": float(cycle)}
        if within == 0:
            row |= {"phase_one/accuracy": 0.6 + better, "phase_one/labelled_accuracy": 1.0}
            row |= {"pseudo/labels_accuracy": 0.5 + better}
            row |= {"pseudo/switched": 0.3 / cycle} if cycle else {}
        if within == length - 1:
            row["phase_two/accuracy"] = 0.65 + better
        rows.append(row)
    return rows


# What a run with few labels writes into results.json.
SCARCE = {"train/accuracy": 1.0, "pseudo/accuracy": 0.912, "test/accuracy": 0.905, "test/ece": 0.0529}
# What a discovery run writes into results.json: every name of its metrics.
DISCOVERED = {
    "clusters/used": 5.0,
    "new/acc": 0.906,
    "new/nmi": 0.779,
    "new/ari": 0.785,
    "confident/share": 0.4,
    "confident/acc": 0.98,
    **{f"kmeans/new/{score}": 0.681 for score in ("acc", "nmi", "ari")},
    **{f"kmeans/features/new/{score}": 0.651 for score in ("acc", "nmi", "ari")},
    **{f"train/{group}/acc": 0.95 for group in ("old", "new", "all")},
    **{f"train/{group}/acc_joint": 0.94 for group in ("old", "new", "all")},
    "train/old/accuracy": 1.0,
    **{"test/old/acc": 0.965, "test/new/acc": 0.914, "test/all/acc": 0.939},
    **{"test/old/acc_joint": 0.961, "test/new/acc_joint": 0.911, "test/all/acc_joint": 0.936},
    "test/old/accuracy": 0.953,
}
