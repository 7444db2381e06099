"""From Hydra's composition to the plain configuration that a run is made of."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scarcely.config.check import is_path, suggest
from scarcely.config.paths import conf_dir
from scarcely.errors import ConfigError

# overrides that do not change what is trained: they do not name another run folder
SILENT = ("resume", "run_dir", "output_dir", "cache_dir", "hydra.", "hydra/", "logger")


def finalize(cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole run as plain containers: interpolations resolved, stages in order.

    Two things need a second composition, since Hydra composes a config once: the labeler that a
    recipe asks for, and the method of an earlier stage with its own recipe for the same data.

    Args:
        cfg: the configuration that Hydra composed.
        overrides: the task's overrides, as given.
        choices: the option chosen in each group.

    Raises:
        ConfigError: an interpolation that leads nowhere, a pretext that does not exist.
    """
    labeler = OmegaConf.select(cfg, "recipe.labeler")
    chosen = any(o.split("=", 1)[0].lstrip("+") == "method/labeler" for o in overrides)
    if labeler and "method/labeler" in choices and not chosen and not choices.get("experiment"):
        cfg = _compose([*overrides, f"method/labeler={labeler}"])
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    method = config["method"]
    for key in ("epochs", "batch_size"):
        if config.get(key) is not None:
            method[key] = config[key]
    if config.get("fast") is True and isinstance(method.get("epochs"), int):
        method["epochs"] = min(1, method["epochs"])
    config["plan"] = _plan(config, choices)
    return config


def _plan(config: dict[str, Any], choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    method = config["method"]
    plan: list[dict[str, Any]] = []
    if config.get("ckpt") is None:
        for name in method.get("before") or []:
            source = config.get(name, name)
            if source == "none" or not isinstance(source, str):
                continue
            if name == "pretext" and is_path(source):
                plan.append({"name": name, "method": None, "checkpoint": source})
            else:
                plan.append({"name": name, "method": _earlier(name, source, config, choices)})
    plan.append({"name": method.get("stage", "train"), "method": method})
    return plan


def _earlier(name: str, source: str, config: dict[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    known = (
        pretext_methods() if name == "pretext" else {p.stem for p in (conf_dir() / "method").glob("*.yaml")}
    )
    if source not in known:
        raise ConfigError(
            f"there is no {name} named {source!r}",
            where=name,
            instead=suggest(source, known | {"none"}) + ", or the path of a checkpoint",
        )
    cfg = _compose([f"method={source}", f"data={choices['data']}", f"backbone={choices['backbone']}"])
    method: dict[str, Any] = OmegaConf.to_container(cfg.method, resolve=True)  # type: ignore[assignment]
    given = config["stages"].get(name) or {}
    if not isinstance(given, dict):
        raise ConfigError(f"stages.{name} = {given!r} is not a mapping", where=f"stages.{name}")
    _merge(method, given)
    if config.get("fast") is True and isinstance(method.get("epochs"), int):
        method["epochs"] = min(1, method["epochs"])
    return method


def pretext_methods() -> set[str]:
    """Return the methods whose task is a pretext, read from their YAML."""
    return {
        path.stem
        for path in (conf_dir() / "method").glob("*.yaml")
        if "\ntask: pretext" in path.read_text("utf-8")
    }


def _merge(into: dict[str, Any], given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif value is not None:
            into[key] = copy.deepcopy(value)


def _compose(overrides: Sequence[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return compose("config", overrides=[str(o) for o in overrides])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", overrides=[str(o) for o in overrides])


def compose_run(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose a run from overrides alone, outside of the command line (tests, notebooks)."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=[str(o) for o in overrides], return_hydra_config=True)
        choices = dict(cfg.hydra.runtime.choices)
        return finalize(cfg, overrides, choices)


def run_name(config: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Name a run by what shapes it: ``lsdc-digits/1a2b3c4d-seed0``; no clock, the same in every process."""
    shaping = sorted(
        str(o).lstrip("+") for o in overrides if not str(o).lstrip("+").startswith((*SILENT, "seed="))
    )
    digest = hashlib.blake2b("\n".join(shaping).encode(), digest_size=4).hexdigest()
    return f"{config['method']['name']}-{config['data']['name']}/{digest}-seed{config['seed']}"
