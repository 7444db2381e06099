"""Tiny runs of every method, and whether two of them ended with the same bits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scarcely import checkpoints
from scarcely.callbacks.history import read_rows
from tests.runs import TINY, Process, command_line

SMALL = ("trainer=cpu", "embedding_size=0", "compare_kmeans=false")
SHAPES = (
    *("data=shapes", "data.image_size=64", "data.train_images=24", "data.test_images=8"),
    *("backbone=small_cnn", "backbone.width=4", "protocol=split"),
)
DOMAINS = (
    *("data=decathlon", "data.source=birds", "data.image_size=8", "backbone.width=4", "backbone.blocks=1"),
    *("batch_size=16", "epochs=2"),
)
SOURCE = ("stages.source.epochs=2", "stages.source.batch_size=16")
NEW = ("data.labelled_classes=5", "epochs=2", "batch_size=256")
EARLIER = ("pretext=rotnet", "stages.pretext.epochs=2", "stages.supervised.epochs=2")
FEW = ("data.labels_per_class=5", "batch_size=256", "pretext=rotnet", "stages.pretext.epochs=2")


@dataclass(frozen=True)
class Scenario:
    """A run of one method.

    Attributes:
        overrides: the command; ROOT stands for the folder of a release of three domains, CLASSIFIER for that
            of a finished classifier of shapes.
        pictures: the report is drawn too.
    """

    overrides: tuple[str, ...]
    pictures: bool = False

    def arguments(self, folder: Path, material: Path) -> list[str]:
        """Return the arguments of the command in a folder of its own, with a cache of its own."""
        own = [
            o.replace("ROOT", str(material)).replace("CLASSIFIER", str(material / "classifier"))
            for o in self.overrides
        ]
        return [*SMALL, *own, f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]

    def start(
        self, folder: Path, material: Path, *more: str, env: dict[str, str] | None = None, log: str = "log"
    ) -> Process:
        """Start the run, or go on with it."""
        folder.mkdir(parents=True, exist_ok=True)
        target = with_pictures if self.pictures else command_line
        arguments = [*self.arguments(folder, material), *more]
        env = {"SCARCELY_CACHE": str(material / "images"), **(env or {})}
        return Process(target, arguments, log=folder / log, env=env)


def with_pictures(arguments: list[str]) -> int:
    """What ``train.py`` does."""
    from scarcely.cli import main

    return main(arguments)


def _digits(*overrides: str) -> Scenario:
    return Scenario((*TINY[:1], *TINY[2:5], *overrides))


SCENARIOS = {
    "rotnet": _digits("method=rotnet", "epochs=6", "batch_size=256"),
    "denoising": Scenario(("method=denoising", "data=two_moons", "epochs=20")),
    "supervised": _digits("method=supervised", "epochs=6", "batch_size=256"),
    "prototypical": _digits("method=prototypical", "epochs=3", "batch_size=200"),
    "similarity": _digits("method=similarity", "epochs=3"),
    "multilabel": Scenario(("method=multilabel", *SHAPES, "epochs=4", "batch_size=8")),
    "kmeans": _digits("method=kmeans", "pretext=rotnet", "stages.pretext.epochs=4"),
    "lsdc": _digits("pretext=rotnet", "stages.pretext.epochs=3", "epochs=3", "batch_size=256"),
    "lsdc with its report": Scenario(
        (*TINY[:1], *TINY[2:5], "pretext=rotnet", "stages.pretext.epochs=2", "epochs=2", "batch_size=256"),
        pictures=True,
    ),
    "class_count": _digits("method=class_count", *NEW[:1], *EARLIER),
    "ranking_statistics": _digits("method=ranking_statistics", "num_new=auto", *NEW, *EARLIER),
    "dtc": _digits("method=dtc", *NEW, *EARLIER),
    "kcl": _digits("method=kcl", *NEW, *EARLIER, "stages.similarity.epochs=2"),
    "mcl": _digits("method=mcl", *NEW, *EARLIER, "stages.similarity.epochs=2"),
    "alternating_ssl": _digits(
        *("method=alternating_ssl", *FEW, "method.cycles=2", "method.final_cycles=1", "epochs=4"),
        "method.classifier_epochs=2",
    ),
    "mean_teacher": _digits("method=mean_teacher", *FEW, "epochs=3"),
    "pi_model": _digits("method=pi_model", *FEW, "epochs=3"),
    "one domain": Scenario(
        (
            *("method=supervised", "data.root=ROOT", "data.domain=gtsrb"),
            *(o for o in DOMAINS if "source" not in o),
        )
    ),
    "normgrad": Scenario(
        (
            *("method=normgrad", *SHAPES[:4], "ckpt=CLASSIFIER", "method.methods=[grad_cam]"),
            *("method.meta_methods=[]", "method.examples=1", "method.weights=[spread]", "method.how=[sum]"),
            "method.evaluations=[pointing,sensitivity,identity]",
        )
    ),
    **{
        name: Scenario((f"method={name}", "data.root=ROOT", *DOMAINS, *SOURCE))
        for name in (
            *("bn_adapters", "feature_extractor", "finetune", "lwf", "parallel_adapters"),
            "series_adapters",
        )
    },
    "svd_adapters": Scenario(
        (
            *("method=svd_adapters", "data.root=ROOT", *DOMAINS, *SOURCE),
            *("stages.parallel_adapters.epochs=2", "stages.parallel_adapters.batch_size=16"),
        )
    ),
    "round_robin": Scenario(
        (
            *("method=parallel_adapters", "method.before=[source,round_robin]", "data.root=ROOT"),
            *(*DOMAINS, *SOURCE),
            *("stages.round_robin.epochs=2", "stages.round_robin.batch_size=16", "method.reference=none"),
        )
    ),
    "domain_prediction": Scenario(
        (
            *("method=parallel_adapters", "method.before=[source,domain_prediction]", "data.root=ROOT"),
            *("data.signs=[]", *DOMAINS, *SOURCE),
            *("stages.domain_prediction.epochs=2", "stages.domain_prediction.batch_size=16"),
            "method.reference=none",
        )
    ),
}


def difference(run: Path, expected: Path) -> str:
    """Return what differs between two folders of the same run but for times; nothing if all is the same.

    Every file that a run leaves is compared: weights, arrays and tables bit by bit, pages and pictures by
    being there.
    """
    files, others = (_files(folder) for folder in (run, expected))
    if files.keys() != others.keys():
        return f"files: {sorted(files.keys() ^ others.keys())}"
    for name, path in files.items():
        found, wanted = _content(path), _content(others[name])
        if not _same(found, wanted):
            return name
    return ""


def _files(folder: Path) -> dict[str, Path]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {
        name: path for name, path in found.items() if path.name not in (".lock", "config.yaml", "last.ckpt")
    }


_TIMES = ("seconds", "time", "command", "environment", "stages", "cached")


def _content(path: Path) -> Any:
    if path.suffix == ".pt":
        return _without_times(checkpoints.load(path))
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text()))
    if path.name == "metrics.csv":
        return [_without_times(row) for row in read_rows(path)]
    return path.read_bytes() if path.suffix == ".csv" else path.suffix


def _without_times(content: Any) -> Any:
    if isinstance(content, dict):
        # where the run lies is in the job that its weights were trained by
        left_out = (*_TIMES, "inherited", "cache_dir", "run_dir", "ckpt")
        return {k: _without_times(v) for k, v in content.items() if k not in left_out}
    return [_without_times(v) for v in content] if isinstance(content, list) else content


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(a == b) or (a != a and b != b)
