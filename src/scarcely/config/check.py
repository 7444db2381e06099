"""Find what is wrong with a composed configuration before data are read or a network is built.

Nothing here imports torch: a typo costs a second.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from scarcely.config import schema
from scarcely.config.paths import conf_dir
from scarcely.config.signature import Component, constant_of, describe, mismatch, signature_of
from scarcely.errors import ConfigError

# arguments that the run supplies: sizes known only once the data are read
SUPPLIED = {
    "backbone",
    "model",
    "num_classes",
    "num_clusters",
    "num_known",
    "num_new",
    "num_source",
    "ranks",
    "adapters",
    "domain_classes",
    "source_domain",
    "in_channels",
    "in_features",
    "image_size",
    "input_shape",
    "inherited",
}
# settings that shape the last stage and have a short form: one mistake is told once
SHORT = ("epochs", "batch_size")


# what a setting takes, where the type says too little
WORDS = {
    "pretext": "the name of a pretext (rotnet, denoising), none, or the path of a checkpoint",
    "ckpt": "the path of a checkpoint or of a run's folder, or null",
    "run_dir": "a folder, or null",
    "output_dir": "a folder",
    "cache_dir": "a folder",
}


def check(config: dict[str, Any]) -> None:
    """Raise one ConfigError that names everything wrong in the configuration.

    Args:
        config: the composed configuration as plain containers, interpolations resolved.
    """
    problems = list(_root(config))
    told = {f"method.{p.where}" for p in problems}
    told |= {"data.labels_seed" for p in problems if p.where == "seed"}  # follows it
    problems += [p for p in _components(config) if p.where not in told]
    if not problems:  # combinations are only worth a look once each value is sound
        problems = list(_combinations(config))
    _tell(problems)


def check_structure(method: dict[str, Any], name: str = "method") -> None:
    """Look whether those settings of a method that say which stages there are can be read at all.

    Args:
        method: its configuration, before the stages are put together.
        name: of the method's settings: ``method``, or ``stages.NAME``.

    Raises:
        ConfigError: one that names everything wrong in them.
    """
    branches = {name: method}
    branches |= {f"{name}.{k}": v for k in schema.BRANCHES if isinstance(v := method.get(k), dict)}
    problems: list[ConfigError] = []
    for where, branch in branches.items():
        given = {key: branch[key] for key in schema.STRUCTURE if branch.get(key) is not None}
        problems += _values(where, given, schema.METHOD_KEYS, set())
    _tell(problems)


def _tell(problems: list[ConfigError]) -> None:
    """Raise what is wrong, if anything is, as one error."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError(
            f"{len(problems)} things are wrong in the configuration:\n\n" + "\n\n".join(map(str, problems))
        )


