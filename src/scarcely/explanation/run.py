"""A run that explains a classifier: evaluations one by one, then everything a report shows (chapter 8)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from scarcely import checkpoints
from scarcely.config.check import names_function
from scarcely.data.objects import ObjectImages
from scarcely.errors import DataError
from scarcely.explanation.classifier import load_classifier
from scarcely.explanation.evaluations import State, evaluate
from scarcely.explanation.scores import region
from scarcely.explanation.session import Explanation, in_method, prepare, weigh_layers
from scarcely.files import write_atomically, write_json
from scarcely.folder import RunFolder
from scarcely.loggers import open_loggers, send_results
from scarcely.reports.evidence import Evidence
from scarcely.reports.html import write_report


def explain(config: dict[str, Any], folder: RunFolder, data: Any, accelerator: str) -> dict[str, Any]:
    """Evaluate what a classifier looks at, write the folder of the run, and return its results.

    Args:
        config: of the run, checked.
        folder: where it goes; evaluations that are there already are not made again.
        data: not set up yet.
        accelerator: ``cuda`` or ``cpu``.

    Raises:
        UserError: a model, data and settings that do not fit, before any evaluation.
    """
    started = time.monotonic()
    _require_objects(config, data)
    device = torch.device(accelerator)
    classifier = load_classifier(config, device)
    data.prepare_data()
    data.setup()
    config["data"]["augmentation"] |= data.augmentation_settings()
    with in_method():
        session = prepare(config, classifier, data, device)
    with folder.opened(config), open_loggers(config, folder.path) as loggers:
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
                {
                    "name": config["method"]["stage"],
                    "seconds": round(state.seconds_before + time.monotonic() - started, 2),
                    "epochs": 0,
                    "cached": False,
                }
            ],
            "metrics": metrics,
            "samples": len(session.some("pointing")),
            "expected": config["expected"],
            "command": config["command"],
            "environment": config["environment"],
            "model": {
                "source": classifier.source,
                "ckpt": _absolute(config["ckpt"]),
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
