"""How much each layer counts in a combined map, found on the user's own images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from scarcely.errors import ConfigError, DataError
from scarcely.files import write_atomically
from scarcely.saliency.attributor import Attributor
from scarcely.saliency.layers import INPUT, resolve_layers
from scarcely.spec import NonNegativeInt

HOW = ("spread", "accuracy", "linear", "uniform")


def layer_weights(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]] | None,
    layers: str | Sequence[str],
    how: Literal["spread", "accuracy", "linear", "uniform"],
    center: Literal["mean", "abs"] = "mean",
    folds: NonNegativeInt = 5,
) -> dict[str, float]:
    """Weigh layers by what their features tell about the class (section 4.2 of the paper).

    With x̄ⁱ the spatial mean of a layer's activation for image i, a vector of C channels:

    * ``spread``: the mean over images and channels of |x̄ⁱ − x̄|, x̄ the mean over images.
    * ``accuracy``: of a linear classifier of x̄ⁱ, on images that it was not trained on; those with the
      label -1, and classes with a single image, are left out.
    * ``linear``: j / J, j the layer's place, 0 that of the image, J that of the last.
    * ``uniform``: 1 / J.

    Args:
        model: a classifier.
        loader: batches (images, labels); of images, (N, C, H, W), alone where no labels are needed. Not read
            for ``linear`` and ``uniform``.
        layers: as for ``attribute``.
        how: see above.
        center: of the spread; ``abs`` is the mean of |x̄ⁱ|, as the paper prints it.
        folds: of the cross-validation of the accuracy; 0 is the accuracy on the training images themselves,
            as printed, which is 1 wherever channels outnumber images.

    Returns:
        {layer: weight}, not normalised, in the order of ``attribute``.

    Raises:
        ConfigError: another ``how`` or ``center``; layers as for ``attribute``.
        DataError: no images, no labels for ``accuracy``, or not two classes with two images each.
    """
    if how not in HOW or center not in ("mean", "abs"):
        wrong, key = (how, "how") if how not in HOW else (center, "center")
        raise ConfigError(
            f"layers are not weighted by {wrong!r}",
            where=key,
            instead=", ".join(HOW) if key == "how" else "mean, abs",
        )
    names = resolve_layers(model, layers)
    if how == "uniform":
        return {name: 1 / len(names) for name in names}
    if how == "linear":
        places = range(0 if INPUT in names else 1, len(names) + 1)
        last = len(names) - (INPUT in names)
        return {name: place / max(last, 1) for name, place in zip(names, places)}
    features, labels = _spatial_means(model, loader or (), names)
    if how == "spread":
        return {name: _spread(x, center) for name, x in features.items()}
    if labels is None:
        raise DataError("the loader gives no labels", where="loader", instead="batches (images, labels)")
    rows = _learnable(labels)
    classes = labels[rows].numpy()
    return {name: _probe_accuracy(x[rows].numpy(), classes, folds) for name, x in features.items()}


def save_weights(path: Path | str, weights: Mapping[str, float]) -> Path:
    """Write {layer: weight} as JSON; WriteError where that fails."""
    return write_atomically(Path(path), json.dumps(dict(weights), indent=2) + "\n")


def load_weights(path: Path | str) -> dict[str, float]:
    """Read what :func:`save_weights` wrote.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text())
        weights = {str(name): float(weight) for name, weight in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        weights = {}
    if not weights or not all(0 <= weight < math.inf for weight in weights.values()):
        raise DataError(
            "there are no layer weights in this file" if Path(path).exists() else "there is no such file",
            where=str(path),
            instead='a JSON file such as {"layer3": 0.4, "layer4": 0.9}',
        )
    return weights


def _spatial_means(
    model: nn.Module, loader: Iterable[object], names: list[str]
) -> tuple[dict[str, Tensor], Tensor | None]:
    """{layer: (M, C)} and (M,) labels, on the host."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    means: dict[str, list[Tensor]] = {name: [] for name in names}
    labels: list[Tensor] = []
    with Attributor(model, names) as attributor:
        for batch in loader:
            images, *rest = (batch,) if isinstance(batch, Tensor) else tuple(batch)  # type: ignore[arg-type]
            for name, activation in attributor.activations(images.to(device)).items():
                means[name].append(activation.mean((2, 3)).cpu())
            labels += [torch.as_tensor(rest[0]).cpu()] if rest else []
    if not means[names[0]]:
        raise DataError("there are no images to weigh the layers with", where="loader")
    return {name: torch.cat(rows) for name, rows in means.items()}, torch.cat(labels) if labels else None


def _spread(means: Tensor, center: str) -> float:
    middle = (means.abs() if center == "abs" else means).mean(0)
    return (means - middle).abs().mean().item()


def _learnable(labels: Tensor) -> Tensor:
    """Which images, (M,) bool, a probe is trained and scored on: of a class that two of them show."""
    learnable = torch.zeros(len(labels), dtype=torch.bool)
    if labels.ndim == 1:
        _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
        learnable = (counts[inverse] >= 2) & (labels >= 0)
    if len(labels[learnable].unique()) < 2:
        raise DataError(
            "a linear probe cannot be trained on these labels",
            where="loader",
            instead="(n,) class indices, of two classes with two images each at least",
        )
    return learnable


def _probe_accuracy(features: np.ndarray, classes: np.ndarray, folds: int) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    if folds == 0:
        return float(probe.fit(features, classes).score(features, classes))
    # A class that is rarer than there are folds is in some of them only.
    rarest = int(np.unique(classes, return_counts=True)[1].min())
    split = StratifiedKFold(min(max(folds, 2), rarest), shuffle=True, random_state=0)
    return float((cross_val_predict(probe, features, classes, cv=split) == classes).mean())
