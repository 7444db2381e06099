"""Loggers beside metrics.csv: the same scalars, the final scores, the pictures; finished whatever happens."""

import errno
import json
import math
import os
import signal
import socket
import subprocess
import threading
import time

import pytest
import wandb

from scarcely import loggers, wandb_run
from scarcely.callbacks.history import read_rows
from scarcely.cli import main
from scarcely.run import commit_of
from scarcely.wandb_run import describe, git_state, has_account
from tests.runs import TINY, Process, command_line, compose, wait_until
from tests.wandb_record import recorded


@pytest.fixture(autouse=True)
def _no_account(tmp_path, monkeypatch):
    """No account and no settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()  # it reads its settings once


def train(tmp_path, *overrides):
    """Run two epochs and return the folder of the run, its rows and its results."""
    folder = tmp_path / "run"
    assert main([*TINY, "epochs=2", f"run_dir={folder}", f"cache_dir={tmp_path / 'cache'}", *overrides]) == 0
    return folder, read_rows(folder / "metrics.csv"), json.loads((folder / "results.json").read_text())


def settings(**changes):
    """Return as much of a configuration as W&B is told."""
    config = compose("logger=wandb")
    config["command"] = changes.pop("command", "python train.py logger=wandb")
    return config | {"logger": config["logger"] | changes}


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


def test_an_error_of_tensorboards_thread_is_told_by_the_run_alone(tmp_path, monkeypatch):
    from tensorboard.summary.writer import event_file_writer

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(event_file_writer._AsyncWriterThread, "_run", full)
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def run():
        with loggers.open_loggers({"logger": {"name": "tensorboard"}}, tmp_path) as (logger,):
            other = threading.Thread(target=full, name="another")
            other.start()
            other.join()
            logger.experiment.flush()

    with pytest.raises(OSError, match="No space"):
        run()
    assert [failed.thread.name for failed in told] == ["another"]
    assert threading.excepthook == told.append, "as it was before"


def test_wandb_without_an_account_is_offline_and_complete(tmp_path, capfd):
    wanted = ["logger=wandb", "logger.upload_weights=true", "logger.tags=[mine]", "seed=3", "method.beta=4"]
    folder, rows, results = train(tmp_path, *wanted)
    assert capfd.readouterr().err.count("there is no key") == 1
    assert wandb.run is None, "the next job of a sweep would go on with this run"
    (sent,) = recorded(folder / "wandb")
    assert sent.exit_code == 0
    assert (sent.run.run_group, sent.run.job_type) == ("lsdc-digits", "cluster")
    assert list(sent.run.tags) == ["lsdc", "digits", "mine"]
    assert sent.run.display_name.startswith("lsdc-digits")
    assert "beta=4 seed=3" in sent.run.display_name
    assert sent.config["method"]["beta"] == 4
    assert sent.config["environment"] == results["environment"]
    assert len(sent.config["git"]["commit"]) == 40
    *trained, end = sent.history.values()
    for row, scalars in zip(rows, trained, strict=True):
        assert {f"cluster/{k}": v for k, v in row.items() if k != "stage"} == pytest.approx(
            {k: v for k, v in scalars.items() if k.startswith("cluster/")}
        )
    assert {f"final/{k}": v for k, v in results["metrics"].items()} == {
        k: v for k, v in end.items() if k.startswith("final/")
    }
    pictures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {key.split("/")[1] for key in end if key.startswith("report/")} == pictures
    assert end["report/curves/caption"].startswith("Training. Losses")
    (weights,) = sent.artifacts
    assert set(weights.aliases) >= {"best", "last"}
    assert {entry.path for entry in weights.manifest.contents} == {"weights.pt", "config.yaml"}


def test_an_interrupted_run_goes_on_with_its_identity_and_its_whole_record(tmp_path):
    rows = [{"stage": "cluster", "epoch": e, "step": 7 * (e + 1), "loss": 1.0 / (e + 1)} for e in range(3)]

    def run(rows, error=None):
        with loggers.open_loggers(settings(), tmp_path) as opened, loggers.logging_to(opened):
            loggers.send_rows(rows)
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        run(rows[:2], KeyboardInterrupt())
    run([*rows[:2], *rows[1:]])  # what is trained once more is sent once
    (first,), (second,) = recorded(tmp_path / "wandb/replaced"), recorded(tmp_path / "wandb")
    assert first.run.run_id == second.run.run_id
    assert (list(first.history), list(second.history)) == ([7, 14], [7, 14, 21])


@pytest.mark.slow
def test_a_killed_run_goes_on_as_the_same_run_with_each_epoch_once(tmp_path):
    folder = tmp_path / "run"
    settings = [
        "epochs=12",
        "logger=wandb",
        "trainer.log_every=2",
        "pretext=rotnet",
        "stages.pretext.epochs=2",
    ]
    given = [*TINY, *settings, f"run_dir={folder}", f"cache_dir={tmp_path / 'cache'}", "resume=true"]
    env = {name: os.environ[name] for name in ("HOME", "NETRC", "WANDB_SILENT")}
    killed = Process(command_line, given, log=tmp_path / "killed.log", env=env)
    wait_until(lambda: len(read_rows(folder / "metrics.csv")) >= 2 + 4, killed)
    killed.send(signal.SIGKILL)
    killed.wait()
    again = Process(command_line, given, log=tmp_path / "again.log", env=env)
    assert again.wait() == 0, again.output
    (sent,) = recorded(folder / "wandb")
    (replaced,) = (folder / "wandb/replaced").iterdir()  # W&B had written nothing of it, or all but its end
    assert replaced.name.endswith(f"-{sent.run.run_id}")
    assert sent.exit_code == 0
    rows = read_rows(folder / "metrics.csv")
    for stage in ("pretext", "cluster"):
        epochs = [
            (row[f"{stage}/epoch"], row[f"{stage}/step"])
            for row in sent.history.values()
            if f"{stage}/epoch" in row
        ]
        assert epochs == [(row["epoch"], row["step"]) for row in rows if row["stage"] == stage]


def test_a_stage_from_the_cache_is_recorded_as_if_it_were_trained_here(tmp_path):
    rows = [{"stage": "pretext", "epoch": e, "step": 7 * (e + 1), "loss": 1.0 / (e + 1)} for e in range(3)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with loggers.open_loggers(settings(), tmp_path / "one") as (logger,):
        for row in rows:
            logger.log_metrics({"pretext/loss": row["loss"], "pretext/epoch": row["epoch"]}, row["step"])
        logger.log_metrics({"cluster/loss": 0.5}, 7)
    with loggers.open_loggers(settings(), tmp_path / "two") as opened, loggers.logging_to(opened):
        loggers.send_rows(rows)
        loggers.current_loggers()[0].log_metrics({"cluster/loss": 0.5}, 7)
    (one,), (two,) = recorded(tmp_path / "one/wandb"), recorded(tmp_path / "two/wandb")

    def scalars(sent):
        return {step: {k: v for k, v in row.items() if k[0] != "_"} for step, row in sent.history.items()}

    assert list(one.history) == [7, 14, 21, 28]
    assert scalars(one) == scalars(two)


def test_the_domains_are_a_table(tmp_path):
    results = {"metrics": {}, "domains": [{"name": "a", "accuracy": 0.5}, {"name": "b", "decay": "1e-4"}]}
    with loggers.open_loggers(settings(), tmp_path) as (logger,):
        loggers.send_results(logger, results, tmp_path)
    (table,) = tmp_path.glob("wandb/*run-*/files/media/table/report/domain-table*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["name", "accuracy", "decay"]
    assert content["data"] == [["a", 0.5, None], ["b", None, "1e-4"]]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 255), (ValueError, 1)])
def test_wandb_is_finished_whatever_happens(tmp_path, error, code):
    def run():
        with loggers.open_loggers(settings(), tmp_path):
            raise error

    with pytest.raises(error):
        run()
    assert wandb.run is None
    (sent,) = recorded(tmp_path / "wandb")
    assert sent.exit_code == code


def test_a_run_goes_on_when_wandb_does_not(tmp_path, capfd):
    with loggers.open_loggers(settings(), tmp_path) as (logger,):
        logger.run.finish()  # what is logged from here on is an error to W&B
        for step in range(1, 4):
            logger.log_metrics({"cluster/loss": 1.0}, step)
        loggers.send_results(logger, {"metrics": {"acc": 0.5}}, tmp_path)
    assert capfd.readouterr().err.count("nothing more is sent") == 1


@pytest.mark.parametrize(("mode", "kept"), [("disabled", False), ("offline", True)])
def test_the_variable_of_wandb_says_what_is_kept(tmp_path, monkeypatch, capfd, mode, kept):
    monkeypatch.setenv("WANDB_MODE", mode)
    with loggers.open_loggers(settings(), tmp_path) as (logger,):
        logger.log_metrics({"cluster/loss": 1.0}, 1)
        loggers.send_results(logger, {"metrics": {"acc": 0.5}}, tmp_path)
    assert capfd.readouterr().err == ""  # what was asked for is not told
    assert [list(sent.history) for sent in recorded(tmp_path / "wandb")] == [[1, 2]] * kept


@pytest.mark.parametrize("name", ["csv", "none"])
def test_csv_needs_no_logger(tmp_path, name):
    with loggers.open_loggers({"logger": {"name": name}}, tmp_path) as opened:
        assert opened == []
    assert list(tmp_path.iterdir()) == []


# -- where there is no server --------------------------------------------------------------------


def test_an_account_is_found_where_wandb_leaves_it(tmp_path, monkeypatch):
    server = "http://example.org:8080/wandb"
    assert not has_account(server)
    (tmp_path / "netrc").write_text("machine example.org:8080 login user password 0\n")
    assert has_account(server)
    assert not has_account("https://api.wandb.ai")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0\n")
    assert has_account("https://api.wandb.ai")
    assert has_account("https://api.forge.coreweave.com")  # the same, renamed
    assert not has_account(server)
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_account("https://api.wandb.ai")


def test_a_dead_server_is_told_at_once_and_the_run_is_offline(tmp_path, monkeypatch, capfd):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        began = time.monotonic()
        with loggers.open_loggers(settings(), tmp_path) as (logger,):
            assert time.monotonic() - began < wandb_run.START_SECONDS
            assert logger.run.offline
            logger.log_metrics({"cluster/loss": 1.0}, 1)
    assert "does not answer" in capfd.readouterr().err
    (sent,) = recorded(tmp_path / "wandb")
    assert list(sent.history) == [1]


@pytest.mark.slow
def test_a_server_that_never_answers_holds_a_run_up_for_a_minute_at_most(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(wandb_run, "START_SECONDS", 5.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        began = time.monotonic()
        with loggers.open_loggers(settings(), tmp_path) as (logger,):
            assert time.monotonic() - began < 60
            assert logger.run.offline
    assert "cannot be reached" in capfd.readouterr().err
    assert any(sent.exit_code == 0 for sent in recorded(tmp_path / "wandb"))


# -- what a run is found by ----------------------------------------------------------------------


def test_runs_of_a_sweep_differ_in_name_and_seeds_share_a_setting():
    commands = [f"method.labeler.k={k} seed={s}" for k in (5, 9) for s in (0, 1)]
    found = [
        describe(
            settings(command=f"python train.py -- {command}".replace("-- ", "")) | {"seed": int(command[-1])}
        )
        for command in commands
    ]
    assert [run["name"] for run in found] == [f"lsdc-digits k={k} seed={s}" for k in (5, 9) for s in (0, 1)]
    assert [run["config"]["setting"] for run in found] == [
        f"lsdc-digits method.labeler.k={k}" for k in (5, 9) for _ in (0, 1)
    ]
    assert {run["group"] for run in found} == {"lsdc-digits"}


def test_the_group_is_what_is_given_or_the_experiment_or_the_pair(monkeypatch):
    by_experiment = "python train.py experiment=lsdc/table2"
    assert describe(settings())["group"] == "lsdc-digits"
    assert describe(settings(command=by_experiment))["group"] == "lsdc/table2"
    assert describe(settings(command=by_experiment, group="mine"))["group"] == "mine"
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert describe(settings())["group"] is None  # W&B reads the variable itself
    assert describe(settings(command=""))["name"] == "lsdc-digits seed=0"


def test_the_state_of_git_is_told_and_never_needed(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is commit_of(tmp_path) is None
    git("init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "results").mkdir()
    for name in ("file", "RESULTS.md", "results/lsdc.csv"):
        (tmp_path / name).write_text("a")
    git("add", ".")
    git("commit", "-m", "one")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert not state["dirty"]
    short = commit_of(tmp_path)
    assert state["commit"].startswith(short)
    for name in ("RESULTS.md", "results/lsdc.csv"):  # which runs are written to
        (tmp_path / name).write_text("b")
    assert commit_of(tmp_path / "results") == short
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == state | {"dirty": True}
    assert commit_of(tmp_path / "results") == f"{short}-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is commit_of(tmp_path) is None
