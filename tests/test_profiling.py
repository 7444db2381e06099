"""Where a step's time goes: parts that add up, waits that are found, the command. No time is asserted."""

from __future__ import annotations

import io
import itertools
import json

import pytest
import torch
from rich.console import Console

from scarcely.bench.profile import SHOWN, main, prepare, print_profile, profile_step
from scarcely.profiling import (
    BACKWARD,
    INPUT,
    LOSS,
    OPTIMIZER,
    PARTS,
    REST,
    OperatorTime,
    StepClock,
    StepProfile,
    Waits,
)
from tests.domains.runs import TINY as DOMAINS
from tests.domains.runs import write_release
from tests.runs import TINY, compose

LSDC = (*TINY, "method=lsdc", "pretext=none")


# -- parts ----------------------------------------------------------------------------------------


def test_an_action_within_another_counts_for_itself_alone():
    ticks = itertools.count()
    clock = StepClock(clock=lambda: float(next(ticks)))  # each look at it is a second later
    clock.lap()
    clock.start("[LightningModule]Any.optimizer_step")  # one second of the rest
    clock.start("[Strategy]SingleDeviceStrategy.training_step")  # one of the optimizer
    clock.start("[LightningModule]Any.forward")  # in the training step, and of no other part
    clock.stop("[LightningModule]Any.forward")
    clock.stop("[Strategy]SingleDeviceStrategy.training_step")  # one of the loss
    clock.start("[Strategy]SingleDeviceStrategy.backward")  # one of the optimizer
    clock.stop("[Strategy]SingleDeviceStrategy.backward")  # one of the backward pass
    clock.stop("[LightningModule]Any.optimizer_step")  # one of the optimizer
    expected = dict.fromkeys(PARTS, 0.0) | {OPTIMIZER: 3.0, LOSS: 1.0, BACKWARD: 1.0, REST: 2.0}
    assert clock.lap() == expected
    assert sum(clock.lap().values()) == 1.0


