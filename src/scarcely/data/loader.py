"""Batches of views on the device: index, augment, normalise, with no worker process.

The order of an epoch is a function of (seed, stage, epoch), the views of a step of (seed, stage,
epoch, step). Both are drawn for the batch of all devices together and each rank takes its slice, so
that a run that was interrupted, or that uses another number of devices, sees the same batches.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scarcely.data.augment import Augmentation
from scarcely.data.samples import Samples
from scarcely.errors import ConfigError, DataError
from scarcely.seeds import derive_seed

__all__ = ["Batch", "DeviceLoader", "EpochOf", "numbered"]

EpochOf = Literal["labelled", "unlabelled"]

_AHEAD = 2  # batches that the background thread may be in advance


class Batch(NamedTuple):
    """One batch, on the device.

    Attributes:
        index: (n,) int64, positions in the samples.
        views: V tensors, images (n, C, H, W) float32 channels_last, normalised; or vectors (n, D).
        labels: (n,) int64, -1 where unknown.
        own: (start, stop) of the rows that belong to this rank, where every rank was given the
            whole global batch (``gather``); otherwise empty.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    views: tuple[Tensor, ...]
    labels: Tensor
    # Not a slice: Lightning looks through all fields for the batch size, and an empty tuple has
    # nothing that would make it doubt what it found.
    own: tuple[int, ...] = ()

    @property
    def local(self) -> slice:
        """The rows that belong to this rank."""
        return slice(*self.own) if self.own else slice(None)


class _Share(NamedTuple):
    """What one rank takes in one step: rows [start, stop) of the order of the epoch."""

    start: int
    stop: int
    draws: int  # size of the global batch, for which random numbers are drawn
    part: slice  # of the draws
    own: tuple[int, ...]  # as in Batch