def suggest(key: str, known: Any) -> str:
    """Say which of the known names was probably meant, or list them."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.6)
    return (
        " or ".join(close) if close else ("one of " + ", ".join(names) if names else "nothing: there is none")
    )


def _values(
    where: str, given: dict[str, Any], hints: dict[str, Any], required: set[str]
) -> Iterator[ConfigError]:
    prefix = f"{where}." if where else ""
    for key, value in given.items():
        if key not in hints:
            known = [prefix + name for name in hints if not name.startswith("_")]
            yield ConfigError(
                f"there is no setting {prefix + key!r}",
                where=prefix + key,
                instead=suggest(prefix + key, known),
            )
        elif mismatch(value, hints[key]):
            yield ConfigError(
                f"{prefix + key} = {_shown(value)} is not possible",
                where=prefix + key,
                instead=_wanted(prefix + key, hints[key]),
            )
    for key in sorted(required - set(given)):
        yield ConfigError(
            f"{prefix + key} is missing",
            where=where or "the configuration",
            instead=_wanted(prefix + key, hints[key]),
        )


def _shown(value: Any) -> str:
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else repr(value)


def _wanted(key: str, hint: Any) -> str:
    """Say what a setting takes; of a group, its options; of an object, how its settings are written."""
    folder = conf_dir() / key.replace(".", "/")
    if folder.is_dir():
        return f"{key.replace('.', '/')}=" + ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
    if key == "data.root" and hint is None:
        return "no root: these data come without files; data=imagefolder takes a folder of images"
    if hint is Component:
        return f"its settings one by one: {key}.NAME=VALUE"
    return WORDS.get(key, describe(hint))


def _root(config: dict[str, Any]) -> Iterator[ConfigError]:
    # `recipe` holds raw values that the other groups have read already
    own = ("recipe", "plan", "plan_only", "reference", "command", "environment")
    given = {k: v for k, v in config.items() if k not in own}
    yield from _values("", given, schema.hints(schema.Root), schema.required(schema.Root))
    for name, group in (("trainer", schema.Trainer), ("logger", schema.Logger)):
        if isinstance(config.get(name), dict):
            yield from _values(name, config[name], schema.hints(group), schema.required(group))


def _components(config: dict[str, Any]) -> Iterator[ConfigError]:
    for stage in config.get("plan", []):
        if stage["method"] is not None and stage is not config["plan"][-1]:
            yield from component(f"stages.{stage['name']}", stage["method"], is_method=True)
    for name in ("method", "data", "backbone"):
        if isinstance(config.get(name), dict):
            yield from component(name, config[name], is_method=name == "method")


# what Hydra itself reads in a group
_HYDRA = {"_partial_": bool, "_recursive_": bool, "_convert_": Literal["none", "partial", "object", "all"]}


def component(where: str, given: dict[str, Any], *, is_method: bool = False) -> Iterator[ConfigError]:
    """Compare a group that has a ``_target_`` with the signature behind it, nested ones too."""
    target = given.get("_target_")
    if not isinstance(target, str):
        yield ConfigError(
            f"{where} has no _target_: nothing says which class it configures",
            where=where,
            instead="_target_: package.module.Class",
        )
        return
    try:
        signature = signature_of(target)
    except LookupError as error:
        yield ConfigError(str(error), where=f"{where}._target_", instead="a class or function to import")
        return
    yield from _values(where, {k: given[k] for k in _HYDRA if k in given}, _HYDRA, set())
    hints = {name: p.annotation for name, p in signature.parameters.items()}
    required = {name for name, p in signature.parameters.items() if p.required} - SUPPLIED
    arguments = {k: v for k, v in given.items() if not (k.startswith("_") and k.endswith("_"))}
    if is_method:
        for key in sorted(SUPPLIED & set(arguments)):
            root = key in schema.hints(schema.Root)
            yield ConfigError(
                f"{where}.{key} is not a setting: the run knows it",
                where=f"{where}.{key}",
                instead=f"{key}=…" if root else f"leave {where}.{key} out",
            )
        hints = {k: v for k, v in hints.items() if k not in SUPPLIED}
        arguments = {k: v for k, v in arguments.items() if k not in SUPPLIED}
        # a method's own types are the narrower ones; decay=size stands for a number of each domain
        own = set() if "num_source" in signature.parameters else set(hints)
        structural = {k: v for k, v in arguments.items() if k in schema.METHOD_KEYS and k not in own}
        yield from _values(where, structural, schema.METHOD_KEYS, set())
        arguments = {k: v for k, v in arguments.items() if k not in structural}
        required -= set(structural)
        hints = {**schema.METHOD_KEYS, **hints}  # all of them are worth suggesting
    if given.get("_partial_"):  # what is missing comes later: tensors, which no YAML holds
        hints = {k: v for k, v in hints.items() if k not in required or v is not Any}
        required = set()
    nested = {k: v for k, v in arguments.items() if isinstance(v, dict) and "_target_" in v}
    if signature.open:
        hints = {**{k: Any for k in arguments}, **hints}
    checked = {k: v for k, v in arguments.items() if k not in nested or k not in hints}
    yield from _values(where, checked, hints, required - set(nested))
    for key, value in nested.items():
        yield from component(f"{where}.{key}", value)


def _combinations(config: dict[str, Any]) -> Iterator[ConfigError]:
    method, data, backbone = config["method"], config["data"], config["backbone"]
    kind = data.get("kind")
    plan = config.get("plan", [])
    for i, stage in enumerate(plan):
        if stage["method"] is None:
            continue
        where = "method" if stage is plan[-1] else f"stages.{stage['name']}"
        yield from _stage(where, stage["method"], [s for s in plan[:i] if gives_weights(s)], config)
    if kind == "vectors" and constant_of(backbone["_target_"], "image_input"):
        yield ConfigError(
            f"data={data['name']} holds vectors, and this backbone takes images",
            where="backbone",
            instead="backbone=mlp",
        )
    if config["pretext"] != "none" and "pretext" not in (method.get("before") or []):
        yield ConfigError(
            f"method={method['name']} has no pretext stage", where="pretext", instead="pretext=none"
        )
    if config["num_clusters"] is not None and method.get("task") != "clustering":
        yield ConfigError(
            f"method={method['name']} has no clusters, and num_clusters={config['num_clusters']} is given",
            where="num_clusters",
            instead="num_new=K"
            if method.get("task") == "discovery"
            else "leave num_clusters out, or method=lsdc",
        )
    if config["num_new"] is not None and method.get("task") != "discovery":
        yield ConfigError(
            f"method={method['name']} discovers no classes here, and num_new={config['num_new']} is given",
            where="num_new",
            instead="leave num_new out, or method=ranking_statistics",
        )
    elif config["num_new"] == "auto" and not any(_task(stage) == "count" for stage in config["plan"]):
        skipped = f"ckpt={config['ckpt']} skips it" if config["ckpt"] else "method.before has no class_count"
        yield ConfigError(
            f"num_new=auto needs a stage that counts the new classes, and {skipped}",
            where="num_new" if config["ckpt"] else "num_new, method.before",
            instead="num_new=K" + ("" if config["ckpt"] else ", or method.before with class_count in it"),
        )
    if method.get("task") == "domains" and data.get("domain", "none") is not None:
        one = f"data.domain={data['domain']}" if "domain" in data else f"data={data['name']}"
        yield ConfigError(
            f"method={method['name']} trains on several domains, and {one} is one",
            where="method, data",
            instead="leave data.domain out; or method=supervised, which trains on one"
            if "domain" in data
            else "data=digit_domains, or data=decathlon with data.root=DIR; or method=supervised",
        )
    if method.get("task") == "saliency":
        yield from _saliency(config)
    yield from _pretext_epoch(config)
    yield from _key_map(config)
    for name, values in config["stages"].items():
        yield from _stage_settings(name, values, config)
    trainer = config["trainer"]
    if trainer["precision"] == "16-mixed" and trainer["accelerator"] == "cpu":
        yield ConfigError(
            "16-mixed precision needs a GPU", where="trainer.precision", instead="32-true or bf16-mixed"
        )
    yield from _paths(config)


def _saliency(config: dict[str, Any]) -> Iterator[ConfigError]:
    """What is wrong with a run that explains a classifier."""
    method, earlier = config["method"], config["plan"][:-1]
    if config["ckpt"] is None and not any(stage["method"] for stage in earlier):
        yield ConfigError(
            f"method={method['name']} explains a trained model, and none is given",
            where="ckpt",
            instead="ckpt=RUN, the folder of a run with a classifier; ckpt=FILE of torchvision's weights with"
            " backbone=torchvision backbone.name=NAME; or ckpt=module:function that returns a model; without"
            " ckpt, data with boxes or masks, such as data=shapes, on which a classifier is trained first",
        )
    elif earlier and _task(earlier[-1]) not in ("multilabel", "classification"):
        yield ConfigError(
            f"{method['name']} explains a classifier, and the stage before it is {earlier[-1]['name']}",
            where="method.before",
            instead="a list that ends with multilabel or supervised, or the ckpt of a classifier",
        )
    if config["trainer"]["devices"] > 1:
        yield ConfigError(
            f"method={method['name']} works on one device",
            where="trainer.devices",
            instead="trainer.devices=1; several runs of some methods each (method.methods) share the work",
        )
    if not method["methods"]:
        yield ConfigError("no saliency method is named", where="method.methods", instead="one at least")
    if bool(method["weights"]) != bool(method["how"]):
        yield ConfigError(
            "layers are combined by weights and how, and one of them is empty",
            where="method.weights, method.how",
            instead="both, or both empty for single layers alone",
        )
    if {"meta", "epochs"} & set(method["evaluations"] or ()) and not method["meta_methods"]:
        yield ConfigError(
            "the evaluations meta and epochs compare maps with and without meta-saliency: no method has it",
            where="method.evaluations, method.meta_methods",
            instead="evaluations without these two, or meta_methods=[selective_norm_grad]",
        )
    shipped = Path(__file__).parents[1] / "data" / "class_maps"
    for key, folder in (("class_map", shipped), ("layer_weights", None)):
        given = method[key]
        if given is None or Path(given).expanduser().is_file():
            continue
        known = [] if folder is None else sorted(path.stem for path in folder.glob("*.json"))
        if given not in known:
            yield ConfigError(
                f"method.{key}={given}: there is no such file",
                where=f"method.{key}",
                instead="a JSON file" + (f", or {', '.join(known)}" if known else ""),
            )


def names_function(ckpt: str | None) -> bool:
    """Whether a ``ckpt`` is ``module:function`` rather than a file or a folder."""
    words = r"[A-Za-z_]\w*"
    pattern = rf"{words}(\.{words})*:{words}"
    return ckpt is not None and re.fullmatch(pattern, ckpt) is not None and not Path(ckpt).exists()


def start_of(config: Mapping[str, Any]) -> str:
    """Return the setting that names what the last stage starts from."""
    return "ckpt" if config["refine"] is None else "refine"


def _key_map(config: dict[str, Any]) -> Iterator[ConfigError]:
    if config["key_map"] and config["ckpt"] is None and all(s["method"] for s in config["plan"]):
        yield ConfigError(
            "key_map renames the weights of a checkpoint, and there is none",
            where="key_map",
            instead="leave it out, or ckpt=FILE, refine=FILE or pretext=FILE",
        )


def _pretext_epoch(config: dict[str, Any]) -> Iterator[ConfigError]:
    epoch = config["pretext_epoch"]
    if epoch is None:
        return
    pretext = next((s["method"] for s in config["plan"][:-1] if s["name"] == "pretext" and s["method"]), None)
    if pretext is None:
        given = (
            f"pretext={config['pretext']}"
            if config["ckpt"] is None
            else f"{start_of(config)}={config['ckpt']}"
        )
        yield ConfigError(
            f"pretext_epoch = {epoch} has no effect: with {given} no pretext is trained",
            where="pretext_epoch",
            instead="leave it out, or pretext=rotnet",
        )
    elif epoch not in (kept := [*(pretext.get("keep") or []), pretext["epochs"]]):
        yield ConfigError(
            f"the weights after epoch {epoch} of the pretext are not kept",
            where="pretext_epoch",
            instead=f"{' or '.join(map(str, sorted(set(kept))))}, or stages.pretext.keep=[{epoch}]",
        )


def _stage_settings(name: str, values: Any, config: dict[str, Any]) -> Iterator[ConfigError]:
    """Settings of an earlier stage must be a mapping, and the stage must be there."""
    *earlier, last = config["plan"]
    reference = config.get("reference", [])
    method = config["method"]
    where = f"stages.{name}"
    given = {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values
    first = next(iter(given), "epochs") if isinstance(given, dict) else "epochs"
    if not isinstance(values, dict):
        yield ConfigError(
            f"{where} = {_shown(values)} is not possible",
            where=where,
            instead=f"{where}.epochs=50 and the like",
        )
    elif name == last["name"] and given:
        yield ConfigError(
            f"{name} is the last stage of method={method['name']}, whose settings are those of the method",
            where=f"{where}.{first}",
            instead=f"{first if first in SHORT else f'method.{first}'}={given[first]}",
        )
    elif given and name not in [*(method.get("before") or []), *(s["name"] for s in reference)]:
        names = [s["name"] for s in [*earlier, *reference]] or method.get("before") or []
        yield ConfigError(
            f"method={method['name']} has no earlier stage {name!r}",
            where=where,
            instead=suggest(name, names),
        )
    elif given and not any(s["name"] == name and s["method"] for s in [*earlier, *reference]):
        why = f"{name}={config[name]}" if name in config else "these settings"
        why = why if config["ckpt"] is None else f"ckpt={config['ckpt']}"
        yield ConfigError(
            f"{where}.{first} = {_shown(given[first])} has no effect: with {why} no such stage is trained",
            where=f"{where}.{first}",
            instead="leave it out, or name a stage to train, e.g. pretext=rotnet without a ckpt",
        )


def gives_weights(stage: dict[str, Any]) -> bool:
    """Whether an earlier stage, or the checkpoint in its place, gives the next one weights to start from."""
    return _task(stage) != "count"


def _task(stage: dict[str, Any]) -> str | None:
    return None if stage["method"] is None else stage["method"].get("task")


def _stage(
    where: str, method: dict[str, Any], earlier: list[dict[str, Any]], config: dict[str, Any]
) -> Iterator[ConfigError]:
    """What is wrong with a stage, given the earlier ones that give weights."""
    data, needs = config["data"], method.get("needs") or []
    batch = method.get("batch_size")
    devices = config["trainer"]["devices"]
    follows = constant_of(str(method.get("_target_")), "follows")
    if follows is not None and config["ckpt"] is None:  # what is in a checkpoint is seen when it is read
        last = earlier[-1] if earlier else None
        if last is None or (last["method"] is not None and last["method"].get("name") != follows):
            found = "there is none" if last is None else f"the last one that trains is {last['name']}"
            yield ConfigError(
                f"{method['name']} takes over from a {follows} stage, and {found}",
                where=f"{where}.before",
                instead=f"a list of stages with {follows} as the last that trains, or the ckpt of such a run",
            )
    if method.get("freeze") and config["ckpt"] is None and not earlier:
        yield ConfigError(
            f"{where}.freeze = {_shown(method['freeze'])} would keep random weights: "
            "there is neither a pretext nor a checkpoint",
            where=f"{where}.freeze",
            instead="0, or a pretext or ckpt that gives weights to keep",
        )
    if "images" in needs and data["kind"] != "images":
        yield ConfigError(
            f"{method['name']} works on images, and data={data['name']} holds vectors",
            where=where if where == "method" else "pretext",
            instead="pretext=denoising or none" if where != "method" else "an image data set",
        )
    turned = (data.get("augmentation") or {}).get("degrees") or 0
    if "RotNet" in str(method.get("_target_")) and turned >= 45:
        yield ConfigError(
            f"images that are turned by up to {turned:g} degrees do not tell which quarter turn they had",
            where="data.augmentation.degrees",
            instead="less than 45 for RotNet, or pretext=none",
        )
    if "vectors" in needs and data["kind"] != "vectors":
        yield ConfigError(
            f"{method['name']} works on vectors, and data={data['name']} holds images",
            where=where,
            instead="pretext=rotnet or none" if where != "method" else "data=tfidf",
        )
    yield from _cycles(where, method, config)
    epochs = method.get("epochs", 0)
    late = [epoch for epoch in method.get("keep") or [] if epoch > epochs]
    if late:
        yield ConfigError(
            f"there is no epoch {late[0]} after which to keep weights: {where} has {epochs}",
            where=f"{where}.keep",
            instead=f"epochs from 1 to {epochs}" if epochs else "leave keep out",
        )
    if batch is None:
        return
    size = "batch_size" if where == "method" else f"{where}.batch_size"
    if batch % devices:
        yield ConfigError(
            f"a global batch of {batch} cannot be shared by {devices} devices",
            where=f"{size}, trainer.devices",
            instead=f"a multiple of {devices}",
        )
    elif method.get("group") and batch % (devices * method["group"]):
        yield ConfigError(
            f"a batch of {batch // devices} cannot be divided into groups of {method['group']}",
            where=f"{size}, {where}.group",
            instead=f"a batch_size that is a multiple of {devices * method['group']}",
        )
    labeler = method.get("labeler")
    if isinstance(labeler, dict) and "knn" in str(labeler.get("_target_")):
        local = method.get("pairs", "local") == "local"
        per_batch = batch // devices if local else batch
        if labeler["k"] >= per_batch:
            yield ConfigError(
                f"{where}.labeler.k = {labeler['k']} neighbours do not exist in a batch of {per_batch}",
                where=f"{where}.labeler.k, {size}",
                instead=f"k below {per_batch}, or a larger batch",
            )
    if data["kind"] == "vectors" and method.get("composition") == "ricap":
        yield ConfigError(
            "RICAP cuts patches out of images, and vectors have none",
            where=f"{where}.composition",
            instead="mixup or none",
        )
    if method.get("pairs") == "global" and devices == 1:
        yield ConfigError(
            "pairs=global gathers the batches of several devices, and there is one",
            where=f"{where}.pairs",
            instead="pairs=local, or trainer=ddp",
        )


def _cycles(where: str, method: dict[str, Any], config: dict[str, Any]) -> Iterator[ConfigError]:
    cycles, epochs = method.get("cycles"), method.get("epochs")
    if cycles is None:
        return
    if method["final_cycles"] > cycles:
        yield ConfigError(
            f"{method['final_cycles']} final cycles on all samples, of {cycles} cycles",
            where=f"{where}.final_cycles, {where}.cycles",
            instead=f"final_cycles from 0 to {cycles}",
        )
    if not epochs:
        yield ConfigError(
            "no epoch would train anything", where="epochs", instead=f"epochs={cycles} at least"
        )
    elif epochs % cycles and not config["fast"]:
        yield ConfigError(
            f"{epochs} epochs are not the same number in each of {cycles} cycles",
            where=f"epochs, {where}.cycles",
            instead=f"epochs={max(1, round(epochs / cycles)) * cycles}",
        )


_PLACES = ("run_dir", "output_dir", "cache_dir")
_DATA_PLACES = ("root", "labelled", "unlabelled", "labels_file")


def _paths(config: dict[str, Any]) -> Iterator[ConfigError]:
    given = [(start_of(config), config["ckpt"])]
    given += [("pretext", s["checkpoint"]) for s in config["plan"] if s["method"] is None]
    for key, value in given:
        if config["method"].get("task") == "saliency" and names_function(value):
            continue
        if value is not None and not Path(value).expanduser().exists():
            yield ConfigError(
                f"{key}={value}: there is no such file or run folder",
                where=key,
                instead="a checkpoint file, or the folder of a run",
            )
    places = {start_of(config): config["ckpt"]} | {key: config[key] for key in _PLACES}
    places |= {f"data.{key}": config["data"].get(key) for key in _DATA_PLACES}
    for key, value in places.items():
        if value == "":  # as a path it would be the folder that one is in: of a variable that is not set
            yield ConfigError(f"{key} is empty", where=key, instead=f"{key}=PATH, or leave it out")
    for key in _PLACES:
        if not config[key]:
            continue
        path = Path(config[key]).expanduser().absolute()
        obstacle = next((p for p in [path, *path.parents] if p.exists()), None)
        if obstacle is not None and not obstacle.is_dir():
            yield ConfigError(
                f"{key}={config[key]} cannot be a folder: {obstacle} is a file",
                where=key,
                instead="a folder that exists or can be made",
            )


def is_path(value: str) -> bool:
    """Whether a ``pretext`` value means a file or folder rather than the name of a method."""
    return "/" in value or "." in value or Path(value).expanduser().exists()
