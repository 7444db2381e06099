"""Configurations of nonsense: each ends as one message or as a run that means what it says."""

from __future__ import annotations

import copy
import math
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scarcely.cli import MENDABLE, OK, _told, main
from scarcely.config import compose
from scarcely.config.check import check
from scarcely.config.paths import conf_dir
from scarcely.errors import ConfigError, UserError
from tests.runs import Process

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
DATA = sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml"))
MANY_DOMAINS = (
    *("bn_adapters", "domain_prediction", "feature_extractor", "finetune", "lwf", "parallel_adapters"),
    *("round_robin", "series_adapters", "svd_adapters"),
)
BACKBONES = sorted(path.stem for path in (conf_dir() / "backbone").glob("*.yaml"))
LABELERS = sorted(path.stem for path in (conf_dir() / "method" / "labeler").glob("*.yaml"))
# every option of every group once, with what goes with it
RUNS = [
    *((f"method={m}", "data=decathlon" if m in MANY_DOMAINS else "data=digits") for m in METHODS),
    *(("method=supervised", f"data={d}") for d in DATA if d != "decathlon"),
    *(("method=lsdc", f"method/labeler={labeler}") for labeler in LABELERS),
    *(("method=supervised", f"backbone={b}") for b in BACKBONES),
    *(("method=lsdc", f"logger={name}") for name in ("wandb", "tensorboard", "none")),
    ("method=ranking_statistics", "data=cifar10"),
    ("method=lsdc", "data=tfidf"),
]

NAN, INF = float("nan"), float("inf")
ODD: tuple[Any, ...] = (
    *(None, True, False, "", " ", "x", "nan", "-1", "é'\"\\\n", "\0", "${nowhere}"),
    *(0, -1, 1.5, -0.5, 10**30, -(10**30), 1e300, NAN, INF, -INF),
    *([], [None], ["x"], [NAN], [-1], [[]], {}, {"x": 1}, {"_target_": "os.system"}, {"_target_": 3}),
)
TOLD = (ConfigError, HydraException, OmegaConfBaseException)  # each becomes one message and exit code 2


