"""From Hydra's composition to the plain configuration that a run is made of."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scarcely.config.check import check_structure, gives_weights, is_path, suggest
from scarcely.config.paths import conf_dir
from scarcely.config.signature import constant_of
from scarcely.errors import ConfigError

# overrides that do not change what is trained: they do not name another run folder
SILENT = (
    "resume",
    "run_dir",
    "output_dir",
    "cache_dir",
    "embedding_size",
    "compare_kmeans",
    "report",
    "logger",
    "hydra",
)

# what a sample can be
KINDS = ("images", "vectors")

# settings of the last stage that have a short form at the root
SHORT = ("epochs", "batch_size")


def finalize(cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole run as plain containers: interpolations resolved, stages in order.

    Two things need a second composition, since Hydra composes a config once: the labeler that a
    recipe asks for, and the method of an earlier stage with its own recipe for the same data.

    Args:
        cfg: the configuration that Hydra composed.
        overrides: the task's overrides, as given.
        choices: the option chosen in each group.

    Raises:
        ConfigError: overrides that would be ignored, an interpolation that leads nowhere, a
            pretext that does not exist.
    """
    kind = OmegaConf.select(cfg, "data.kind", default="images")
    if kind not in KINDS:
        raise ConfigError(
            f"data.kind = {kind!r} is not possible", where="data.kind", instead=" or ".join(KINDS)
        )
    given = _given(overrides)
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    _refuse_ignored(cfg, given, choices)
    labeler = OmegaConf.select(cfg, "recipe.labeler")
    if labeler and "method/labeler" in choices and not _names_labeler(given, choices):
        cfg = _with_labeler(labeler, overrides, choices)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    method = config["method"]
    if not isinstance(method, dict):
        raise ConfigError(f"method = {method!r} is no method", where="method", instead="method=lsdc")
    check_structure(method)
    own = _said_of_method(given, choices)
    if _discovers(config["data"]):
        method |= {k: v for k, v in (method.get("discovery") or {}).items() if k not in own}
    if _scarce(config["data"]):
        method |= {k: v for k, v in (method.get("scarce") or {}).items() if k not in own}
    if _many(config["data"]):
        method |= {k: v for k, v in (method.get("domains") or {}).items() if k not in own}
    if config.get("refine") is not None:
        method |= {k: v for k, v in _refined(config).items() if k not in own}
        config["ckpt"] = config["refine"]
    if config.get("protocol") is None:
        config["protocol"] = method.get("protocol", "split" if _scarce(config["data"]) else "all")
    trained = method.get("epochs") != 0
    for key in SHORT:
        if config.get(key) is not None:
            method[key] = config[key]
    if not trained and config.get("epochs"):
        raise ConfigError(
            f"method={method.get('name')} has no epochs: nothing in it is trained by gradient",
            where="epochs",
            instead="leave epochs out",
        )
    _shorten(config, method)
    _take_plan_only(config)
    config["plan"] = _plan(config, choices)
    if reference := _reference(config, choices):
        config["reference"] = reference
    if config.get("fast") is True and isinstance(config.get("pretext_epoch"), int):
        config["pretext_epoch"] = 1  # as the epochs that are kept
    for i, stage in enumerate(config["plan"]):
        if stage["method"] is not None and stage["method"].get("freeze") == "auto":
            inherits = config["ckpt"] or any(map(gives_weights, config["plan"][:i]))
            stage["method"]["freeze"] = _freeze(stage["method"], config) if inherits else 0
    return config


def _take_plan_only(config: dict[str, Any]) -> None:
    """Keep what ``plan`` says under another name: here a plan is the list of stages."""
    given = config.pop("plan", False)
    if not isinstance(given, bool):
        raise ConfigError(f"plan = {given!r} is not possible", where="plan", instead="true or false")
    if given:
        config["plan_only"] = True


def _said_of_method(given: Mapping[str, str], choices: Mapping[str, Any]) -> set[str]:
    """Return the settings of the method that the command line or the experiment gives."""
    said = {key.split(".")[1] for key in given if key.startswith("method.")}
    if choices.get("experiment"):
        said |= set(load(f"experiment/{choices['experiment']}").config.get("method") or {})
    return said


def _discovers(data: Any) -> bool:
    """Whether the data have known classes and others to discover: then some methods have another task."""
    if not isinstance(data, dict):
        return False
    given = any(data.get(key) is not None for key in ("labelled_classes", "labelled"))
    return given or constant_of(str(data.get("_target_")), "discovers") is True


def _scarce(data: Any) -> bool:
    """Whether only some training samples of each class keep their labels."""
    return isinstance(data, dict) and any(
        data.get(key) is not None for key in ("labels_per_class", "labels_file", "labelled")
    )


def _annotated(data: Any) -> bool:
    """Whether the images of the data have annotated objects."""
    target = data.get("_target_") if isinstance(data, dict) else None
    return constant_of(str(target), "annotated_objects") is True


def _many(data: Any) -> bool:
    """Whether the data are several domains, of which none is chosen."""
    return isinstance(data, dict) and "domain" in data and data["domain"] is None


