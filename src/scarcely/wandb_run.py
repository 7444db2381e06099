"""A run at Weights & Biases: one for all stages of a run here, and the same one after an interruption."""

from __future__ import annotations

import contextlib
import netrc
import os
import secrets
import shlex
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pytorch_lightning.loggers.logger import Logger

from scarcely.callbacks.history import Row, as_scalars
from scarcely.config.compose import SILENT
from scarcely.files import write_atomically

REACH_SECONDS = 5.0  # for a server to answer at all
# names that W&B's own cloud has had: a key for one is a key for all
_CLOUD = {"api.wandb.ai", "forge.coreweave.com", "api.forge.coreweave.com"}
START_SECONDS = 30.0  # for it to enter the run, before the run goes on without it
# overrides that a run's name says anyway, or that do not tell it from another of the same method and data
_UNTOLD = (
    *SILENT,
    "method",
    "data",
    "seed",
    "experiment",
    "fast",
    "trainer",
    "data.root",
    "eval_every",
    "plan",
)


class WandbRun(Logger):
    """A run at W&B, which gets the record of every stage and at the end scores, pictures and weights.

    W&B numbers what it gets by one row of steps. The steps of the stages stand one after the other in it, so
    that each number means the same after an interruption. The panels of a stage have its own steps as their
    axis, ``STAGE/step``; what of them the server has is left out.

    Whatever W&B raises is told once, and nothing is sent after it: a training does not end by that.

    Args:
        run: what `wandb.init` returned.
        upload_weights: weights are an artifact at the end.
    """

    def __init__(self, run: Any, upload_weights: bool = False) -> None:
        super().__init__()
        self.run, self.upload_weights = run, upload_weights
        self._stage, self._before, self._step = "", 0, 0
        # what the server has of a run that goes on: the steps below the one that it names; if it names none,
        # at least what its summary has as the last of everything, which may lag behind
        self._known = run.starting_step if run.resumed else 0
        self._there = dict(run.summary) if run.resumed and not self._known else {}
        self._lost = False

    @property
    def name(self) -> str | None:
        """Name of the project."""
        return str(self.run.project)

    @property
    def version(self) -> str:
        """Identity of the run."""
        return str(self.run.id)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the whole configuration is there from the start."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send scalars ``STAGE/NAME`` of a step of the stage, unless W&B has that step."""
        stage, step = next(iter(metrics)).partition("/")[0], step or 0
        if stage != self._stage:
            self._before, self._stage, self._step = self._before + self._step, stage, 0
            with self._told():
                for axis in ("step", "epoch"):  # no panels of their own
                    self.run.define_metric(f"{stage}/{axis}", hidden=True)
                self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        if step < self._step:  # of an epoch that is trained once more after an interruption
            return
        self._step = step
        if self._before + step >= self._known and step > self._there.get(f"{stage}/step", 0):
            self._send({**metrics, f"{stage}/step": step}, self._before + step)

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Send the record of a stage, as far as W&B lacks it."""
        for row in rows:
            self.log_metrics(as_scalars(row), row["step"])

    def log_results(self, results: Mapping[str, Any], folder: Path) -> None:
        """Send the scores, the pictures of the report, the table of domains, and weights where asked for.

        Args:
            results: content of results.json.
            folder: of the run, its report written.
        """
        from scarcely.reports.html import CAPTIONS

        with self._told():
            import wandb

            content: dict[str, Any] = {f"final/{name}": value for name, value in results["metrics"].items()}
            for path in sorted((folder / "figures").glob("*.png")):
                stem, _, page = path.stem.rpartition("-")
                caption = CAPTIONS.get(stem if page.isdigit() else path.stem)
                told = None if caption is None else f"{caption.heading}. {caption.sentence}"
                content[f"report/{path.stem}"] = wandb.Image(str(path), caption=told)
            if domains := results.get("domains"):
                columns = list(dict.fromkeys(key for row in domains for key in row))
                cells = [[row.get(key) for key in columns] for row in domains]
                content["report/domain-table"] = wandb.Table(columns, cells, allow_mixed_types=True)
            # always sent, as one row: of an earlier attempt pictures may have been lost on the way
            self._send(content, max(self._before + self._step + 1, self._known))
            if self.upload_weights:
                self._upload(results, folder)

    def finish(self, exit_code: int) -> None:
        """End the run at W&B; it waits for uploads as long as the settings say."""
        with self._told(always=True):
            self.run.finish(exit_code=exit_code)

    def _send(self, content: Mapping[str, Any], step: int) -> None:
        with self._told():
            self.run.log(dict(content), step=step)

    def _upload(self, results: Mapping[str, Any], folder: Path) -> None:
        import wandb

        weights = [
            folder / "weights.pt",
            folder / "classifier.pt",
            *sorted(folder.glob("domains/*/weights.pt")),
        ]
        found = [path for path in weights if path.is_file()]
        if not found:
            return
        artifact = wandb.Artifact(f"weights-{self.run.id}", type="model", metadata=dict(results["metrics"]))
        for path in [*found, folder / "config.yaml"]:
            # the file itself is sent, not a copy in a cache: nothing writes to it any more
            name = path.relative_to(folder).as_posix()
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        # weights after the last epoch are all that a run keeps: a better epoch would be chosen by the labels
        # that it is scored on
        self.run.log_artifact(artifact, aliases=["best", "last"])

    @contextlib.contextmanager
    def _told(self, *, always: bool = False) -> Iterator[None]:
        """Say what W&B raises, the first time; afterwards nothing is tried again but what is ``always``."""
        if self._lost and not always:
            with contextlib.suppress(Exception):
                yield
            return
        try:
            yield
        except Exception as error:
            if not self._lost:
                _note(f"W&B: {_first_line(error)}; the run goes on, and nothing more is sent")
            self._lost = True


def open_run(config: Mapping[str, Any], folder: Path) -> WandbRun | None:
    """Enter a run at W&B, or go on with the one that this folder was; offline where W&B cannot be reached.

    Args:
        config: of the run; ``logger`` as in ``conf/logger/wandb.yaml``.
        folder: of the run.

    Returns:
        The logger; None if W&B cannot write a run on this machine at all, which is told.
    """
    import wandb

    settings, place = config["logger"], folder / "wandb"
    place.mkdir(exist_ok=True)  # or W&B writes into the system's temporary folder
    before = _read(place / "id")
    if before:
        _put_aside(place, before)
    agent = "WANDB_SWEEP_ID" in os.environ  # then W&B says which run this is
    limits: dict[str, Any] = {"init_timeout": START_SECONDS, "finish_timeout": settings["upload_seconds"]}
    limits = {k: v for k, v in limits.items() if k in wandb.Settings.model_fields}  # old ones lack the last
    given = {
        "project": None if agent else settings["project"],
        "entity": None if agent else settings["entity"],
        "id": None if agent else before or secrets.token_hex(6),
        "resume": "allow",
        "dir": str(folder),
        "settings": wandb.Settings(**limits),
        **describe(config),
    }
    run = None
    try:
        run = wandb.init(mode=_mode(settings["offline"], wandb.setup().settings.base_url), **given)
    except Exception as error:
        _note(f"W&B cannot be reached, the run is kept in {place} for `wandb sync`: {_first_line(error)}")
        try:
            wandb.teardown()  # of the attempt, which holds the identity
            run = wandb.init(mode="offline", **given)
        except Exception as again:
            _note(f"W&B cannot write to {place} either, it gets nothing of this run: {_first_line(again)}")
            return None
    write_atomically(place / "id", run.id)
    return WandbRun(run, settings["upload_weights"])


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run is found and compared by: group, job_type, name, tags and config of `wandb.init`.

    The config is the whole composed one; ``plan`` has the stages before the last by their names. Beside it
    stand ``setting``, the same for all seeds of a setting, and ``git``.
    """
    method, data, seed = config["method"], config["data"]["name"], config["seed"]
    pair = f"{method['name']}-{data}"
    overrides = [word.lstrip("+").partition("=")[::2] for word in shlex.split(config["command"])[2:]]
    own = [(key, value) for key, value in overrides if not _is(key, _UNTOLD)]
    short = [f"{key.replace('/', '.').rpartition('.')[2]}={value}" for key, value in own]
    group = config["logger"]["group"] or dict(overrides).get("experiment")
    whole = {key: value for key, value in config.items() if key not in ("plan", "reference")}
    for key in ("plan", "reference"):
        stages = config.get(key) or []
        earlier = stages[:-1] if key == "plan" else stages  # the last stage of the plan is the method
        whole[key] = {
            stage["name"]: stage["method"] or {"checkpoint": stage["checkpoint"]} for stage in earlier
        }
    whole["setting"] = " ".join([pair, *(f"{key}={value}" for key, value in own)])
    whole["git"] = git_state(Path(__file__).parent)
    tags = [method["name"], data, *(["fast"] if config["fast"] else []), *(config["logger"]["tags"] or [])]
    return {
        "group": group or (None if os.environ.get("WANDB_RUN_GROUP") else pair),
        "job_type": method.get("stage", "train"),
        "name": " ".join([pair, *short, f"seed={seed}"])[:128],
        "tags": list(dict.fromkeys(tag[:64] for tag in tags)),
        "config": whole,
    }


