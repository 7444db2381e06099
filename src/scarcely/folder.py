"""The folder of a run: chosen without a clock, locked while in use, never overwritten."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from scarcely.errors import ConfigError, DataError, UserError
from scarcely.files import full_disk_told, write_atomically

# settings that may differ between a run and its continuation
FREE = {
    "resume",
    "run_dir",
    "output_dir",
    "cache_dir",
    "command",
    "environment",
    "logger",
    "embedding_size",
    "compare_kmeans",
    "report",
}


FAILED = "failed.txt"  # why a run failed; gone once it goes on


@dataclass
class RunFolder:
    """Where a run writes.

    Attributes:
        path: the folder.
        data: settings of the data as the command gives them, before the data fill in what is left to them;
            None: as they are when the folder is opened.
    """

    path: Path
    data: dict[str, Any] | None = None

    @classmethod
    def choose(cls, config: dict[str, Any], name: str) -> RunFolder:
        """Choose the folder: a new one, or with ``resume=true`` the one to go on in.

        The same overrides give the same name; where that folder holds a run already, the next
        number is taken, so that nothing is overwritten.

        Raises:
            ConfigError: ``run_dir`` holds a run and ``resume`` is false, or a run of other settings.
        """
        if config["run_dir"] is not None:
            folder = cls(Path(config["run_dir"]).expanduser().absolute())
            if folder.used and not config["resume"]:
                state = "a finished run" if folder.finished else "an unfinished run"
                raise ConfigError(
                    f"run_dir={config['run_dir']} holds {state} already",
                    where="run_dir",
                    instead="resume=true to go on with it, or another run_dir",
                )
        else:
            base = Path(config["output_dir"]).expanduser().absolute() / name
            folder = cls(base)
            number = 1
            following = folder
            while following.used:
                folder = following
                number += 1
                following = cls(base.with_name(f"{base.name}.{number}"))
            if not config["resume"]:
                if folder.used and not folder.finished:
                    print(
                        f"note: {folder.path} holds an unfinished run; resume=true would go on with it",
                        file=sys.stderr,
                    )
                folder = following
        if folder.used and config["resume"]:
            folder._require_same(config)
        folder.data = copy.deepcopy(config.get("data"))
        return folder

    @property
    def used(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "config.yaml").is_file()

    @property
    def finished(self) -> bool:
        """Whether a run has ended here."""
        return (self.path / "results.json").is_file()

    def results(self) -> dict[str, Any]:
        """Return the content of results.json.

        Raises:
            DataError: the file is damaged.
        """
        path = self.path / "results.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
            raise DataError(
                f"{path} is damaged: it holds no scores",
                where=str(path),
                instead="the same command without this file: the scores are made anew from the weights",
            )
        return content

    @contextlib.contextmanager
    def opened(self, config: dict[str, Any]) -> Iterator[None]:
        """Make the folder, lock it, write the configuration.

        Raises:
            UserError: the folder cannot be made, another process runs in it, or has done so since it was
                chosen.
        """
        if self.data is not None:
            config = config | {"data": self.data}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / ".lock")
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise UserError(
                f"another process is running in {self.path}", where="run_dir", instead="another run_dir"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}", where="run_dir", instead="another run_dir"
            ) from error
        try:
            from omegaconf import OmegaConf

            if self.used and not config["resume"]:
                raise ConfigError(
                    f"another process has begun a run in {self.path} meanwhile",
                    where="run_dir",
                    instead="another run_dir, or resume=true to go on with that run",
                )
            if self.used:
                self._require_same(config)  # it may have come since the folder was chosen
            if self.finished:
                print(
                    "note: this run is finished meanwhile, by another process; nothing is trained again",
                    file=sys.stderr,
                )
            text = OmegaConf.to_yaml(OmegaConf.create(config))
            write_atomically(self.path / "config.yaml", text)
            (self.path / FAILED).unlink(missing_ok=True)
            try:
                with full_disk_told(self.path):
                    yield
            except Exception as error:  # not Ctrl-C: such a run is interrupted
                told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                with contextlib.suppress(UserError, OSError):  # the error itself may be a full disk
                    write_atomically(self.path / FAILED, f"{told}\n".encode(errors="replace"))
                raise
        finally:
            lock.release()

    def _require_same(self, config: dict[str, Any]) -> None:
        before = self._settings()
        then, now = (_flat({k: v for k, v in c.items() if k not in FREE}) for c in (before, config))
        differing = {k: None for k in (*then, *now) if then.get(k, _NONE) != now.get(k, _NONE)}
        if differing:
            # the plan repeats what the groups say, but for the settings of earlier stages
            told = [k for k in differing if not k.startswith(("plan.", "recipe."))] or list(differing)
            shown = [f"{k} was {then.get(k, _NONE)} and is {now.get(k, _NONE)}" for k in told[:4]]
            more = f", and {len(told) - 4} more" if len(told) > 4 else ""
            raise ConfigError(
                f"{self.path} holds a run with other settings: {'; '.join(shown)}{more}",
                where="run_dir, resume",
                instead="the same overrides as that run's, or another run_dir",
            )

    def _settings(self) -> dict[str, Any]:
        from omegaconf import OmegaConf
        from yaml import YAMLError

        path = self.path / "config.yaml"
        try:
            content: Any = OmegaConf.to_container(OmegaConf.load(path))
        except (OSError, ValueError, YAMLError):
            content = None
        if not isinstance(content, dict) or not content:
            raise DataError(
                f"{path} is damaged: the settings of the run cannot be read",
                where=str(path),
                instead="another run_dir",
            )
        return content


_NONE = "not there"


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists of mappings by their dotted keys."""
    if isinstance(values, list) and any(isinstance(v, dict) for v in values):
        values = {v.get("name", i) if isinstance(v, dict) else i: v for i, v in enumerate(values)}
    if not isinstance(values, dict) or not values:
        return {prefix.removesuffix("."): values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.")
    return flat
