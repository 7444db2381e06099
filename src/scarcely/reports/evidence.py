"""What a finished run leaves in its folder, read back as one object."""

from __future__ import annotations

import csv
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scarcely.errors import DataError
from scarcely.files import write_atomically

_ARRAYS = (
    *("predicted", "confidence", "labels", "features", "feature_index"),
    *("old_features", "old_labels", "test_confidence", "test_correct", "switched_in"),
    *("montage_index", "montage_maps"),
)
_SALIENCY, _MAPS = "saliency.json", "maps.npz"
log = logging.getLogger(__name__)


class Archive(Mapping[str, np.ndarray]):
    """The arrays of an npz file, each read when it is asked for; no file stays open.

    Args:
        path: the file.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: it cannot be read; on reading an array too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as archive:
            self._names = tuple(archive.files)

    def __getitem__(self, name: str) -> np.ndarray:
        with np.load(self.path, allow_pickle=False) as archive:
            return np.asarray(archive[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


@dataclass
class Evidence:
    """What a finished run knows about itself.

    Attributes:
        run_dir: folder of the run; holds ``config.yaml``, ``results.json``, ``metrics.csv`` and
            ``predictions.npz``.
        config: the resolved configuration, plain containers.
        results: ``method``, ``data``, ``seed``, ``protocol``, ``stages`` (a list of ``name``, ``seconds``,
            ``epochs``, ``cached``) and ``metrics`` (a flat map); optionally ``command`` and ``environment``.
        history: one dict per logged row: ``stage``, ``epoch`` and numbers; what was not measured is absent.
        kind: ``"clustering"`` (predictions are cluster indices, to be matched to classes),
            ``"classification"`` (they are class indices), ``"saliency"`` (maps of a network trained before)
            or ``"pretext"`` (there are none).
        predicted: (N,) cluster or class of each sample.
        confidence: (N,) its probability, in [0, 1].
        labels: (N,) true classes, -1 where unknown; None where there are none at all.
        classes: names of the true classes.
        num_clusters: K, empty clusters included.
        images: (N, H, W, C) uint8 of the same samples, perhaps a memory map; None for vectors.
        names: file of each sample.
        features: (M, D) float32 features of a subset of the samples.
        feature_index: (M,) which samples those are.
        test: ``{"counts": (C, K) int}``, confusion counts of a test split that was not trained on; with
            ``"classes"``, the names of its C classes, where these are not those of the samples.
        old_classes: names of the known classes beside which ``classes``, those of the samples, were
            discovered; empty where the method discovers none. They are the first of the test split.
        old_features: (L, D) features of some samples of known classes.
        old_labels: (L,) their classes.
        test_confidence: (T,) probability of what each labelled sample of the test split is called.
        test_correct: (T,) bool, whether it is called right.
        switched_in: (N,) cycle in which the pseudo-label of each sample last changed, 0 for never.
        montage_index: (M,) samples of which there is a map of where their cluster is seen.
        montage_maps: (M, h, w) these maps, in the proportions of the images.
        snapshots: features while the last stage was trained: ``epochs`` (S,), ``features`` (S, M, D) and
            ``index`` (M,), which of the samples those are.

    Raises:
        ValueError: arrays that speak of the same samples differ in length.
    """

    run_dir: Path
    config: dict[str, Any]
    results: dict[str, Any]
    history: list[dict[str, Any]]
    kind: str = "pretext"
    predicted: np.ndarray | None = None
    confidence: np.ndarray | None = None
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    num_clusters: int = 0
    images: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    features: np.ndarray | None = None
    feature_index: np.ndarray | None = None
    test: dict[str, Any] | None = None
    old_classes: tuple[str, ...] = ()
    old_features: np.ndarray | None = None
    old_labels: np.ndarray | None = None
    test_confidence: np.ndarray | None = None
    test_correct: np.ndarray | None = None
    switched_in: np.ndarray | None = None
    montage_index: np.ndarray | None = None
    montage_maps: np.ndarray | None = None
    snapshots: dict[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        self.run_dir = Path(self.run_dir)
        same = ("predicted", "confidence", "labels", "images", "names", "switched_in")
        lengths = {key: len(getattr(self, key)) for key in same if getattr(self, key) is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"These speak of the same samples and differ in length: {lengths}")
        if self.features is not None:
            if self.feature_index is None:
                self.feature_index = np.arange(len(self.features))
            if len(self.features) != len(self.feature_index):
                raise ValueError(f"{len(self.features)} features, {len(self.feature_index)} indices of them")
        if self.old_features is not None:
            labels = () if self.old_labels is None else self.old_labels
            if len(self.old_features) != len(labels):
                raise ValueError(f"{len(self.old_features)} features of known classes, {len(labels)} labels")
        shown = [0 if a is None else len(a) for a in (self.montage_index, self.montage_maps)]
        if shown[0] != shown[1]:
            raise ValueError(f"{shown[1]} maps of samples, {shown[0]} indices of them")
        tested = [0 if a is None else len(a) for a in (self.test_confidence, self.test_correct)]
        if tested[0] != tested[1]:
            raise ValueError(f"{tested[0]} confidences on the test split, {tested[1]} of them right or wrong")

    @property
    def scarce(self) -> bool:
        """Whether the samples are those whose labels were hidden while others kept theirs."""
        return "pseudo/accuracy" in (self.results.get("metrics") or {})

    @cached_property
    def saliency(self) -> dict[str, Any]:
        """What a saliency run found beyond its scores, ``saliency.json``; empty where there is none."""
        try:
            found = json.loads((self.run_dir / _SALIENCY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, its figures are left out: %s", self.run_dir / _SALIENCY, error)
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def maps(self) -> Mapping[str, np.ndarray]:
        """Example images and their maps, ``maps.npz``, each array read when used; perhaps empty."""
        if not (self.run_dir / _MAPS).exists():
            return {}
        try:
            return Archive(self.run_dir / _MAPS)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read, its pictures are left out: %s", self.run_dir / _MAPS, error)
            return {}

    @property
    def counts(self) -> np.ndarray | None:
        """(C, K) confusion counts of the labelled samples, classes in rows; None if nothing is labelled."""
        if self.predicted is None or self.labels is None or not (np.asarray(self.labels) >= 0).any():
            return None
        return confusion_counts(self.labels, self.predicted, len(self.classes), self.num_clusters)

    def save(self) -> Path:
        """Write the arrays to ``run_dir/predictions.npz``, atomically.

        Images, names and snapshots stay where they are.

        Returns:
            The file written.
        """
        import io

        content: dict[str, Any] = {
            "kind": np.array(self.kind),
            "num_clusters": np.array(self.num_clusters),
            "classes": np.array(self.classes, dtype=np.str_),
        }
        content |= {key: getattr(self, key) for key in _ARRAYS if getattr(self, key) is not None}
        if self.old_classes:
            content["old_classes"] = np.array(self.old_classes, dtype=np.str_)
        if self.test is not None:
            content["test_counts"] = self.test["counts"]
            if "classes" in self.test:
                content["test_classes"] = np.array(self.test["classes"], dtype=np.str_)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **content)
        return write_atomically(self.run_dir / "predictions.npz", buffer.getvalue())

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        images: np.ndarray | None = None,
        names: Sequence[str] | None = None,
        results: dict[str, Any] | None = None,
    ) -> Evidence:
        """Read what a run left behind.

        Args:
            run_dir: folder of the run. Only ``results.json`` must be there.
            images: (N, H, W, C) uint8, the samples of ``predictions.npz`` in the same order.
            names: file of each of them.
            results: what ``results.json`` will hold, where it is not written yet.

        Raises:
            DataError: there is no ``results.json``, or a file cannot be read.
        """
        run_dir = Path(run_dir)
        arrays = _read_predictions(run_dir / "predictions.npz")
        test: dict[str, Any] | None = None
        if "test_counts" in arrays:
            test = {"counts": arrays["test_counts"]}
            if "test_classes" in arrays:
                test["classes"] = tuple(map(str, arrays["test_classes"]))
        kind = "clustering" if "predicted" in arrays else "pretext"
        kind = "saliency" if (run_dir / _SALIENCY).exists() else kind
        return cls(
            run_dir=run_dir,
            config=_read_config(run_dir / "config.yaml"),
            results=_read_results(run_dir / "results.json") if results is None else results,
            history=read_history(run_dir / "metrics.csv"),
            kind=str(arrays.pop("kind", kind)),
            classes=tuple(map(str, arrays.pop("classes", ()))),
            num_clusters=int(arrays.pop("num_clusters", 0)),
            images=images,
            names=None if names is None else tuple(names),
            test=test,
            old_classes=tuple(map(str, arrays.pop("old_classes", ()))),
            snapshots=_read_snapshots(run_dir / "snapshots.npz"),
            **{key: arrays[key] for key in _ARRAYS if key in arrays},
        )


def confusion_counts(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int = 0, num_clusters: int = 0
) -> np.ndarray:
    """Count how many samples of each class fell into each cluster.

    Args:
        labels: (N,) true classes; negative ones are left out.
        predicted: (N,) clusters.
        num_classes: C, at least; more rows are made if a label needs them.
        num_clusters: K, at least.

    Returns:
        (C, K) int64.
    """
    labels, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    known = (labels >= 0) & (predicted >= 0)
    labels, predicted = labels[known], predicted[known]
    rows = max(num_classes, int(labels.max(initial=-1)) + 1)
    columns = max(num_clusters, int(predicted.max(initial=-1)) + 1)
    return np.bincount(labels * columns + predicted, minlength=rows * columns).reshape(rows, columns)


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            "This folder holds no finished run.", where=str(path.parent), instead="a folder with results.json"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"The results cannot be read: {error}", where=str(path)) from error
    if not isinstance(results, dict):
        raise DataError("The results are not a JSON object.", where=str(path))
    return results


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    from omegaconf import OmegaConf  # its YAML reads 1e-4 as a number, plain YAML 1.1 as a string

    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # omegaconf, yaml and the system each have their own
        raise DataError(f"The configuration cannot be read: {error}", where=str(path)) from error
    return {str(key): value for key, value in config.items()} if isinstance(config, dict) else {}


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.csv; cells that are empty, or cut off by a kill, are left out.

    Raises:
        DataError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise DataError(f"The metrics cannot be read: {error}", where=str(path)) from error
    return [_history_row(row) for row in rows]


def _history_row(row: dict[str, Any]) -> dict[str, Any]:
    """Turn one CSV row into numbers."""
    clean: dict[str, Any] = {}
    for key, value in row.items():
        if key == "stage":
            clean[key] = value or ""
        elif key and value not in (None, ""):
            try:
                number = float(value)
            except (TypeError, ValueError):
                continue
            clean[key] = int(number) if key == "epoch" and number.is_integer() else number
    return clean


def _read_predictions(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"The predictions cannot be read: {error}", where=str(path)) from error


def _read_snapshots(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in ("epochs", "features", "index")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read, its picture is left out: %s", path, error)
        return None
