"""One domain in a file: what its layers are in words, and their tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scarcely.errors import CheckpointError, ConfigError
from scarcely.files import write_atomically

FORMAT = "scarcely domain 1"


@dataclass(frozen=True)
class DomainFile:
    """A domain of a network.

    Attributes:
        domain: its name.
        num_classes: of its classifier.
        kind: of its adapters.
        residual: whether series adapters are added to what they adapt.
        joint: whether its adapters have a factor in common with other domains.
        layers: what the network has, by name and in its order.
        tensors: parameters and buffers, by layer and name.
    """

    domain: str
    num_classes: int
    kind: str
    residual: bool
    joint: bool
    layers: dict[str, str]
    tensors: dict[str, Tensor]

    def write(self, path: str | Path) -> None:
        """Write a safetensors file if the name ends so, else one that torch loads with weights_only=True.

        Raises:
            ConfigError: safetensors is not installed.
            WriteError: the file cannot be written.
        """
        path = Path(path)
        config = {key: value for key, value in vars(self).items() if key != "tensors"} | {"format": FORMAT}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        if path.suffix == ".safetensors":
            save = _safetensors(path).save
            write_atomically(path, save(tensors, {"scarcely": json.dumps(config, ensure_ascii=False)}))
        else:
            write_atomically(path, lambda file: torch.save({"config": config, "tensors": tensors}, file))

    @classmethod
    def read(cls, path: str | Path) -> DomainFile:
        """Read what `write` has written; no code in it is run.

        Raises:
            CheckpointError: no such file, or not a domain's.
            ConfigError: safetensors is not installed.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}", where=str(path), instead="a file of a domain")
        try:
            config, tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
            if config.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(tensors=dict(tensors), **config)
        except ConfigError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{path} is not the file of a domain, or is damaged",
                where=str(path),
                instead="a file that save(path, domain) has written",
            ) from error


def _read_torch(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return dict(content["config"]), content["tensors"]


def _read_safetensors(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    _safetensors(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["scarcely"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _safetensors(path: Path) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ConfigError(
            "the package safetensors is not installed",
            where=str(path),
            instead="pip install safetensors, or a name that ends in .pt",
        ) from error
    return safetensors.torch
