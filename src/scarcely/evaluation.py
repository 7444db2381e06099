"""Score a finished method: what is written to results.json and predictions.npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scarcely.data.module import DataModule
from scarcely.data.objects import ObjectImages
from scarcely.methods.base import Method, Predictions
from scarcely.methods.kmeans import fit_kmeans
from scarcely.metrics import ClusterAccuracy
from scarcely.metrics.precision import AveragePrecision
from scarcely.saliency.montage import cluster_maps
from scarcely.seeds import derive_seed

_KINDS = {"discovery": "clustering"}  # what the report makes of a task
CONFIDENT = 0.9  # the paper looks at the samples predicted above this
EXPLAINED = 9  # samples a cluster that get a saliency map: as many as the montage shows as most confident
EXPLAINED_CLUSTERS, EXPLAINED_PIXELS = 100, 64  # the largest clusters; longer side of a map


@dataclass
class Outcome:
    """Scores and predictions of a run.

    Attributes:
        metrics: flat map of names to numbers.
        arrays: what predictions.npz holds.
        shown: role of the samples that the arrays speak of.
        classifier: weights of a linear classifier of known and new classes, where one was needed.
    """

    metrics: dict[str, float]
    arrays: dict[str, Any]
    shown: Any = "train"
    classifier: dict[str, Tensor] | None = None


def evaluate(
    method: Method, data: DataModule, config: dict[str, Any], device: torch.device, num_clusters: int
) -> Outcome:
    """Score the last stage on what it was trained on, and on the test part under ``protocol=split``."""
    protocol, task = config["protocol"], config["method"]["task"]
    batch_size = 2 * config["method"].get("batch_size", 256)
    method.to(device)

    def predict(role: Any) -> Predictions:
        return method.predict_all(
            data.evaluation_loader(role, protocol, batch_size=batch_size, device=device, true_labels=True)
        )

    role = config["method"].get("role", "train")
    divided = role in ("labelled", "mixed", "unlabelled")
    scarce = task == "classification" and divided and has_unlabelled(data)
    if scarce:
        role = "unlabelled"
    classes = data.classes
    if role == "labelled":  # samples of the known classes alone
        classes = classes[: data.num_known]
        num_clusters = min(num_clusters, max(1, len(classes)))
    trained_on = predict(role)
    arrays = clustering_arrays(trained_on, classes, num_clusters, config)
    metrics: dict[str, float] = {}
    if task in ("pretext", "count"):
        metrics |= method.final_metrics(
            data.evaluation_loader(role, protocol, batch_size=batch_size, device=device)
        )
    elif task == "clustering":
        metrics |= clustering_scores(trained_on, num_clusters, data.num_classes)
        arrays |= montage_arrays(method, data, role, config, arrays, device)
        if config["compare_kmeans"] and data.num_classes:
            metrics |= {f"kmeans/{k}": v for k, v in raw_kmeans(data, config, num_clusters).items()}
        if protocol == "split":
            of_test = clustering_scores(predict("test"), num_clusters, data.num_classes)
            metrics |= {f"test/{k}": v for k, v in of_test.items()}
    elif task == "multilabel":
        assert isinstance(data, ObjectImages)
        for name in ("predicted", "confidence"):  # of one class an image
            del arrays[name]
        for part in ("train", "test") if protocol == "split" else ("train",):
            found = trained_on if part == "train" else predict("test")
            assert found.probabilities is not None
            targets = data.targets(role if part == "train" else "test", protocol)
            metrics |= {f"{part}/{k}": v for k, v in precision_scores(found, targets, classes).items()}
            arrays |= {
                f"{part}_targets": targets.numpy(),
                f"{part}_probabilities": found.probabilities.numpy(),
            }
    else:
        metrics |= {"train/accuracy": accuracy(predict("labelled") if scarce else trained_on)}
        if scarce:
            metrics |= {"pseudo/accuracy": accuracy(trained_on)}
        if protocol == "split":
            test = predict("test")
            metrics |= {"test/accuracy": accuracy(test), "test/ece": calibration_error(test)}
            arrays |= calibration_arrays(test)
    # NaN is no JSON: a score that cannot be had (no labels) is left out
    return Outcome({k: float(v) for k, v in metrics.items() if v == v}, arrays, shown=role)


def precision_scores(predictions: Predictions, targets: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Return the average precision of each class, ``ap/CLASS``, and ``map``, the mean over those that occur.

    Args:
        predictions: with the probability of each class.
        targets: (N, C) of the same samples, in the order of their pool; -1 does not count.
        classes: C names.
    """
    assert predictions.probabilities is not None
    metric = AveragePrecision()
    metric.update(predictions.probabilities, targets[predictions.index])
    precisions = metric.compute().reshape(-1)
    named = {f"ap/{name}": float(value) for name, value in zip(classes, precisions, strict=True)}
    return {"map": float(precisions.nanmean()), **named}