class DeviceLoader:
    """Iterable of the batches of one rank.

    It shards by itself and is no torch DataLoader: Lightning leaves it alone. Call `set_epoch`
    before each epoch; the epoch is read when the first batch is asked for.

    Args:
        samples: what to load from.
        augmentation: how views are made.
        batch_size: of all ranks together. In evaluation each rank takes its share of it.
        views: number of views of each sample.
        shuffle: a new order in each epoch.
        drop_last: leave out the last, short batch. With fewer samples than `batch_size` there is one
            batch of all of them. Whatever this is, all ranks take equally many steps and samples:
            batches are shortened to a multiple of `world_size`.
        seed: of the run.
        stage: name of the stage, so that no two stages see the same order.
        device: where the batches shall be.
        rank: of this process, from 0.
        world_size: number of processes.
        gather: give every rank the whole global batch, and say in `Batch.local` which part is its own.
        resident: move the samples to the device at once (nothing is copied if they are there).
            Otherwise they stay in host memory, or in the file that is mapped into it, and a
            background thread gathers the batches two steps ahead.
        clean: give the samples as they are, one view, no randomness; the ranks take consecutive
            shares in which no sample is missing and none occurs twice.
        group: number S of samples of one class that follow one another, for losses that compare samples
            of a class with those of others; 0 for any order. An epoch goes through the classes in a random
            order and takes S random samples of each, then S others, and so on: where there are as many
            classes, all groups of a batch are of different ones. What is left of a class in the end, fewer
            than S, is not in this epoch. Samples without a label never are. Labels decide the order: do not
            ask for groups where a method must not see them.
        labelled: (n,) bool, the samples that count as labelled for `labelled_batch_size`.
        labelled_batch_size: number of labelled samples in each batch, spread evenly over it, so that all
            ranks have their share; None takes samples as they come. The rest of a batch is unlabelled.
        epoch_of: which of the two an epoch then goes through once (but for the last, short batch); of the
            others it takes as many as its batches need, in a random order, again and again if they are few.
        subset: function of the epoch and the number of samples that returns which of them, (n,) int64, the
            epoch goes through; None for all.

    Raises:
        ConfigError: `batch_size` cannot be divided among the ranks, or into groups, or the augmentation
            does not fit the samples.
        DataError: fewer samples than ranks, no class as large as a group, or nothing labelled or
            unlabelled where both belong into a batch.
    """

    def __init__(
        self,
        samples: Samples,
        augmentation: Augmentation,
        *,
        batch_size: int,
        views: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        seed: int = 0,
        stage: str = "train",
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        gather: bool = False,
        resident: bool = True,
        clean: bool = False,
        group: int = 0,
        labelled: Tensor | None = None,
        labelled_batch_size: int | None = None,
        epoch_of: EpochOf = "unlabelled",
        subset: Callable[[int, int], Tensor | None] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}", where="batch_size")
        if group < 0:
            raise ValueError(f"group must be at least 0, not {group}")
        if subset is not None and (group or labelled_batch_size is not None):
            raise ValueError("a subset goes with neither groups nor labelled_batch_size")
        if labelled_batch_size is not None and (labelled is None or group or not drop_last):
            raise ValueError("labelled_batch_size needs labelled and drop_last, and no group")
        unit = world_size * (group or 1)
        if not clean and batch_size % unit:
            how = [f"among {world_size} devices"] * (world_size > 1) + [f"into groups of {group}"] * (
                group > 0
            )
            raise ConfigError(
                f"batch_size={batch_size} cannot be divided {' '.join(how)}",
                where="batch_size",
                instead=f"batch_size={batch_size // unit * unit or unit}"
                " (it counts the samples of all devices together)",
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        if views < 1:
            raise ValueError(f"views must be at least 1, not {views}")
        if not clean and len(samples) < world_size:
            raise DataError(
                f"{len(samples)} samples for {world_size} devices", instead="more samples or fewer devices"
            )
        augmentation.check(samples.inputs.shape[1:])
        self.device = numbered(device)
        self.samples = samples.to(self.device) if resident else samples.to("cpu")
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.views = 1 if clean else views
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.stage = stage
        self.rank = rank
        self.world_size = world_size
        self.gather = gather
        self.resident = resident
        self.clean = clean
        self.group = group
        self.subset = subset
        self._rows_of_epoch: Tensor | None = None
        self._from: tuple[Tensor, Tensor] | None = None  # rows that are labelled, and those that are not
        self._total = len(self.samples)
        if group:
            self._total = self._count_grouped()
        elif labelled is not None and labelled_batch_size is not None:
            self._total = self._count_mixed(labelled, labelled_batch_size, epoch_of)
        self._shares = self._evaluation_shares() if clean else self._training_shares()
        self.set_epoch(0)

    @classmethod
    def evaluation(
        cls,
        samples: Samples,
        augmentation: Augmentation,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        resident: bool = True,
    ) -> DeviceLoader:
        """Return a loader of all samples, clean and in order, each on exactly one rank.

        Rank after rank the shares are consecutive, so that results put together by rank are in the
        order of the samples. Their sizes differ by at most one, and so may the number of steps.
        """
        return cls(
            samples,
            augmentation,
            batch_size=batch_size,
            shuffle=False,
            drop_last=False,
            device=device,
            rank=rank,
            world_size=world_size,
            resident=resident,
            clean=True,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration goes through."""
        self.epoch = epoch
        if self.subset is not None:
            rows = self.subset(epoch, len(self.samples))
            self._rows_of_epoch = rows
            self._total = len(self.samples) if rows is None else len(rows)
            if self._total < self.world_size:
                raise DataError(
                    f"{self._total} samples of an epoch for {self.world_size} devices",
                    instead="more samples, or fewer devices",
                )
            self._shares = self._training_shares()

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        order = self._order(epoch)
        if self.resident:
            yield from self._in_place(order, epoch)
        else:
            yield from self._ahead(order, epoch)

    # Which rows

    def _training_shares(self) -> list[_Share]:
        ranks = self.world_size
        unit = ranks * (self.group or 1)  # no group is ever cut
        total = self._total // unit * unit
        size = self._mixed_size if self._from else min(self.batch_size, total)
        shares = []
        for start in range(0, total - size + 1 if self.drop_last else total, size):
            count = min(size, total - start)
            each = count // ranks
            first, end = self.rank * each, (self.rank + 1) * each
            if self.gather:
                shares.append(_Share(start, start + count, count, slice(None), (first, end)))
            else:
                shares.append(_Share(start + first, start + end, count, slice(first, end), ()))
        return shares

    def _evaluation_shares(self) -> list[_Share]:
        total, ranks = len(self.samples), self.world_size
        first, end = total * self.rank // ranks, total * (self.rank + 1) // ranks
        size = max(1, self.batch_size // ranks)
        return [
            _Share(start, min(start + size, end), 0, slice(None), ()) for start in range(first, end, size)
        ]

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.stage, epoch, "order"))

        def permutation(count: int) -> Tensor:
            return torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)

        if self.group:
            return self._grouped(permutation)
        if self._from:
            return self._mixed(permutation)
        rows = self._rows_of_epoch
        return permutation(len(self.samples)) if rows is None else rows[permutation(len(rows))]

    def _count_grouped(self) -> int:
        labels = self.samples.labels.cpu()
        self._rows = (labels >= 0).nonzero().flatten()
        _, self._class_of_row, self._sizes = labels[self._rows].unique(
            return_inverse=True, return_counts=True
        )
        total = int((self._sizes // self.group).sum()) * self.group
        if total < self.group * self.world_size:
            largest = int(self._sizes.max()) if len(self._sizes) else 0
            raise DataError(
                f"no groups of {self.group} samples of a class for {self.world_size} devices:"
                f" the largest class has {largest}",
                instead="smaller groups, or more samples of each class",
            )
        return total

    def _grouped(self, permutation: Callable[[int], Tensor]) -> Tensor:
        """Return rows in groups: the first of every class, then the second of those that have one, ..."""
        shuffled = permutation(len(self._rows))
        by_class = shuffled[self._class_of_row[shuffled].argsort(stable=True)]
        groups = self._sizes // self.group
        number = torch.arange(int(groups.sum()))
        of_class = torch.arange(len(groups)).repeat_interleave(groups)
        turn = number - (groups.cumsum(0) - groups)[of_class]
        # One order of the classes for all turns: a class comes again only after all others that are left.
        sequence = (turn * len(groups) + permutation(len(groups))[of_class]).argsort()
        first = (self._sizes.cumsum(0) - self._sizes)[of_class] + turn * self.group
        members = first[sequence].unsqueeze(1) + torch.arange(self.group)
        return self._rows[by_class[members.flatten()]]

    def _count_mixed(self, labelled: Tensor, count: int, epoch_of: EpochOf) -> int:
        if not 0 < count < self.batch_size:
            raise ValueError(f"{count} labelled samples in a batch of {self.batch_size}")
        rows, others = (mask.nonzero().flatten() for mask in (labelled.cpu(), ~labelled.cpu()))
        if not len(rows) or not len(others):
            raise DataError(
                f"no sample is {'unlabelled' if len(rows) else 'labelled'}, and each batch should have some",
                where="method.labelled_batch_size",
                instead="null, for samples as they come",
            )
        if epoch_of == "labelled":
            count = min(count, len(rows))
        rest = min(self.batch_size - count, len(others))
        rest -= (count + rest) % self.world_size  # the ranks' shares are equal
        if not rest:
            raise DataError(
                f"{len(others)} unlabelled samples for {self.world_size} devices", instead="fewer devices"
            )
        size = count + rest
        self._from = rows, others
        # Spread evenly, so that a slice of a batch holds its share of both.
        self._place_labelled = (torch.arange(count) * size) // count
        self._mixed_size = size
        batches = len(others) // rest if epoch_of == "unlabelled" else len(rows) // count
        return batches * size

    def _mixed(self, permutation: Callable[[int], Tensor]) -> Tensor:
        """Return rows in batches, each with its labelled and unlabelled ones."""
        assert self._from is not None
        rows, others = self._from
        count = len(self._place_labelled)
        size = self._mixed_size
        batches = self._total // size

        def turns(of: Tensor, wanted: int) -> Tensor:
            again = -(-batches * wanted // len(of))
            return torch.cat([of[permutation(len(of))] for _ in range(again)])[: batches * wanted].view(
                batches, wanted
            )

        is_labelled = torch.zeros(size, dtype=torch.bool)
        is_labelled[self._place_labelled] = True
        order = torch.empty(batches, size, dtype=torch.long)
        order[:, is_labelled] = turns(rows, count)
        order[:, ~is_labelled] = turns(others, size - count)
        return order.flatten()

    # How they become batches

    def _in_place(self, order: Tensor, epoch: int) -> Iterator[Batch]:
        order = self._move(order)
        for step, share in enumerate(self._shares):
            index = order[share.start : share.stop]
            inputs = self.samples.inputs.index_select(0, index)
            labels = self.samples.labels.index_select(0, index)
            params = {name: self._move(drawn) for name, drawn in self._draw(step, share, epoch).items()}
            yield self._batch(index, inputs, labels, params, share)

    def _ahead(self, order: Tensor, epoch: int) -> Iterator[Batch]:
        # The thread may start a batch when it gets a slot. Closing hands it one more, with `closed`
        # set, so that it ends at once wherever it waits; it never waits for the queue.
        slots = threading.Semaphore(_AHEAD)
        closed = threading.Event()
        ready: queue.SimpleQueue[tuple | BaseException | None] = queue.SimpleQueue()

        def produce() -> None:
            try:
                if self.device.type == "cuda":
                    torch.cuda.set_device(self.device)  # a new thread begins on GPU 0
                for step, share in enumerate(self._shares):
                    slots.acquire()
                    if closed.is_set():
                        return
                    index = order[share.start : share.stop]
                    inputs, labels = self._gather_rows(index)
                    params = {name: self._pin(t) for name, t in self._draw(step, share, epoch).items()}
                    ready.put((self._pin(index), inputs, labels, params, share))
                ready.put(None)
            except BaseException as error:
                ready.put(error)

        thread = threading.Thread(target=produce, name="scarcely-loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                slots.release()
                index, inputs, labels, params, share = item
                params = {name: self._send(drawn) for name, drawn in params.items()}
                yield self._batch(self._send(index), self._send(inputs), self._send(labels), params, share)
        finally:
            closed.set()
            slots.release()
            thread.join()

    def _batch(
        self, index: Tensor, inputs: Tensor, labels: Tensor, params: dict[str, Tensor], share: _Share
    ) -> Batch:
        if self.clean:
            views: tuple[Tensor, ...] = (self.augmentation.clean(inputs),)
        else:
            views = self.augmentation.apply(inputs, params, self.views)
        return Batch(index, views, labels, share.own)

    def _draw(self, step: int, share: _Share, epoch: int) -> dict[str, Tensor]:
        if self.clean:
            return {}
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.stage, epoch, step, "views"))
        shape = self.samples.inputs.shape[1:]
        drawn = self.augmentation.draw(generator, share.draws, self.views, shape)
        return {name: tensor[share.part] for name, tensor in drawn.items()}

    def _gather_rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        source = self.samples.inputs
        pinned = self.device.type == "cuda"
        rows = torch.empty((len(index), *source.shape[1:]), dtype=source.dtype, pin_memory=pinned)
        torch.index_select(source, 0, index, out=rows)
        return rows, self._pin(self.samples.labels.index_select(0, index))

    def _pin(self, tensor: Tensor) -> Tensor:
        # Only a copy from pinned memory goes on while the host does other things.
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _move(self, tensor: Tensor) -> Tensor:
        return self._send(self._pin(tensor))


def numbered(device: torch.device | str) -> torch.device:
    """Return the device with its number: ``cuda`` is the current GPU of this thread."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
