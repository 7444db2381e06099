"""A finished run names the clusters of a folder of images."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely import checkpoints, domains
from scarcely.config.compose import compose_run
from scarcely.predict import main
from scarcely.run import execute
from tests.data.files import write_image
from tests.data.test_decathlon import write_annotations, write_domain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    config = compose_run(
        [
            "data=digits",
            "fast=true",
            "backbone.width=4",
            "compare_kmeans=false",
            "embedding_size=0",
            f"run_dir={root / 'run'}",
            f"cache_dir={root / 'cache'}",
        ]
    )
    config["command"] = ""
    execute(config, "unused")
    return root / "run"


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "decoded"))
    folder = tmp_path / "some images"
    (folder / "below").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 30, 40, 3), dtype=np.uint8)
    for name, image in zip(("a.png", "b.jpg", "below/ü.png"), pixels, strict=True):
        Image.fromarray(image).save(folder / name)
    return folder


def test_every_image_has_a_cluster_and_a_confidence(run, images, tmp_path):
    out = tmp_path / "labels.csv"
    assert main([f"ckpt={run}", f"images={images}", f"out={out}"]) == 0
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a.png", "b.jpg", "below/ü.png"]
    assert all(0 <= int(row["cluster"]) < 10 and 0.1 <= float(row["confidence"]) <= 1 for row in rows)


def test_the_batch_size_changes_nothing(run, images, tmp_path):
    for size in (1, 3):
        assert (
            main([f"ckpt={run}", f"images={images}", f"out={tmp_path / str(size)}", f"batch_size={size}"])
            == 0
        )
    assert (tmp_path / "1").read_text() == (tmp_path / "3").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ckpt": "nowhere"}, "there is no checkpoint"),
        ({"images": "nowhere"}, "there is no folder"),
        ({"out": "."}, "cannot write"),
        ({"batch_size": "0"}, "batch_size"),
        ({"on_error": "maybe"}, "raise or skip"),
        ({"image": "x"}, "images"),
        ({"out": ""}, "out must be given"),
        ({"challenge": "out.json"}, "images and out is given too"),
    ],
)
def test_a_mistake_is_told_in_one_message(run, images, tmp_path, monkeypatch, capsys, changes, told):
    monkeypatch.chdir(tmp_path)
    given = {"ckpt": str(run), "images": str(images), "out": "labels.csv"} | changes
    assert main([f"{key}={value}" for key, value in given.items()]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message
    assert not (tmp_path / "labels.csv").exists()


def test_a_text_file_named_png_is_named_or_skipped(run, images, tmp_path, capsys):
    (images / "c.png").write_text("no image")
    out = tmp_path / "labels.csv"
    assert main([f"ckpt={run}", f"images={images}", f"out={out}"]) == 2
    assert "c.png" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"c\.png"):
        assert main([f"ckpt={run}", f"images={images}", f"out={out}", "on_error=skip"]) == 0
    assert len(out.read_text().splitlines()) == 4


# --- Discovery: known classes have names, new ones numbers


@pytest.fixture(scope="module", params=[False, True], ids=["classifier", "incremental"])
def discovery(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("discovery")
    config = compose_run(
        [
            *("method=ranking_statistics", "data=digits", "data.size=8", "backbone.width=4", "trainer=cpu"),
            *("epochs=2", "++stages.supervised.epochs=8", "compare_kmeans=false", "embedding_size=0"),
            *(f"method.incremental={str(request.param).lower()}", "data.labelled_classes=[0,2,4,6,8]"),
            *(f"run_dir={root / 'run'}", f"cache_dir={root / 'cache'}"),
        ]
    )
    config["command"] = ""
    results = execute(config, "unused")
    return root / "run", request.param, results


def digits_below(folder):
    """Write the test digits as files that are named by their class."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for number in range(300):
        pixels = (data.images[number] * 255 / 16).astype(np.uint8)
        (folder / str(data.target[number])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / str(data.target[number]) / f"{number}.png")
    return folder


def rows_of(run, images, out):
    assert main([f"ckpt={run}", f"images={images}", f"out={out}"]) == 0
    with open(out, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_known_classes_are_named_and_new_ones_numbered(discovery, tmp_path, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "decoded"))
    run, incremental, results = discovery
    assert (run / "classifier.pt").exists() != incremental
    rows = rows_of(run, digits_below(tmp_path / "digits"), tmp_path / "labels.csv")
    assert list(rows[0]) == ["file", "class", "confidence"]
    known = {"0", "2", "4", "6", "8"}
    assert {row["class"] for row in rows} <= known | {f"new {k}" for k in range(1, 6)}
    old = [row for row in rows if row["file"].split("/")[0] in known]
    right = np.mean([row["class"] == row["file"].split("/")[0] for row in old])
    # Most of these digits are of the train split, and cut a little otherwise than those of the data set.
    assert right == pytest.approx(results["metrics"]["train/old/accuracy"], abs=0.15)
    assert right > 0.5


