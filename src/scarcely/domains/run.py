"""Train, score and report a run over several domains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scarcely import checkpoints
from scarcely.callbacks.history import write_rows
from scarcely.data.domain_set import DomainSet
from scarcely.domains.chain import Chain, load
from scarcely.domains.checks import check_chain, check_reference, check_settings
from scarcely.domains.jobs import Domains
from scarcely.domains.scores import domain_row, metrics_of, reference_errors
from scarcely.errors import UserError
from scarcely.files import write_atomically, write_json
from scarcely.folder import RunFolder
from scarcely.loggers import logging_to, open_loggers, send_results
from scarcely.methods.base import Predictions
from scarcely.metrics.decathlon import MAX_ERRORS, max_errors_of
from scarcely.reports.evidence import Evidence
from scarcely.reports.html import write_report
from scarcely.stages import Trained


def train_domains(
    config: dict[str, Any], folder: RunFolder, data: DomainSet, accelerator: str
) -> dict[str, Any]:
    """Train, score and report a run over several domains.

    Args:
        config: checked; its method has the task ``domains``.
        folder: of the run.
        data: the set of domains, none of them chosen.
        accelerator: ``cuda`` or ``cpu``.

    Raises:
        UserError: settings that do not fit, before any training; or domains that could not be trained,
            after all others: what was trained is kept.
    """
    check_settings(config)
    domains = Domains.of(config, data, accelerator)
    chain = Chain(domains, config["plan"], config["ckpt"])
    check_chain(chain)
    own_folders = isinstance(data.domains, Mapping) and any(data.domains.values())
    published = set(domains.names) == set(MAX_ERRORS) and not own_folders
    reference = Chain(domains, config["reference"], config["ckpt"]) if "reference" in config else None
    if reference is not None and not published:
        check_reference(reference)
    with folder.opened(config), open_loggers(config, folder.path) as loggers, logging_to(loggers):
        found: dict[str, dict[str, Any]] = {}
        trained = chain.run(
            lambda name, stage: found.update({name: _finish(domains, chain, name, stage, folder.path)})
        )
        rows = [found[name] for name in domains.names if name in found]
        write_rows(folder.path / "metrics.csv", [row for stage in chain.done for row in stage.rows])
        _require_all(chain.failed)
        limits: dict[str, float] | None = None
        if published:
            limits = dict(MAX_ERRORS)
        elif reference is not None:
            limits = _limits(domains, reference)
        metrics = metrics_of(domains, chain, rows, trained, limits)
        results = {
            "method": config["method"]["name"],
            "data": config["data"]["name"],
            "seed": config["seed"],
            "protocol": "split",
            "stages": [stage.summary() for stage in chain.done],
            "metrics": metrics,
            "domains": rows,
            "max_errors": None if limits is None else {row["name"]: limits[row["name"]] for row in rows},
            "expected": config["expected"],
            "command": config["command"],
            "environment": config["environment"],
        }
        if config["report"]:
            write_report(Evidence.load(folder.path, results=results))
        for logger in loggers:
            send_results(logger, results, folder.path)
        write_json(folder.path / "results.json", results)
    return results


def _finish(domains: Domains, chain: Chain, name: str, stage: Trained, folder: Path) -> dict[str, Any]:
    """Score a domain, keep its weights and predictions in a folder of its own, and return its row."""
    method, classes = load(stage), domains.data(name).classes
    predictions = domains.predict(method, name)
    seconds = sum(s.seconds for s in chain.done if s.name.startswith(f"{name} "))
    row = domain_row(domains, name, method, predictions, seconds)
    content = checkpoints.load(stage.weights)
    if name in chain.targets and chain.each[-1].get("decay") == "validation":
        row |= {"decay": content["job"]["method"]["decay"], "decay_chosen_on": "val"}
    place = folder / "domains" / name
    place.mkdir(parents=True, exist_ok=True)
    # a stage in the cache may have been trained when its classes were called otherwise
    checkpoints.save(content | {"classes": list(classes)}, place / "weights.pt")
    _keep_predictions(predictions, classes, place)
    write_json(place / "result.json", row)
    return row


def _keep_predictions(predictions: Predictions, classes: Iterable[str], folder: Path) -> None:
    assert predictions.probabilities is not None
    confidence, predicted = predictions.probabilities.max(dim=1)
    arrays: dict[str, Any] = {
        "labels": predictions.labels.numpy(),
        "predicted": predicted.numpy(),
        "confidence": confidence.numpy(),
        "classes": np.array(list(classes), dtype=np.str_),
    }
    path = folder / "predictions.npz"
    write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def _limits(domains: Domains, reference: Chain) -> dict[str, float]:
    """Train what the score is measured by, and return E_max of every domain."""
    trained = reference.run()
    _require_all(reference.failed)
    if reference.source is not None and domains.source is not None:
        trained = {domains.source: reference.source} | trained
    return max_errors_of(reference_errors(domains, trained))


def _require_all(failed: Mapping[str, Exception]) -> None:
    """Refuse to call a run finished in which a domain is missing.

    Raises:
        UserError: with what was wrong, if the user can mend it.
    """
    if not failed:
        return
    name, error = next(iter(failed.items()))
    if not all(isinstance(e, UserError) for e in failed.values()):
        raise next(e for e in failed.values() if not isinstance(e, UserError))
    assert isinstance(error, UserError)
    kept = "with another run_dir, what was trained is found in the cache"
    raise type(error)(
        f"{len(failed)} of the domains failed ({', '.join(failed)}); {name}: {error.what}",
        where=error.where,
        instead=f"{error.instead or 'the same without it'}; {kept}",
    )
