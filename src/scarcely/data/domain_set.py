"""What a run over several domains asks of its data, whatever the domains are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from scarcely.data.augment import ImageAugmentation
from scarcely.data.module import DataModule, Split
from scarcely.data.samples import Samples
from scarcely.errors import ConfigError, DataError
from scarcely.seeds import derive_seed

__all__ = ["ChallengeImages", "DomainSet", "channel_statistics", "meant"]

_CHUNK = 4096


class ChallengeImages(NamedTuple):
    """The images whose classes the challenge asks for.

    Attributes:
        root: folder that the files are relative to.
        files: of the images.
        ids: of the images.
        category_ids: of the classes, in their order.
    """

    root: Path
    files: tuple[str, ...]
    ids: tuple[int, ...]
    category_ids: tuple[int, ...]


class DomainSet(DataModule):
    """A set of domains, of which one at a time is trained and scored.

    The network sees a domain normalised by the statistics of its training pixels, where no others are given.

    Args:
        name: short name of the set.
        augmentation: how views are drawn; mean and std may be null.
        root: folder of the data, where there is one.
        resident: where the images are kept (see `DataModule`).
        domains: those that are used, by name; None for all that there are.
        domain: the one that this object serves; None for looking at the set alone.
        source: domain whose network the others start from; ``auto`` for that of the set; None for no such
            domain.
        scored: part that is the part ``test``: ``val`` trains on the train part alone, ``test`` on train and
            val, ``auto`` is for the set to choose.
        train_share: share of each class's training images that is used, at least one; of the source all.
        source_classes: the first classes of the source that are used; None for all.
        split: which labels are used (see `Split`).
    """

    split_keys: ClassVar[tuple[str, ...]] = (
        *Split.__annotations__,
        "domains",
        "source",
        "scored",
        "train_share",
        "source_classes",
    )

    augmentation: ImageAugmentation

    def __init__(
        self,
        *,
        name: str,
        augmentation: ImageAugmentation,
        root: str | None,
        resident: Literal["auto", "host", "device"],
        domains: Sequence[str] | Mapping[str, str | None] | None,
        domain: str | None,
        source: str | None,
        scored: Literal["auto", "val", "test"],
        train_share: float,
        source_classes: int | None,
        **split: Unpack[Split],
    ) -> None:
        super().__init__(
            name=name, kind="images", augmentation=augmentation, root=root, resident=resident, **split
        )
        self.domains = domains
        self.domain = domain
        self.scored = scored
        self.train_share = train_share
        self.source_classes = source_classes
        self._source = source

    # What a subclass fills in

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, each once.

        Raises:
            DataError: there is no domain of a name given.
        """
        raise NotImplementedError(f"{type(self).__name__} must define domain_names")

    def usual_source(self) -> str:
        """Return the domain that ``source=auto`` means."""
        raise NotImplementedError(f"{type(self).__name__} must define usual_source()")

    def classes_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the classes of a domain."""
        raise NotImplementedError(f"{type(self).__name__} must define classes_of()")

    def scored_part(self, name: str) -> Literal["val", "test"]:
        """Return the part of a domain that is scored.

        Raises:
            DataError: it has no labels, or no images.
        """
        raise NotImplementedError(f"{type(self).__name__} must define scored_part()")

    def read_domain(self, name: str) -> dict[str, Samples]:
        """Return the parts ``train`` and ``test`` of a domain, the latter what is scored.

        Raises:
            DataError: an image cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read_domain()")

    def statistics_of(self, name: str, train: Samples) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel of a domain, for values in [0, 1]."""
        return channel_statistics(train.inputs)

    def views_of(self, name: str) -> dict[str, Any]:
        """Return settings of the augmentation that are a domain's own."""
        return {}

    def test_images(self) -> ChallengeImages:
        """Return the test part of the domain as a challenge numbers it, for predictions.

        Raises:
            DataError: its images have no numbers.
        """
        raise DataError(
            f"the domain {self._chosen()} has no test images with ids",
            where="data.domain",
            instead="data=decathlon",
        )

    # The set

    @property
    def source(self) -> str | None:
        """Name of the domain whose network the others start from; None for no such domain."""
        return self.usual_source() if self._source == "auto" else self._source

    def check(self) -> None:
        """Look whether the domain, or without one every domain, is there and sound; no image is opened.

        Raises:
            DataError: see `domain_names` and `scored_part`.
            ConfigError: `domain` or `source` is none of the domains, or the source has not so many classes.
        """
        names = self.domain_names
        for key, given in (("domain", self.domain), ("source", self._source)):
            if given is not None and given not in names and (key, given) != ("source", "auto"):
                raise ConfigError(
                    f"{given!r} is none of the domains{meant(given, names)}",
                    where=f"data.{key}",
                    instead=f"one of {', '.join(names)}",
                )
        if self.source_classes is not None and self.source is not None:
            self._check_source(self.source, self.source_classes)
        for name in names if self.domain is None else (self.domain,):
            self.check_domain(name)

    def check_domain(self, name: str) -> None:
        """Look whether a domain is sound; no image is opened.

        Raises:
            DataError: see `scored_part`.
        """
        self.scored_part(name)

    # The one domain

    def read(self) -> dict[str, Samples]:
        """Return the parts ``train`` and ``test`` of the domain.

        Raises:
            ConfigError: no domain is chosen.
            DataError: see `check` and `read_domain`.
        """
        name = self._chosen()
        self.check()
        self.classes = self.classes_of(name)
        parts = self.read_domain(name)
        settings = self.views_of(name)
        if not self.augmentation.mean:
            mean, std = self.statistics_of(name, parts["train"])
            settings |= {"mean": mean, "std": std}
        self.augmentation = self.augmentation.replaced(**settings)
        if self.train_share == 1 and self.source_classes is None:
            return parts  # without a look at the other domains
        if name == self.source:
            return self._first_classes(parts)
        return parts | {"train": self._shared(name, parts["train"])}

    def augmentation_settings(self) -> dict[str, Any]:
        """Return the settings of the augmentation that `setup` filled in, as the configuration writes them.

        With them in place of null, a stage and its checkpoint say how images are normalised; being given
        them, another object of the same domain fills in the same.
        """
        return {
            "mean": list(self.augmentation.mean),
            "std": list(self.augmentation.std),
            "padding": self.augmentation.padding,
            "flip": self.augmentation.flip,
            "crop": self.augmentation.crop,
        }

    def release(self) -> None:
        """Let go of the copies on a device, and of the loaders and the trainer that hold them.

        What is asked for later is copied again.
        """
        self._placed.clear()
        self.use()
        self.trainer = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape (3, H, W) of one image as the network sees it."""
        height, width, channels = self.augmentation.view_shape(self._part("train").inputs.shape[1:])
        return (channels, height, width)

    def _chosen(self) -> str:
        if self.domain is None:
            raise ConfigError(
                f"{self.name} has {len(self.domain_names)} domains, and none is chosen",
                where="data.domain",
                instead=f"data.domain=NAME, one of {', '.join(self.domain_names)}",
            )
        return self.domain

    def _refuse_twice(self, names: Sequence[str]) -> None:
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise DataError(
                f"the domain {twice[0]!r} is given twice", where="data.domains", instead="each domain once"
            )

    def _check_source(self, name: str, count: int) -> None:
        found = len(self.classes_of(name))
        if count > found:
            raise ConfigError(
                f"{name}, the source, has {found} classes, not {count}",
                where="data.source_classes",
                instead=f"at most {found}, or null for all",
            )

    def _first_classes(self, parts: dict[str, Samples]) -> dict[str, Samples]:
        """Keep the samples of the first classes of the source (chapter 4, section 4.3)."""
        count = self.source_classes
        if count is None:
            return parts
        self.classes = self.classes[:count]
        return {part: samples.select(samples.labels < count) for part, samples in parts.items()}

    def _shared(self, name: str, train: Samples) -> Samples:
        """Keep a share of each class (chapter 4, section 4.2); a larger one has the same images and more."""
        kept = torch.zeros(len(train), dtype=torch.bool)
        for label in range(len(self.classes)):
            rows = (train.labels == label).nonzero().flatten()
            seed = derive_seed(self.split.get("labels_seed", 0), "share", name, label)
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            kept[rows[order[: max(1, round(self.train_share * len(rows)))]]] = True
        return train.select(kept)


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each channel over all pixels of all images.

    Args:
        images: (N, H, W, C) uint8, N at least 1; a memory map is read in chunks.

    Returns:
        C means and C standard deviations, for values in [0, 1]; these are 1/255 at least, the step between
        two pixels, so that a channel without any variation can be divided by.
    """
    counts = torch.zeros(images.shape[-1], 256, dtype=torch.int64)
    for chunk in images.split(_CHUNK):
        for channel, values in enumerate(chunk.flatten(0, -2).unbind(-1)):
            counts[channel] += torch.bincount(values, minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(dim=1, keepdim=True).double()
    mean = shares @ values
    deviation = (shares * (values - mean[:, None]).square()).sum(dim=1).sqrt().clamp_(min=1 / 255)
    return mean.tolist(), deviation.tolist()


def meant(name: str, names: Sequence[str]) -> str:
    """Return which of some names was probably meant, as the end of a sentence."""
    close = get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""
