"""Whole runs that discover new classes: stages, scores, two processes, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from scarcely import checkpoints, discovery, stages
from scarcely.callbacks.history import read_rows
from scarcely.errors import ConfigError, DataError
from scarcely.run import execute, fit_data, make_jobs
from tests.runs import (
    TINY,
    compose,
    data_of,
    job_of,
    rows_without_times,
    start_ranks,
    train_here,
    weights,
)

KNOWN = "data.labelled_classes=[0,2,4,6,8]"
SMALL = (
    *TINY[:-2],
    "method=ranking_statistics",
    "pretext=none",
    "epochs=2",
    "stages.supervised.epochs=2",
    "batch_size=128",
    "embedding_size=0",
)


@pytest.fixture
def without_pictures(monkeypatch):
    import scarcely.reports.html

    monkeypatch.setattr(scarcely.reports.html, "write_report", lambda evidence: None)


def run(folder: Path, *overrides: str) -> dict:
    cache = f"cache_dir={folder.parent / 'cache'}"
    config = compose(*overrides, f"run_dir={folder}", cache, base=SMALL)
    return execute({**config, "command": ""}, folder.name)


def test_a_run_scores_each_group_in_its_own_way(tmp_path, without_pictures):
    results = run(tmp_path / "run", "method.incremental=true")
    metrics = results["metrics"]
    assert [s["name"] for s in results["stages"]] == ["supervised", "joint"]
    groups = [f"{part}/{group}" for part in ("train", "test") for group in ("old", "new", "all")]
    expected = {f"{group}/{how}" for group in groups for how in ("acc", "acc_joint")}
    expected |= {"train/old/accuracy", "test/old/accuracy", "new/acc", "new/nmi", "new/ari"}
    expected |= {f"{rival}/new/{s}" for rival in ("kmeans", "kmeans/features") for s in ("acc", "nmi", "ari")}
    assert expected <= set(metrics)
    assert all(0 <= metrics[name] <= 1 for name in expected - {"new/ari"})
    with np.load(tmp_path / "run" / "predictions.npz") as arrays:
        assert arrays["classes"].tolist() == ["1", "3", "5", "7", "9"]
        train = np.arange(1797) % 5 != 4
        assert len(arrays["labels"]) == (load_digits().target[train] % 2 == 1).sum()
        assert arrays["labels"].min() == 0
        assert arrays["test_counts"].shape == (10, 10)
        assert arrays["test_counts"].sum() == 359
        hits = arrays["test_counts"].diagonal()[:5].sum() / arrays["test_counts"][:5].sum()
    assert metrics["test/old/accuracy"] == pytest.approx(hits)
    assert not (tmp_path / "run" / "classifier.pt").exists()
    # the supervised stage is found again by a run that differs in its last stage alone
    again = run(tmp_path / "other", "method.consistency=0")
    assert [s["cached"] for s in again["stages"]] == [True, False]
    linear = checkpoints.load(tmp_path / "other" / "classifier.pt")["state_dict"]
    assert linear["weight"].shape == (10, 16)


def test_a_head_with_a_hidden_layer_grows_too(tmp_path, without_pictures):
    metrics = run(tmp_path / "run", "method.incremental=true", "method.hidden=16")["metrics"]
    assert 0 <= metrics["test/all/acc"] <= 1


def test_one_known_class_is_enough_for_what_tells_none_apart(tmp_path, without_pictures):
    one = ("data.labelled_classes=[3]", "epochs=1", "stages.supervised.epochs=1")
    assert run(tmp_path / "run", *one)["metrics"]["test/old/accuracy"] <= 1
    alone = ("method=supervised", "data.labelled_classes=[3]", "epochs=1")
    base = [o for o in SMALL if not o.startswith(("method", "stages"))]
    config = compose(*alone, f"run_dir={tmp_path / 'alone'}", base=base)
    assert execute({**config, "command": ""}, "alone")["metrics"]["test/accuracy"] == 1
    for name, given in {
        "kcl": ("method=kcl",),
        "prototypical": ("method=ranking_statistics", "pretext=prototypical"),
    }.items():
        kept = [o for o in base if not o.startswith("pretext")]
        config = compose(*alone[1:], *given, f"run_dir={tmp_path / name}", base=kept)
        with pytest.raises(DataError, match="2 known classes apart") as error:
            execute({**config, "command": ""}, name)
        assert error.value.where == "data.labelled_classes"


def test_supervised_learns_the_known_classes_alone(tmp_path, without_pictures):
    base = [o for o in SMALL if not o.startswith(("method", "stages"))]
    config = compose("method=supervised", KNOWN, f"run_dir={tmp_path / 'run'}", base=base)
    assert config["protocol"] == "split"
    results = execute({**config, "command": ""}, "run")
    digits = load_digits().target
    train, known = np.arange(1797) % 5 != 4, digits % 2 == 0
    assert results["samples"] == (train & known).sum()
    assert len(weights(tmp_path / "run")["head.bias"]) == 5
    with np.load(tmp_path / "run" / "predictions.npz") as arrays:
        assert arrays["classes"].tolist() == ["0", "2", "4", "6", "8"]
    data = data_of(config)
    method = stages.build_method(job_of(config, data, num_classes=5), data.input_shape)
    method.load_state_dict(weights(tmp_path / "run"))
    found = method.predict_all(data.evaluation_loader("test", "split", batch_size=256))
    old = found.labels < 5
    hits = found.probabilities.argmax(dim=1)[old] == found.labels[old]
    assert (~old).any()
    assert results["metrics"]["test/accuracy"] == pytest.approx(hits.float().mean().item())


def test_the_joint_stage_starts_from_the_supervised_head(tmp_path):
    config = compose("epochs=1", base=SMALL)
    data = data_of(config)
    sizes = {"num_known": 5, "num_new": 5, "num_classes": 10}
    supervised = job_of(config, data, 0, num_classes=5)
    train_here(supervised, tmp_path / "supervised", data)
    given = weights(tmp_path / "supervised")
    for incremental in (False, True):
        method = {**config["plan"][-1]["method"], "incremental": incremental}
        source = str(tmp_path / "supervised" / "weights.pt")
        job = job_of(config, data, method=method, inherited=source, **sizes)
        joint = stages.build_method(job, data.input_shape)
        assert torch.equal(joint.head.weight[:5], given["head.weight"])
        assert len(joint.head.weight) == (10 if incremental else 5)
        own = joint.backbone.state_dict()
        assert all(torch.equal(own[n], given[f"backbone.{n}"]) for n in own)
        assert "head.weight" not in joint.inheritance


def test_a_head_with_a_hidden_layer_is_taken_over_too():
    config = compose("method.hidden=6", base=SMALL)
    data = data_of(config)
    heads = [
        stages.build_method(
            job_of(config, data, i, num_known=5, num_new=5, num_classes=5), data.input_shape
        ).head
        for i in (0, 1)
    ]
    shapes = [{n: t.shape for n, t in head.state_dict().items()} for head in heads]
    assert shapes[0] == shapes[1]
    assert "1.running_mean" in shapes[0]


def test_hidden_labels_shape_nothing_but_scores(tmp_path):
    """The classes to discover trade their labels: the weights are the same bits."""
    config = compose(base=SMALL)
    data, other = data_of(config), data_of(config)
    hidden = other.parts["train"].labels >= other.num_known
    other.parts["train"].labels[hidden] = 5 + (other.parts["train"].labels[hidden] - 4) % 5
    sizes = {"num_known": 5, "num_new": 5, "num_classes": 10}
    method = {**config["plan"][-1]["method"], "incremental": True}
    jobs = [job_of(config, d, method=method, **sizes) for d in (data, other)]
    for name, job, d in zip("ab", jobs, (data, other), strict=True):
        train_here(job, tmp_path / name, d)
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_two_processes_train_what_one_trains(tmp_path):
    """Global pairs, the labelled and the unlabelled part spread unevenly over the ranks."""
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "method.pairs=global")
    settings = (
        "epochs=3",
        "eval_every=1",
        "method.incremental=true",
        "method.rampup=2",
        "method.labeler.k=2",
    )
    one, many = compose(*settings, base=SMALL), compose(*settings, *two, base=SMALL)
    data = data_of(one)
    # the statistics of BatchNorm are those of a rank's own samples: only the heads are trained
    fixed = {"freeze": 4, "frozen_bn": "eval"}
    jobs = [
        job_of(c, data, method={**c["plan"][-1]["method"], **fixed}, num_known=5, num_new=5)
        for c in (one, many)
    ]
    train_here(jobs[0], tmp_path / "one", data)
    for process in start_ranks(jobs[1], tmp_path / "two"):
        assert process.wait() == 0, process.output
    first, second = (rows_without_times(tmp_path / name) for name in ("one", "two"))
    assert len(first) == len(second) == 3
    losses = ("loss", "loss/labelled", "loss/pairs", "loss/consistency", "loss/self")
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in losses:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-7), name
        assert a["new/acc"] == pytest.approx(b["new/acc"], abs=5e-3)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_linear_classifier_separates_what_is_separable():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    features = 1000 * (torch.eye(3)[labels] + 0.1 * torch.randn(120, 3, generator=g))
    layer = discovery.fit_linear(features, labels, 3, seed=1, epochs=30)
    assert (layer(features).argmax(dim=1) == labels).float().mean() > 0.98
    same = discovery.fit_linear(features, labels, 3, seed=1, epochs=30)
    assert torch.equal(layer.weight, same.weight)


# What is refused, in one message, before any training

REFUSED = {
    ("data.labelled_classes=[0,1]", "data.unlabelled_classes=[1,2]"): "unlabelled_classes",
    ("data.labelled_classes=[]",): "labelled_classes",
    ("data.labelled_classes=[0,11]",): "labelled_classes",
    ("data.labelled_classes=10",): "labelled_classes",
    ("data.labelled_classes=null",): "labelled_classes",
    ("num_new=0",): "num_new",
    ("num_new=721",): "num_new",
    ("num_new=some",): "num_new",
    ("num_clusters=5",): "num_clusters",
    ("method=lsdc", "num_new=5"): "num_new",
    ("method.labeler.k=257",): "method.labeler.k",
    ("method.labeler.k=0",): "method.labeler.k",
    ("data=tfidf", "data.root=."): "method",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_a_mistake_is_one_message_and_writes_nothing(arguments, tmp_path, monkeypatch, capfd):
    from scarcely.cli import main

    monkeypatch.chdir(tmp_path)
    method = [] if any(a.startswith("method=") for a in arguments) else ["method=ranking_statistics"]
    assert main([*method, *arguments]) == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    where = next(line for line in err.splitlines() if line.startswith("  where:"))
    assert REFUSED[arguments] in where + err.partition("where:")[0]
    assert "  instead: " in err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def two_folders(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("known/cat/1.png", "known/cat/2.png", "known/dog/3.png", "known/dog/4.png", "new/5.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path


def test_an_incremental_run_needs_a_test_split(two_folders, monkeypatch, capfd):
    from scarcely.cli import main

    monkeypatch.chdir(two_folders)
    folders = ["data=imagefolder", "data.labelled=known", "data.unlabelled=new", "num_new=1"]
    monkeypatch.setenv("SCARCELY_CACHE", str(two_folders / "cache"))
    assert main(["method=ranking_statistics", *folders, "method.incremental=true"]) == 2
    err = capfd.readouterr().err
    assert "no test split" in err
    assert "protocol=all" in err
    assert main(["method=ranking_statistics", *folders[:-1]]) == 2
    assert "num_new=auto" in capfd.readouterr().err
    assert not (two_folders / "outputs").exists()


def test_only_what_is_scored_on_a_test_split_needs_one(two_folders, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(two_folders / "cache"))
    folders = ("data=imagefolder", f"data.labelled={two_folders}/known", f"data.unlabelled={two_folders}/new")

    def fit(*given):
        config = compose(*folders, *given, "pretext=none", "protocol=split", base=())
        return fit_data(config, data_of(config))

    assert fit("method=prototypical")["num_known"] == 2
    for method in ("supervised", "lsdc"):
        with pytest.raises(DataError, match="no test split"):
            fit(f"method={method}")


def test_a_count_is_shown_and_used(tmp_path, without_pictures, capfd):
    results = run(tmp_path / "run", "num_new=auto", "compare_kmeans=false")
    assert [s["name"] for s in results["stages"]] == ["supervised", "class_count", "joint"]
    count = results["class_count"]
    assert len(count["candidates"]) == len(count["silhouette"]) == len(count["anchor_accuracy"])
    head = checkpoints.load(tmp_path / "run" / "weights.pt")["state_dict"]["new_head.weight"]
    assert len(head) == count["num_new"] >= 1
    assert str(count["num_new"]) in capfd.readouterr().err
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["class_count"] == count
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert {row["stage"] for row in rows} == {"supervised", "joint"}
    # the count alone finds the same number
    config = compose(
        "method=class_count", KNOWN, "pretext=none", "stages.supervised.epochs=2",
        f"run_dir={tmp_path / 'count'}", f"cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert config["protocol"] == "split"
    alone = execute({**config, "command": ""}, "count")
    assert alone["metrics"]["num_new"] == alone["class_count"]["num_new"] >= 1


def test_a_count_hands_on_the_checkpoint_that_it_was_given(tmp_path):
    weights = tmp_path / "weights.pt"
    weights.touch()
    before = ("method.before=[pretext,class_count]", "num_new=auto", f"pretext={weights}")
    config = compose(*before, base=[o for o in SMALL if not o.startswith(("pretext", "stages"))])
    data = data_of(config)
    count, joint = make_jobs(config, data, fit_data(config, data))
    assert count.inherited == joint.inherited == str(weights)


def test_a_mistake_in_an_earlier_stage_names_its_own_setting(tmp_path):
    settings = ("pretext=prototypical", "++stages.pretext.group=5", f"run_dir={tmp_path / 'run'}")
    config = compose(*settings, "++stages.pretext.batch_size=30", base=SMALL)
    with pytest.raises(ConfigError) as error:
        execute({**config, "command": ""}, "run")
    assert error.value.where == "stages.pretext.group"
    config = compose("pretext=prototypical", "stages.pretext.batch_size=10", base=SMALL)
    with pytest.raises(ConfigError) as error:
        execute({**config, "command": "", "run_dir": str(tmp_path / "run")}, "run")
    assert error.value.where == "stages.pretext.group, stages.pretext.batch_size"
    assert error.value.instead == "a stages.pretext.batch_size of 20 at least"
    assert not (tmp_path / "run").exists()
