"""Adapters as stages: what is trained and decayed, and several processes."""

from __future__ import annotations

import math

import pytest
import torch

from scarcely import stages
from scarcely.config.compose import compose_run
from tests.runs import TINY, data_of, job_of, rows_without_times, start_ranks

KINDS = ("series_adapters", "parallel_adapters", "bn_adapters", "feature_extractor", "svd_adapters")


def job(method: str, **changes):
    """Return a stage on digits, whose source has three classes."""
    base = [o for o in TINY if not o.startswith("backbone.")]
    given = (*base, "backbone=resnet26", "backbone.width=4", "backbone.blocks=1", "epochs=1")
    config = compose_run([f"method={method}", *given])
    data = data_of(config)
    config["method"]["decay"] = 1e-3
    changes.setdefault("trainer", config["trainer"])
    return job_of(config, data, protocol="split", num_source=3, **changes), data


@pytest.mark.parametrize("method", KINDS)
def test_only_what_belongs_to_the_domain_has_a_gradient(method):
    given, data = job(method)
    built = stages.build_method(given, data.input_shape)
    owned = {id(p) for group in built.backbone.parameter_groups().values() for p in group}
    assert owned == {id(p) for p in built.parameters() if p.requires_grad}
    x = torch.randn(4, *data.input_shape)
    built(x).sum().backward()
    assert all(p.grad is not None for p in built.parameters() if p.requires_grad)
    assert built.source_logits(x) is None  # its classifier is random: nothing was taken over


@pytest.mark.parametrize("method", KINDS)
def test_each_kind_of_parameter_has_its_own_weight_decay(method):
    given, data = job(method)
    changed = {
        "norm_decay": 0.25,
        "head_decay": 0.5,
        **({} if "decay" not in given.method else {"decay": 0.125}),
    }
    own = {k: v for k, v in changed.items() if k in given.method}
    built = stages.build_method(stages.replace(given, method=given.method | own), data.input_shape)
    groups = built.backbone.parameter_groups()
    found = {
        group["weight_decay"]: {id(p) for p in group["params"]}
        for group in built.configure_optimizers().param_groups
    }
    wanted = {"adapters": 0.125, "norms": 0.25, "heads": 0.5}
    assert found == {wanted[kind]: {id(p) for p in params} for kind, params in groups.items()}


@pytest.mark.parametrize("method", ["series_adapters", "feature_extractor"])
def test_two_processes_train_a_domain(method, tmp_path):
    one, _ = job(method)
    two = stages.replace(one, trainer=one.trainer | {"devices": 2})
    for process in start_ranks(two, tmp_path / "two"):
        assert process.wait() == 0, process.output
    (row,) = rows_without_times(tmp_path / "two")
    assert math.isfinite(row["loss"])
