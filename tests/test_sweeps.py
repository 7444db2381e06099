"""Sweeps: several runs at a time, on a cluster, by Optuna; killed, preempted and started again."""

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcely import sweeps
from scarcely.callbacks.history import read_rows
from scarcely.cli import CRASHED, INTERRUPTED, MENDABLE, OK, main
from scarcely.errors import ConfigError
from tests.runs import TINY, Process, command_line, wait_until

ROOT = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0))
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def needs(package: str):
    absent = not sweeps._installed(f"hydra_plugins.{package}")
    return pytest.mark.skipif(absent, reason=f"{package} is not installed")


needs_joblib = needs("hydra_joblib_launcher")
needs_submitit = needs("hydra_submitit_launcher")
needs_optuna = needs("hydra_optuna_sweeper")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


@pytest.fixture
def runs(monkeypatch):
    """The configurations that would have run in this process; 12 neighbours score best, and 21 fail."""
    import scarcely.run

    made = []

    def execute(config, name):
        made.append(config)
        k = config["method"]["labeler"]["k"]
        if k > 20:
            raise RuntimeError("too many neighbours")
        return {"metrics": {"nmi": 0.5, "acc": 1 - abs(k - 12) / 100}}

    monkeypatch.setattr(scarcely.run, "execute", execute)
    return made


class Command:
    """``train.py -m`` in a process group of its own; with one thread, or as ``env`` says."""

    def __init__(self, *arguments: str, folder: Path, env: dict[str, str] | None = None) -> None:
        self.log = folder / f"log{len(list(folder.glob('log*')))}"
        given = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
        command = [sys.executable, str(ROOT / "train.py"), "-m", *arguments]
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**given, "PYTHONPATH": path, **({"OMP_NUM_THREADS": "1"} if env is None else env)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # a shell that runs the tests in its background ignores Ctrl-C, and so would all below it
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 900) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"not within {seconds} s:\n{self.output}") from None


@pytest.fixture
def start(here):
    """Start commands in that folder; none outlives the test."""
    commands = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Command:
        commands.append(Command(*arguments, folder=here, env=env))
        return commands[-1]

    yield start
    for command in commands:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait()


def results(folder: Path) -> dict[Path, int]:
    """The finished runs of a sweep, and when they were."""
    return {p.parent: p.stat().st_mtime_ns for p in (folder / "outputs").glob("lsdc-digits/*/results.json")}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# -- what launchers and sweepers are told --------------------------------------------------------


def test_a_package_that_is_not_installed_is_named_with_what_installs_it(here, monkeypatch, capsys):
    for choice, plugin in sweeps.PLUGINS.items():
        monkeypatch.setitem(sweeps.PLUGINS, choice, plugin._replace(package="hydra_absent_launcher"))
        assert main(["-m", choice, "seed=0,1"]) == MENDABLE
        told = capsys.readouterr().err
        assert told.startswith(f"error: {choice} needs a package that is not installed\n")
        assert f"pip install 'scarcely[{plugin.extra}]'" in told
    assert list(here.iterdir()) == []


@needs_joblib
def test_the_settings_of_a_command_count_more_than_those_of_a_plugin():
    assert sweeps.with_settings(["-m", "seed=0"]) == ["-m", "seed=0"]
    alone = sweeps.with_settings(["-m", "hydra/launcher=joblib", "seed=0"])
    assert alone[:3] == ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    for own in (["hydra.launcher.n_jobs=5"], ["++hydra.launcher.n_jobs=5"]):
        both = sweeps.with_settings([*own, "hydra/launcher=joblib"])
        assert [a for a in both if "n_jobs" in a] == own


def test_the_extras_are_those_of_the_project():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for plugin in sweeps.PLUGINS.values():
        (requirement,) = extras[plugin.extra]
        assert requirement.startswith(plugin.package.replace("_", "-"))