def _refined(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a method that refines a checkpoint."""
    settings: dict[str, Any] | None = config["method"].get("refined")
    if settings is None:
        raise ConfigError(
            f"method={config['method'].get('name')} refines nothing",
            where="refine",
            instead=f"ckpt={config['refine']} to start from it, or method=alternating_ssl",
        )
    if config.get("ckpt") is not None:
        raise ConfigError(
            "ckpt and refine both name what to start from", where="ckpt, refine", instead="one of the two"
        )
    return settings


def _shorten(config: Mapping[str, Any], method: dict[str, Any]) -> None:
    if config.get("fast") is True and isinstance(method.get("epochs"), int):
        method["epochs"] = min(1, method["epochs"])
        if method.get("keep"):
            method["keep"] = [1]


def _freeze(method: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """Return the blocks to keep of weights that were handed over: what is random is not worth keeping."""
    return (method.get("by_kind") or {}).get(config["data"].get("kind"), {}).get("freeze", 0)


# -- overrides that would have no effect ---------------------------------------------------------


def _given(overrides: Sequence[str]) -> dict[str, str]:
    """Return the overrides by key, without ``+``; of a key given twice the last counts, as for Hydra."""
    pairs = (str(o).lstrip("+").partition("=") for o in overrides)
    return {key: value for key, _, value in pairs}


def _refuse_ignored(cfg: DictConfig, given: Mapping[str, str], choices: Mapping[str, Any]) -> None:
    for key in SHORT:
        if key in given and f"method.{key}" in given:
            raise ConfigError(
                f"{key} and method.{key} are the same setting, and both are given",
                where=f"{key}, method.{key}",
                instead=f"one of them, e.g. {key}={given[key]}",
            )
    for key in ("ckpt", "refine"):
        if given.get(key, "null") != "null" and given.get("pretext", "none") != "none":
            raise ConfigError(
                f"pretext={given['pretext']} has no effect with {key}={given[key]}: "
                f"{key} starts the last stage, and skips those before it",
                where=f"pretext, {key}",
                instead="one of the two",
            )
    if "recipe" in given and choices.get("recipe") not in options("recipe"):
        raise ConfigError(
            f"there is no recipe={given['recipe']}",
            where="recipe",
            instead=suggest(given["recipe"], options("recipe")) + ", or ~recipe for none",
        )
    for key in _unread(cfg, choices):
        raise ConfigError(
            f"recipe.{key} has no effect: nothing in method={choices.get('method')} reads it",
            where=f"recipe.{key}",
            instead="a value that conf/method reads from the recipe",
        )


def _unread(cfg: DictConfig, choices: Mapping[str, Any]) -> list[str]:
    """Return the values of the recipe that neither the method nor any of its labelers takes."""
    recipe = OmegaConf.select(cfg, "recipe")
    if not isinstance(recipe, DictConfig):
        return []
    left = set(_leaves(recipe)) - {"labeler", "pretext"} - _read(cfg)
    for labeler in {key.partition(".")[0] for key in left} & set(options("method/labeler")):
        left -= _read(load(f"method/labeler/{labeler}").config)
    if left:  # read by a setting that an override or an experiment has replaced?
        groups = ("method", "method/labeler", "data", "backbone", "trainer", "logger")
        left -= _read(compose_with([f"{g}={choices[g]}" for g in groups if choices.get(g)]))
    return sorted(left)


def _read(config: DictConfig) -> set[str]:
    return set(re.findall(r"\$\{oc\.select:recipe\.([\w.]+)", OmegaConf.to_yaml(config)))


def _leaves(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        node = config._get_node(key)
        if isinstance(node, DictConfig) and node:
            yield from _leaves(node, f"{prefix}{key!s}.")
        else:
            yield f"{prefix}{key!s}"


# -- the labeler of a recipe ---------------------------------------------------------------------


def _names_labeler(given: Mapping[str, str], choices: Mapping[str, Any]) -> bool:
    if "method/labeler" in given:
        return True
    experiment = choices.get("experiment")
    if not experiment:
        return False
    defaults = load(f"experiment/{experiment}").defaults_list or []
    return any((getattr(d, "group", None) or "").lstrip("/") == "method/labeler" for d in defaults)


def _with_labeler(labeler: str, overrides: Sequence[str], choices: Mapping[str, Any]) -> DictConfig:
    from hydra.errors import HydraException

    try:
        return compose_with([*overrides, f"method/labeler={labeler}"])
    except HydraException as error:
        wrong = [key for key in _given(overrides) if key.startswith("method.labeler.")]
        if not wrong:
            raise
        raise ConfigError(
            f"the recipe of method={choices['method']} data={choices['data']} labels pairs by {labeler}, "
            f"which has no {' or '.join(k.rpartition('.')[2] for k in wrong)}",
            where=", ".join(wrong),
            instead=f"name the labeler too: method/labeler={choices['method/labeler']}",
        ) from error


# -- stages --------------------------------------------------------------------------------------


def _plan(config: dict[str, Any], choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    method = config["method"]
    plan: list[dict[str, Any]] = []
    many = method.get("task") == "domains"
    explains = method.get("task") == "saliency"
    for name in method.get("before") or []:
        if config.get("ckpt") is not None and not (many and name != "source"):
            continue  # of several domains it stands in for the network of the source alone
        if explains and not _annotated(config["data"]):
            continue  # there is nothing to explain on these data: what is wrong is told once
        source = config.get(name) or method.get(name, name)
        if name == "class_count" and config.get("num_new") != "auto":
            continue
        if source == "none" or not isinstance(source, str):
            continue
        if name == "pretext" and not _is_pretext(source) and is_path(source):
            plan.append({"name": name, "method": None, "checkpoint": source})
        elif many and source == method.get("name") and name != "source":  # once more after another stage
            plan.append({"name": name, "method": copy.deepcopy(method)})
        else:
            earlier = _earlier(name, source, config, choices)
            if many and name != "source":
                earlier |= _short_of(name, config) | _same_network(name, earlier, config)
            plan.append({"name": name, "method": earlier})
    plan.append({"name": method.get("stage", "train"), "method": method})
    return plan


def _same_network(name: str, earlier: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the last stage has its adapters, for an earlier one that does not say it itself."""
    stages = config["stages"] if isinstance(config["stages"], dict) else {}
    own = stages.get(name) or {}
    method = config["method"]
    return {k: method[k] for k in ("where", "dropout") if k in method and k in earlier and k not in own}


def _short_of(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the epochs and the batch size of the run, for a stage of each domain without its own."""
    stages = config["stages"] if isinstance(config["stages"], dict) else {}
    own = stages.get(name) or {}
    return {key: config[key] for key in SHORT if config.get(key) is not None and own.get(key) is None}


def _reference(config: dict[str, Any], choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the stages of the method whose errors the score of several domains is measured by; or none."""
    method = config["method"]
    name = method.get("reference")
    if method.get("task") != "domains" or name in (None, "none"):
        return []
    reference = _earlier(name, name, config, choices)
    reference |= _short_of(name, config)
    _shorten(config, reference)
    before = (
        [_earlier("source", reference["source"], config, choices, reference)]
        if config.get("ckpt") is None
        else []
    )
    return [*({"name": "source", "method": m} for m in before), {"name": name, "method": reference}]


def _earlier(
    name: str,
    source: str,
    config: dict[str, Any],
    choices: Mapping[str, Any],
    of: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the method of a stage before the last one, or before that of another method."""
    if not (_is_pretext(source) if name == "pretext" else source in options("method")):
        known = {m for m in options("method") if name != "pretext" or _is_pretext(m)}
        raise ConfigError(
            f"there is no {name} named {source!r}",
            where=name,
            instead=suggest(source, known | {"none"}) + ", or the path of a checkpoint",
        )
    cfg = compose_with([f"method={source}", f"data={choices['data']}", f"backbone={choices['backbone']}"])
    method: dict[str, Any] = OmegaConf.to_container(cfg.method, resolve=True)  # type: ignore[assignment]
    owner = config["method"] if of is None else of
    _merge(method, (owner.get("stages") or {}).get(name) or {})
    given = config["stages"].get(name) if isinstance(config["stages"], dict) else None
    if isinstance(given, dict):  # anything else is told by the check
        given = given if of is None else {k: v for k, v in given.items() if k in method}
        _merge(method, {k: v for k, v in given.items() if v is not None or k not in SHORT})
    check_structure(method, f"stages.{name}")
    _shorten(config, method)
    return method


def _is_pretext(name: str) -> bool:
    return name in options("method") and load(f"method/{name}").config.get("task") == "pretext"


def _merge(into: dict[str, Any], given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


# -- Hydra ---------------------------------------------------------------------------------------


def options(group: str) -> list[str]:
    """Return the options of a group, in every folder that Hydra searches (``--config-dir``)."""
    return _repository().get_group_options(group)


def load(path: str) -> Any:
    """Return one file of the configuration as Hydra loads it: ``config`` and ``defaults_list``."""
    return _repository().load_config(path)


def _repository() -> Any:
    from hydra.core.global_hydra import GlobalHydra

    return GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]


def compose_with(overrides: Sequence[str]) -> DictConfig:
    """Compose again where Hydra runs already, with its search path."""
    from hydra import compose

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


def without_recipe(config: Mapping[str, Any]) -> bool:
    """Whether the last stage has only its method's general values; of a pretext those are the usual ones."""
    method = config["method"]
    return not config.get("recipe") and method["task"] != "pretext" and bool(method.get("epochs"))


def run_name(config: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Name a run by what shapes it: ``lsdc-digits/1a2b3c4d-seed0``; no clock, the same in every process."""
    shaping = sorted(f"{k}={v}" for k, v in _given(overrides).items() if not k.startswith((*SILENT, "seed")))
    digest = hashlib.blake2b("\n".join(shaping).encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return f"{config['method']['name']}-{config['data']['name']}/{digest}-seed{config['seed']}"
