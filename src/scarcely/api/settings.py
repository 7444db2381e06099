"""The configuration of a fit: what the samples suggest, what the user says, composed as by ``train.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scarcely.errors import ConfigError

SMALL = 32  # pixels: smaller images have the network and the values of the digits, larger ones those of CIFAR
ALL_KNOWN = {"data.labelled_classes": "null"}


def suited(encoded: np.ndarray, method: str, *, sparse: bool) -> dict[str, object]:
    """Return the settings that the samples suggest; documented at `Clusterer`."""
    if encoded.ndim == 2:
        return {"data": "tfidf", **({} if sparse else {"~recipe": ""})}
    side, channels = encoded.shape[1], encoded.shape[3]
    pixels = encoded.reshape(-1, channels)
    mean, std = pixels.mean(axis=0) / 255, pixels.std(axis=0) / 255
    settings: dict[str, object] = {
        "data": "arrays",
        "data.augmentation.mean": [round(float(m), 4) for m in mean],
        "data.augmentation.std": [round(max(float(s), 0.01), 4) for s in std],  # of one colour alone: 0
        "data.augmentation.padding": max(1, side // 8),
        "data.augmentation.flip": channels == 3,  # grey images are mostly signs, photographs coloured
    }
    if side >= SMALL:
        return settings
    settings |= {"backbone": "small_cnn", "data.augmentation.first_clean": True}
    return settings | ({"recipe": f"{method}-digits"} if _has_recipe(method) else {"pretext": "none"})


def _has_recipe(method: str) -> bool:
    from scarcely.config.paths import conf_dir

    return (conf_dir() / "recipe" / f"{method}-digits.yaml").is_file()


def task_of(method: str) -> str:
    """Return the task of a shipped method; of others nothing is known before Hydra has searched."""
    from omegaconf import OmegaConf

    from scarcely.config.paths import conf_dir

    path = conf_dir() / "method" / f"{method}.yaml"
    return str(OmegaConf.select(OmegaConf.load(path), "task")) if path.is_file() else ""


def pairs(overrides: Sequence[str] | Mapping[str, object]) -> dict[str, object]:
    """Return overrides by key.

    Raises:
        ConfigError: one that is no ``KEY=VALUE``.
    """
    if isinstance(overrides, Mapping):
        return dict(overrides)
    if isinstance(overrides, str):
        overrides = [overrides]
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(
                f"{override!r} is not of the form KEY=VALUE",
                where="overrides",
                instead="e.g. method.beta=0.5",
            )
    return {key: value for key, _, value in (o.partition("=") for o in overrides)}


def composed(settings: Mapping[str, object]) -> dict[str, Any]:
    """Return the configuration of settings by key, as ``train.py`` composes it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from scarcely.cli import prepare_arguments
    from scarcely.config.compose import compose_run
    from scarcely.config.explain import explain

    written = [key if key.startswith("~") else f"{key}={_text(value)}" for key, value in settings.items()]
    try:
        config = compose_run(prepare_arguments(written))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    config["command"] = ""  # there is none: Python has called
    return config


def _text(value: object) -> str:
    """Return a value as Hydra's grammar has it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
