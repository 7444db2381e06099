"""A finished run names the clusters of a folder of images."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely import checkpoints
from scarcely.config.compose import compose_run
from scarcely.data.decode import decode_image
from scarcely.explanation import run as explaining
from scarcely.explanation.predict import SaliencyRun
from scarcely.metrics.sensitivity import resize
from scarcely.predict import main
from scarcely.run import execute
from scarcely.saliency import attribute
from tests.data.files import write_image
from tests.data.test_decathlon import write_annotations, write_domain
from tests.reports.test_html import Page


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
        ({"challenge": "out.json", "images": "", "out": "", "gallery": "g.html"}, "gallery is given too"),
        ({"gallery": "nowhere/g.html"}, "cannot write"),
        ({"gallery": "labels.csv"}, "out and gallery are both"),
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


def test_the_gallery_shows_what_the_file_says(run, images, tmp_path):
    out, page = tmp_path / "labels.csv", tmp_path / "labels.html"
    assert main([f"ckpt={run}", f"images={images}", f"out={out}", f"gallery={page}"]) == 0
    found = Page(page.read_text(encoding="utf-8"))
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    told = {f"{r['file']}: cluster {r['cluster']}, {100 * float(r['confidence']):.1f} %" for r in rows}
    assert {image["alt"] for image in found.images} == told
    for name in ("a.png", "b.jpg", "below/ü.png"):
        (shown,) = (image for image in found.images if image["alt"].startswith(name))
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["src"].split(",")[1]))))
        assert np.array_equal(pixels, decode_image(images / name, 30))  # the square that the network is shown


def test_dtc_tells_known_and_new_classes_apart_though_its_centroids_are_in_a_projection(images, tmp_path):
    config = compose_run(
        [
            *(
                "method=dtc",
                "data=digits",
                "data.size=8",
                "backbone.width=4",
                "data.labelled_classes=[0,2,4]",
            ),
            *("fast=true", "trainer=cpu", "compare_kmeans=false", "embedding_size=0"),
            *(f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"),
        ]
    )
    config["command"] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scarcely.reports.html.write_report", lambda evidence: None)
        execute(config, "unused")
    rows = rows_of(tmp_path / "run", images, tmp_path / "labels.csv")
    assert {row["class"] for row in rows} <= {"0", "2", "4"} | {f"new {k}" for k in range(1, 8)}


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
        # Reports are tested with the other reports.
        patch.setattr("scarcely.domains.run.write_report", lambda evidence: None)
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


# -- saliency -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saliency_run(tmp_path_factory):
    """A run that explains a toy network, by a combination that its pointing game has found."""
    root = tmp_path_factory.mktemp("saliency")
    (root / "map.json").write_text(json.dumps({"disc": [0, 1], "star": [2]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explaining, "write_report", lambda evidence: None)  # tested with the other reports
        config = compose_run(
            [
                *("method=normgrad", "data=shapes", "data.image_size=64", "data.train_images=20"),
                *("data.test_images=4", "ckpt=tests.saliency.networks:toy", "method.layers=['0','8']"),
                *("method.methods=[norm_grad,grad_cam]", "method.meta_methods=[]", "method.examples=0"),
                *("method.evaluations=[pointing]", f"method.class_map={root / 'map.json'}"),
                *("trainer=cpu", f"run_dir={root / 'run'}"),
            ]
        )
        config["command"] = ""
        results = execute(config, "unused")
    return root / "run", results["metrics"]


def test_every_image_has_a_map_of_its_size_and_a_picture(saliency_run, images, tmp_path, capsys):
    run, metrics = saliency_run
    assert main([f"ckpt={run}", f"images={images}", f"maps={tmp_path / 'maps'}"]) == 0
    won = max((k for k in metrics if "/combined-" in k and k.endswith("/all")), key=metrics.__getitem__)
    _, method, layer, _ = won.split("/")
    assert f"3 images, {method} at {layer}" in capsys.readouterr().err
    for name in ("a.png", "b.jpg", "below/ü.png"):
        saliency = np.load(tmp_path / "maps" / f"{name}.npy", allow_pickle=False)
        assert (saliency.shape, saliency.dtype) == ((30, 40), np.float32)
        with Image.open(tmp_path / "maps" / f"{name}.png") as picture:
            assert (picture.size, picture.mode) == ((40, 30), "RGB")
    with open(tmp_path / "maps" / "explained.csv", newline="", encoding="utf-8") as file:
        rows = {row["file"]: row["class"] for row in csv.DictReader(file)}
    assert set(rows) == {"a.png", "b.jpg", "below/ü.png"}
    assert set(rows.values()) <= {"disc", "star"}


def test_a_map_is_of_the_class_method_and_layer_that_were_asked_for(saliency_run, images, tmp_path):
    run, _ = saliency_run
    asked = ["class=star", "method=grad_cam-meta", "layer=8"]
    assert main([f"ckpt={run}", f"images={images}", f"maps={tmp_path / 'maps'}", *asked]) == 0
    found = SaliencyRun.load(run, "grad_cam-meta", "8")
    with Image.open(images / "a.png") as image:
        x = found.network_input(np.array(image))
    assert x.shape == (1, 3, 64, 85)  # as the run saw its images, in its own proportions
    (expected,) = attribute(
        *(found.module.classifier, x, found.outputs["star"], "8", "grad_cam", 0.002)
    ).values()
    saliency = np.load(tmp_path / "maps" / "a.png.npy")
    np.testing.assert_allclose(saliency, resize(resize(expected, (64, 85)), (30, 40))[0], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ckpt": "nowhere"}, "no finished run of method=normgrad"),
        ({"class": "moon"}, "knows no class 'moon'"),
        ({"method": "gradcam"}, "no saliency method"),
        ({"layer": "7"}, "no maps at '7'"),
        ({"out": "labels.csv"}, "two things to write"),
        ({"gallery": "g.html"}, "two things to write"),
        ({"maps": "", "class": "star"}, "none are asked for"),
        ({"images": ""}, "images must be given"),
    ],
)
def test_what_cannot_be_mapped_is_told(saliency_run, images, tmp_path, monkeypatch, capsys, changes, told):
    monkeypatch.chdir(tmp_path)
    given = {"ckpt": str(saliency_run[0]), "images": str(images), "maps": "maps"} | changes
    assert main([f"{key}={value}" for key, value in given.items()]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message
    assert not (tmp_path / "maps").exists()


def test_an_image_that_cannot_be_mapped_is_named_or_skipped(saliency_run, images, tmp_path, capsys):
    (images / "c.png").write_text("no image")
    given = [f"ckpt={saliency_run[0]}", f"images={images}", f"maps={tmp_path / 'maps'}"]
    assert main(given) == 2
    assert "c.png" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"c\.png"):
        assert main([*given, "on_error=skip"]) == 0
    assert len((tmp_path / "maps" / "explained.csv").read_text().splitlines()) == 4


def test_several_labels_an_image_are_those_above_one_half(images, tmp_path):
    config = compose_run(
        [
            *("method=multilabel", "data=shapes", "data.image_size=64", "data.train_images=12"),
            *("data.test_images=4", "backbone=small_cnn", "backbone.width=2", "fast=true", "trainer=cpu"),
            *("embedding_size=0", f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"),
        ]
    )
    config["command"] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scarcely.reports.html.write_report", lambda evidence: None)
        execute(config, "unused")
    rows = rows_of(tmp_path / "run", images, tmp_path / "labels.csv")
    classes = ["disc", "square", "triangle", "ring", "cross", "star"]
    assert list(rows[0]) == ["file", "classes", *classes]
    page = tmp_path / "labels.html"
    assert (
        main([f"ckpt={tmp_path / 'run'}", f"images={images}", f"out={tmp_path / 'l.csv'}", f"gallery={page}"])
        == 0
    )
    shown = [image["alt"] for image in Page(page.read_text(encoding="utf-8")).images]
    assert len(shown) == sum(max(1, len(row["classes"].split(";"))) for row in rows)
    for row in rows:
        assert row["classes"] == ";".join(name for name in classes if float(row[name]) > 0.5)