def classifier_score(
    method: Method, data: ObjectImages, settings: Mapping[str, Any], device: torch.device
) -> dict[str, float]:
    """Return the score of a classifier on the test part: ``test/map`` where an image has several labels.

    Args:
        method: the classifier, on the device.
        data: with a test part.
        settings: of the method.
        device: where it is.

    Returns:
        ``test/map``, or ``test/accuracy`` of a method that knows one class an image.
    """
    size = 2 * int(settings["batch_size"])
    found = method.predict_all(data.evaluation_loader("test", "split", batch_size=size, device=device))
    if settings["task"] != "multilabel":
        return {"test/accuracy": accuracy(found)}
    return {"test/map": precision_scores(found, data.targets("test", "split"), data.classes)["map"]}


def has_unlabelled(data: DataModule) -> bool:
    """Whether some training samples have a label that may be seen, and others have none."""
    hidden = data.scarce and bool((data.parts["train"].labels < 0).any())
    return hidden or ("unlabelled" in data.parts and not data.num_new)


def calibration_error(predictions: Predictions) -> float:
    """Return the expected calibration error of labelled samples, 15 bins of confidence; NaN without any."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    assert predictions.probabilities is not None
    known = _judged(predictions)
    if not bool(known.any()) or predictions.probabilities.shape[1] < 2:
        return float("nan")
    scores, labels = predictions.probabilities[known], predictions.labels[known]
    return float(multiclass_calibration_error(scores, labels, num_classes=max(2, scores.shape[1]), n_bins=15))


def calibration_arrays(predictions: Predictions) -> dict[str, Any]:
    """Return confidence and correctness of the labelled samples, for a reliability diagram."""
    assert predictions.probabilities is not None
    known = _judged(predictions)
    confidence, predicted = predictions.probabilities[known].max(dim=1)
    return {
        "test_confidence": confidence.numpy(),
        "test_correct": (predicted == predictions.labels[known]).numpy(),
    }


def clustering_scores(predictions: Predictions, num_clusters: int, num_classes: int) -> dict[str, float]:
    """Return ACC, NMI and ARI of the predicted clusters, those of confident samples, and sizes."""
    assert predictions.probabilities is not None
    confidence, clusters = predictions.probabilities.max(dim=1)
    sizes = torch.bincount(clusters, minlength=num_clusters)
    scores = {"clusters/used": float((sizes > 0).sum())}
    if num_classes and bool((predictions.labels >= 0).any()):
        metric = ClusterAccuracy(num_clusters, num_classes)
        metric.update(clusters, predictions.labels)
        scores |= {k: float(v) for k, v in metric.compute().items()}
        sure = confidence > CONFIDENT
        scores["confident/share"] = float(sure.float().mean())
        if bool((sure & (predictions.labels >= 0)).any()):
            confident = ClusterAccuracy(num_clusters, num_classes)
            confident.update(clusters[sure], predictions.labels[sure])
            scores["confident/acc"] = float(confident.compute()["acc"])
    return scores


def accuracy(predictions: Predictions) -> float:
    """Return the share of samples of the classifier's classes that it gets right; NaN without any."""
    assert predictions.probabilities is not None
    known = _judged(predictions)
    hits = predictions.probabilities.argmax(dim=1) == predictions.labels
    return float(hits[known].float().mean())


def _judged(predictions: Predictions) -> Tensor:
    """Return which samples have a label of a class that the classifier knows, (N,) bool."""
    assert predictions.probabilities is not None
    return (predictions.labels >= 0) & (predictions.labels < predictions.probabilities.shape[1])


