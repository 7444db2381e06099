"""Score the discovery of new classes: the unlabelled ones alone, and old and new ones together."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.data.module import DataModule
from scarcely.evaluation import (
    Outcome,
    clustering_arrays,
    clustering_scores,
    kmeans_scores,
    montage_arrays,
)
from scarcely.functional.clustering import confusion_counts
from scarcely.functional.discovery import old_new_scores
from scarcely.methods.base import Method, Predictions
from scarcely.seeds import derive_seed

LINEAR_EPOCHS, LINEAR_DROP = 150, 50  # appendix B


def evaluate_discovery(
    method: Method,
    data: DataModule,
    config: dict[str, Any],
    device: torch.device,
    num_new: int,
    start: Method | None = None,
) -> Outcome:
    """Score what was discovered.

    The headline is the clustering of the unlabelled classes of the train split. Old and new classes
    together are told apart by the grown head of an incremental run, or else by a linear classifier
    that is trained on the features, with labels for the old and predictions for the new classes
    (appendix B); on the test split where there is one.

    Args:
        method: a finished last stage whose ``logits`` are those of the new classes.
        data: the data, set up.
        config: of the run.
        device: where to compute.
        num_new: C_u.
        start: the same method with the weights that its stage started from: k-means on its features
            is the baseline.
    """
    batch_size = 2 * config["method"].get("batch_size", 256)
    protocol, known = config["protocol"], data.num_known

    def predict(role: Any, network: Method = method, scores_of: Any = None) -> Predictions:
        loader = data.evaluation_loader(role, protocol, batch_size=batch_size, device=device)
        return network.to(device).predict_all(loader, scores_of)

    unlabelled = predict("unlabelled")
    hidden = (unlabelled.labels - known).clamp(min=-1)  # 0 is the first new class
    found = Predictions(unlabelled.features, unlabelled.index, hidden, unlabelled.probabilities)
    names = {"clusters/used", "confident/share", "confident/acc"}
    scores = clustering_scores(found, num_new, data.num_new)
    metrics = {k if k in names else f"new/{k}": v for k, v in scores.items()}
    arrays = clustering_arrays(found, data.classes[known:], num_new, config)
    arrays |= montage_arrays(method, data, "unlabelled", config, arrays, device)

    if config["compare_kmeans"] and data.num_new:
        raw = data.pool("unlabelled", protocol).inputs
        rivals = {"kmeans": raw.float().flatten(1) / 255 if raw.dtype == torch.uint8 else raw}
        if start is not None:
            rivals["kmeans/features"] = predict("unlabelled", start, lambda _: None).features
        for name, features in rivals.items():
            rival = kmeans_scores(features, hidden, num_new, data.num_new, config["seed"])
            metrics |= {f"{name}/new/{k}": v for k, v in rival.items()}

    labelled = predict("labelled", scores_of=lambda _: None)
    rng = np.random.default_rng(derive_seed(config["seed"], "embedding", "old"))
    shown = np.sort(rng.permutation(len(labelled.labels))[: config["embedding_size"] // 2])
    arrays |= {
        "old_features": labelled.features[torch.from_numpy(shown)].numpy(),
        "old_labels": labelled.labels[torch.from_numpy(shown)].numpy(),
        "old_classes": np.array(data.classes[:known], dtype=np.str_),
    }
    scores_of = method.joint_logits
    classifier = None
    with torch.no_grad():
        joint = method.eval().joint_logits(labelled.features[:1].to(device))
    if joint is None:
        assert found.probabilities is not None
        made = known + found.probabilities.argmax(dim=1)
        print("training a linear classifier of old and new classes", file=sys.stderr, flush=True)
        classifier = fit_linear(
            torch.cat([labelled.features, unlabelled.features]).to(device),
            torch.cat([labelled.labels, made]).to(device),
            known + num_new,
            seed=derive_seed(config["seed"], "linear classifier"),
            epochs=1 if config["fast"] else LINEAR_EPOCHS,
        )
        scores_of = classifier
    for part, role in (("train/", "mixed"), ("test/", "test")):
        if part == "test/" and (protocol == "all" or "test" not in data.parts):
            continue
        predicted = predict(role, scores_of=scores_of)
        assert predicted.probabilities is not None
        if not bool((predicted.labels >= 0).any()):
            continue
        counts = confusion_counts(
            predicted.labels, predicted.probabilities.argmax(dim=1), data.num_classes, known + num_new
        )
        metrics |= {f"{part}{k}": v for k, v in old_new_scores(counts, known).items()}
        if part == "test/":
            arrays |= {"test_counts": counts.numpy(), "test_classes": np.array(data.classes, dtype=np.str_)}
    return Outcome(
        {k: float(v) for k, v in metrics.items() if v == v},
        arrays,
        shown="unlabelled",
        classifier=None if classifier is None else {k: v.cpu() for k, v in classifier.state_dict().items()},
    )


def fit_linear(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    seed: int,
    epochs: int = LINEAR_EPOCHS,
    batch_size: int = 128,
) -> nn.Linear:
    """Train a linear classifier on features: SGD with momentum, rate 0.1, divided by 10 at epoch 50.

    Features are divided by their mean length, so that the rate of the paper suits any network; the
    weights that are returned take them as they are.

    Args:
        features: (N, D).
        labels: (N,) int64, from 0.
        num_classes: C.
        seed: of the start and of the order.
        epochs: passes over the samples (appendix B).
        batch_size: samples a step.

    Returns:
        A layer from D to C.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = features.norm(dim=1).mean().clamp(min=1e-12) / features.shape[1] ** 0.5
    bound = features.shape[1] ** -0.5
    start = torch.rand(num_classes, features.shape[1] + 1, generator=generator) * 2 * bound - bound
    weight = start[:, :-1].to(features).requires_grad_()
    bias = start[:, -1].to(features).requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9, weight_decay=1e-4)
    scaled = features / scale
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 0.1 if epoch < LINEAR_DROP else 0.01
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for index in order.split(batch_size):
            loss = F.cross_entropy(F.linear(scaled[index], weight, bias), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    layer = nn.Linear(features.shape[1], num_classes, device=features.device)
    layer.load_state_dict({"weight": weight.detach() / scale, "bias": bias.detach()})
    return layer
