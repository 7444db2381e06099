"""What a run over several domains may start from, and what its domains are good for afterwards."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scarcely import predict
from scarcely.backbones.resnet26 import ResNet26
from scarcely.errors import ConfigError
from tests.domains.runs import ADAPTERS, CLASSES, network, pixels, run

QUICK = ("method.reference=none", "fast=true")


@pytest.mark.parametrize("method", [*ADAPTERS, "finetune"])
def test_each_domain_names_the_classes_of_a_folder(root, runs, tmp_path, method):
    release, out = root / "decathlon-1.0", tmp_path / "labels.csv"
    for name in CLASSES:
        folder = runs[method][0] / "domains" / name
        images = release / "data" / name / "test"
        assert predict.main([f"ckpt={folder}", f"images={images}", f"out={out}", "batch_size=5"]) == 0
        with open(out) as file:
            found = {row["file"]: (row["class"], row["confidence"]) for row in csv.DictReader(file)}
        listed = json.loads((release / "annotations" / f"{name}_test.json").read_text())["images"]
        files = [Path(image["file_name"]).name for image in listed]
        with np.load(folder / "predictions.npz") as scored:
            classes = [str(scored["classes"][k]) for k in scored["predicted"]]
            confidence = [f"{p:.4f}" for p in scored["confidence"]]
        assert found == dict(zip(files, zip(classes, confidence, strict=True), strict=True))


def write_network(path: Path, classes: int | None) -> ResNet26:
    """Write a network that no run of ours has trained, with a classifier or without."""
    torch.manual_seed(0)
    backbone = ResNet26(3, 4, 1)
    parts = {"backbone": backbone}
    if classes is not None:
        parts["head"] = nn.Linear(backbone.num_features, classes)
    torch.save(nn.ModuleDict(parts).state_dict(), path)
    return backbone.eval()


@pytest.mark.parametrize("classes", [None, 7, CLASSES["birds"]])
@pytest.mark.parametrize("method", ["parallel_adapters", "finetune"])
def test_what_is_left_of_the_source_is_told_where_its_classifier_is_known(
    root, cache, tmp_path, method, classes
):
    backbone = write_network(tmp_path / "weights.pt", classes)
    given = (f"ckpt={tmp_path / 'weights.pt'}", *QUICK)
    metrics = run(tmp_path / "run", root, cache, method, *given)["metrics"]
    names = {key.split("/")[1] for key in metrics if key.endswith("/accuracy") and key.startswith("domain/")}
    assert names == {"gtsrb", "signs"}  # of the source there is no network of ours
    left = [key for key in metrics if key.endswith("/source_accuracy")]
    assert len(left) == (2 if classes == CLASSES["birds"] else 0)
    trained = network(tmp_path / "run", "signs")
    assert (trained.source_logits(pixels()) is None) == (not left)
    if method == "parallel_adapters":
        kept = trained.backbone.network.layer2[0].conv1.conv.weight
        assert torch.equal(kept, backbone.layer2[0].conv1.weight)


def test_a_source_of_fewer_classes_is_not_scored_as_if_it_knew_all(root, cache, tmp_path):
    run(
        tmp_path / "few",
        root,
        cache,
        "finetune",
        "data.source_classes=2",
        "data.domains=[birds,signs]",
        *QUICK,
    )
    given = (f"ckpt={tmp_path / 'few' / 'domains' / 'birds'}", "data.domains=[birds,signs]", *QUICK)
    with pytest.raises(ConfigError, match="2 classes of birds apart, and there are 3"):
        run(tmp_path / "run", root, tmp_path / "none", "finetune", *given)
    results = run(tmp_path / "again", root, cache, "finetune", *given, "data.source_classes=2")
    assert {row["name"]: row["classes"] for row in results["domains"]} == {"birds": 2, "signs": 4}


def test_lwf_wants_the_classifier_of_the_source(root, tmp_path):
    write_network(tmp_path / "weights.pt", None)
    with pytest.raises(ConfigError, match="source's classifier"):
        run(tmp_path / "run", root, tmp_path / "none", "lwf", f"ckpt={tmp_path / 'weights.pt'}", *QUICK)
    assert not (tmp_path / "none").exists()


def test_compressed_adapters_start_from_a_checkpoint_and_stand_where_they_are_asked_for(
    root, cache, runs, tmp_path
):
    ckpt = runs["finetune"][0] / "domains" / "birds"
    given = (f"ckpt={ckpt}", "method.where=late", *QUICK)
    results = run(tmp_path / "run", root, cache, "svd_adapters", *given)
    stages = [f"{name} {method}" for method in ("parallel_adapters", "svd_adapters") for name in CLASSES]
    assert [stage["name"] for stage in results["stages"]] == [s for s in stages if not s.startswith("birds")]
    trained = network(tmp_path / "run", "signs")
    assert {name.split(".")[0] for name in trained._sites()} == {"network"}
    assert {name.split(".")[1] for name in trained._sites()} == {"layer3"}
    assert torch.equal(trained.source_logits(pixels()), network(tmp_path / "run", "birds")(pixels()))
    assert 1 < results["metrics"]["parameters/ratio"] < runs["svd_adapters"][1]["metrics"]["parameters/ratio"]
