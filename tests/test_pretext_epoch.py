"""Snapshots of a pretext: what is kept, who inherits it, what is cached for whom."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from scarcely import checkpoints
from scarcely.callbacks.history import read_rows
from scarcely.errors import ConfigError
from tests.config.composing import composed, sound
from tests.runs import (
    TINY,
    Process,
    command_line,
    compose,
    data_of,
    job_of,
    same_weights,
    start_run,
    train_here,
    wait_until,
)

PRETEXT = ("pretext=rotnet", "stages.pretext.epochs=3", "stages.pretext.keep=[2,1]")
SUPERVISED = (*PRETEXT, "method=supervised", "data.labels_per_class=5", "epochs=1")


def state(path):
    return checkpoints.load(path)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Runs from each epoch of one pretext, in one process, one after another."""
    root = tmp_path_factory.mktemp("sweep")
    given = [*TINY, *SUPERVISED, f"cache_dir={root / 'cache'}"]
    process = Process(several, given, str(root), ("1", "2", "3", "null"), log=root / "log")
    assert process.wait() == 0, process.output
    return root


def several(given, root, epochs):
    return max(command_line([*given, f"run_dir={root}/{e}", f"pretext_epoch={e}"]) for e in epochs)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


# What is kept


def test_the_weights_after_each_epoch_are_those_of_a_stage_that_ends_there(tmp_path):
    given = ("stages.pretext.optimizer.milestones=[]",)
    config = compose(*PRETEXT, *given)
    data = data_of(config)
    long = train_here(job_of(config, data, 0), tmp_path / "long", data)
    for epochs in (1, 2):
        shorter = compose("pretext=rotnet", f"stages.pretext.epochs={epochs}", *given)
        short = train_here(job_of(shorter, data, 0), tmp_path / str(epochs), data)
        kept = checkpoints.load(long / f"weights-epoch{epochs}.pt")
        whole = checkpoints.load(short / "weights.pt")
        assert set(kept) == set(whole)
        assert (kept["epochs"], kept["format"]) == (epochs, whole["format"])
        assert 0 < kept["seconds"] < checkpoints.load(long / "weights.pt")["seconds"]
        assert same(kept["state_dict"], whole["state_dict"])
    assert not (long / "weights-epoch3.pt").exists()


@pytest.mark.slow
def test_they_are_the_same_after_a_resume(tmp_path):
    settings = ["method=rotnet", "epochs=6", "method.keep=[1,3,5]"]
    whole = start_run(tmp_path / "whole", *settings)
    assert whole.wait() == 0, whole.output
    killed = start_run(tmp_path / "killed", *settings)
    wait_until(lambda: len(read_rows(tmp_path / "killed" / "metrics.csv")) >= 2, killed)
    killed.send(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "weights.pt").exists()
    resumed = start_run(tmp_path / "killed", *settings, "resume=true", log=tmp_path / "resumed.log")
    assert resumed.wait() == 0, resumed.output
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    for epoch in (1, 3, 5):
        name = f"weights-epoch{epoch}.pt"
        assert same(state(tmp_path / "whole" / name), state(tmp_path / "killed" / name))
    assert not list((tmp_path / "killed").glob(".*.part"))


# Who inherits it


def test_a_sweep_over_epochs_trains_one_pretext(sweep):
    assert [results_of(sweep / e)["stages"][0]["cached"] for e in ("1", "2", "3", "null")] == [
        False, True, True, True
    ]  # fmt: skip
    (folder,) = (sweep / "cache" / "stages").iterdir()
    found = {p.name for p in folder.iterdir()}
    assert found == {".lock", "metrics.csv", "weights.pt", "weights-epoch1.pt", "weights-epoch2.pt"}


def test_a_run_starts_from_the_epoch_that_was_asked_for(sweep):
    (folder,) = (sweep / "cache" / "stages").iterdir()
    names = {"1": "weights-epoch1.pt", "2": "weights-epoch2.pt", "3": "weights.pt", "null": "weights.pt"}
    frozen = [n for n in state(folder / "weights.pt") if n.startswith("backbone.conv1.") and "weight" in n]
    frozen = [n for n in frozen if state(folder / "weights.pt")[n].dim() == 4]
    assert frozen, "the first block is not trained further: what is in it was inherited"
    for epoch, name in names.items():
        given, ended = state(folder / name), state(sweep / epoch / "weights.pt")
        assert all(torch.equal(given[n], ended[n]) for n in frozen), epoch
    assert same_weights(sweep / "3", sweep / "null")
    assert not same_weights(sweep / "1", sweep / "2")


