"""What every data set looks like to a run: parts in memory, pooled by role, served by device loaders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack

import pytorch_lightning as pl
import torch
from torch import Tensor

from scarcely.data.augment import Augmentation
from scarcely.data.loader import DeviceLoader, EpochOf, numbered
from scarcely.data.samples import Samples
from scarcely.data.split import (
    Split,
    check_split,
    choose_classes,
    choose_labelled,
    read_labelled,
    write_labelled,
)
from scarcely.errors import ConfigError, DataError

__all__ = ["DataModule", "Protocol", "Role", "Split"]

Role = Literal["pretext", "train", "test", "labelled", "mixed", "unlabelled"]
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
        split: which labels a method may see (see `Split`); `setup` hides the others.

    Attributes:
        classes: name of each class, set by `read`; empty where there are no labels.
        num_known: how many of them, the first ones, are known; after `setup`. All, unless
            `labelled_classes` says otherwise, or `read` of a data set that has such a split itself.
        parts: what `read` returned, after `setup`; labels that are hidden are -1.

    Raises:
        ConfigError: arguments of `split` that do not go together.
    """

    needs_root: ClassVar[bool] = False
    """Whether the data cannot be made or downloaded: then `check` asks for `root`."""
    split_keys: ClassVar[tuple[str, ...]] = tuple(Split.__annotations__)
    """Arguments that only choose samples: a stage depends on the content of its pool, not on them."""

    discovers: ClassVar[bool] = False
    """Whether the data have known classes and others to be discovered, without `labelled_classes`."""
    annotated_objects: ClassVar[bool] = False
    """Whether the boxes or masks of what an image shows are known."""

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        name: str,
        kind: Literal["images", "vectors"],
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        **split: Unpack[Split],
    ) -> None:
        super().__init__()
        check_split(split)
        self.name = name
        self.kind = kind
        self.augmentation = augmentation
        self.root = Path(root).expanduser() if root is not None else None
        self.resident = resident
        self.split = split
        self.labelled_classes = split.get("labelled_classes")
        self.num_known = 0
        self.parts: dict[str, Samples] = {}
        self._true: dict[str, Samples] = {}  # the parts with the labels that `parts` hides
        self._pools: dict[tuple[str, ...], Samples] = {}
        self._placed: dict[tuple[int, torch.device], tuple[Samples, bool]] = {}
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
            DataError: no training sample, parts of different shapes, labels without a class, or no
                labels where classes shall be labelled.
            ConfigError: the augmentation does not fit the inputs, or the classes to be labelled and to
                be discovered do not exist or overlap.
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
        if self.labelled_classes is not None:
            parts = self._split(parts)
        self.num_known = self.num_known or self.num_classes
        self._true = parts
        self.parts = self._hide(parts) if self.scarce else parts

    def train_dataloader(self) -> Any:
        """Return the loader that `use` set; its length is that of the epoch which comes next."""
        if self.trainer is not None and getattr(self._train, "subset", None) is not None:
            self._train.set_epoch(self.trainer.current_epoch)
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
    def decoded_size(self) -> int | None:
        """Side in pixels of the images as they are kept, of which views may be cut; None for vectors."""
        return int(self._part("train").inputs.shape[1]) if self.kind == "images" else None

    def augmentation_settings(self) -> dict[str, Any]:
        """Return settings of the augmentation that `setup` has filled in, as a configuration has them."""
        return {}

    @property
    def num_classes(self) -> int:
        """Number of named classes; 0 where there are no labels."""
        return len(self.classes)

    @property
    def num_new(self) -> int:
        """Number of classes to be discovered; 0 where they have no names."""
        return self.num_classes - self.num_known

    @property
    def scarce(self) -> bool:
        """Whether only some samples of each class keep their labels."""
        return any(self.split.get(key) is not None for key in ("labels_per_class", "labels_file"))

    def write_labelled(self, path: Path) -> None:
        """Write which training samples are labelled, as a file that ``data.labels_file`` takes."""
        train = self._part("train")
        write_labelled(path, train.labels, self.classes, train.names)

    def fingerprint(self) -> str:
        """Return a hash of the content of all parts."""
        if self._fingerprint is None:
            self._part("train")
            shown = [f"{part}={samples.fingerprint()}" for part, samples in sorted(self.parts.items())]
            self._fingerprint = hashlib.blake2b(";".join(shown).encode(), digest_size=16).hexdigest()
        return self._fingerprint

    def pool(self, role: Role, protocol: Protocol, *, true_labels: bool = False) -> Samples:
        """Return the samples of a role, in host memory; the same object each time.

        Under ``all`` training takes the train and the test part together (the papers train and score
        a clustering on all images), under ``split`` the train part only. The pretext adds unlabelled
        samples to that. Several parts are joined by copying them once into memory.

        Where labels are hidden or classes to be discovered, the training samples are divided:
        ``labelled`` are those whose label may be seen, ``unlabelled`` the others, and ``mixed`` is both:
        all training samples, and the unlabelled part unless `labelled_classes` makes unlabelled samples of
        its own. Samples of classes to be discovered keep their true labels, from `num_known` on, for
        scores alone: a method must not look at them.

        Args:
            role: ``pretext``, ``train``, ``labelled``, ``unlabelled``, ``mixed``, or ``test`` (the test
                part, whatever the protocol).
            protocol: ``all`` or ``split``.
            true_labels: with the labels that are hidden, for scores alone.

        Raises:
            DataError: the data have no test part and the role is ``test``, or nothing that is labelled
                or unlabelled and the role asks for it.
            ConfigError: few labels are to be seen, and the protocol is ``all``: those of the test part
                would be seen too.
        """
        parts = self._parts_of(role, protocol)
        divided = role in ("labelled", "unlabelled")
        if true_labels and self._true is not self.parts:
            labels = [self._true[part].labels for part in parts]
            if divided:
                known = [self._known(self.parts[part]) == (role == "labelled") for part in parts]
                labels = [part[mask] for part, mask in zip(labels, known, strict=True)]
            return replace(self.pool(role, protocol), labels=torch.cat(labels))
        key = (role, *parts) if divided else parts  # pretext and train are the same pool for most data sets
        if key not in self._pools:
            chosen = [self.parts[part] for part in parts]
            if divided:
                chosen = [_rows(part, self._known(part) == (role == "labelled")) for part in chosen]
                if not sum(map(len, chosen)):
                    raise self._nothing(role)
            self._pools[key] = Samples.concat(chosen)
        return self._pools[key]

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
        group: int = 0,
        labelled_batch_size: int | None = None,
        epoch_of: EpochOf = "unlabelled",
        subset: Callable[[int, int], Tensor | None] | None = None,
    ) -> DeviceLoader:
        """Return a shuffled loader of augmented views (see `DeviceLoader`) over a pool.

        Args:
            augmentation: instead of that of the data set, for a stage that needs its own.
            group: number of samples of one class that follow one another; 0 for any order.
            labelled_batch_size: labelled samples in each batch; None takes them as they come.
            epoch_of: which samples an epoch then goes through once.
            subset: of the epoch and the number of samples: those that the epoch goes through, None for all.
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
            group=group,
            labelled=None if labelled_batch_size is None else self._known(samples),
            labelled_batch_size=labelled_batch_size,
            epoch_of=epoch_of,
            subset=subset,
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
        true_labels: bool = False,
    ) -> DeviceLoader:
        """Return a loader of the clean samples of a pool, in order, each on exactly one rank.

        With `true_labels` they have the labels that are hidden, for scores alone.
        """
        samples, resident = self._pool_on(role, protocol, device, true_labels)
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
        if self.scarce and protocol == "all" and role != "pretext":
            raise ConfigError(
                "protocol=all trains on the test part too, whose labels would be seen beside the few chosen",
                where="protocol, data.labels_per_class",
                instead="protocol=split",
            )
        divided = role in ("labelled", "mixed", "unlabelled")
        if role == "pretext" or (divided and self.labelled_classes is None):
            wanted.append("unlabelled")
        return tuple(part for part in wanted if part in self.parts)

    def _pool_on(
        self, role: Role, protocol: Protocol, device: torch.device | str, true_labels: bool = False
    ) -> tuple[Samples, bool]:
        if true_labels and self._true is not self.parts:  # the inputs are there already
            samples, resident = self._pool_on(role, protocol, device)
            labels = self.pool(role, protocol, true_labels=True).labels
            return replace(samples, labels=labels.to(samples.device)), resident
        pool = self.pool(role, protocol)
        key = (id(pool), numbered(device))  # several roles may have one pool, which is never let go
        if key not in self._placed:
            self._placed[key] = self.place(pool, device)
        return self._placed[key]

    # Known and new classes

    def _known(self, samples: Samples) -> Tensor:
        return (samples.labels >= 0) & (samples.labels < self.num_known)

    def _nothing(self, role: Role) -> DataError:
        how_many = "every" if role == "unlabelled" else "no"
        return DataError(
            f"{how_many} training sample of {self.name} is labelled",
            where="data.labelled_classes, data.labels_per_class",
            instead="data.labels_per_class=10 for some labels of each class, data.labelled_classes=[...] for"
            " some of the classes, or two folders: data=imagefolder data.labelled=DIR data.unlabelled=DIR",
        )

    def _split(self, parts: dict[str, Samples]) -> dict[str, Samples]:
        """Number the classes anew, known before new ones, and leave out samples of all others."""
        known, new = choose_classes(
            self.classes, self.labelled_classes, self.split.get("unlabelled_classes"), str(self.name)
        )
        renumbered = torch.full((self.num_classes + 1,), -2)
        renumbered[torch.tensor(known + new)] = torch.arange(len(known) + len(new))
        renumbered[-1] = -1  # where label -1 finds it
        split = {}
        for part, samples in parts.items():
            labels = renumbered[samples.labels]
            kept = _rows(replace(samples, labels=labels), labels > -2)
            if len(kept):
                split[part] = kept
        if "train" not in split:
            raise DataError(
                f"{self.name} has no training sample of the chosen classes",
                where="data.labelled_classes",
                instead="classes that the train part has",
            )
        self.classes = tuple(self.classes[label] for label in known + new)
        self.num_known = len(known)
        return split

    def _hide(self, parts: dict[str, Samples]) -> dict[str, Samples]:
        """Hide all labels of the train part but a few of each class."""
        train, few = parts["train"], self.split.get("labels_per_class")
        if few is not None:
            kept = choose_labelled(train.labels, self.classes, few, self.split.get("labels_seed", 0))
        else:
            path = Path(str(self.split.get("labels_file"))).expanduser()
            kept = read_labelled(path, train.labels, self.classes, train.names)
        return parts | {"train": replace(train, labels=train.labels.where(kept, -1))}


def _rows(samples: Samples, mask: Tensor) -> Samples:
    """Return the samples of a mask, without a copy where they follow one another."""
    rows = mask.nonzero().flatten()
    if len(rows) == len(samples):
        return samples
    first = int(rows[0]) if len(rows) else 0
    if not len(rows) or int(rows[-1]) - first + 1 == len(rows):
        return samples.select(slice(first, first + len(rows)))
    return samples.select(rows)
