"""Batches made of groups of one class: the order that metric learning needs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.data.augment import VectorAugmentation
from scarcely.data.loader import Batch, DeviceLoader
from scarcely.data.module import DataModule
from scarcely.data.samples import Samples
from scarcely.errors import ConfigError, DataError

NOISE = VectorAugmentation(noise=0.1)


def _samples(sizes: list[int], unlabelled: int = 0, seed: int = 0) -> Samples:
    """Make classes of these sizes, in random order."""
    labels = [label for label, size in enumerate(sizes) for _ in range(size)] + [-1] * unlabelled
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = torch.tensor(labels, dtype=torch.int64)[order]
    return Samples(torch.arange(len(labels)).float().unsqueeze(1), classes)


def _epoch(samples: Samples, epoch: int = 0, **options: Any) -> list[Batch]:
    loader = DeviceLoader(samples, NOISE, **options)
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    group=st.integers(1, 4),
    per_batch=st.integers(1, 4),
    unlabelled=st.integers(0, 3),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_an_epoch_is_groups_of_one_class_each_sample_at_most_once(
    sizes, group, per_batch, unlabelled, drop_last, shuffle, epoch
):
    samples = _samples(sizes, unlabelled)
    options: dict[str, Any] = dict(
        batch_size=group * per_batch, group=group, drop_last=drop_last, shuffle=shuffle
    )
    groups = sum(size // group for size in sizes)
    if not groups:
        with pytest.raises(DataError, match=r"no groups|0 samples"):
            _epoch(samples, **options)
        return
    batches = _epoch(samples, epoch, **options)
    size = min(group * per_batch, group * groups)
    assert len(batches) == (group * groups // size if drop_last else -(-group * groups // size))
    index = torch.cat([batch.index for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.equal(labels, samples.labels[index])
    assert len(index.unique()) == len(index)
    of_group = labels.view(-1, group)
    assert (of_group >= 0).all()
    assert (of_group == of_group[:, :1]).all()
    counts = Counter(of_group[:, 0].tolist())
    if not drop_last:
        assert counts == {label: n // group for label, n in enumerate(sizes) if n >= group}
    turns: Counter[int] = Counter()
    last = 0
    for label in of_group[:, 0].tolist():  # all classes once before any comes again
        turns[label] += 1
        assert turns[label] >= last
        last = turns[label]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(classes=st.integers(2, 9), turns=st.integers(1, 4), data=st.data())
def test_groups_of_a_batch_are_of_different_classes_where_there_are_enough(classes, turns, data):
    per_batch = data.draw(st.integers(1, classes))
    samples = _samples([2 * turns + data.draw(st.integers(0, 1)) for _ in range(classes)])
    for batch in _epoch(samples, data.draw(st.integers(0, 3)), batch_size=2 * per_batch, group=2):
        assert len(batch.labels.unique()) == per_batch


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=4, max_size=8),
    world=st.sampled_from([2, 3]),
    per_rank=st.integers(1, 2),
    gather=st.booleans(),
)
def test_ranks_share_batches_and_cut_no_group(sizes, world, per_rank, gather):
    samples = _samples(sizes)
    options: dict[str, Any] = dict(batch_size=2 * world * per_rank, group=2, views=2)
    one = _epoch(samples, 1, **options)
    ranks = [_epoch(samples, 1, rank=r, world_size=world, gather=gather, **options) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    for whole, *parts in zip(one, *ranks):
        own = [part.index[part.local] for part in parts]
        assert all(len(rows) % 2 == 0 for rows in own)
        assert len({len(rows) for rows in own}) == 1
        joined = torch.cat(own)
        assert torch.equal(joined, whole.index[: len(joined)])
        if len(joined) == len(whole.index):
            views = torch.cat([part.views[1][part.local] for part in parts])
            assert torch.equal(views, whole.views[1])


def test_the_order_is_a_function_of_seed_stage_and_epoch():
    samples = _samples([8] * 6)
    base: dict[str, Any] = dict(batch_size=8, group=4)

    def order(epoch: int = 0, **change: Any) -> list[int]:
        return torch.cat([batch.index for batch in _epoch(samples, epoch, **(base | change))]).tolist()

    assert order() == order() == order(resident=False) == order(batch_size=24)
    assert len({tuple(o) for o in (order(), order(1), order(seed=1), order(stage="other"))}) == 4


def test_who_is_in_a_group_changes_from_epoch_to_epoch():
    samples = _samples([7, 7])
    groups = {
        frozenset(rows.tolist())
        for epoch in range(6)
        for batch in _epoch(samples, epoch, batch_size=6, group=3)
        for rows in batch.index.view(-1, 3)
    }
    assert len(groups) > 6
    assert {row for rows in groups for row in rows} == set(range(14)), "a leftover is another each time"


def test_a_batch_size_that_groups_do_not_fill_names_one_that_they_do():
    with pytest.raises(ConfigError, match="batch_size=10 cannot be divided into groups of 4") as error:
        DeviceLoader(_samples([9, 9]), NOISE, batch_size=10, group=4)
    assert str(error.value.instead).startswith("batch_size=8 ")
    with pytest.raises(ConfigError, match="among 2 devices into groups of 4") as error:
        DeviceLoader(_samples([9, 9]), NOISE, batch_size=4, group=4, world_size=2)
    assert str(error.value.instead).startswith("batch_size=8 ")


def test_too_few_samples_for_groups_are_refused():
    with pytest.raises(DataError, match="the largest class has 3"):
        DeviceLoader(_samples([3, 2]), NOISE, batch_size=4, group=4)
    with pytest.raises(DataError, match="for 2 devices"):
        DeviceLoader(_samples([4, 2]), NOISE, batch_size=8, group=4, world_size=2)
    with pytest.raises(DataError, match="the largest class has 0"):
        DeviceLoader(_samples([], 5), NOISE, batch_size=4, group=2)


def test_a_data_module_passes_groups_on():
    class Toy(DataModule):
        def read(self) -> dict[str, Samples]:
            self.classes = tuple("abcd")
            return {"train": _samples([5, 5, 5, 5])}

    data = Toy(name="toy", kind="vectors", augmentation=NOISE, labelled_classes=3)
    data.setup()
    loader = data.training_loader("labelled", "all", batch_size=6, group=2)
    assert len(loader) == 2
    assert {label for batch in loader for label in batch.labels.tolist()} == {0, 1, 2}
    assert data.training_loader("labelled", "all", batch_size=6).group == 0
