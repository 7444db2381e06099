"""The folder of a run: chosen without a clock, locked while in use, never overwritten."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from scarcely.errors import ConfigError, UserError
from scarcely.files import write_atomically

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
}


@dataclass
class RunFolder:
    """Where a run writes.

    Attributes:
        path: the folder.
    """

    path: Path

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
        """Return the content of results.json."""
        return json.loads((self.path / "results.json").read_text())

    @contextlib.contextmanager
    def opened(self, config: dict[str, Any]) -> Iterator[None]:
        """Make the folder, lock it, write the configuration.

        Raises:
            UserError: the folder cannot be made, or another process runs in it.
        """
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

            text = OmegaConf.to_yaml(OmegaConf.create(config))
            write_atomically(self.path / "config.yaml", text)
            yield
        finally:
            lock.release()

    def _require_same(self, config: dict[str, Any]) -> None:
        from omegaconf import OmegaConf

        before: Any = OmegaConf.to_container(OmegaConf.load(self.path / "config.yaml"))
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
