"""Runs over several domains: what is trained, what is kept, what is forgotten, what is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scarcely import checkpoints, domains
from scarcely.config.check import check
from scarcely.config.compose import compose_run
from scarcely.errors import ConfigError, DataError, UserError
from scarcely.methods.domains import DomainMethod
from scarcely.run import execute
from tests.data.test_decathlon import write_domain

NAMES = ("birds", "gtsrb", "signs")
ADAPTERS = ("series_adapters", "parallel_adapters", "svd_adapters", "bn_adapters", "feature_extractor")
TINY = (
    "data=decathlon",
    "data.source=birds",
    "data.image_size=8",
    "backbone.width=4",
    "backbone.blocks=1",
    "batch_size=16",
    "epochs=2",
    "trainer=cpu",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A release of three domains with images of noise: of 3, 2 and 4 classes."""
    folder = tmp_path_factory.mktemp("release")
    parts = {"train": 18, "val": 8, "test": 12}
    for number, (name, classes) in enumerate(zip(NAMES, (3, 2, 4), strict=True), start=1):
        write_domain(folder / "decathlon-1.0", name, number, classes, parts, seed=number)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def images(cache, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(cache / "images"))


def run(folder: Path, root: Path, cache: Path, method: str, *overrides: str) -> dict:
    """Run a method over the domains, without pictures; the stages of all tests share a cache."""
    given = [f"method={method}", *TINY, f"data.root={root}", f"cache_dir={cache}", f"run_dir={folder}"]
    own = [f"++{o}" if o.startswith("stages.") else o for o in overrides]
    before = next((o for o in overrides if o.startswith("method.before=")), "source")
    if (
        "source" in before
        and "ckpt" not in "".join(overrides)
        and method not in ("supervised", "round_robin")
    ):
        own += ["++stages.source.epochs=2", "++stages.source.batch_size=16"]
    if method == "svd_adapters":
        own += ["++stages.parallel_adapters.epochs=2", "++stages.parallel_adapters.batch_size=16"]
    config = compose_run([*given, *own])
    check(config)
    config["command"] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domains, "write_report", lambda evidence: None)  # tested with the other reports
        return execute(config, "run")


def network(results_or_folder: Path, name: str) -> DomainMethod:
    trained = domains.Trained(name, results_or_folder / "domains" / name / "weights.pt", "", 0, 0.0, False)
    method = domains.load(trained)
    return method


