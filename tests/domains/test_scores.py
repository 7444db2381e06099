"""What a run over several domains is scored by: E_max, parameters."""

from __future__ import annotations

import pytest
import torch

from scarcely.backbones.resnet26 import ResNet26
from scarcely.metrics.decathlon import decathlon_score
from tests.domains.runs import NAMES, network, run, write_colours


def test_the_largest_errors_are_twice_those_of_plain_fine_tuning(cache, tmp_path):
    for name, classes, astray in (("birds", 3, 2), ("flowers", 2, 3)):
        write_colours(tmp_path / name / "train", classes, 12)
        write_colours(tmp_path / name / "test", classes, 20 - astray, seed=1)
        write_colours(tmp_path / name / "test", classes, astray, seed=2, called=1)  # in wrong folders
    given = (f"data.domains={{birds: {tmp_path / 'birds'}, flowers: {tmp_path / 'flowers'}}}",)
    given += ("stages.source.epochs=8", "batch_size=8", "epochs=8")
    tuned = run(tmp_path / "tuned", tmp_path, cache, "finetune", *given)["metrics"]
    errors = {name: 1 - tuned[f"domain/{name}/accuracy"] for name in ("birds", "flowers")}
    assert errors == pytest.approx({"birds": 0.1, "flowers": 0.15}, abs=0.08)  # far from 0 and from 1/2
    slow = "method.optimizer.lr=1e-9"  # of the classifiers alone: fine-tuning keeps its own
    results = run(tmp_path / "run", tmp_path, cache, "feature_extractor", *given, slow)
    metrics, limits = results["metrics"], results["max_errors"]
    assert limits == pytest.approx({name: 2 * error for name, error in errors.items()})
    own = {name: 1 - metrics[f"domain/{name}/accuracy"] for name in limits}
    assert own["flowers"] != pytest.approx(errors["flowers"], abs=0.1)
    assert metrics["decathlon/score"] == pytest.approx(decathlon_score(own, limits))


def test_parameters_are_counted_against_one_network(runs):
    ratio = {method: results["metrics"]["parameters/ratio"] for method, (_, results) in runs.items()}
    assert ratio["finetune"] == ratio["lwf"] == ratio["supervised"] == 3
    assert ratio["feature_extractor"] == 1
    assert 1 < ratio["bn_adapters"] < ratio["svd_adapters"] < ratio["parallel_adapters"]
    own = [row["parameters"] for row in runs["parallel_adapters"][1]["domains"]]
    assert ratio["parallel_adapters"] == pytest.approx(sum(own) / own[0])


@pytest.mark.parametrize("given", [False, True])
def test_without_a_source_the_frozen_network_is_counted_too(root, cache, tmp_path, given):
    """Once where it is given; a random one is another network in each domain."""
    overrides = ["data.source=null", "method.before=[]", "method.reference=none", "fast=true"]
    if given:
        whole = ResNet26(3, 4, 1)
        torch.save(whole.state_dict(), tmp_path / "weights.pt")
        overrides.append(f"ckpt={tmp_path / 'weights.pt'}")
    results = run(tmp_path / "run", root, cache, "parallel_adapters", *overrides)
    one = sum(p.numel() for p in ResNet26(3, 4, 1).parameters())
    own = sum(row["parameters"] for row in results["domains"])
    assert len(results["domains"]) == 3
    expected = (own + one * (1 if given else 3)) / one
    assert results["metrics"]["parameters/ratio"] == pytest.approx(expected)
    frozen = [network(tmp_path / "run", name).backbone.network.conv1.conv.weight for name in NAMES]
    assert all(torch.equal(frozen[0], other) for other in frozen[1:]) == given