@given(
    st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=9), st.integers(1, 9), st.integers(0, 99)
)
def test_processes_of_a_machine_take_gpus_in_turn(gpus, devices, first):
    names = [str(gpu) for gpu in gpus]
    groups = len(names) // devices
    taken = [sweeps.share(",".join(names), first + i, devices).split(",") for i in range(max(groups, 1))]
    if groups == 0:
        assert taken == [names], "the run says that they do not suffice"
    else:
        assert all(len(own) == devices for own in taken)
        assert len({gpu for own in taken for gpu in own}) == groups * devices, "two share one"
    for own in taken:  # the next job of the same process
        assert sweeps.share(",".join(own), first, devices).split(",") == own


def test_a_sweeper_maximises_what_the_method_is_for():
    assert sweeps.score_of({"train/accuracy": 0.9, "test/accuracy": 0.7, "pseudo/accuracy": 0.8}) == 0.7
    assert sweeps.score_of({"test/all/acc": 0.9, "new/acc": 0.2}) == 0.2
    assert sweeps.score_of({"nmi": 0.9, "acc": 0.3}) == 0.3
    with pytest.raises(ConfigError, match="no score that a sweeper could maximise"):
        sweeps.score_of({"rotation/accuracy": 0.9})


def test_a_failed_job_is_known_where_it_is_sent():
    sweeps.FAILED.clear()
    sent = pickle.dumps(sweeps.Failed("seed=1", "what", True))
    sweeps.FAILED.clear()
    arrived = pickle.loads(sent)
    (entered,) = sweeps.FAILED
    assert entered is arrived
    assert (arrived.job, arrived.told, arrived.mendable) == ("seed=1", "what", True)
    sweeps.FAILED.clear()


# -- several at a time ---------------------------------------------------------------------------


@needs_joblib
def test_jobs_that_fail_in_other_processes_are_told_at_the_end_and_the_next_batch_runs(here, capfd):
    mistakes = ("method.labeler.k=300,400", "batch_size=256", "trainer=cpu")
    assert main(["-m", *JOBLIB, "hydra.sweeper.max_batch_size=1", *mistakes]) == MENDABLE
    told = capfd.readouterr().err
    jobs = [f"method.labeler.k={k} batch_size=256 trainer=cpu" for k in (300, 400)]
    assert told.endswith("\n".join(["jobs that failed:", *(f"  {job}" for job in jobs), ""]))
    for job, k in zip(jobs, (300, 400)):
        assert told.count(f"job {job} failed:\nerror: method.labeler.k = {k} neighbours do not exist") == 1
    assert "Traceback" not in told


@needs_joblib
@pytest.mark.slow
def test_a_killed_sweep_finishes_what_is_missing_and_trains_its_pretext_once(here, start):
    sweep = (*JOBLIB, *TINY, "pretext=rotnet", "stages.pretext.epochs=4", "epochs=4")
    eight = "method.labeler.k=3,4,5,6,7,8,9,10"
    killed = start(*sweep, eight)
    wait_until(lambda: len(results(here)) >= 2, killed, 900)
    killed.process.kill()  # the parent alone, as the system does where memory is short
    killed.wait()
    done = results(here)
    assert 2 <= len(done) < 8

    def free(folder: Path) -> bool:
        try:
            filelock.FileLock(folder / ".lock").acquire(timeout=0).lock.release()
        except filelock.Timeout:
            return False
        return True

    runs = [p.parent for p in (here / "outputs").glob("lsdc-digits/*/config.yaml")]
    wait_until(lambda: all(map(free, runs)), seconds=5)  # its workers died with it

    again = start(*sweep, eight, "resume=true")
    assert again.wait() == OK, again.output
    finished = results(here)
    assert len(finished) == 8
    assert {p: finished[p] for p in done} == done, "what was finished was not trained again"
    assert again.output.count("this run is finished") == len(done)
    told = killed.output + again.output
    assert told.count("pretext: trained in") == 1
    (pretext,) = (here / "cache" / "stages").iterdir()
    assert (pretext / "weights.pt").is_file()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_run_in_flight(here):
    sweep = [*TINY, "seed=0,1,2", "pretext=none", "epochs=6", "hydra.sweep.dir=sweeps"]
    first = Process(command_line, ["-m", *sweep, f"output_dir={here}/outputs"], log=here / "log")
    wait_until(lambda: len(results(here)) == 1 and list(here.glob("outputs/*/*seed1/last.ckpt")), first)
    first.send(signal.SIGKILL)
    first.wait()
    done = results(here)
    assert len(done) == 1

    again = ["-m", *sweep, f"output_dir={here}/outputs", "resume=true"]
    second = Process(command_line, again, log=here / "log2")
    assert second.wait() == OK, second.output
    assert len(results(here)) == 3
    assert results(here).items() >= done.items()
    assert second.output.count("this run is finished") == 1
    assert len(list(here.glob("outputs/lsdc-digits/*"))) == 3, "a run began anew beside the unfinished one"