def _is(key: str, names: Sequence[str]) -> bool:
    """Return whether a setting is one of these, or of how and where a run is run."""
    return key in names or key.partition(".")[0] in ("trainer", "logger", "hydra")


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit that a folder is checked out at, and whether its files differ from it.

    Returns:
        ``commit`` and ``dirty``; None outside of git, or without git.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def _mode(offline: bool | None, server: str) -> Literal["online", "offline"] | None:
    """Return the mode of the run, None for what ``WANDB_MODE`` says; say why it is offline."""
    if offline or (offline is None and os.environ.get("WANDB_MODE", "online") != "online"):
        return "offline" if offline else None
    why = None
    if not has_account(server):
        why = f"there is no key for {server}; `wandb login` enters one"
    elif not _reachable(server):
        why = f"{server} does not answer"
    if why is None:
        return "online"
    _note(f"W&B is offline: {why}. The run is kept for `wandb sync`")
    return "offline"


def has_account(server: str) -> bool:
    """Return whether there is a key for a server of W&B where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = os.environ.get("NETRC") or ("~/_netrc" if os.name == "nt" else "~/.netrc")
    try:
        found = netrc.netrc(os.path.expanduser(path)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    host = urlsplit(server).netloc
    return bool(({host} | (_CLOUD if host in _CLOUD else set())) & set(found))


def _reachable(server: str) -> bool:
    """Return whether a server takes a connection; W&B itself would try for the better part of a minute."""
    address = urlsplit(server)
    if urllib.request.getproxies():  # then it need not be reachable from here
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=REACH_SECONDS).close()
    except OSError:
        return False
    return True


def _put_aside(place: Path, identity: str) -> None:
    """Move what was kept of a run offline, so that `wandb sync` does not send its record twice.

    Its end may be lost with the process that was killed. The run that goes on has the whole record again.
    """
    for part in place.glob(f"offline-run-*-{identity}"):
        (place / "replaced").mkdir(exist_ok=True)
        part.rename(place / "replaced" / part.name)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
