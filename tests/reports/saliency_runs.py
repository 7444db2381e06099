"""Folders as saliency runs leave them: discs and squares on noise, and maps that find them more or less."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scarcely.reports import Evidence

METHODS = ("gradient", "linear_approximation", "selective_norm_grad", "grad_cam", "guided_backprop")
LAYERS = ("input", "layer1", "layer2", "layer3", "layer4")
WEIGHTINGS = tuple(
    f"{how}-{weights}"
    for how in ("sum", "product")
    for weights in ("spread", "accuracy", "linear", "uniform")
)
MODULES = ("", "fc", "layer4.1.conv2", "layer4.0.conv1", "layer2.0.conv1", "conv1")
CLASSES = ("disc", "square", "star")


def scores(
    methods: Sequence[str] = METHODS, layers: Sequence[str] = LAYERS, better: float = 0.0
) -> dict[str, float]:
    """Every metric of a saliency run; deeper layers are better, guided backprop sees no class."""
    rng = np.random.default_rng(len(methods))
    metrics: dict[str, float] = {}
    for m, method in enumerate(methods):
        for j, layer in enumerate(layers):
            if method == "grad_cam" and layer == "input":
                continue  # a method that does not suit a layer has no score there
            score = 0.4 + better + 0.1 * j + 0.01 * m
            metrics |= pointing(f"pointing/{method}/{layer}", score)
            if method in ("gradient", "linear_approximation"):
                metrics |= pointing(f"pointing/{method}-meta/{layer}", score - 0.02)
            sensitive = 0.97 if method == "guided_backprop" else float(rng.uniform(-0.5, 0.6))
            metrics[f"sensitivity/{method}/{layer}"] = sensitive
            metrics[f"sensitivity/{method}-meta/{layer}"] = sensitive / 2
            metrics[f"meta/{method}/{layer}"] = 0.9
        for k, weighting in enumerate(WEIGHTINGS):
            metrics |= pointing(f"pointing/{method}/combined-{weighting}", 0.8 + better + 0.01 * (k + m))
        metrics[f"randomization/{method}/layer3"] = 0.8 if method == "guided_backprop" else 0.05
    metrics |= {"sensitivity/gradient/layer2/undefined": 3, "identity/layer2": 0.95}
    metrics["identity/layer2/pointing"] = -0.012
    metrics |= {"pointing/center/all": 0.45, "pointing/center/difficult": 0.21}
    return metrics | {
        "pointing/skipped": 2,
        "pointing/left_out": 0,
        "pointing/pairs": 412,
        "pointing/pairs_difficult": 300,
    }


def pointing(key: str, score: float) -> dict[str, float]:
    found = {"all": score, "difficult": score - 0.1, "all_stderr": 0.012, "difficult_stderr": 0.021}
    return {f"{key}/{subset}": value for subset, value in found.items()}


def findings(methods: Sequence[str] = METHODS, layers: Sequence[str] = LAYERS) -> dict[str, Any]:
    """The content of saliency.json."""
    depth = np.arange(1.0, len(layers) + 1)
    falls = np.exp(-np.arange(len(MODULES)))
    entries = []
    for method in methods:
        mean = 1 - 0.03 * np.arange(len(MODULES)) if method == "guided_backprop" else falls
        row = {"method": method, "layer": "layer3", "modules": MODULES, "mean": mean.tolist()}
        entries.append(row | {"stderr": [0.02] * len(MODULES)})
    rising = {"train": [0.9, 0.92, 0.95], "test": [0.88, 0.9, 0.91]}
    return {
        "methods": methods,
        "layers": layers,
        "weightings": WEIGHTINGS,
        "classes": CLASSES,
        "layer_weights": {
            "spread": dict(zip(layers, depth / depth.sum())),
            "accuracy": dict(zip(layers, 0.2 + depth / 10)),
            "linear": dict(zip(layers, depth - 1)),
            "uniform": dict.fromkeys(layers, 1.0),
        },
        "randomization": entries,
        "epochs": [{"method": "norm_grad", "layer": "layer4", "epoch": [10, 20, 30], **rising}],
        "center": {"all": 0.45, "difficult": 0.21},
    }


def pictures(
    methods: Sequence[str] = METHODS,
    layers: Sequence[str] = LAYERS,
    examples: int = 2,
    size: tuple[int, int] = (96, 128),
) -> dict[str, np.ndarray]:
    """The arrays of maps.npz: the deeper the layer, the more of the map is at the object."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    arrays: dict[str, np.ndarray] = {
        "names": np.array([f"image {e}.png" for e in range(examples)]),
        "target": np.array([CLASSES[e % 3] for e in range(examples)]),
        "most": np.array([CLASSES[e % 3] for e in range(examples)]),
        "least": np.array([CLASSES[(e + 1) % 3] for e in range(examples)]),
        "random_shown": np.array([0, 1, 3, 5]),
        "sensitivity_layers": np.array(["layer1", "layer4"]),
    }
    for e in range(examples):
        region = (y - size[0] * 0.4) ** 2 + (x - size[1] * (0.3 + 0.2 * e)) ** 2 < (0.2 * size[0]) ** 2
        ground = rng.uniform(60, 130, size)[:, :, None] * np.array([1.0, 0.9, 0.7])
        image = np.where(region[:, :, None], np.array([230, 120, 60]), ground).astype(np.uint8)
        middle = np.exp(
            -((y - size[0] * 0.4) ** 2 + (x - size[1] * (0.3 + 0.2 * e)) ** 2) / (0.1 * size[0] ** 2)
        )

        def map_of(good: float, middle: np.ndarray = middle) -> np.ndarray:
            return good * middle + (1 - good) * rng.random(size) - 0.3

        found = np.array([[map_of((j + 1) / len(layers)) for j in range(len(layers))] for _ in methods])
        found[methods.index("grad_cam"), 0] = np.nan
        found[methods.index("guided_backprop"), -1] = 0.25
        arrays |= {f"image/{e}": image, f"regions/{e}": region, f"maps/{e}": found}
        arrays[f"combined/{e}"] = np.array([[map_of(0.9) for _ in WEIGHTINGS] for _ in methods])
        arrays[f"most/{e}"] = np.array([[map_of(0.5), map_of(0.9)] for _ in methods])
        arrays[f"least/{e}"] = np.array([[map_of(0.2), map_of(0.1)] for _ in methods])
        strips = [[map_of(0.9 / (1 + step)) for step in range(4)] for _ in methods]
        arrays[f"random/{e}"] = np.array(strips)
    floating = {key for key, array in arrays.items() if array.dtype == np.float64}
    return {key: array.astype(np.float16) if key in floating else array for key, array in arrays.items()}


def results(metrics: dict[str, float] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "method": "normgrad",
        "data": "shapes",
        "seed": 0,
        "protocol": "split",
        "command": "python train.py method=normgrad data=shapes ckpt=runs/classifier",
        "stages": [],
        "metrics": scores() if metrics is None else metrics,
    } | changes


def saliency_run(
    folder: Path,
    *,
    metrics: dict[str, float] | None = None,
    found: dict[str, Any] | None = None,
    maps: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> Evidence:
    """Write such a folder, and read it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results(metrics, **changes)))
    (folder / "config.yaml").write_text("seed: 0\nmethod:\n  name: normgrad\n  task: saliency\n")
    (folder / "saliency.json").write_text(json.dumps(findings() if found is None else found))
    np.savez_compressed(folder / "maps.npz", **(pictures() if maps is None else maps))
    return Evidence.load(folder)
