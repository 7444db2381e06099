"""A run that explains a classifier, a given one or its own, and everything its report shows (chapter 8)."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scarcely import checkpoints, stages
from scarcely.callbacks.history import write_rows
from scarcely.config.check import names_function
from scarcely.data.objects import ObjectImages
from scarcely.errors import DataError
from scarcely.evaluation import classifier_score
from scarcely.explanation.classifier import Classifier, classifier_of, load_classifier
from scarcely.explanation.evaluations import State, evaluate
from scarcely.explanation.scores import region
from scarcely.explanation.session import Explanation, in_method, prepare, weigh_layers
from scarcely.files import write_atomically, write_json
from scarcely.folder import RunFolder
from scarcely.job import Job
from scarcely.loggers import logging_to, open_loggers, send_results
from scarcely.predict import load_run
from scarcely.reports.evidence import Evidence
from scarcely.reports.html import write_report
from scarcely.run import Before, check_earlier, fit_data, make_jobs, train_earlier


def explain(config: dict[str, Any], folder: RunFolder, data: Any, accelerator: str) -> dict[str, Any]:
    """Evaluate what a classifier looks at, write the folder of the run, and return its results.

    Without ``ckpt`` the classifier is that of the stage before this one, whose weights the folder keeps too.

    Args:
        config: of the run, checked.
        folder: where it goes; evaluations that are there already are not made again.
        data: not set up yet.
        accelerator: ``cuda`` or ``cpu``.

    Raises:
        UserError: a model, data and settings that do not fit, before any training or evaluation.
    """
    started = time.monotonic()
    _require_objects(config, data)
    device = torch.device(accelerator)
    given = None if config["ckpt"] is None else load_classifier(config, device)
    data.prepare_data()
    data.setup()
    config["data"]["augmentation"] |= data.augmentation_settings()
    weights = folder.path / "weights.pt"
    jobs = _earlier(config, data) if given is None else []
    classifier = given or _untrained(jobs[-1], data, weights, device)
    with in_method():
        session = prepare(config, classifier, data, device)
    with folder.opened(config), open_loggers(config, folder.path) as loggers:
        before = Before()
        scores: dict[str, float] = {}
        if given is None:
            begun = time.monotonic()
            print(f"note: without ckpt a classifier is trained first: {_told(jobs[-1])}", file=sys.stderr)
            with logging_to(loggers):
                before = train_earlier(jobs, config, data, accelerator)
            started += time.monotonic() - begun  # which is the time of these stages
            write_rows(folder.path / "metrics.csv", before.rows)
            classifier, scores = _trained(before, weights, session, device)
            with in_method():
                session = prepare(config, classifier, data, device)
        state = State.of(folder.path, session, data)
        session.module.layer_weights = weigh_layers(session, folder.path)
        metrics, about, arrays = evaluate(session, state, accelerator)
        classes = list(data.classes)
        about = _describe(session, classes) | about
        write_json(folder.path / "saliency.json", about)
        if arrays:
            arrays |= _pictures(session, classes)
            path = folder.path / "maps.npz"
            write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))
        results = {
            "method": config["method"]["name"],
            "data": config["data"]["name"],
            "seed": config["seed"],
            "protocol": session.images.protocol,
            "stages": [
                *(stage.summary() for stage in before.trained),
                {
                    "name": config["method"]["stage"],
                    "seconds": round(state.seconds_before + time.monotonic() - started, 2),
                    "epochs": 0,
                    "cached": False,
                },
            ],
            "metrics": scores | metrics,
            "samples": len(session.some("pointing")),
            "expected": config["expected"],
            "command": config["command"],
            "environment": config["environment"],
            "model": {
                "source": classifier.source,
                "ckpt": _absolute(config["ckpt"]) if given else str(weights),
                "shorter": session.images.shorter,
                "mean": list(session.images.mean),
                "std": list(session.images.std),
            },
        }
        if config["report"]:
            write_report(Evidence.load(folder.path, results=results))
        for logger in loggers:
            send_results(logger, results, folder.path)
        write_json(folder.path / "results.json", results)  # last of all: the run is finished
        shutil.rmtree(state.folder)
    return results


def _earlier(config: dict[str, Any], data: Any) -> list[Job]:
    """Return the stages that train the classifier, which suit the data."""
    config = config | {"plan": config["plan"][:-1]}
    jobs = make_jobs(config, data, fit_data(config, data))
    check_earlier(jobs, data)
    return jobs


def _told(job: Job) -> str:
    return f"method={job.method['name']}, {job.epochs} epochs (stages.{job.name}.epochs)"


def _untrained(job: Job, data: Any, weights: Path, device: torch.device) -> Classifier:
    """Return the classifier with random weights, on which all else can be tried before it is trained."""
    method = stages.build_method(job, data.input_shape)
    found = classifier_of(method, stages.weights_of(job, method, data, 0.0, 0), weights)
    found.model.to(device).eval()
    return found


def _trained(
    before: Before, weights: Path, session: Explanation, device: torch.device
) -> tuple[Classifier, dict[str, float]]:
    """Keep the weights of the trained classifier in the folder of the run; return it, and its score."""
    assert before.handed_over is not None
    cached = before.handed_over.weights  # beside them lie those of the epochs that were kept
    method, content = load_run(str(cached))
    checkpoints.save(content, weights)
    score = {}
    if session.images.role == "test":
        score = classifier_score(method.to(device), session.images.data, content["job"]["method"], device)
    found = classifier_of(method, content, cached)
    found.model.to(device).eval()
    return found, score


def _require_objects(config: Mapping[str, Any], data: Any) -> None:
    if not isinstance(data, ObjectImages):
        raise DataError(
            f"the images of data={config['data']['name']} have no annotated objects to point at",
            where="data",
            instead="data=shapes, voc, coco, or a folder of one's own with boxes or masks",
        )


def _describe(session: Explanation, classes: list[str]) -> dict[str, Any]:
    module = session.module
    return {
        "methods": list(module.names),
        "layers": list(module.layers),
        "weightings": list(module.weightings),
        "meta_loss": module.meta_loss,
        "classes": classes,
        "layer_weights": module.layer_weights,
    }


def _pictures(session: Explanation, classes: Sequence[str]) -> dict[str, Any]:
    """Return the examples themselves: images, what is explained of them, and where that is."""
    images, examples = session.images, session.pictures()
    names = [images.annotated[i].name for i in examples]
    found: dict[str, Any] = {
        "names": np.array(names),
        "target": np.array([classes[images.main(i)] for i in examples]),
    }
    for place, (index, size) in enumerate(examples.items()):
        picture = images.picture(index)
        found[f"image/{place}"] = picture.expand(-1, -1, 3).numpy()
        found[f"regions/{place}"] = region(images.annotated[index].objects(), images.main(index), size)
    return found


def _absolute(ckpt: str) -> str:
    return ckpt if names_function(ckpt) else str(checkpoints.find(ckpt).absolute())