@needs_joblib
@pytest.mark.slow
def test_ctrl_c_ends_all_jobs_at_a_time(here, start):
    command = start(*JOBLIB, *TINY, "seed=0,1,2,3", "pretext=none", "epochs=3000")
    wait_until(lambda: len(list(here.glob("outputs/*/*/last.ckpt"))) == 2, command, 900)
    workers = children(command.process.pid)
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.wait() == INTERRUPTED, command.output
    assert "resume=true" in command.output
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=10)


@needs_joblib
@pytest.mark.slow
def test_a_job_that_is_killed_is_told_without_a_traceback(here, start):
    command = start(*JOBLIB, *TINY, "seed=0,1", "pretext=none", "epochs=3000")
    wait_until(lambda: len(list(here.glob("outputs/*/*/last.ckpt"))) == 2, command, 900)
    for pid in children(command.process.pid):
        if b"LokyProcess" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            break
    assert command.wait() == CRASHED, command.output
    assert "error: a job of the sweep was killed" in command.output
    assert "resume=true" in command.output
    assert "Traceback" not in command.output


@needs_joblib
@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), JOBLIB], ids=["one at a time", "two at a time"])
def test_the_jobs_of_a_sweep_may_have_several_devices_each(launcher, here, start):
    sweep = ("seed=0,1", "pretext=none", "fast=true", "trainer.devices=2")
    command = start(*launcher, *TINY, *sweep)
    assert command.wait() == OK, command.output
    assert len(results(here)) == 2


