"""A finished run names the clusters of a folder of images."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from scarcely.config.compose import compose_run
from scarcely.predict import main
from scarcely.run import execute


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
