"""Several domains as one data set, for a stage that trains a network on all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from scarcely.data.augment import ImageAugmentation
from scarcely.data.domain_set import DomainSet
from scarcely.data.loader import Batch, DeviceLoader
from scarcely.data.module import DataModule
from scarcely.spec import PositiveInt


class Turn(NamedTuple):
    """A batch, and the domain that all of it is of."""

    domain: str
    batch: Batch


class InTurn:
    """One batch of each domain after the other, round after round.

    What a round holds is a function of the epoch alone. A domain with fewer batches than an epoch has rounds
    begins again, in another order; of one with more an epoch has a random part.

    Args:
        loaders: of the domains, in their order.
        rounds: of an epoch; None for as many as the domain with the fewest batches has.
    """

    def __init__(self, loaders: Mapping[str, DeviceLoader], rounds: PositiveInt | None = None) -> None:
        self.loaders = dict(loaders)
        self.rounds = rounds or min(map(len, self.loaders.values()))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rounds * len(self.loaders)

    def __iter__(self) -> Iterator[Turn]:
        streams = {name: self._endless(loader, self.epoch) for name, loader in self.loaders.items()}
        try:
            for _ in range(self.rounds):
                for name, stream in streams.items():
                    yield Turn(name, next(stream))
        finally:
            for stream in streams.values():
                stream.close()  # a loader may read ahead

    def _endless(self, loader: DeviceLoader, epoch: int) -> Generator[Batch, None, None]:
        passes = -(-self.rounds // len(loader))
        for number in range(epoch * passes, (epoch + 1) * passes):
            loader.set_epoch(number)
            yield from loader


class Together(DataModule):
    """Several domains, each with its own images, classes and views.

    Args:
        name: short name of the set.
        each: the domains, one chosen in each.
        rounds: batches of each domain in an epoch; None for as many as the domain with the fewest has.
    """

    def __init__(self, *, name: str, each: Sequence[DomainSet], rounds: PositiveInt | None = None) -> None:
        super().__init__(name=name, kind="images", augmentation=each[0].augmentation)
        self.each, self.rounds = {str(data.domain): data for data in each}, rounds

    def setup(self, stage: str | None = None) -> None:
        """Read the domains that are not read yet."""
        for data in self.each.values():
            data.setup()

    def fingerprint(self) -> str:
        """Return a hash of the training samples of all domains."""
        told = [
            f"{name}={data.pool('train', 'split').fingerprint(labels=True)}"
            for name, data in self.each.items()
        ]
        return hashlib.blake2b(";".join(told).encode(), digest_size=16).hexdigest()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape (3, H, W) of an image of the first domain; those of signs may be larger."""
        return self._first.input_shape

    @property
    def decoded_size(self) -> int | None:
        """Side in pixels of the images as they are kept."""
        return self._first.decoded_size

    @property
    def _first(self) -> DomainSet:
        return next(iter(self.each.values()))

    def training_loader(self, role: Any, protocol: Any, *, stage: str = "train", **settings: Any) -> Any:
        """Return a loader of `Turn`: each domain's views are its own."""
        settings |= {"augmentation": None}
        loaders = {
            name: data.training_loader(role, protocol, stage=f"{stage} {name}", **settings)
            for name, data in self.each.items()
        }
        return InTurn(loaders, self.rounds)

    def evaluation_loader(self, role: Any, protocol: Any, **settings: Any) -> Any:
        """Return nothing: domains are scored one by one, when training is over."""
        return ()


class AllAtOnce:
    """Batches with equally many images of each domain, whose labels are the numbers of the domains.

    Args:
        loaders: of the domains, in their order; the batches of each are a part of one here.
        rounds: batches of an epoch; None for as many as the domain with the fewest has.
    """

    def __init__(self, loaders: Mapping[str, DeviceLoader], rounds: PositiveInt | None = None) -> None:
        self.turns = InTurn(loaders, rounds)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration goes through."""
        self.turns.set_epoch(epoch)

    def __len__(self) -> int:
        return self.turns.rounds

    def __iter__(self) -> Iterator[Batch]:
        turns = iter(self.turns)
        for parts in zip(*[turns] * len(self.turns.loaders)):
            batches = [_numbered(turn.batch, number) for number, turn in enumerate(parts)]
            yield Batch(
                torch.cat([batch.index for batch in batches]),
                tuple(map(torch.cat, zip(*(batch.views for batch in batches)))),
                torch.cat([batch.labels for batch in batches]),
            )


class OneByOne:
    """All images of one domain after the other, whose labels are the numbers of the domains."""

    def __init__(self, loaders: Sequence[DeviceLoader]) -> None:
        self.loaders = list(loaders)

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[Batch]:
        for number, loader in enumerate(self.loaders):
            for batch in loader:
                yield _numbered(batch, number)


class Mixed(Together):
    """Several domains as one set of images, normalised alike, whose classes are the domains."""

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the domains."""
        return tuple(self.each)

    def training_loader(self, role: Any, protocol: Any, *, stage: str = "train", **settings: Any) -> Any:
        """Return batches of all domains, in equal parts; cut and mirrored as in each domain."""
        settings |= {"batch_size": max(1, settings["batch_size"] // len(self.each))}
        loaders = {}
        for name, data in self.each.items():
            own = settings | {"stage": f"{stage} {name}", "augmentation": self.seen(name)}
            loaders[name] = data.training_loader(role, protocol, **own)
        return AllAtOnce(loaders, self.rounds)

    def evaluation_loader(self, role: Any, protocol: Any, **settings: Any) -> Any:
        """Return all images of a role, one domain after the other."""
        return OneByOne([self.clean(name, role, protocol, **settings) for name in self.each])

    def clean(self, name: str, role: Any, protocol: Any, **settings: Any) -> DeviceLoader:
        """Return the images of one domain, with the labels of their own classes."""
        loader = self.each[name].evaluation_loader(role, protocol, **settings)
        loader.augmentation = self.seen(name)
        return loader

    def seen(self, name: str) -> ImageAugmentation:
        """Return how images of a domain are seen: cut as its own, normalised as those of all others."""
        mean, std = self.statistics()
        return self.each[name].augmentation.replaced(mean=mean, std=std)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation, by channel, of a pixel of a domain drawn at random.

        μ = mean of μ_d, σ² = mean of σ_d² + μ_d², less μ², of the statistics that each domain is normalised
        by.
        """
        own = [data.augmentation for data in self.each.values()]
        means = torch.tensor([one.mean for one in own], dtype=torch.float64)
        squares = torch.tensor([one.std for one in own], dtype=torch.float64).square() + means.square()
        mean = means.mean(dim=0)
        return mean.tolist(), (squares.mean(dim=0) - mean.square()).sqrt().tolist()


def _numbered(batch: Batch, number: int) -> Batch:
    return batch._replace(labels=torch.full_like(batch.labels, number))