def test_results_json_says_how_good_the_pretext_was_then(sweep):
    rows = [r for r in read_rows(sweep / "1" / "metrics.csv") if r["stage"] == "pretext"]
    for name, epoch in (("1", 1), ("2", 2), ("3", 3), ("null", 3)):
        metrics = results_of(sweep / name)["metrics"]
        assert metrics["pretext/epoch"] == epoch
        assert metrics["pretext/accuracy"] == pytest.approx(rows[epoch - 1]["rotation/accuracy"])
        assert "test/accuracy" in metrics


def test_without_a_pretext_nothing_is_said_of_one(tmp_path):
    process = start_run(tmp_path / "run", "pretext=none", "fast=true", f"cache_dir={tmp_path / 'cache'}")
    assert process.wait() == 0, process.output
    assert not any(key.startswith("pretext/") for key in results_of(tmp_path / "run")["metrics"])


@pytest.mark.slow
def test_what_follows_is_cached_for_each_epoch_apart(tmp_path):
    """The supervised stage between pretext and discovery is itself kept in the cache."""
    given = [
        *TINY, *PRETEXT, "method=ranking_statistics", "data.labelled_classes=5", "epochs=1",
        "stages.supervised.epochs=1", f"cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    process = Process(several, given, str(tmp_path), ("1", "2", "null", "3"), log=tmp_path / "log")
    assert process.wait() == 0, process.output
    found = [[s["cached"] for s in results_of(tmp_path / e)["stages"]] for e in ("1", "2", "null", "3")]
    assert found == [
        [False, False, False],
        [True, False, False],
        [True, False, False],
        [True, True, False],
    ]
    assert len(list((tmp_path / "cache" / "stages").iterdir())) == 4  # one pretext, three supervised


def test_the_epochs_that_are_kept_are_in_the_key_and_the_chosen_one_is_not():
    def key(*given):
        config = compose("pretext=rotnet", "stages.pretext.epochs=3", *given)
        return job_of(config, data, 0).key("x", "", "cpu")

    data = data_of(compose())
    none, both = key(), key("stages.pretext.keep=[1,2]")
    assert key("stages.pretext.keep=[]") == none
    assert len({none, both, key("stages.pretext.keep=[1]")}) == 3
    assert key("stages.pretext.keep=[2,1,1]") == both
    assert key("stages.pretext.keep=[1,2]", "pretext_epoch=2") == both


# What is refused, before training


KEPT = ("pretext=rotnet", "++stages.pretext.epochs=9")
REFUSED = [
    ((*KEPT, "pretext_epoch=5"), "pretext_epoch", "are not kept"),
    ((*KEPT, "++stages.pretext.keep=[3]", "pretext_epoch=5"), "pretext_epoch", "are not kept"),
    (("pretext=none", "pretext_epoch=5"), "pretext_epoch", "no pretext is trained"),
    (("method=rotnet", "epochs=9", "pretext_epoch=5"), "pretext_epoch", "no pretext is trained"),
    ((*KEPT, "++stages.pretext.keep=[3,10]"), "stages.pretext.keep", "no epoch 10"),
    ((*KEPT, "++stages.pretext.keep=[0]"), "stages.pretext.keep", "not possible"),
    ((*KEPT, "++stages.pretext.keep=3"), "stages.pretext.keep", "not possible"),
    (("method=rotnet", "epochs=9", "method.keep=[10]"), "method.keep", "no epoch 10"),
    ((*KEPT, "pretext_epoch=0"), "pretext_epoch", "not possible"),
]


@pytest.mark.parametrize(("given", "where", "told"), REFUSED, ids=str)
def test_epochs_that_do_not_exist_are_refused_with_one_message(given, where, told):
    with pytest.raises(ConfigError) as error:
        sound(*given)
    assert error.value.where == where
    assert told in error.value.what
    assert error.value.instead


def test_a_file_in_place_of_the_pretext_has_no_epochs(tmp_path):
    file = tmp_path / "a.pt"
    file.touch()
    for given in (f"pretext={file}", f"ckpt={file}"):
        with pytest.raises(ConfigError, match="no pretext is trained") as error:
            sound(given, "pretext_epoch=5")
        assert error.value.where == "pretext_epoch"


def test_fast_keeps_and_takes_the_one_epoch_that_there_is():
    config = sound(*KEPT, "++stages.pretext.keep=[3,5]", "pretext_epoch=5", "fast=true")
    assert config["pretext_epoch"] == 1
    assert config["plan"][0]["method"]["keep"] == [1]
    assert composed("fast=true")["pretext_epoch"] is None
