"""The scores of a run over several domains: accuracies, the score S, parameters."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scarcely import stages
from scarcely.domains.chain import Chain, load
from scarcely.domains.jobs import Domains, is_a
from scarcely.errors import ConfigError
from scarcely.evaluation import accuracy
from scarcely.methods.adapted import AdaptedMethod
from scarcely.methods.base import Method, Predictions
from scarcely.methods.domain_prediction import in_one, predict_both
from scarcely.methods.domains import DomainMethod
from scarcely.metrics.decathlon import decathlon_score
from scarcely.stages import Trained


def domain_row(
    domains: Domains, name: str, method: Method, predictions: Predictions, seconds: float
) -> dict[str, Any]:
    """Return what results.json says of one domain.

    Args:
        domains: of the run.
        name: of the domain.
        method: its network.
        predictions: of that, on the part that is scored.
        seconds: of the training of its stages.
    """
    data = domains.data(name)
    return {
        "name": name,
        "classes": data.num_classes,
        "train": len(data.pool("train", "split")),
        "test": len(predictions.labels),
        "scored": data.scored_part(name),
        "accuracy": accuracy(predictions),
        "source_accuracy": domains.source_accuracy(method),
        "parameters": own_parameters(method),
        "common_parameters": common_parameters(method),
        "seconds": round(seconds, 2),
    }


def metrics_of(
    domains: Domains,
    chain: Chain,
    rows: Sequence[Mapping[str, Any]],
    trained: Mapping[str, Trained],
    limits: Mapping[str, float] | None,
) -> dict[str, float]:
    """Return the metrics of the run.

    Args:
        domains: of the run.
        chain: of stages, trained.
        rows: of the domains.
        trained: last stage of every domain but the source.
        limits: E_max of every domain; None for no score.
    """
    metrics = {f"domain/{row['name']}/accuracy": row["accuracy"] for row in rows}
    metrics |= {
        f"domain/{row['name']}/source_accuracy": row["source_accuracy"]
        for row in rows
        if row.get("source_accuracy") is not None
    }
    metrics["mean/accuracy"] = sum(row["accuracy"] for row in rows) / len(rows)
    metrics["parameters/ratio"] = _ratio(domains, chain, rows)
    metrics |= chain.metrics
    if chain.predictor is not None:
        predicted = _score_predicted(domains, chain, trained)
        metrics |= predicted
        accuracies = {row["name"]: predicted[f"domain/{row['name']}/predicted_accuracy"] for row in rows}
        metrics |= _score("decathlon/score_predicted", accuracies, limits)
    return metrics | _score("decathlon/score", {row["name"]: row["accuracy"] for row in rows}, limits)


def _score(
    metric: str, accuracies: Mapping[str, float], limits: Mapping[str, float] | None
) -> dict[str, float]:
    """Return S under the name of a metric; nothing where it has no meaning."""
    if limits is None or not accuracies.keys() <= limits.keys():  # a source that was not scored
        return {}
    try:
        errors = {name: 1 - value for name, value in accuracies.items()}
        return {metric: decathlon_score(errors, {name: limits[name] for name in errors})}
    except ConfigError as error:
        print(f"note: no score: {error.what}", file=sys.stderr)
        return {}


def reference_errors(domains: Domains, trained: Mapping[str, Trained]) -> dict[str, float]:
    """Return the error of each of the networks that the score is measured by."""
    errors = {}
    for name, stage in trained.items():
        errors[name] = 1 - accuracy(domains.predict(load(stage), name))
        domains.release(name)
    return errors


def _score_predicted(domains: Domains, chain: Chain, trained: Mapping[str, Trained]) -> dict[str, float]:
    """Score all domains anew, that of each image predicted: a wrong one is an error, whatever the class."""
    assert chain.predictor is not None
    assert chain.prediction is not None
    names, device = chain.scored, torch.device(domains.accelerator)
    _, data = domains.prediction(chain.prediction, names)
    methods: dict[str, Any] = {name: load(trained[name]) for name in names if name in trained}
    network, places = in_one(methods, next((name for name in names if name not in methods), None))
    predictor = load(chain.predictor).to(device)
    network.to(device)
    known = [(places[name], domains.data(name).augmentation) for name in names]
    metrics: dict[str, float] = {}
    right, count = 0, 0
    for number, name in enumerate(names):
        batches = data.clean(name, "test", "split", batch_size=256, device=device)
        domain, classes, labels = predict_both(predictor, network, known, batches, data.seen(name))
        found = domain == number
        metrics[f"domain/{name}/predicted_accuracy"] = float((found & (classes == labels)).float().mean())
        right, count = right + int(found.sum()), count + len(found)
        domains.release(name)
    metrics["mean/predicted_accuracy"] = sum(metrics.values()) / len(metrics)
    return metrics | {"domain_prediction/accuracy": right / count}


def own_parameters(method: Method) -> int:
    """Return how many parameters a domain has for itself, its classifier left out."""
    if isinstance(method, DomainMethod):
        return method.own_parameters()
    return sum(p.numel() for p in method.backbone.parameters())


def common_parameters(method: Method) -> int:
    """Return how many parameters the domains share beside the network."""
    return method.common_parameters() if isinstance(method, DomainMethod) else 0


def _ratio(domains: Domains, chain: Chain, rows: Sequence[Mapping[str, Any]]) -> float:
    """Return all parameters as a multiple of those of one network, classifiers left out (table 1)."""
    shape = domains.data(domains.names[0]).input_shape
    plain = stages.build_backbone(domains.config["backbone"], shape)
    one = sum(p.numel() for p in plain.parameters())
    own = sum(row["parameters"] for row in rows)
    common = max(row["common_parameters"] for row in rows)
    last = chain.each[-1]
    if chain.source is None and is_a(last, AdaptedMethod) and not last.get("shared"):
        # what is frozen is no row's; random, it is another network in each domain
        same = chain.begun or domains.config["backbone"].get("weights") is not None
        own += one if same else one * len(rows)
    return (own + common) / one