def raw_kmeans(data: DataModule, config: dict[str, Any], num_clusters: int) -> dict[str, float]:
    """Return ACC, NMI and ARI of k-means on the raw inputs of the training samples."""
    samples = data.pool(config["method"].get("role", "train"), config["protocol"])
    inputs = samples.inputs.flatten(1)
    features = inputs if inputs.dtype == torch.float32 else inputs.float() / 255
    return kmeans_scores(features, samples.labels, num_clusters, data.num_classes, config["seed"])


def kmeans_scores(
    features: Tensor, labels: Tensor, num_clusters: int, num_classes: int, seed: int
) -> dict[str, float]:
    """Return ACC, NMI and ARI of k-means on features (N, D), by labels (N,), -1 where unknown."""
    centroids = torch.from_numpy(
        fit_kmeans(features.numpy(), num_clusters, seed=derive_seed(seed, "raw kmeans"), restarts=10)
    )
    nearest = torch.cat([torch.cdist(rows, centroids).argmin(dim=1) for rows in features.split(8192)])
    metric = ClusterAccuracy(num_clusters, num_classes)
    metric.update(nearest, labels)
    return {k: float(v) for k, v in metric.compute().items()}


def clustering_arrays(
    predictions: Predictions, classes: Sequence[str], num_clusters: int, config: dict[str, Any]
) -> dict[str, Any]:
    """Return what predictions.npz holds of a set of samples, with the features of some of them."""
    rng = np.random.default_rng(derive_seed(config["seed"], "embedding"))
    count = len(predictions.index)
    shown = np.sort(rng.permutation(count)[: config["embedding_size"]])
    arrays: dict[str, Any] = {
        "labels": predictions.labels.numpy(),
        "classes": np.array(classes, dtype=np.str_),
        "num_clusters": np.array(num_clusters),
        "features": predictions.features[torch.from_numpy(shown)].numpy(),
        "feature_index": shown,
        "kind": np.array(_KINDS.get(config["method"]["task"], config["method"]["task"])),
    }
    if predictions.probabilities is not None:
        confidence, predicted = predictions.probabilities.max(dim=1)
        arrays |= {"predicted": predicted.numpy(), "confidence": confidence.numpy()}
    return arrays


def montage_arrays(
    method: Method,
    data: DataModule,
    role: Any,
    config: dict[str, Any],
    arrays: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Return saliency maps of the predicted cluster for the samples that it holds most confidently.

    Args:
        method: the finished last stage.
        data: the data, set up.
        role: of the samples that the arrays speak of.
        config: of the run.
        arrays: ``predicted`` and ``confidence``, (N,) each, in the order of the pool.
        device: where to compute.

    Returns:
        ``montage_index`` (M,) int64 into the samples, at most nine a cluster, and ``montage_maps`` (M, h, w)
        float16 in [0, 1]; nothing for vectors, and for networks without spatial positions.
    """
    samples = data.pool(role, config["protocol"])
    if samples.kind != "images":
        return {}
    index = most_confident(arrays["predicted"], arrays["confidence"])
    height, width = samples.inputs.shape[1:3]
    shrunk = min(1.0, EXPLAINED_PIXELS / max(height, width))
    size = round(height * shrunk), round(width * shrunk)
    method.to(device).eval()
    maps = []
    for rows in torch.from_numpy(index).split(64):
        images = data.augmentation.clean(samples.inputs[rows].to(device))
        clusters = torch.from_numpy(arrays["predicted"])[rows]
        seen = round(images.shape[2] * shrunk), round(images.shape[3] * shrunk)
        found = cluster_maps(method, method.backbone, images, clusters, seen)
        if found is None:
            return {}
        maps.append(_centred(found, size).half().cpu())
    return {"montage_index": index, "montage_maps": torch.cat(maps).numpy()}


def _centred(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Put maps of the centre of each image into maps of the whole: what a crop leaves out was not seen."""
    top, left = (size[0] - maps.shape[1]) // 2, (size[1] - maps.shape[2]) // 2
    return F.pad(maps, (left, size[1] - maps.shape[2] - left, top, size[0] - maps.shape[1] - top))


def most_confident(predicted: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return the rows (M,) of the nine most confident samples of each of the hundred largest clusters."""
    order = np.argsort(-np.nan_to_num(confidence.astype(float)), kind="stable")
    clusters, sizes = np.unique(predicted, return_counts=True)
    largest = clusters[np.argsort(-sizes, kind="stable")][:EXPLAINED_CLUSTERS]
    return np.concatenate([order[predicted[order] == cluster][:EXPLAINED] for cluster in largest])
