"""A run that explains a classifier: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from functools import reduce

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from scarcely import checkpoints, stages
from scarcely.callbacks.history import read_rows
from scarcely.config.check import check, names_function
from scarcely.data.shapes import Shapes
from scarcely.errors import CheckpointError, ConfigError, DataError
from scarcely.explanation import run as explaining
from scarcely.explanation.classifier import (
    CLASS_MAPS,
    Classifier,
    Grouped,
    auto_layers,
    cascade_modules,
    fit_classes,
    last_convolutions,
    load_run_classifier,
    output_groups,
)
from scarcely.explanation.evaluations import Runner
from scarcely.explanation.predict import SaliencyRun
from scarcely.explanation.scores import Randomization, for_picture
from scarcely.functional.views import normalize
from scarcely.methods.multilabel import Multilabel
from scarcely.metrics.pointing import PointingGame
from scarcely.run import execute
from scarcely.saliency import (
    attribute,
    cascading_randomization,
    class_sensitivities,
    combine,
    correlations,
    identity_correlations,
)
from tests.config.composing import composed
from tests.oracles.precision import average_precision
from tests.runs import job_of
from tests.saliency.networks import toy

DATA = ("data=shapes", "data.image_size=64", "data.train_images=24", "data.test_images=8", "trainer=cpu")
SMALL = (
    "method=normgrad",
    *DATA,
    "method.methods=[linear_approximation,grad_cam,excitation_backprop]",
    "method.meta_methods=[linear_approximation]",
    "method.tolerance=4",
    "method.cascade_steps=3",
    "method.examples=2",
    "method.max_images.randomization=3",
    "method.max_images.epochs=8",
    "method.weights=[spread,linear,uniform]",
    "method.batch_size=5",
)


def configured(*overrides):
    """Compose what names groups, once each, and set the rest: a composition takes longer than these runs."""
    composing = ("method=", "data=", "backbone=", "trainer=", "epochs=", "ckpt=", "stages.", "method.before=")
    grouped = tuple(o for o in overrides if o.startswith(composing))
    config = composed(*(f"++{o}" if o.startswith("stages.") else o for o in grouped))
    for override in overrides:
        if override not in grouped:
            key, _, value = override.partition("=")
            *parents, last = key.split(".")
            reduce(dict.__getitem__, parents, config)[last] = yaml.safe_load(value)
    config["command"] = ""
    return config


def run_of(*overrides):
    config = configured(*overrides)
    check(config)
    return execute(config, "unused")


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """Reports are tested with the other reports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explaining, "write_report", lambda evidence: None)
        patch.setattr("scarcely.reports.html.write_report", lambda evidence: None)
        yield


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a supervised run that kept the weights after its first epoch."""
    root = tmp_path_factory.mktemp("classifier")
    run_of(
        *("method=supervised", *DATA, "protocol=split", "backbone=small_cnn", "backbone.width=4"),
        *(
            "epochs=2",
            "method.batch_size=20",
            "method.keep=[1]",
            "method.optimizer.lr=0.02",
            "embedding_size=0",
        ),
        *(f"run_dir={root / 'run'}", f"cache_dir={root / 'cache'}"),
    )
    return root / "run"


@pytest.fixture(scope="module")
def finished(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("normgrad") / "run"
    results = run_of(*SMALL, f"ckpt={classifier}", f"run_dir={folder}")
    return folder, results


@pytest.fixture(scope="module")
def shapes():
    config = configured("method=supervised", *DATA)
    data = Shapes(augmentation=explain_augmentation(config), image_size=64, train_images=24, test_images=8)
    data.setup()
    return data


def explain_augmentation(config):
    from hydra.utils import instantiate

    return instantiate(config["data"]["augmentation"], _convert_="all")


@pytest.fixture(scope="module")
def pairs(shapes):
    """Images, classes and objects of every pair of the test part, one after the other."""
    found = [
        (shapes.original("test", "split", i), label, one.objects())
        for i, one in enumerate(shapes.annotated("test", "split"))
        for label in one.objects().classes()
    ]
    images, labels, objects = zip(*found, strict=True)
    a = shapes.augmentation
    return normalize(torch.stack(images), a.mean, a.std), torch.tensor(labels), list(objects)


LAYERS = ["input", *(f"backbone.conv{k}" for k in (1, 2, 3))]


# -- what it finds -------------------------------------------------------------------------------


def test_the_pointing_game_is_that_of_each_pair_alone(finished, classifier, pairs):
    metrics = finished[1]["metrics"]
    model = load_run_classifier(classifier / "weights.pt").model.eval()
    images, labels, objects = pairs
    weights = json.loads((finished[0] / "layer_weights.json").read_text())["spread"]
    for name, lr in (("linear_approximation", 0.0), ("linear_approximation-meta", 0.002), ("grad_cam", 0.0)):
        games = {key: PointingGame(6, 4) for key in ("backbone.conv2", "combined-product-spread")}
        for k, label in enumerate(labels):
            maps = attribute(model, images[k : k + 1], label, LAYERS, name.removesuffix("-meta"), lr)
            games["backbone.conv2"].update(maps["backbone.conv2"], [label], objects[k : k + 1])
            combined = combine(maps, (64, 64), weights, "product")
            games["combined-product-spread"].update(combined, [label], objects[k : k + 1])
        for layer, game in games.items():
            scores = game.compute()
            assert metrics[f"pointing/{name}/{layer}/all"] == pytest.approx(float(scores["all"]))
            assert metrics[f"pointing/{name}/{layer}/all_stderr"] == pytest.approx(
                float(scores["stderr/all"])
            )
            assert metrics["pointing/center/all"] == pytest.approx(float(scores["center/all"]))
    assert metrics["pointing/pairs"] == len(labels)
    assert metrics["pointing/left_out"] == 0
    assert not any(key.startswith("pointing/excitation_backprop/input") for key in metrics)


def test_correlations_are_those_of_the_package(finished, classifier, shapes, pairs):
    metrics = finished[1]["metrics"]
    model = load_run_classifier(classifier / "weights.pt").model.eval()
    raw = torch.stack([shapes.original("test", "split", i) for i in range(8)])
    images = normalize(raw, shapes.augmentation.mean, shapes.augmentation.std)
    largest = torch.tensor([one.largest() for one in shapes.annotated("test", "split")])
    for lr, suffix in ((0.0, ""), (0.002, "-meta")):
        found = class_sensitivities(model, images, LAYERS, "linear_approximation", lr)
        for layer, correlation in found.items():
            key = f"sensitivity/linear_approximation{suffix}/{layer}"
            assert metrics[f"{key}/undefined"] == correlation.undefined
            assert metrics[key] == pytest.approx(correlation.mean, abs=2e-3)  # of ranks, which may tie
    plain, meta = (
        attribute(model, images, largest, LAYERS, "linear_approximation", lr) for lr in (0.0, 0.002)
    )
    for layer, correlation in correlations(plain, meta, (64, 64)).items():
        assert metrics[f"meta/linear_approximation/{layer}"] == pytest.approx(correlation.mean, abs=2e-3)
    convolutions = [f"backbone.conv{k}.0" for k in (1, 2, 3)]
    per_pair = identity_correlations(model, pairs[0], pairs[1], convolutions)
    for layer, correlation in per_pair.items():
        assert metrics[f"identity/{layer}"] == pytest.approx(correlation.mean, abs=2e-3)
        assert -1 <= metrics[f"identity/{layer}/pointing"] <= 1


def test_the_cascade_is_that_of_the_package_and_its_end_is_the_metric(finished, classifier, shapes):
    folder, results = finished
    rows = json.loads((folder / "saliency.json").read_text())["randomization"]
    layers = {"input", "backbone.conv2", "backbone.conv3"}
    assert {(r["method"], r["layer"]) for r in rows} == {
        (m, layer)
        for m in ("linear_approximation", "grad_cam", "excitation_backprop", "linear_approximation-meta")
        for layer in layers
        if (m, layer) != ("excitation_backprop", "input")  # where there is no such map
    }
    model = load_run_classifier(classifier / "weights.pt").model.eval()
    chosen = explain_order(shapes)[:3]
    raw = torch.stack([shapes.original("test", "split", i) for i in chosen])
    images = normalize(raw, shapes.augmentation.mean, shapes.augmentation.std)
    targets = torch.tensor([shapes.annotated("test", "split")[i].largest() for i in chosen])
    row = next(r for r in rows if (r["method"], r["layer"]) == ("grad_cam", "backbone.conv3"))
    seed = Randomization([], [], {}, 0).seed
    steps = cascading_randomization(
        model, images, targets, "backbone.conv3", "grad_cam", modules=row["modules"][1:], seed=seed
    )
    for name, mean, step in zip(row["modules"], row["mean"], steps, strict=True):
        assert name == step.module
        expected = step.correlations["backbone.conv3"].mean
        assert mean is None if expected != expected else mean == pytest.approx(expected, abs=1e-3)
    assert row["mean"][0] == pytest.approx(1)
    key = "randomization/grad_cam/backbone.conv3"
    assert results["metrics"].get(key) == row["mean"][-1]


def explain_order(shapes):
    from scarcely.explanation.images import WholeImages

    return WholeImages(
        *(shapes, "test", "split"),
        outputs={k: k for k in range(6)},
        shorter=64,
        mean=[0.0],
        std=[1.0],
        device=torch.device("cpu"),
    ).chosen(0)


def test_kept_epochs_have_curves_of_both_parts(finished):
    rows = json.loads((finished[0] / "saliency.json").read_text())["epochs"]
    assert [row["layer"] for row in rows] == LAYERS
    for row in rows:
        assert row["epoch"] == [1, 2]
        for part in ("train", "test"):
            assert all(value is None or -1 <= value <= 1 for value in row[part])
    meta = finished[1]["metrics"]["meta/linear_approximation/backbone.conv3"]
    last = next(row for row in rows if row["layer"] == "backbone.conv3")["test"][-1]
    assert last == pytest.approx(meta, abs=1e-6)  # all 8 test images, by the same weights


def test_the_arrays_are_those_that_a_report_reads(finished, shapes):
    folder, _ = finished
    about = json.loads((folder / "saliency.json").read_text())
    assert about["layers"] == LAYERS
    assert about["methods"][-1] == "linear_approximation-meta"
    assert set(about["layer_weights"]) == {"spread", "linear", "uniform"}  # those of SMALL
    assert set(about["center"]) == {"all", "difficult"}
    methods, chosen = len(about["methods"]), explain_order(shapes)[:2]
    with np.load(folder / "maps.npz", allow_pickle=False) as found:
        assert len(found["names"]) == len(found["target"]) == 2
        rows, steps = len(about["randomization"]), len(found["random_shown"])
        for e, index in enumerate(chosen):
            assert np.array_equal(found[f"image/{e}"], shapes.original("test", "split", index).numpy())
            one = shapes.annotated("test", "split")[index]
            label = shapes.classes.index(str(found["target"][e]))
            assert np.array_equal(found[f"regions/{e}"], one.objects().region(label).numpy())
            assert found[f"maps/{e}"].shape == (methods, 4, 64, 64)
            assert found[f"maps/{e}"].dtype == np.float16
            assert found[f"combined/{e}"].shape == (methods, len(about["weightings"]), 64, 64)
            assert found[f"most/{e}"].shape == found[f"least/{e}"].shape == (methods, 3, 64, 64)
            assert found[f"random/{e}"].shape == (rows, steps, 64, 64)
            nothing = np.isnan(found[f"maps/{e}"].astype(float)).all(axis=(2, 3))
            excitation = about["methods"].index("excitation_backprop")
            assert np.argwhere(nothing).tolist() == [[excitation, 0]]  # at the image there is no such map
            assert str(found["most"][e]) in shapes.classes
        assert found["random_shown"].tolist()[0] == 0


def test_a_map_of_tiny_values_survives_float16():
    tiny = torch.rand(4, 4) * 1e-12
    kept = for_picture(tiny, (4, 4))
    assert kept.dtype == torch.float16
    assert 0.5 <= float(kept.max()) <= 1
    ratio = kept.float() / tiny
    assert torch.allclose(ratio, ratio[0, 0].expand(4, 4), rtol=1e-3)
    assert not for_picture(torch.zeros(4, 4), (8, 8)).any()


# -- interruption and settings -------------------------------------------------------------------


LIGHT = (
    *("method=normgrad", *DATA, "method.methods=[grad_cam]", "method.meta_methods=[]", "method.examples=1"),
    *("method.weights=[spread]", "method.how=[sum]", "method.evaluations=[pointing,sensitivity,identity]"),
)


TRAINS = ("backbone=small_cnn", "stages.multilabel.epochs=2", "stages.multilabel.batch_size=12")


@pytest.fixture(scope="module")
def trained_first(tmp_path_factory):
    """The folder, the cache and the results of a run that trained its classifier."""
    root = tmp_path_factory.mktemp("trained")
    results = run_of(*LIGHT, *TRAINS, f"run_dir={root / 'run'}", f"cache_dir={root / 'cache'}")
    return root / "run", root / "cache", results


def test_a_killed_run_goes_on_in_its_classifier_and_after_its_last_evaluation(
    trained_first, tmp_path, monkeypatch
):
    folder, _, whole = trained_first
    given = [*LIGHT, *TRAINS, f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    steps = []
    training_step = Multilabel.training_step

    def killed_once(self, batch, batch_idx):
        steps.append(self.current_epoch)
        if steps == [0, 0, 1]:
            raise KeyboardInterrupt
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Multilabel, "training_step", killed_once)
    with pytest.raises(KeyboardInterrupt):
        run_of(*given)
    assert (tmp_path / "run" / "config.yaml").is_file()
    seen = []
    original = Runner.test

    def counting(self, title, *arguments, **settings):
        seen.append(title)
        if title == "virtual identity" and seen.count(title) == 1:
            raise KeyboardInterrupt
        return original(self, title, *arguments, **settings)

    monkeypatch.setattr(Runner, "test", counting)
    with pytest.raises(KeyboardInterrupt):
        run_of(*given, "resume=true")
    assert steps == [0, 0, 1, 1, 1], "the classifier went on after its last whole epoch"
    assert not (tmp_path / "run" / "results.json").exists()
    results = run_of(*given, "resume=true")
    assert len(steps) == 5
    assert seen.count("pointing game") == seen.count("class sensitivity") == 1
    assert results["metrics"] == whole["metrics"]
    assert [(s["name"], s["epochs"]) for s in results["stages"]] == [("multilabel", 2), ("saliency", 0)]
    assert [row["epoch"] for row in read_rows(tmp_path / "run" / "metrics.csv")] == [0, 1]
    assert not (tmp_path / "run" / "evaluations").exists()
    with np.load(tmp_path / "run" / "maps.npz") as a, np.load(folder / "maps.npz") as b:
        assert set(a) == set(b)
        assert all(np.array_equal(a[key], b[key], equal_nan=a[key].dtype.kind == "f") for key in a)
    assert run_of(*given, "resume=true") == json.loads((tmp_path / "run" / "results.json").read_text())


def test_a_run_explains_the_classifier_that_it_has_trained_first(trained_first, shapes, tmp_path):
    folder, cache, found = trained_first
    cached = next(cache.rglob("weights.pt"))
    assert found["stages"][0]["epochs"] == checkpoints.load(cached)["epochs"] == 2
    for place in (cached.parent, folder):  # the cache may be cleared: the run keeps the weights
        given = [*LIGHT, "method.evaluations=[pointing]", "method.examples=0", f"ckpt={place}"]
        other = run_of(*given, f"run_dir={tmp_path / place.name}")
        assert other["metrics"].items() <= found["metrics"].items()
        assert [stage["name"] for stage in other["stages"]] == ["saliency"]
    moved = shutil.copytree(folder, tmp_path / "moved")
    model = SaliencyRun.load(moved, "", "").module.classifier
    a, test = shapes.augmentation, shapes.pool("test", "split")
    with torch.no_grad():
        scores = model(normalize(test.inputs, a.mean, a.std).to(next(model.parameters()).device)).cpu()
    columns = zip(scores.T.tolist(), shapes.targets("test", "split").T.tolist(), strict=True)
    precisions = [p for p in (average_precision(*column) for column in columns) if p == p]
    assert found["metrics"]["test/map"] == pytest.approx(sum(precisions) / len(precisions), abs=1e-6)


def test_evaluations_of_another_model_are_not_gone_on_with(classifier, tmp_path, monkeypatch):
    copied, run = tmp_path / "classifier", tmp_path / "run"
    shutil.copytree(classifier, copied)
    given = [*LIGHT, "fast=true", f"ckpt={copied}", f"run_dir={run}"]
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "identity", lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run_of(*given)
    assert (run / "evaluations" / "sensitivity.json").is_file()
    shutil.copyfile(copied / "weights-epoch1.pt", copied / "weights.pt")
    results = run_of(*given, "resume=true")
    again = run_of(*given[:-1], f"run_dir={tmp_path / 'again'}")
    assert results["metrics"] == again["metrics"]


def test_layer_weights_are_used_again(finished, classifier, tmp_path):
    folder, results = finished
    weights = json.loads((folder / "layer_weights.json").read_text())
    weights["spread"] = dict.fromkeys(LAYERS, 1.0)
    (tmp_path / "weights.json").write_text(json.dumps(weights))
    given = [*SMALL, "method.evaluations=[pointing]", "method.examples=0", "method.weights=[spread,uniform]"]
    given += ["method.methods=[grad_cam]", "method.meta_methods=[]", f"ckpt={classifier}"]
    given += [f"method.layer_weights={tmp_path / 'weights.json'}", f"run_dir={tmp_path / 'run'}"]
    metrics = run_of(*given)["metrics"]
    assert not (tmp_path / "run" / "maps.npz").exists()
    for how in ("sum", "product"):
        spread, uniform = (
            metrics[f"pointing/grad_cam/combined-{how}-{w}/all"] for w in ("spread", "uniform")
        )
        assert spread == uniform == results["metrics"][f"pointing/grad_cam/combined-{how}-uniform/all"]
    del weights["spread"]["input"]
    (tmp_path / "weights.json").write_text(json.dumps(weights))
    with pytest.raises(DataError, match="no weight of input under 'spread'"):
        run_of(*given[:-1], f"run_dir={tmp_path / 'other'}")


# -- models --------------------------------------------------------------------------------------


def test_frozen_blocks_of_a_run_are_explained(classifier, tmp_path):
    content = checkpoints.load(classifier / "weights.pt")
    content["job"]["method"]["freeze"] = 3
    checkpoints.save(content, tmp_path / "weights.pt")
    frozen, free = (load_run_classifier(p / "weights.pt").model.eval() for p in (tmp_path, classifier))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = attribute(free, images, 1, LAYERS, "gradient")
    for layer, found in attribute(frozen, images, 1, LAYERS, "gradient").items():
        assert torch.equal(found, expected[layer])


def test_a_weights_file_of_torchvision_is_explained_or_refused(tmp_path, monkeypatch, capsys):
    from torchvision import models

    torch.manual_seed(0)
    state = models.resnet18(weights=None, num_classes=6).state_dict()
    wrapped = {"state_dict": {f"module.{name}": t for name, t in state.items()}}
    torch.save(wrapped, tmp_path / "whole.pth")
    torch.save({n: t for n, t in state.items() if "layer3" not in n}, tmp_path / "part.pth")
    torch.save({n: t for n, t in state.items() if "fc" not in n}, tmp_path / "headless.pth")
    given = ["method=normgrad", *DATA, "backbone=torchvision", "fast=true", "method.examples=0"]
    given += ["method.methods=[grad_cam]", "method.meta_methods=[]", "method.evaluations=[pointing]"]
    given += ["method.weights=[uniform]", "method.how=[sum]"]
    results = run_of(*given, f"ckpt={tmp_path / 'whole.pth'}", f"run_dir={tmp_path / 'run'}")
    assert "pointing/grad_cam/layer4/all" in results["metrics"]
    assert "100% of the network filled" in capsys.readouterr().err
    for file, told in (("part", "layer3"), ("headless", "no fc.weight")):
        with pytest.raises(CheckpointError, match=told):
            run_of(*given, f"ckpt={tmp_path / file}.pth", f"run_dir={tmp_path / file}")
    with pytest.raises(CheckpointError, match="does not say of which network"):
        run_of(
            *(o for o in given if o != "backbone=torchvision"),
            *(f"ckpt={tmp_path / 'whole.pth'}", f"run_dir={tmp_path / 'c'}"),
        )


MODULE = """
from torch import nn
def make_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(inplace=True),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 9))
def nothing():
    return 3
