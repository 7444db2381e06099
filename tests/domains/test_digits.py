"""A run over the domains made of digits, as the command that needs no file starts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scarcely import predict
from scarcely.config.compose import compose_run
from scarcely.domains import run as run_module
from scarcely.errors import DataError
from scarcely.run import execute
from tests.domains.runs import network

FEW = ("data=digit_domains", "data.domains=[sums,groups,coloured]", "trainer=cpu", "fast=true")
CLASSES = {"sums": 19, "groups": 4, "coloured": 10}


def run(folder: Path, cache: Path, *overrides: str) -> dict:
    config = compose_run([*FEW, *overrides, f"run_dir={folder}", f"cache_dir={cache}"])
    config["command"] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", lambda evidence: None)  # tested with the other reports
        return execute(config, "run")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, Path, dict]:
    folder, cache = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("stages")
    return folder, cache, run(folder, cache, "method=parallel_adapters", "resume=true")


def test_every_domain_is_trained_from_the_sums_and_scored(found):
    folder, _, results = found
    rows = {row["name"]: row for row in results["domains"]}
    assert {name: row["classes"] for name, row in rows.items()} == CLASSES
    assert [rows[name]["test"] for name in CLASSES] == [1436, 359, 359]
    assert 0 < results["metrics"]["decathlon/score"] <= 3000
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = network(folder, "sums")(x)
    assert torch.equal(network(folder, "coloured").source_logits(x), before)


def test_a_run_that_goes_on_trains_nothing_again(found):
    folder, cache, results = found
    (folder / "results.json").unlink()
    again = run(folder, cache, "method=parallel_adapters", "resume=true")
    assert all(stage["cached"] for stage in again["stages"])
    assert again["metrics"] == results["metrics"]


def test_there_are_no_images_of_a_challenge(found):
    with pytest.raises(DataError, match="no domain of this run has test images with ids"):
        predict.predict_challenge({"ckpt": str(found[0]), "challenge": "x.json", "batch_size": "8"})
