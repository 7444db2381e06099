"""Runs over several domains: what is trained, what is kept, what is forgotten."""

from __future__ import annotations

import json

import pytest
import torch

from scarcely.errors import UserError
from tests.domains.runs import ADAPTERS, METHODS, NAMES, network, pixels, run


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("method", ADAPTERS)
def test_nothing_of_the_source_is_forgotten(runs, method):
    folder, results = runs[method]
    x = pixels()
    source = network(folder, "birds")
    before = source(x)
    own = results["metrics"]["domain/birds/accuracy"]
    for name in NAMES[1:]:
        after = network(folder, name).source_logits(x)
        assert torch.equal(after, before), name  # bit for bit
        assert results["metrics"][f"domain/{name}/source_accuracy"] == pytest.approx(own)


def test_fine_tuning_moves_the_source(runs):
    folder, _ = runs["finetune"]
    x = pixels()
    before = network(folder, "birds")(x)
    assert not torch.allclose(network(folder, "gtsrb").source_logits(x), before)


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


def test_series_adapters_may_be_put_in_afterwards(root, cache, tmp_path):
    overrides = ("method.source=supervised", "method.source_with_adapters=false", "method.reference=none")
    results = run(tmp_path / "run", root, cache, "series_adapters", *overrides)
    assert results["stages"][0]["name"] == "birds supervised"
    x = pixels()
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