@contextmanager
def composing() -> Iterator[None]:
    """Compose the same overrides once: of thousands of configurations each differs in one value."""
    again = cache(lambda overrides: hydra_compose("config", overrides=list(overrides)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "compose_with", lambda o: copy.deepcopy(again(tuple(map(str, o)))))
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield


@cache
def composed(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, Any]]:
    cfg = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
    return cfg, dict(cfg.hydra.runtime.choices)


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Return every key of a configuration, those of groups and of single values."""
    for key in node:
        path = f"{prefix}{key}"
        yield path
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            yield from keys(child, f"{path}.")


def finalized(overrides: tuple[str, ...], key: str, value: Any) -> dict[str, Any]:
    """Return the checked run with one value put in its place, as an override would do it."""
    cfg, choices = composed(overrides)
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    config = compose.finalize(cfg, [*overrides, f"{key}=odd"], choices)
    check(config)
    return config


def outcome(overrides: tuple[str, ...], key: str, value: Any) -> str:
    """Return ``refused`` or ``taken``, or what else happened."""
    try:
        finalized(overrides, key, value)
    except TOLD as error:
        if isinstance(error, ConfigError) and not str(error).strip():
            return "refused without a word"
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


def cases(runs: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], str, Any]]:
    """Return runs, keys and odd values; of a setting of the same component in several runs, one run."""
    found = []
    seen: set[tuple[str, str]] = set()
    for overrides in runs:
        cfg, _ = composed(overrides)
        for key in keys(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"])):
            if (setting := _setting(cfg, key)) not in seen:
                seen.add(setting)
                found += [(overrides, key, value) for value in ODD]
    return found


def _setting(cfg: DictConfig, key: str) -> tuple[str, str]:
    """Return the component that a key is an argument of, and its name there."""
    parents = key.split(".")
    for depth in range(len(parents) - 1, 0, -1):
        target = OmegaConf.select(cfg, ".".join([*parents[:depth], "_target_"]))
        if target is not None:
            return str(target), ".".join(parents[depth:])
    return "", key


# -- every key, every odd value ------------------------------------------------------------------


@cache
def plain(overrides: tuple[str, ...]) -> dict[str, Any]:
    cfg, choices = composed(overrides)
    return compose.finalize(copy.deepcopy(cfg), list(overrides), choices)


def put(config: dict[str, Any], key: str, value: Any) -> bool:
    """Set a dotted key of a finished configuration; return whether it is there."""
    *parents, last = key.split(".")
    for parent in parents:
        config = config.get(parent)
        if not isinstance(config, dict):
            return False
    there = last in config
    config[last] = copy.deepcopy(value)
    return there


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# what only stands in for a setting, and is checked where it does
INDIRECT = (
    "method.by_kind.",
    "method.stages.",
    "recipe",
    *(f"method.{b}." for b in ("discovery", "scarce", "domains", "refined")),
)


def check_all(found: list[tuple[tuple[str, ...], str, Any]]) -> tuple[int, int]:
    """Put odd values into finished configurations.

    Returns:
        How many were tried, and how many refused, of those whose key is read where it stands.
    """
    tried = refused = 0
    for overrides, key, value in found:
        config = copy.deepcopy(plain(overrides))
        if key == "plan" or not put(config, key, value):  # of a finished one it is the list of stages
            continue
        hydras = key.rpartition(".")[2].startswith("_")  # _partial_ and the like
        elsewhere = hydras or f"{key}.".startswith(INDIRECT) or key == "expected"
        tried += not elsewhere
        try:
            check(config)
        except ConfigError:
            refused += not elsewhere
            continue
        except Exception as error:
            raise AssertionError(
                f"{overrides}, {key} = {value!r}: {type(error).__name__}: {error}"
            ) from error
        if elsewhere:
            continue
        numbers = (
            [value]
            if is_number(value)
            else [v for v in value if is_number(v)]
            if isinstance(value, list)
            else []
        )
        for number in numbers:
            assert math.isfinite(number), f"{overrides}, {key} takes {value!r}"
            assert number >= -1, f"{overrides}, {key} takes {value!r}"
        assert value not in ({"_target_": "os.system"}, {"_target_": 3}, [[]]), (
            f"{overrides}, {key} takes {value!r}"
        )
    return tried, refused


def test_odd_values_of_some_keys_are_told_and_never_crash():
    with composing():
        tried, refused = check_all(random.Random(0).sample(cases([("method=lsdc", "data=digits")]), 400))
    assert refused > tried / 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("method.before", 1.5),
            ("method.by_kind", 3),
            ("method.by_kind.images", None),
            ("method.stages", "x"),
        ),
        *(("method.stages.supervised", [1]), ("method.reference", -0.5), ("method.discovery", "x")),
        *(("run_dir", ""), ("data.root", ""), ("ckpt", ""), ("cache_dir", "")),
    ],
)
def test_what_is_read_before_the_check_is_told_too(key, value):
    with composing():
        assert outcome(("method=ranking_statistics", "data=cifar10"), key, value) == "refused"


@pytest.mark.slow
def test_every_odd_value_of_every_key_is_told_or_means_something():
    """No traceback, no NaN, no infinity, no large negative number, no class in place of a value."""
    with composing():
        tried, refused = check_all(cases(RUNS))
    print(f"{tried} configurations, {refused} refused")
    assert tried > 20_000
    assert refused > 0.9 * tried


# what is read before the check: the same through the whole composition, which takes a tenth of a second
EARLY = ("optimizer.", "augmentation.", "classifier.")
SOME = (None, True, "x", "", 1.5, NAN, [], [None], ["x"], {}, {"x": 1}, "${nowhere}")
COMPOSED = [
    ("method=alternating_ssl", "data=digits", "data.labels_per_class=5"),
    ("method=mcl", "data=digits", "num_new=auto"),
    ("method=kmeans", "data=digits", "data.labelled_classes=5"),
    ("method=lsdc", "data=digits"),
    ("method=svd_adapters", "data=decathlon"),
    ("method=supervised", "data=digits"),
    ("method=normgrad", "data=shapes"),
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", COMPOSED, ids=" ".join)
def test_odd_values_that_say_which_stages_there_are(overrides):
    with composing():
        cfg, _ = composed(overrides)
        wrong = []
        own = OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"])
        for key in keys(own):
            if not any(part in key for part in EARLY):
                ends = {value: outcome(overrides, key, odd) for value, odd in ((repr(v), v) for v in SOME)}
                wrong += [(key, v, end) for v, end in ends.items() if end not in ("taken", "refused")]
    assert wrong == []


# -- what is typed -------------------------------------------------------------------------------

TYPED = (
    *("seed=", "seed=[", "seed={a", "seed='", "seed=nan", "seed=1e400", "seed=0x10", "seed=${seed}"),
    "seed=${x}",
    *("=3", "..=1", "method.=3", ".=3", "seed", "~seed", "+seed=1", "++x.y=1", "~method", "method=[lsdc]"),
    *("seed=1,2", "method=lsdc,kcl", "seed=range(3)", "seed=-1", "seed=--1", "epochs=9999999999999999999999"),
    *("-x", "--nothing", "é=1", "seed=é", "stages.x.y=1", "stages=1", "stages.pretext=1"),
    *("data.root=\\", "data.root=a\nb", "run_dir=", "cache_dir=", "ckpt=", "data=imagefolder data.root="),
    *("batch_size=1e3", "fast=yes", "fast=1", "method.optimizer=null", "method.optimizer.lr=${method}"),
    *("trainer.devices=1e9", "recipe=../../x", "data=../config", "method=/etc/passwd", "experiment=x"),
    *("logger=[]", "backbone={}", "@x=1", "method@x=lsdc", "data@_global_=digits", "seed=1 2"),
    *("seed=glob(*)", "seed=choice(1)", "seed=interval(0,1)", "method._target_=os.system"),
    *("data._target_=os.system", "backbone._target_=builtins.exec", "method.labeler._target_=os.system"),
)


@pytest.fixture
def dry(monkeypatch, tmp_path):
    """No run is made of what is composed."""
    import scarcely.run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scarcely.run, "execute", lambda config, name: {"metrics": {}})


def typed(arguments: list[str], capfd) -> int:
    capfd.readouterr()
    code = main(arguments)
    told = capfd.readouterr().err
    assert "Traceback" not in told, (arguments, told)
    assert code in (OK, MENDABLE), (arguments, told)
    if code == MENDABLE:
        assert told.count("error: ") == 1 or "usage:" in told, (arguments, told)
    return code


@pytest.mark.slow
@pytest.mark.usefixtures("dry")
def test_what_people_mistype(capfd):
    codes = [
        typed(["trainer=cpu", *text.split(" ", 1 if text.startswith("data=image") else 0)], capfd)
        for text in TYPED
    ]
    assert codes.count(MENDABLE) > len(TYPED) / 2


@pytest.mark.slow
@pytest.mark.usefixtures("dry")
def test_random_text_on_the_command_line(capfd):
    draw = random.Random(0)
    cfg, _ = _composed_once()
    known = [key for key in keys(cfg) if not key.startswith("hydra")]
    signs = [
        *"=,.:/@~+-'\"\\[](){}$ \t#%!",
        "null",
        "true",
        "nan",
        "1",
        "0.5",
        "seed",
        "method",
        "lsdc",
        "é",
        "${",
        "}",
    ]
    codes = []
    for _ in range(int(os.environ.get("SCARCELY_CASES", "400"))):
        text = "".join(draw.choice(signs) for _ in range(draw.randrange(1, 8)))
        argument = draw.choice(
            [text, f"{draw.choice(known)}={text}", f"{text}={draw.choice(known)}", f"+{text}=1"]
        )
        if argument.lstrip("-").startswith(("h", "c")) or argument in ("-", "--"):
            continue  # Hydra's own options
        codes.append(typed(["trainer=cpu", argument], capfd))
    assert codes.count(MENDABLE) > len(codes) / 2


def _composed_once() -> tuple[DictConfig, dict[str, Any]]:
    with composing():
        return composed(("method=lsdc", "data=digits"))


# -- what is taken, run --------------------------------------------------------------------------

TINY = (
    *("trainer=cpu", "fast=true", "backbone.width=4", "backbone.num_features=16", "data.size=8"),
    *("embedding_size=0", "compare_kmeans=false"),
)
# these say where things go, and what they are called
PLACES = (
    "run_dir",
    "output_dir",
    "cache_dir",
    "data.name",
    "method.name",
    "method.stage",
    "expected",
    "plan",
    "data.root",
)


def fate(config: dict[str, Any], folder: str) -> int:
    """Run a configuration; return what the command's exit code would be."""
    import resource
    import traceback

    import scarcely.reports.html
    from scarcely.run import execute

    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    scarcely.reports.html.write_report = lambda evidence: None
    config["command"], config["output_dir"], config["cache_dir"] = "", folder, folder
    try:
        execute(config, "run")
    except Exception as error:
        if isinstance(told := _told(error), UserError):
            print(told)
            return MENDABLE
        traceback.print_exc()
        return 1
    return OK


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["supervised", "lsdc", "ranking_statistics", "alternating_ssl", "mean_teacher", "kmeans"]
)
def test_what_the_check_takes_ends_as_a_run_or_as_one_message(method, tmp_path):
    """The widest, longest and emptiest values that are let through, on small data and little memory."""
    few = ("data.labels_per_class=5",) if method in ("alternating_ssl", "mean_teacher") else ()
    overrides = (f"method={method}", "data=digits", *TINY, *few)
    found = []
    with composing():
        base = plain(overrides)
        for key in keys(composed(overrides)[0]):
            if key.startswith(("hydra", *INDIRECT, *PLACES)):
                continue
            for value in ODD:
                config = copy.deepcopy(base)
                if not put(config, key, value) or config == base or value == "\0":
                    continue
                try:
                    check(config)
                except ConfigError:
                    continue
                found.append((key, value, config))
    random.Random(0).shuffle(found)
    ends, wrong = [], []
    for number, (key, value, config) in enumerate(found[: int(os.environ.get("SCARCELY_TAKEN", "1000"))]):
        folder = tmp_path / str(number)
        process = Process(fate, config, str(folder), log=tmp_path / f"{number}.log")
        ends.append(process.wait(300))
        if ends[-1] not in (OK, MENDABLE):
            wrong.append(f"{key}={value!r}: {ends[-1]}, {process.output.strip().splitlines()[-1:]}")
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{method}: {len(ends)} taken, {ends.count(OK)} run, {ends.count(MENDABLE)} told")
    assert wrong == []
