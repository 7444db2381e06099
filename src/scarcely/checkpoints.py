"""Checkpoints: written so that a kill or a full disk loses nothing, read so that no code runs."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor, nn

from scarcely.errors import CheckpointError
from scarcely.files import write_atomically

FORMAT = 1
_NESTED = ("state_dict", "model_state_dict", "model", "module", "backbone", "encoder", "net", "network")


def save(content: Any, path: Path) -> None:
    """Save plain containers and tensors, atomically."""
    write_atomically(path, lambda file: torch.save(content, file))


def load(path: str | Path) -> Any:
    """Load plain containers and tensors; anything that would run code is refused.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, or holding code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}", where="ckpt", instead="a file or the folder of a run"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_pickle(path):
            raise CheckpointError(
                f"{path} would run code when loaded, or is damaged; it was not loaded",
                where=str(path),
                instead="a file that holds tensors and plain containers only (torch.save of a state_dict)",
            ) from error
        raise _unreadable(path) from error
    except Exception as error:
        raise _unreadable(path) from error


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == b"\x80"


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a readable checkpoint",
        where=str(path),
        instead="a file written by torch.save, or the folder of a run",
    )


_OF_TRAINING = (
    *("state_dict", "epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers"),
    "pytorch-lightning_version",
)


def check_last(path: Path, network: nn.Module) -> None:
    """Look whether a checkpoint is one that the training of a network can go on from.

    Args:
        path: of ``last.ckpt``.
        network: the whole method.

    Raises:
        CheckpointError: it is damaged, no checkpoint of a training, or of another network.
    """
    content = load(path)
    missing = [key for key in _OF_TRAINING if not isinstance(content, Mapping) or key not in content]
    state = {} if missing else content["state_dict"]
    wanted = network.state_dict()
    others = [k for k in wanted.keys() | state.keys() if _shape(wanted.get(k)) != _shape(state.get(k))]
    if missing or others:
        what = f"it has no {missing[0]}" if missing else f"{min(others)} is not as in this network"
        raise CheckpointError(
            f"{path} is no checkpoint that this stage could go on from: {what}",
            where=str(path),
            instead="the checkpoint that the run wrote; or none: without the file the stage begins anew",
        )


def _shape(tensor: Any) -> tuple[int, ...] | None:
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else None


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through `save` and `load`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write the checkpoint atomically."""
        save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> Any:
        """Read a checkpoint of this project."""
        return load(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def find(path: str | Path) -> Path:
    """Return the weights file behind a path: the file itself, or that of a run's folder.

    Raises:
        CheckpointError: neither a file nor the folder of a finished run.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if (path / "weights.pt").is_file():
            return path / "weights.pt"
        domains = sorted(p.parent.name for p in path.glob("domains/*/weights.pt"))
        if domains:
            raise CheckpointError(
                f"{path} holds the networks of several domains",
                where="ckpt",
                instead=f"one of them: {path / 'domains' / domains[0]}",
            )
        raise CheckpointError(
            f"{path} holds no finished run: there is no weights.pt in it",
            where="ckpt",
            instead="the folder of a finished run (resume=true finishes one), or a checkpoint file",
        )
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}", where="ckpt", instead="a file or the folder of a run"
        )
    return path