def test_without_any_joint_scores_only_new_classes_are_told(discovery, images, tmp_path):
    run, incremental, _ = discovery
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "weights.pt").write_bytes((run / "weights.pt").read_bytes())
    rows = rows_of(bare, images, tmp_path / "labels.csv")
    assert incremental or all(row["class"].startswith("new ") for row in rows)


def test_the_classifier_of_another_run_is_refused(discovery, images, tmp_path, capsys):
    run, incremental, _ = discovery
    if incremental:
        pytest.skip("it has a head of its own")
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights.pt").write_bytes((run / "weights.pt").read_bytes())
    checkpoints.save({"state_dict": torch.nn.Linear(7, 3).state_dict()}, other / "classifier.pt")
    assert main([f"ckpt={other}", f"images={images}", f"out={tmp_path / 'labels.csv'}"]) == 2
    assert "does not fit" in capsys.readouterr().err


# -- the challenge --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory):
    """A run over a domain with labelled test images, one without their labels, and class folders."""
    root = tmp_path_factory.mktemp("decathlon")
    parts = {"train": 10, "val": 4, "test": 7}
    found = {}
    for number, name in enumerate(("dtd", "svhn"), start=1):
        found[name] = write_domain(root / "decathlon-1.0", name, number, 3, parts, seed=number)
    (root / "decathlon-1.0/annotations/svhn_test.json").unlink()
    images = {"images": found["svhn"]["test"]["images"]}
    write_annotations(root / "decathlon-1.0", "svhn", "test_stripped", images)
    for number in range(20):
        write_image(root / "birds" / "ab"[number % 2] / f"{number:02}.png", number, (9, 9, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCARCELY_CACHE", str(root / "decoded"))
        patch.setattr(domains, "write_report", lambda evidence: None)  # tested with the other reports
        config = compose_run(
            [
                *("method=finetune", "data=decathlon", "data.image_size=8", "data.source=null", "epochs=1"),
                *("backbone.width=2", "backbone.blocks=1", "method.before=[]", "trainer=cpu"),
                f"data.domains={{svhn: null, dtd: null, birds: {root / 'birds'}}}",
                *(f"data.root={root}", f"run_dir={root / 'run'}", f"cache_dir={root / 'cache'}"),
            ]
        )
        config["command"] = ""
        execute(config, "unused")
    return root, found


def test_the_challenge_gets_the_category_of_every_test_image(decathlon, tmp_path, monkeypatch, capsys):
    root, annotations = decathlon
    monkeypatch.setenv("SCARCELY_CACHE", str(root / "decoded"))
    out = tmp_path / "out.json"
    assert main([f"ckpt={root / 'run'}", f"challenge={out}", "batch_size=3"]) == 0
    assert "14 images of 2 domains" in (told := capsys.readouterr().err)
    assert "left out: birds" in told
    entries = json.loads(out.read_text())
    assert all(set(entry) == {"image_id", "category_id"} for entry in entries)
    ids = [image["id"] for name in annotations for image in annotations[name]["test"]["images"]]
    assert sorted(entry["image_id"] for entry in entries) == sorted(ids)
    chosen = {entry["image_id"]: entry["category_id"] for entry in entries}
    for name in annotations:
        possible = {category["id"] for category in annotations[name]["train"]["categories"]}
        assert {chosen[image["id"]] for image in annotations[name]["test"]["images"]} <= possible
    truth = {a["image_id"]: a["category_id"] for a in annotations["dtd"]["test"]["annotations"]}
    results = json.loads((root / "run" / "results.json").read_text())
    right = sum(chosen[image] == category for image, category in truth.items())
    assert right / len(truth) == pytest.approx(results["metrics"]["domain/dtd/accuracy"])
    with np.load(root / "run/domains/dtd/predictions.npz") as found:  # in the order of the annotation file
        predicted = [10_000_001 + label for label in found["predicted"].tolist()]
    assert [chosen[image["id"]] for image in annotations["dtd"]["test"]["images"]] == predicted


def test_what_the_challenge_cannot_be_told_is_told_in_one_message(decathlon, run, tmp_path, capsys):
    root, _ = decathlon
    out = tmp_path / "out.json"
    alone = tmp_path / "alone"
    (alone / "domains").mkdir(parents=True)
    shutil.copytree(root / "run" / "domains" / "birds", alone / "domains" / "birds")
    for ckpt, what in [
        (alone, "no finished run"),
        (run, "no finished run over several"),
        (alone, "with ids"),
    ]:
        assert main([f"ckpt={ckpt}", f"challenge={out}"]) == 2
        message = capsys.readouterr().err
        assert what in message
        assert "Traceback" not in message
        shutil.copyfile(root / "run" / "results.json", alone / "results.json")
    assert main([f"ckpt={root / 'run'}", f"challenge={tmp_path}"]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert not out.exists()