@pytest.fixture(scope="module")
def runs(root, cache, tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """Every method once."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCARCELY_CACHE", str(cache / "images"))
        for method in (*ADAPTERS, "finetune", "lwf", "supervised"):
            found[method] = (folder / method, run(folder / method, root, cache, method))
    return found


@pytest.mark.parametrize("method", [*ADAPTERS, "finetune", "lwf", "supervised"])
def test_one_command_trains_the_source_and_every_domain_and_scores_them(runs, method):
    folder, results = runs[method]
    metrics = results["metrics"]
    for name in NAMES:
        assert 0 <= metrics[f"domain/{name}/accuracy"] <= 1
        assert (folder / "domains" / name / "weights.pt").is_file()
        assert json.loads((folder / "domains" / name / "result.json").read_text())["name"] == name
    assert metrics["mean/accuracy"] == pytest.approx(sum(r["accuracy"] for r in results["domains"]) / 3)
    assert [row["name"] for row in results["domains"]] == list(NAMES)
    errors = {name: 1 - metrics[f"domain/{name}/accuracy"] for name in NAMES}
    limits = results["max_errors"]
    expected = sum(1000 * (max(0, limits[n] - errors[n]) / limits[n]) ** 2 for n in NAMES)
    assert metrics["decathlon/score"] == pytest.approx(expected)


def test_the_largest_errors_are_twice_those_of_fine_tuning(runs):
    metrics = runs["finetune"][1]["metrics"]
    twice = {name: min(1, 2 * (1 - metrics[f"domain/{name}/accuracy"])) for name in NAMES}
    for _, results in runs.values():
        others = {name: results["max_errors"][name] for name in NAMES[1:]}
        assert others == pytest.approx({name: twice[name] for name in NAMES[1:]})


@pytest.mark.parametrize("method", ADAPTERS)
def test_nothing_of_the_source_is_forgotten(runs, method):
    folder, results = runs[method]
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    source = network(folder, "birds")
    before = source(x)
    own = results["metrics"]["domain/birds/accuracy"]
    for name in NAMES[1:]:
        after = network(folder, name).source_logits(x)
        assert torch.equal(after, before), name  # bit for bit
        assert results["metrics"][f"domain/{name}/source_accuracy"] == pytest.approx(own)


def test_fine_tuning_moves_the_source(runs):
    folder, _ = runs["finetune"]
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = network(folder, "birds")(x)
    assert not torch.allclose(network(folder, "gtsrb").source_logits(x), before)


def test_parameters_are_counted_against_one_network(runs):
    ratio = {method: results["metrics"]["parameters/ratio"] for method, (_, results) in runs.items()}
    assert ratio["finetune"] == ratio["lwf"] == ratio["supervised"] == 3
    assert ratio["feature_extractor"] == 1
    assert 1 < ratio["bn_adapters"] < ratio["svd_adapters"] < ratio["parallel_adapters"]
    own = [row["parameters"] for row in runs["parallel_adapters"][1]["domains"]]
    assert ratio["parallel_adapters"] == pytest.approx(sum(own) / own[0])


def test_the_last_convolutions_alone_are_trained(root, cache, runs, tmp_path):
    run(tmp_path / "last", root, cache, "finetune", "method.last=2", "method.reference=none")
    source = network(tmp_path / "last", "birds").backbone.state_dict()
    tuned = network(tmp_path / "last", "gtsrb").backbone.state_dict()
    moved = {name.rpartition(".")[0] for name in source if not torch.equal(source[name], tuned[name])}
    assert {"layer3.0.conv1", "layer3.0.bn1", "layer3.0.conv2", "layer3.0.bn2"} <= moved
    assert not [name for name in moved if name.startswith(("conv1", "bn1", "layer1", "layer2"))]


def test_another_domain_trains_none_of_the_others_again(root, cache, runs, tmp_path):
    few = run(tmp_path / "few", root, cache, "parallel_adapters", "data.domains=[signs,birds]")
    stages = {stage["name"]: stage["cached"] for stage in few["stages"]}
    assert stages == {"birds supervised": True, "signs parallel_adapters": True}
    together = runs["parallel_adapters"][1]["metrics"]
    assert few["metrics"]["domain/signs/accuracy"] == together["domain/signs/accuracy"]


def test_what_was_trained_is_kept_where_a_later_domain_fails(root, cache, tmp_path):
    failing = ["method.decay={gtsrb: 1e30}", "method.reference=none", "seed=3"]
    with pytest.raises(UserError, match=r"1 of the domains failed \(gtsrb\)") as caught:
        run(tmp_path / "run", root, cache, "parallel_adapters", *failing)
    assert "another run_dir" in str(caught.value)
    assert not (tmp_path / "run" / "results.json").exists()
    kept = sorted(path.parent.name for path in (tmp_path / "run").glob("domains/*/result.json"))
    assert kept == ["birds", "signs"]
    again = run(tmp_path / "again", root, cache, "parallel_adapters", "method.decay=size", *failing[1:])
    cached = {stage["name"]: stage["cached"] for stage in again["stages"]}
    assert cached == {
        "birds supervised": True,
        "gtsrb parallel_adapters": False,
        "signs parallel_adapters": True,
    }


def test_weight_decay_follows_the_papers_by_the_size_of_the_training_set():
    train = {"aircraft": 3334, "dtd": 1880, "vgg-flowers": 1020, "omniglot": 17853, "ucf101": 7629}
    train |= {"daimlerpedcls": 23520, "cifar100": 40000, "gtsrb": 31367, "svhn": 47217}
    found = {name: domains.decay_of("size", name, count) for name, count in train.items()}
    assert [n for n, d in found.items() if d == 0.002] == ["aircraft", "dtd", "vgg-flowers"]
    assert [n for n, d in found.items() if d == 0.0005] == ["omniglot", "ucf101", "daimlerpedcls"]
    assert [n for n, d in found.items() if d == 0.0001] == ["cifar100", "gtsrb", "svhn"]
    assert domains.decay_of({"dtd": 0.1}, "dtd", 10) == 0.1
    assert domains.decay_of({"dtd": 0.1}, "svhn", 47217) == 0.0001
    assert domains.decay_of(0, "svhn", 47217) == 0


def test_weight_decay_is_chosen_on_the_validation_part(root, cache, runs, tmp_path, capfd):
    overrides = ("method.decay=validation", "method.reference=none", "data.domains=[birds,signs]")
    results = run(tmp_path / "run", root, cache, "parallel_adapters", *overrides)
    tried = [s["name"] for s in results["stages"] if "decay" in s["name"]]
    assert len(tried) == len(domains.DECAYS)
    told = [line for line in capfd.readouterr().err.splitlines() if "on the validation part" in line]
    job = checkpoints.load(tmp_path / "run" / "domains" / "signs" / "weights.pt")["job"]
    assert f"signs: weight decay {job['method']['decay']:g}" in told[0]


def test_series_adapters_may_be_put_in_afterwards(root, cache, tmp_path):
    overrides = ("method.source=supervised", "method.source_with_adapters=false", "method.reference=none")
    results = run(tmp_path / "run", root, cache, "series_adapters", *overrides)
    assert results["stages"][0]["name"] == "birds supervised"
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = network(tmp_path / "run", "birds")(x)
    assert torch.equal(network(tmp_path / "run", "signs").source_logits(x), expected)


def test_a_checkpoint_of_the_source_takes_its_place(root, cache, runs, tmp_path):
    source = runs["finetune"][0] / "domains" / "birds"
    results = run(tmp_path / "run", root, cache, "bn_adapters", f"ckpt={source}", "method.reference=none")
    assert [stage["name"] for stage in results["stages"]] == ["gtsrb bn_adapters", "signs bn_adapters"]
    assert "domain/gtsrb/source_accuracy" in results["metrics"]
    assert results["metrics"]["parameters/ratio"] == pytest.approx(
        runs["bn_adapters"][1]["metrics"]["parameters/ratio"]
    )


@pytest.mark.parametrize(
    ("method", "overrides", "error", "what"),
    [
        ("parallel_adapters", ["data.domains=[birds]"], ConfigError, "there is no other domain"),
        ("parallel_adapters", ["data.domains=[birds,birdz]"], DataError, "birdz"),
        ("parallel_adapters", ["method.where=nowhere"], ConfigError, "nowhere"),
        ("parallel_adapters", ["method.decay={birdz: 1}"], ConfigError, "birdz"),
        ("svd_adapters", ["method.rank=0"], ConfigError, "method.rank"),
        ("svd_adapters", ["method.rank=500"], ConfigError, "rank 500"),
        ("svd_adapters", ["method.rank=2", "method.energy=0.5"], ConfigError, "rank and as energy"),
        ("finetune", ["method.last=100"], ConfigError, "last 100 convolutions"),
        ("lwf", ["data.source=null", "method.before=[]"], ConfigError, "source's classifier"),
    ],
)
def test_what_does_not_fit_is_told_before_any_training(root, cache, tmp_path, method, overrides, error, what):
    with pytest.raises(error, match=what):
        run(tmp_path / "run", root, tmp_path / "none", method, *overrides)
    assert not (tmp_path / "none").exists()


def test_a_method_of_several_domains_wants_several():
    config = compose_run(["method=parallel_adapters", "data=digits"])
    with pytest.raises(ConfigError, match="several domains"):
        check(config)


def test_one_domain_of_the_set_is_refused_too(root):
    config = compose_run(["method=finetune", *TINY, f"data.root={root}", "data.domain=signs"])
    with pytest.raises(ConfigError, match="several domains"):
        check(config)
