"""Loggers beside metrics.csv: the same scalars, the final scores, the pictures; finished whatever happens."""

import contextlib
import json
import math

import pytest
import wandb

from scarcely import loggers
from scarcely.callbacks.history import read_rows
from scarcely.cli import main
from tests.runs import TINY


@pytest.fixture(autouse=True)
def _no_account(tmp_path, monkeypatch):
    """No account and no settings of whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)


def train(tmp_path, *overrides):
    """Run one epoch and return the folder of the run, its rows and its results."""
    folder = tmp_path / "run"
    assert main([*TINY, "epochs=2", f"run_dir={folder}", f"cache_dir={tmp_path / 'cache'}", *overrides]) == 0
    return folder, read_rows(folder / "metrics.csv"), json.loads((folder / "results.json").read_text())


def test_tensorboard_has_the_scalars_and_the_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, rows, results = train(tmp_path, "logger=tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    for row in rows:
        assert row["loss"] is not None
        sent = {e.step: e.value for e in events.Scalars("cluster/loss")}
        assert math.isclose(sent[row["step"]], row["loss"], rel_tol=1e-5)
    for name, value in results["metrics"].items():
        assert math.isclose(events.Scalars(f"final/{name}")[0].value, value, rel_tol=1e-5, abs_tol=1e-6)
    assert "final/acc" in scalars
    pictures = {f"report/{path.stem}" for path in (folder / "figures").glob("*.png")}
    assert pictures
    assert set(events.Tags()["images"]) == pictures


def test_wandb_without_an_account_is_offline_and_complete(tmp_path):
    folder, _, results = train(tmp_path, "logger=wandb", "seed=3")
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert wandb.run is None, "the next job of a sweep would go on with this run"
    content = b"".join(path.read_bytes() for path in run.glob("*.wandb"))
    for text in ("final/acc", "cluster/loss", "lsdc-digits-seed3", "report/confusion"):
        assert text.encode() in content, text
    sent = {path.name.split("_")[0] for path in (run / "files" / "media" / "images" / "report").glob("*.png")}
    assert sent == {path.stem for path in (folder / "figures").glob("*.png")}
    assert results["metrics"]["acc"] > 0


def test_an_account_is_found_where_wandb_leaves_it(tmp_path, monkeypatch):
    assert not loggers._has_wandb_account()
    (tmp_path / "netrc").write_text("machine example.org:8080 login user password 0\n")
    assert not loggers._has_wandb_account()
    monkeypatch.setenv("WANDB_BASE_URL", "http://example.org:8080/wandb")
    assert loggers._has_wandb_account()
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert loggers._has_wandb_account()


@pytest.mark.parametrize(("error", "status"), [(None, "success"), (KeyboardInterrupt, "failed")])
def test_a_logger_is_finished_whatever_happens(monkeypatch, tmp_path, error, status):
    states = []
    monkeypatch.setattr(loggers, "_finish", lambda logger, status: states.append((logger, status)))
    monkeypatch.setitem(loggers._OPEN, "wandb", lambda config, folder: "a logger")

    def run():
        with loggers.open_loggers({"logger": {"name": "wandb"}}, tmp_path) as opened:
            assert opened == ["a logger"]
            if error:
                raise error

    with pytest.raises(error) if error else contextlib.nullcontext():
        run()
    assert states == [("a logger", status)]


def test_a_logger_that_fails_is_still_closed_and_hides_no_error(monkeypatch, tmp_path):
    class WandbLogger:
        def finalize(self, status):
            raise OSError("the disk is full")

    closed = []
    monkeypatch.setattr(wandb, "finish", lambda exit_code: closed.append(exit_code))
    monkeypatch.setitem(loggers._OPEN, "wandb", lambda config, folder: WandbLogger())

    def run(error=None):
        with loggers.open_loggers({"logger": {"name": "wandb"}}, tmp_path):
            if error:
                raise error

    with pytest.raises(KeyError):
        run(KeyError("of the run"))
    with pytest.raises(OSError, match="disk is full"):
        run()
    assert closed == [1, 0]


@pytest.mark.parametrize("name", ["csv", "none"])
def test_csv_needs_no_logger(tmp_path, name):
    with loggers.open_loggers({"logger": {"name": name}}, tmp_path) as opened:
        assert opened == []
    assert list(tmp_path.iterdir()) == []