def test_a_real_step_has_all_parts_operators_and_a_trace(tmp_path):
    job, data, _ = prepare(compose(base=LSDC), "", tmp_path)
    found = profile_step(job, data, tmp_path, steps=2, trace=tmp_path / "trace.json")
    assert tuple(found.parts) == PARTS
    for part in (INPUT, LOSS, BACKWARD, OPTIMIZER, REST):
        assert found.parts[part] > 0, part
    assert found.step > 0
    convolutions = {row.name: row.calls for row in found.operators}["aten::convolution"]
    assert convolutions == 3 * 3  # layers, views
    assert found.calls > len(found.operators)
    assert found.launches is None
    assert not found.waits
    names = {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert "aten::convolution" in names


# -- waits ----------------------------------------------------------------------------------------


def test_what_makes_the_host_wait_is_found_with_its_line():
    x = torch.arange(6.0)
    with Waits() as waits:
        float(x.sum())
        x[x > 2]
        x[x > 2] = torch.arange(3.0)
        x.nonzero()
        bool(x.any())
    counts: dict[str, int] = {}
    for wait, times in waits.found.items():
        counts[wait.what] = counts.get(wait.what, 0) + times
        assert wait.line.endswith("test_what_makes_the_host_wait_is_found_with_its_line")
        assert "test_profiling.py" in wait.line
    assert counts.pop("aten::_local_scalar_dense") == 2
    assert counts.pop("aten::nonzero") == 1
    assert counts.pop("aten::index with a mask") == 1
    assert list(counts.values()) == [1]  # index_put with a mask, whatever this torch calls it


def test_what_waits_for_nothing_is_not_found():
    x, rows = torch.arange(6.0), torch.tensor([1, 2])
    with Waits() as waits:
        x[rows] = x.where(x > 2, 0)[rows]
        x.masked_fill_(x > 2, 1.0)
    assert not waits.found


def test_a_step_that_asks_for_values_is_told_so(tmp_path):
    job, data, _ = prepare(compose(base=LSDC), "", tmp_path)
    asking = {"_target_": "tests.runs.Probe", "log": str(tmp_path / "log")}
    method = {key: job.method[key] for key in ("name", "task", "epochs", "batch_size", "optimizer")} | asking
    found = profile_step(type(job)(**{**vars(job), "method": method}), data, tmp_path, steps=1)
    assert found.waits is not None
    assert any("tests/runs.py" in wait.line and "training_step" in wait.line for wait in found.waits)


@pytest.mark.gpu
def test_a_gpu_tells_itself_what_makes_the_host_wait(tmp_path):
    job, data, _ = prepare(compose("trainer=gpu", base=LSDC), "", tmp_path)
    found = profile_step(job, data, tmp_path, steps=3)
    assert not found.waits
    assert found.launches is not None
    assert found.launches > 0
    assert sum(row.device for row in found.operators) > 0


# -- which step -----------------------------------------------------------------------------------


def test_stages_before_hand_over_their_random_weights(tmp_path):
    job, data, _ = prepare(compose(base=(*TINY, "method=kcl")), "", tmp_path)
    assert job.name == "cluster"
    assert job.inherited == str(tmp_path / "similarity.pt")
    found = profile_step(job, data, tmp_path, steps=1)  # kcl refuses to train without
    assert found.calls > 0


def test_an_earlier_stage_can_be_looked_at(tmp_path):
    config = compose(base=(*TINY, "method=lsdc", "pretext=rotnet"))
    job, _, _ = prepare(config, "pretext", tmp_path)
    assert job.method["name"] == "rotnet"
    assert job.inherited is None


def test_a_step_of_several_domains_is_looked_at(tmp_path):
    base = (*DOMAINS, "batch_size=8", f"data.root={write_release(tmp_path / 'data')}")
    config = compose("method=parallel_adapters", "method.before=[source,round_robin]", base=base)
    job, data, _ = prepare(config, "", tmp_path)
    assert job.name == "gtsrb parallel_adapters"
    assert data.domain == "gtsrb"
    job, data, _ = prepare(config, "source", tmp_path)
    assert data.domain == "birds"
    job, data, _ = prepare(config, "round_robin", tmp_path)
    found = profile_step(job, data, tmp_path, steps=1)
    assert found.step > 0
    assert not found.waits


# -- the command ----------------------------------------------------------------------------------


def test_command_prints_every_part_and_says_that_images_are_random(tmp_path, capsys):
    sizes = ["backbone.width=4", "batch_size=8", "trainer=cpu", "steps=1"]
    data = ["data=cifar10", f"data.root={tmp_path}", "data.download=false"]
    assert main(["method=supervised", *data, *sizes]) == 0
    printed = capsys.readouterr().out
    for part in PARTS:
        assert part in printed
    assert "random images, by the published sizes of CIFAR10" in printed
    assert "stage supervised of supervised on cifar10: batch size 8" in printed
    assert "Nothing in a step makes the host wait" in printed
    assert printed.count("aten::") <= SHOWN


def test_what_waits_is_printed_with_its_line(tmp_path):
    job, _, _ = prepare(compose(base=LSDC), "", tmp_path)
    with Waits() as waits:
        torch.ones(2).sum().item()
    operators = [OperatorTime("aten::sum", 1.0, 1e-3, 0.0)]
    found = StepProfile(1e-3, dict.fromkeys(PARTS, 1e-3), operators, 1.0, None, waits.found)
    printed = io.StringIO()
    print_profile(found, job, console=Console(file=printed, width=200))
    assert "test_profiling.py" in printed.getvalue()
    assert "aten::_local_scalar_dense" in printed.getvalue()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["steps=0"], "steps"),
        (["clock=sun"], "clock"),
        (["out=nowhere/at/all.json"], "nowhere"),
        (["--multirun"], "KEY=VALUE"),
        (["method=lsdcc"], "lsdc"),
        (["batch_sise=3"], "batch_size"),
        (["batch_size=none"], "batch_size"),
        (["stage=pretexts", "pretext=rotnet"], "pretext, cluster"),
        (["method=kmeans"], "kmeans"),
        (["trainer.devices=2"], "trainer.devices"),
        (["data.size=8", "batch_size=1797", "pretext=none"], "batch_size"),
        (["data=imagefolder", "data.root=nowhere", "num_clusters=3"], "nowhere"),
    ],
)
def test_bad_settings_are_refused(arguments, named, capsys):
    assert main([*arguments, *([] if "trainer" in arguments[0] else ["trainer=cpu"])]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert named in said.err
    assert said.out == ""
