"""Runs against a server that speaks W&B's protocol, on this machine: what arrives, what its pages show."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from scarcely.callbacks.history import read_rows
from tests.runs import TINY, wait_until

ROOT = Path(__file__).parent.parent
ADMIN = {"ADMIN_USER": "tester", "ADMIN_PASS": "of this test alone"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openwandb") is None, reason="needs the command openwandb on the PATH"),
]


class Server:
    """A server, and runs that log to it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        own = {"HOST": "127.0.0.1", "PORT": str(port), "DATA_DIR": str(folder / "data"), **ADMIN}
        own = {f"OPENWANDB_{name}": value for name, value in own.items()}
        self.log = folder / "server.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["openwandb", "serve"], env=os.environ | own, stdout=log, stderr=log
            )
        wait_until(lambda: "Application startup complete" in self.log.read_text())
        key = re.findall(r"WANDB_API_KEY=(\w+)", self.log.read_text())[0]
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        self.env |= {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": key,
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *overrides: str, log: Path) -> subprocess.Popen:
        """Start ``train.py`` with a tiny run."""
        common = [*TINY, "logger=wandb", "trainer.log_every=2", f"cache_dir={self.folder / 'cache'}"]
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            *overrides,
            *common,
            f"output_dir={self.folder / 'out'}",
        ]
        with open(log, "w") as file:
            return subprocess.Popen(command, env=self.env, cwd=self.folder, stdout=file, stderr=file)

    def get(self, path: str):
        """Return what the server's own interface says."""
        with urllib.request.urlopen(f"{self.url}/api/v2/{path}", timeout=30) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("wandb"))
    yield started
    started.stop()


def history(server, run_id, again=False):
    """Return the values of each key by their step; none comes twice, or with ``again`` none comes different.

    This server does not say how much of a run it has, as W&B's own does.
    """
    found = {}
    for key, values in server.get(f"runs/{run_id}/metrics")["metrics_by_key"].items():
        pairs = {(value["step"], value["value"]) for value in values}
        found[key] = dict(pairs)
        assert len(found[key]) == len(pairs if again else values), key
    return found


def test_a_sweep_arrives_whole_and_its_pages_show_it(server, tmp_path):
    log = tmp_path / "sweep.log"
    sweep = server.start(
        "-m",
        "seed=0,1",
        "logger.project=sweep",
        "pretext=rotnet",
        "stages.pretext.epochs=2",
        "epochs=6",
        log=log,
    )
    assert sweep.wait(600) == 0, log.read_text()
    runs = server.get("projects/default/sweep/runs")["runs"]
    assert sorted(run["display_name"].split()[-1] for run in runs) == ["seed=0", "seed=1"]
    for run in runs:
        assert run["state"] == "finished"
        config = {k: v["value"] for k, v in json.loads(run["config_json"]).items() if k != "_wandb"}
        (folder,) = (server.folder / "out").glob(f"lsdc-digits/*-seed{config['seed']}")
        results = json.loads((folder / "results.json").read_text())
        assert config["method"]["labeler"]["k"] > 0
        assert config["environment"] == results["environment"]
        found = history(server, run["run_id"])
        for row in read_rows(folder / "metrics.csv"):
            steps = {value: step for step, value in found[f"{row['stage']}/epoch"].items()}
            assert found[f"{row['stage']}/loss"][steps[row["epoch"]]] == pytest.approx(row["loss"])
        for name, value in results["metrics"].items():
            assert list(found[f"final/{name}"].values()) == [pytest.approx(value)]
        files = server.folder / "data/files/default/sweep" / run["run_id"] / "media/images/report"
        pictures = {path.stem for path in (folder / "figures").glob("*.png")}
        assert {path.name.rsplit("_", 2)[0] for path in files.iterdir()} == pictures
    look_at(server, ["projects/default/sweep", f"runs/default/sweep/{runs[0]['run_id']}"])


def look_at(server, pages):
    """Open pages in a browser, where there is one: scripts run without an error."""
    from tests.browser import Browser, find_browser

    path = find_browser()
    if path is None:
        return
    login = {"username": ADMIN["ADMIN_USER"], "password": ADMIN["ADMIN_PASS"]}
    with Browser(path) as browser:
        browser.open(f"{server.url}/login")
        asked = {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": json.dumps(login)}
        assert browser.run(f"fetch('/api/v2/auth/login', {json.dumps(asked)}).then(answer => answer.ok)")
        for page in pages:
            browser.open(f"{server.url}/{page}", 1400)
            browser.run("new Promise(done => setTimeout(done, 3000))")
            assert "lsdc-digits" in browser.run("document.body.innerText")
            assert browser.problems == []


def test_a_killed_run_goes_on_as_the_same_run_and_misses_no_epoch(server, tmp_path):
    folder = tmp_path / "run"
    given = [f"run_dir={folder}", "logger.project=killed", "resume=true"]
    killed = server.start(*given, "epochs=30", log=tmp_path / "killed.log")
    wait_until(lambda: len(read_rows(folder / "metrics.csv")) >= 8, seconds=300)
    time.sleep(3)  # W&B sends every few seconds
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = server.start(*given, "epochs=30", log=tmp_path / "again.log")
    assert again.wait(600) == 0, (tmp_path / "again.log").read_text()
    (run,) = server.get("projects/default/killed/runs")["runs"]
    assert run["state"] == "finished"
    found = history(server, run["run_id"], again=True)
    assert sorted(found["cluster/epoch"].values()) == list(range(30))
    assert len(found["final/acc"]) == 1


def test_a_server_that_dies_in_the_middle_ends_no_run(tmp_path, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("dying"))
    folder, log = tmp_path / "run", tmp_path / "run.log"
    try:
        run = server.start(f"run_dir={folder}", "epochs=20", "logger.upload_seconds=10", log=log)
        wait_until(lambda: len(read_rows(folder / "metrics.csv")) >= 2, seconds=300)
    finally:
        server.stop()
    assert run.wait(600) == 0, log.read_text()
    assert (folder / "results.json").is_file()
