"""What every data set looks like to a run: parts in memory, pooled by role, served by device loaders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch

from scarcely.data.augment import Augmentation
from scarcely.data.loader import DeviceLoader, numbered
from scarcely.data.samples import Samples
from scarcely.errors import DataError

__all__ = ["DataModule"]

Role = Literal["pretext", "train", "test"]
Protocol = Literal["all", "split"]


class DataModule(pl.LightningDataModule):
    """Base of the data sets: a subclass says how its parts are read, nothing else.

    Args:
        name: short name, used in reports, results and file names.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder of the data, where there is one.
        resident: where inputs are kept: ``device`` moves them to the accelerator whole, ``host``
            keeps them in host memory (or in their memory map) and gathers each batch in the
            background, ``auto`` chooses the device if they take less than a quarter of its free memory.

    Attributes:
        classes: name of each class, set by `read`; empty where there are no labels.
        parts: what `read` returned, after `setup`.
    """

    needs_root: ClassVar[bool] = False
    """Whether the data cannot be made or downloaded: then `check` asks for `root`."""

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        name: str,
        kind: Literal["images", "vectors"],
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
    ) -> None:
        super().__init__()
        self.name = name
        self.kind = kind
        self.augmentation = augmentation
        self.root = Path(root).expanduser() if root is not None else None
        self.resident = resident
        self.parts: dict[str, Samples] = {}
        self._pools: dict[tuple[str, ...], Samples] = {}
        self._placed: dict[tuple[tuple[str, ...], torch.device], tuple[Samples, bool]] = {}
        self._fingerprint: str | None = None
        self._train: Any = None
        self._val: Any = None

    # What a subclass fills in

    def check(self) -> None:
        """Take a cheap look before anything is read or downloaded.

        Raises:
            DataError: the folder of the data is not given or not there.
        """
        if not self.needs_root:
            return
        if self.root is None:
            raise DataError(
                f"{self.name} needs the folder of its data", where="data.root", instead="data.root=FOLDER"
            )
        if not os.path.isdir(self.root):  # Path.is_dir() raises where a folder may not be entered
            raise DataError(
                f"no folder {self.root}",
                where="data.root",
                instead="a folder that exists: data.root=FOLDER",
            )

    def read(self) -> dict[str, Samples]:
        """Return the parts, ``train`` and, where there are such, ``test`` and ``unlabelled``; set `classes`.

        Raises:
            DataError: something is missing or unreadable.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    # What Lightning calls

    def prepare_data(self) -> None:
        """Download what is missing (subclasses); called in one process of each machine."""

    def setup(self, stage: str | None = None) -> None:
        """Read the parts once and check that they fit together.

        Raises:
            DataError: no training sample, parts of different shapes, or labels without a class.
            ConfigError: the augmentation does not fit the inputs.
        """
        if self.parts:
            return
        parts = {part: samples for part, samples in self.read().items() if len(samples)}
        where = str(self.root) if self.root is not None else "data"
        if "train" not in parts:
            raise DataError(f"{self.name} has no training sample", where=where)
        unknown = sorted(set(parts) - {"train", "test", "unlabelled"})
        if unknown:
            raise ValueError(f"{type(self).__name__}.read() returned unknown parts: {', '.join(unknown)}")
        shapes = {part: tuple(samples.inputs.shape[1:]) for part, samples in parts.items()}
        if len(set(shapes.values())) > 1:
            shown = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
            raise DataError(f"the parts of {self.name} differ in shape: {shown}", where=where)
        for part, samples in parts.items():
            if samples.kind != self.kind:
                raise DataError(
                    f"{part} of {self.name} holds {samples.kind}, not {self.kind}", where="data.kind"
                )
            low, high = (int(extreme) for extreme in samples.labels.aminmax())
            if low < -1 or high >= self.num_classes:
                raise DataError(
                    f"{part} of {self.name} has labels from {low} to {high}"
                    f" but {self.num_classes} classes are named",
                    where=where,
                    instead="labels from 0 to the number of classes less one, or -1 where unknown",
                )
        self.augmentation.check(shapes["train"])
        self.parts = parts

    def train_dataloader(self) -> Any:
        """Return the loader that `use` set."""
        return self._train

    def val_dataloader(self) -> Any:
        """Return the loaders that `use` set; none if it set none."""
        return [] if self._val is None else self._val

    def use(self, *, train: Iterable | None = None, val: Any = None) -> None:
        """Choose the loaders that Lightning gets from now on (each stage has its own)."""
        self._train, self._val = train, val

    # What a run asks for, after `setup`

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as a network sees it: (C, H, W) or (D,)."""
        shape = tuple(self._part("train").inputs.shape[1:])
        return (shape[2], shape[0], shape[1]) if self.kind == "images" else shape

    @property
    def num_classes(self) -> int:
        """Number of named classes; 0 where there are no labels."""
        return len(self.classes)

    def fingerprint(self) -> str:
        """Return a hash of the content of all parts."""
        if self._fingerprint is None:
            self._part("train")
            shown = [f"{part}={samples.fingerprint()}" for part, samples in sorted(self.parts.items())]
            self._fingerprint = hashlib.blake2b(";".join(shown).encode(), digest_size=16).hexdigest()
        return self._fingerprint

    def pool(self, role: Role, protocol: Protocol) -> Samples:
        """Return the samples of a role, in host memory; the same object each time.

        Under ``all`` training takes the train and the test part together (the papers train and score
        a clustering on all images), under ``split`` the train part only. The pretext adds unlabelled
        samples to that. Several parts are joined by copying them once into memory.

        Args:
            role: ``pretext``, ``train`` or ``test`` (the test part, whatever the protocol).
            protocol: ``all`` or ``split``.

        Raises:
            DataError: the data have no test part and the role is ``test``.
        """
        parts = self._parts_of(role, protocol)
        if parts not in self._pools:
            self._pools[parts] = Samples.concat([self.parts[part] for part in parts])
        return self._pools[parts]

    def place(self, samples: Samples, device: torch.device | str) -> tuple[Samples, bool]:
        """Decide where samples are kept for training on `device`.

        Returns:
            The samples, moved to the device or not, and whether loaders shall index them in place
            (``resident``) or gather batches in the background.
        """
        device = numbered(device)
        mapped = samples.source is not None
        if self.resident == "host":
            return samples, False
        if device.type == "cpu":
            # Nothing to move; only a memory map gains from being read ahead.
            return samples, self.resident == "device" or not mapped
        if self.resident == "auto":
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            if samples.nbytes >= free / 4:
                return samples, False
        return samples.to(device), True

    def training_loader(
        self,
        role: Role,
        protocol: Protocol,
        *,
        batch_size: int,
        views: int = 1,
        seed: int = 0,
        stage: str = "train",
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        gather: bool = False,
        augmentation: Augmentation | None = None,
    ) -> DeviceLoader:
        """Return a shuffled loader of augmented views (see `DeviceLoader`) over a pool.

        Args:
            augmentation: instead of that of the data set, for a stage that needs its own.
        """
        samples, resident = self._pool_on(role, protocol, device)
        return DeviceLoader(
            samples,
            augmentation or self.augmentation,
            batch_size=batch_size,
            views=views,
            seed=seed,
            stage=stage,
            device=device,
            rank=rank,
            world_size=world_size,
            gather=gather,
            resident=resident,
        )

    def evaluation_loader(
        self,
        role: Role,
        protocol: Protocol,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> DeviceLoader:
        """Return a loader of the clean samples of a pool, in order, each on exactly one rank."""
        samples, resident = self._pool_on(role, protocol, device)
        return DeviceLoader.evaluation(
            samples,
            self.augmentation,
            batch_size=batch_size,
            device=device,
            rank=rank,
            world_size=world_size,
            resident=resident,
        )

    def _part(self, part: str) -> Samples:
        if not self.parts:
            raise RuntimeError(f"call setup() of {type(self).__name__} before asking for its samples")
        return self.parts[part]

    def _parts_of(self, role: Role, protocol: Protocol) -> tuple[str, ...]:
        self._part("train")
        if role == "test":
            if "test" not in self.parts:
                raise DataError(
                    f"{self.name} has no test split, which protocol=split needs",
                    where="protocol",
                    instead="protocol=all, or data with a test split",
                )
            return ("test",)
        wanted = ["train"]
        if protocol == "all":
            wanted.append("test")
        if role == "pretext":
            wanted.append("unlabelled")
        return tuple(part for part in wanted if part in self.parts)

    def _pool_on(self, role: Role, protocol: Protocol, device: torch.device | str) -> tuple[Samples, bool]:
        # By parts and not by role: pretext and train are the same pool for most data sets.
        key = (self._parts_of(role, protocol), numbered(device))
        if key not in self._placed:
            self._placed[key] = self.place(self.pool(role, protocol), device)
        return self._placed[key]
