"""A compiled network trains as a plain one, and their checkpoints go into each other."""

from __future__ import annotations

import functools

import pytest
import torch

from scarcely import checkpoints, stages
from tests.runs import TINY, compose, data_of, job_of

METHODS = {
    "lsdc": ("method=lsdc", "pretext=none"),
    "rotnet": ("method=rotnet",),
    "mean_teacher": ("method=mean_teacher", "data.labels_per_class=3"),  # the student is compiled
}


@pytest.fixture
def without_compiler(monkeypatch):
    """Trace the networks as the compiler does, and run the graphs as they are: code is made in minutes."""
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(plain, backend="eager"))


def trained(name: str, folder, *overrides: str) -> dict:
    config = compose("epochs=2", *METHODS[name], *overrides, base=TINY)
    data = data_of(config)
    stages.train(job_of(config, data, inherited=None), folder, data, "cpu")
    return checkpoints.load(folder / "weights.pt")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "lsdc")) for name in METHODS]
)
def test_compiled_and_plain_trainings_end_alike(name, tmp_path, without_compiler):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = (
        trained(name, tmp_path / str(given), f"trainer.compile={given}")["state_dict"]
        for given in (False, True)
    )
    traced = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 1 <= traced <= 6, "a graph for each shape of training and scoring, none for each of 14 steps"
    assert list(plain) == list(compiled), "no name tells of the compiler"
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_compiled_or_plain_as_it_was_not(first, tmp_path, without_compiler):
    whole = trained("lsdc", tmp_path / "whole")["state_dict"]
    config = compose("epochs=2", *METHODS["lsdc"], f"trainer.compile={first}", base=TINY)
    data = data_of(config)
    job = job_of(config, data, inherited=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            stages.pl.Trainer, "__init__", functools.partialmethod(_stopped, stages.pl.Trainer.__init__)
        )
        stages.train(job, tmp_path / "run", data, "cpu")
    assert checkpoints.load(tmp_path / "run" / "last.ckpt")["epoch"] == 0
    ended = trained("lsdc", tmp_path / "run", f"trainer.compile={not first}")["state_dict"]
    assert list(ended) == list(whole)
    for key, value in whole.items():
        torch.testing.assert_close(ended[key], value, rtol=1e-3, atol=1e-5, msg=key)


def _stopped(self, init, **settings) -> None:
    init(self, **settings | {"max_epochs": 1})