def content_key(path: str | None) -> str:
    """Return a hash of the weights file behind a path; nothing for none."""
    if path is None:
        return ""
    with open(find(path), "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:24]


def tensors_of(content: Any) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, however it is wrapped.

    Raises:
        CheckpointError: there are no tensors in it.
    """
    while isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        nested = next((content[k] for k in _NESTED if isinstance(content.get(k), Mapping)), None)
        if nested is None:
            if not tensors:
                break
            return tensors
        content = nested
    raise CheckpointError("the checkpoint holds no weights", where="ckpt", instead="a state_dict")


def renamed(tensors: dict[str, Tensor], key_map: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """Replace the beginnings of names, the longest that fits of each.

    Args:
        tensors: a state dict.
        key_map: beginnings, and what takes their place.
        source: where the state dict came from, for the message.

    Raises:
        CheckpointError: no name begins so, or two names become one.
    """
    result: dict[str, Tensor] = {}
    longest_first = sorted(key_map, key=len, reverse=True)
    unused = set(key_map)
    for name, tensor in tensors.items():
        start = next((s for s in longest_first if name.startswith(s)), "")
        unused.discard(start)
        new = key_map.get(start, "") + name[len(start) :] if start in key_map else name
        if new in result:
            raise CheckpointError(
                f"two weights of {source} would be called {new}", where="key_map", instead="other names"
            )
        result[new] = tensor
    if unused:
        raise CheckpointError(
            f"no weight of {source} begins with {' or '.join(sorted(unused))}",
            where="key_map",
            instead=f"the beginning of names such as {', '.join(list(tensors)[:3])}",
        )
    return result


@dataclass
class Match:
    """How a state dict fits a network.

    Attributes:
        matched: entries of the network that are filled.
        missing: entries of the network that the state dict lacks.
        reshaped: entries that have another shape there.
        unexpected: entries of the state dict that nothing takes.
        share: share of the network's numbers that are filled.
        state: what to load.
    """

    matched: list[str]
    missing: list[str]
    reshaped: list[str]
    unexpected: list[str]
    share: float
    state: dict[str, Tensor]

    def report(self, source: str) -> str:
        """Say in a few lines what was matched."""
        lines = [
            f"weights from {source}: {self.share:.0%} of the network filled; "
            f"{len(self.matched)} tensors matched, {len(self.missing)} missing, "
            f"{len(self.reshaped)} of another shape, {len(self.unexpected)} not used"
        ]
        for title, names in (
            ("missing", self.missing),
            ("other shape", self.reshaped),
            ("not used", self.unexpected),
        ):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"  {title}: {', '.join(names[:5])}{more}")
        return "\n".join(lines)


def match(network: nn.Module, tensors: Mapping[str, Tensor]) -> Match:
    """Match a state dict to a network by name and shape, whatever prefix its names have.

    The prefix (``module.``, ``backbone.``, ``encoder.``…) is the one that fits most entries; of a checkpoint
    of ours that holds two networks it is the backbone, which is what a method hands on.
    """
    wanted = network.state_dict()
    prefixes = {""} | {name[: i + 1] for name in tensors for i, c in enumerate(name) if c == "."}
    # a set has another order in each process
    shortest_first = sorted(prefixes, key=lambda p: (p != "backbone.", len(p), p))
    best = max(shortest_first, key=lambda p: _fits(wanted, tensors, p))
    inside = {name[len(best) :]: t for name, t in tensors.items() if name.startswith(best)}
    state = {n: t for n, t in inside.items() if n in wanted and wanted[n].shape == t.shape}
    weights = {n for n, t in wanted.items() if t.dtype.is_floating_point}
    total = sum(wanted[n].numel() for n in weights)
    filled = sum(wanted[n].numel() for n in weights & set(state))
    return Match(
        matched=sorted(state),
        missing=sorted(n for n in wanted if n not in inside and not n.endswith("num_batches_tracked")),
        reshaped=sorted(n for n in inside if n in wanted and n not in state),
        unexpected=sorted(n for n in tensors if n[len(best) :] not in state or not n.startswith(best)),
        share=filled / total if total else 1.0,
        state=state,
    )


def _fits(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str) -> int:
    return sum(
        t.numel()
        for name, t in tensors.items()
        if name.startswith(prefix)
        and (name[len(prefix) :]) in wanted
        and wanted[name[len(prefix) :]].shape == t.shape
    )


def fill(
    network: nn.Module, tensors: Mapping[str, Tensor], *, source: str, least: float, where: str
) -> Match:
    """Load what matches into a network and say loudly what did not.

    Args:
        network: a backbone, or a whole method.
        tensors: a state dict.
        source: where it came from, for the messages.
        least: smallest share of the network that must be filled.
        where: the setting that named the checkpoint.

    Raises:
        CheckpointError: less than that matches: another network.
    """
    found = match(network, tensors)
    if found.share < least or not found.matched:
        raise CheckpointError(
            f"{source} is a checkpoint of another network\n{found.report(source)}",
            where=where,
            instead=f"the backbone= of the checkpoint (at least {least:.0%} must match: min_matched)",
        )
    network.load_state_dict(found.state, strict=False)
    return found