@needs_joblib
@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "threads"),
    [({}, max(1, CORES // 2)), ({"OMP_NUM_THREADS": str(CORES)}, CORES)],  # more than cores MKL does not take
    ids=["of the machine", "as told"],
)
def test_jobs_at_a_time_share_the_cores(given, threads, here, start):
    command = start(*JOBLIB, *TINY, "seed=0,1", "pretext=none", "fast=true", env=given)
    assert command.wait() == OK, command.output
    found = [
        json.loads((run / "results.json").read_text())["environment"]["threads"] for run in results(here)
    ]
    assert found == [threads, threads]


# -- clusters ------------------------------------------------------------------------------------


def test_a_job_that_slurm_starts_again_goes_on(here, runs, monkeypatch):
    for count, resume in ((None, False), ("1", True)):
        if count is not None:
            monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        assert main(["trainer=cpu", "method.labeler.k=5"]) == OK
        assert runs[-1]["resume"] is resume


@needs_submitit
@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="there is Slurm")
def test_a_machine_without_slurm_is_told_before_anything_else(here, capsys):
    assert main(["-m", "hydra/launcher=submitit_slurm", "seed=0"]) == MENDABLE
    assert "instead: the login node of the cluster" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@needs_submitit
@pytest.mark.slow
def test_a_preempted_job_goes_on_where_it_was(here, start):
    local = ("hydra/launcher=submitit_local", "hydra.sweep.dir=sweeps")
    command = start(*local, *TINY, "seed=0", "pretext=none", "epochs=40")

    def record():
        return [row for path in here.glob("outputs/*/*/metrics.csv") for row in read_rows(path)]

    wait_until(lambda: len(record()) > 5, command, 900)
    before = record()[:4]
    (controller,) = (int(p.name) for p in here.glob("sweeps/.submitit/*") if p.name.isdigit())
    (task,) = children(controller)
    os.kill(task, signal.SIGUSR2)  # what a cluster sends
    assert command.wait() == OK, command.output
    (printed,) = here.glob("sweeps/.submitit/*/*_log.out")
    assert printed.read_text().count("Starting with JobEnvironment") == 2
    (run,) = results(here)  # not a second one beside it
    assert json.loads((run / "results.json").read_text())["stages"][-1]["epochs"] == 40
    assert record()[:4] == before, "with the seconds of epochs that were not trained again"


@needs_submitit
@pytest.mark.slow
def test_a_failed_job_of_a_cluster_is_told_where_the_sweep_was_started(here, start):
    mistake = ("method.labeler.k=300", "batch_size=256", "trainer=cpu")
    command = start("hydra/launcher=submitit_local", *mistake)
    assert command.wait() == MENDABLE, command.output
    assert command.output.count("error: method.labeler.k = 300 neighbours do not exist") == 1
    (log,) = re.findall(r"^  log:     (.*)$", command.output, re.MULTILINE)
    assert "error: method.labeler.k = 300" in Path(log).read_text()


# a cluster of this machine: what sbatch is given runs at once, as a job with number 7
SBATCH = """#!/bin/sh
for script; do :; done
cp "$script" "$HERE/submitted"
export SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
sh "$script" >"$HERE/job.log" 2>&1 </dev/null &
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
    case "$1" in --output | --error) shift ;; esac
    shift
done
exec "$@"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
echo "7|RUNNING|here"
"""


@needs_submitit
@pytest.mark.slow
def test_slurm_is_asked_for_what_a_run_needs(here, start):
    commands = here / "bin"
    commands.mkdir()
    for name, script in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    slurm = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=long", "trainer.devices=2")
    env = {"PATH": f"{commands}:{os.environ['PATH']}", "HERE": str(here)}
    command = start(*slurm, *TINY, "seed=0", "pretext=none", "fast=true", env=env)
    assert command.wait() == OK, command.output
    assert len(results(here)) == 1
    asked = (here / "submitted").read_text()
    for line in ("gpus-per-node=2", "partition=long", "time=240", "signal=USR2@120", "nodes=1"):
        assert f"#SBATCH --{line}\n" in asked


# -- Optuna --------------------------------------------------------------------------------------


@needs_optuna
def test_optuna_finds_the_best_of_the_trials_and_goes_on_after_one_that_fails(here, runs, capfd):
    study = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=5", "trainer=cpu"]
    assert main([*study, "method.labeler.k=range(5,30)"]) == CRASHED
    told = capfd.readouterr()
    tried = [config["method"]["labeler"]["k"] for config in runs]
    assert len(tried) == 5
    assert any(k > 20 for k in tried)
    assert told.err.count("  method.labeler.k=") == sum(k > 20 for k in tried)
    best = min((k for k in tried if k <= 20), key=lambda k: abs(k - 12))
    assert f"method.labeler.k: {best}\n" in told.out

    first = list(tried)
    runs.clear()
    main([*study, "method.labeler.k=range(5,30)"])
    assert [config["method"]["labeler"]["k"] for config in runs] == first, "resume=true would find nothing"


@needs_optuna
def test_a_study_of_runs_without_a_score_says_so(here, monkeypatch, capfd):
    import scarcely.run

    monkeypatch.setattr(scarcely.run, "execute", lambda config, name: {"metrics": {"rotation/accuracy": 0.5}})
    study = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "trainer=cpu"]
    assert main([*study, "method=rotnet", "method.optimizer.lr=interval(0.01,0.1)"]) == MENDABLE
    assert "error: a run of this method has no score" in capfd.readouterr().err