"""


def test_a_function_of_the_current_folder_gives_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_models.py").write_text(MODULE)
    (tmp_path / "map.json").write_text(json.dumps({"disc": [0, 4], "ring": [2], "star": [8]}))
    given = ["method=normgrad", *DATA, "fast=true", "method.examples=1", "ckpt=my_own_models:make_model"]
    given += ["method.methods=[linear_approximation]", "method.meta_methods=[]", "method.weights=[accuracy]"]
    with pytest.raises(ConfigError, match="9 outputs without names, and the data have 6 classes"):
        run_of(*given, "method.evaluations=[pointing]", "run_dir=a")
    given += ["method.class_map=map.json", "method.evaluations=[pointing,sensitivity,identity]"]
    metrics = run_of(*given, "run_dir=b")["metrics"]
    assert metrics["pointing/left_out"] > 0
    assert metrics["identity/2"] <= 1
    with np.load("b/maps.npz") as found:
        assert {str(found[key][0]) for key in ("most", "least", "target")} <= {"disc", "ring", "star"}
    for ckpt, told in [
        ("my_own_models:other", "no function 'other'"),
        ("my_own_models:nothing", "gives no model"),
        ("nowhere_at_all:f", "No module named"),
    ]:
        with pytest.raises(ConfigError, match=told):
            run_of(*(o for o in given if not o.startswith("ckpt=")), f"ckpt={ckpt}", "run_dir=c")
    sys.modules.pop("my_own_models", None)


def test_groups_have_the_probabilities_of_their_outputs():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    groups = [[1, 4], [6], [0, 2]]
    grouped = Grouped(groups, 7)(nn.Identity(), None, logits).softmax(dim=1)
    for row, given in zip(grouped, logits.softmax(dim=1), strict=True):
        expected = [sum(float(given[o]) for o in outputs) for outputs in [*groups, [3, 5]]]
        assert row.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(Grouped([[k] for k in range(7)], 7)(nn.Identity(), None, logits), logits)


def test_outputs_are_found_by_name_whatever_their_order():
    model = toy().eval()
    image = torch.randn(1, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    expected = model(image)[0]
    found = Classifier(model, "a model", names=("b", "other", "a", "c"))
    columns = fit_classes(found, ["a", "b", "c"], None, image)
    for label, output in enumerate([2, 0, 3]):
        torch.testing.assert_close(model(image)[0, columns[label]], expected[output])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"disc": [0], "dog": [1]}, "no class 'dog'"),
        ({"disc": [9]}, "no output"),
        ({"disc": []}, "names no output"),
        ({"disc": 3}, "no map from classes"),
        ([1], "no map from classes"),
    ],
)
def test_a_class_map_that_does_not_fit_is_refused(tmp_path, content, told):
    (tmp_path / "map.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=told):
        output_groups(["disc", "ring"], None, 5, str(tmp_path / "map.json"))


def test_a_shipped_class_map_is_known_by_its_name():
    for path in CLASS_MAPS.glob("*.json"):
        names = list(json.loads(path.read_text()))
        groups = output_groups([*names, "something else"], None, 1000, path.stem)
        assert set(groups) == set(range(len(names)))


def test_what_cannot_be_explained_is_told_before_anything_is_done(classifier, shapes, tmp_path):
    ours = ["method=normgrad", *DATA, f"ckpt={classifier}"]
    content = checkpoints.load(classifier / "weights.pt")
    content["classes"] = ["disc", "square", "triangle", "ring", "cross", "moon"]
    checkpoints.save(content, tmp_path / "moon.pt")
    rotnet = configured("method=rotnet", *DATA, "backbone=small_cnn")
    job = job_of(rotnet, shapes)
    untrained = stages.weights_of(job, stages.build_method(job, shapes.input_shape), shapes, 0.0, 0)
    checkpoints.save(untrained, tmp_path / "rotnet.pt")
    trains = ["method=normgrad", *DATA, "backbone=small_cnn"]
    for given, error, told in [
        (["method=normgrad", "data=digits"], ConfigError, "explains a trained model.*data=shapes"),
        (["method=normgrad", *DATA, "method.before=[]"], ConfigError, "explains a trained model"),
        (["method=normgrad", *DATA, "method.before=[kmeans]"], ConfigError, "before it is kmeans"),
        ([*trains, "method.layers=[layer9]"], ConfigError, "no layer is called 'layer9'"),
        ([*trains, "stages.multilabel.freeze=9"], ConfigError, "stages.multilabel.freeze"),
        (["method=normgrad", "data=digits", f"ckpt={classifier}"], DataError, "no annotated objects"),
        ([*ours[:-1], f"ckpt={tmp_path / 'rotnet.pt'}"], CheckpointError, "rotnet run has no classifier"),
        ([*ours[:-1], f"ckpt={tmp_path / 'moon.pt'}"], ConfigError, "knows no star"),
        ([*ours[:-1], "ckpt=no/such/file"], ConfigError, "no such file"),
        ([*ours, "method.layers=[layer9]"], ConfigError, "no layer is called 'layer9'"),
        ([*ours, "method.methods=[norm_grad_conv]"], ConfigError, "suits none of the layers"),
        ([*ours, "method.methods=[]"], ConfigError, "no saliency method"),
        ([*ours, "method.methods=[gradcam]"], ConfigError, "method.methods"),
        ([*ours, "method.meta_methods=[]"], ConfigError, "no method has it"),
        ([*ours, "method.class_map=nowhere.json"], ConfigError, "no such file"),
        ([*ours, "method.max_images.pointings=3"], Exception, "pointings"),
        ([*ours, "trainer.devices=2"], ConfigError, "works on one device"),
        ([*ours, "epochs=3"], ConfigError, "nothing in it is trained"),
    ]:
        run, cache = tmp_path / "refused", tmp_path / "cache"
        with pytest.raises(error, match=f"(?s){told}"):
            run_of(*given, f"run_dir={run}", f"cache_dir={cache}")
        assert not run.exists()
        assert not cache.exists(), "nothing was trained"


# -- layers --------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Like the networks that layers are found in by name."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x.mean(dim=(2, 3))


def conv(channels_in=4, stride=1):
    return nn.Conv2d(channels_in, 4, 3, stride, 1)


IMAGE = torch.zeros(1, 3, 16, 16)


def test_layers_are_found_at_every_depth():
    vgg = Tiny(
        features=nn.Sequential(conv(3), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.ReLU(), nn.MaxPool2d(2)),
        avgpool=nn.AdaptiveAvgPool2d(1),
    )
    assert auto_layers(vgg, IMAGE) == ["input", "features.1", "features.4"]
    resnet = Tiny(conv1=conv(3, 2), **{f"layer{k}": nn.Sequential(conv(), conv()) for k in (1, 2, 3, 4)})
    assert auto_layers(resnet, IMAGE) == ["input", "layer1", "layer2", "layer3", "layer4"]
    other = Tiny(
        stem=nn.Sequential(conv(3, 2), nn.ReLU()),
        body=nn.Sequential(conv(), nn.ReLU(), conv(4, 2), nn.ReLU()),
        pool=nn.AdaptiveAvgPool2d(1),
    )
    assert auto_layers(other, IMAGE) == ["input", "body", "body.1"]


def test_the_last_convolution_before_a_layer_is_found():
    net = Tiny(
        features=nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU()), layer=nn.Sequential(conv(), conv())
    )
    layers = ["features.1", "features.3", "layer"]
    assert last_convolutions(net, layers) == ["features.0", "features.2", "layer.1"]
    assert last_convolutions(nn.Sequential(nn.ReLU(), conv(3)), ["0"]) == []


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 9])
def test_a_cascade_goes_through_all_parameters_once_in_few_steps(most):
    net = Tiny(features=nn.Sequential(conv(3), nn.Sequential(conv(), nn.ReLU(), conv()), conv()), last=conv())
    names = cascade_modules(net, IMAGE, most)
    assert 2 <= len(names) <= max(2, most)
    found = [id(p) for name in names for p in net.get_submodule(name).parameters()]
    assert sorted(found) == sorted(map(id, net.parameters()))


def test_a_module_that_is_not_called_has_no_step():
    net = Tiny(first=conv(3))
    net.add_module("spare", nn.Linear(2, 2))
    net.forward = lambda x: net.first(x).mean(dim=(2, 3))
    assert cascade_modules(net, IMAGE, 9) == ["first"]


def test_a_function_is_told_from_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_function("models:make")
    assert names_function("a.b_c.d:make_2")
    for path in ("run", "runs/a:b", "c:\\runs", "models:", ":make", "a:b:c", "a-b:c", None):
        assert not names_function(path)
    (tmp_path / "a:b").touch()
    assert not names_function("a:b")
