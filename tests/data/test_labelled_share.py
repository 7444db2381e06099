"""Batches that hold a given number of labelled samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scarcely.data.augment import ImageAugmentation, VectorAugmentation
from scarcely.data.digits import Digits
from scarcely.data.loader import Batch, DeviceLoader
from scarcely.data.samples import Samples
from scarcely.errors import DataError

NOISE = VectorAugmentation(noise=0.1)


def _mask(labelled: int, unlabelled: int) -> torch.Tensor:
    order = torch.randperm(labelled + unlabelled, generator=torch.Generator().manual_seed(labelled))
    return (torch.arange(labelled + unlabelled) < labelled)[order]


def _epoch(mask: torch.Tensor, epoch: int = 0, **options: Any) -> list[Batch]:
    samples = Samples(torch.arange(len(mask)).float().unsqueeze(1), torch.zeros(len(mask), dtype=torch.int64))
    loader = DeviceLoader(samples, NOISE, labelled=mask, **options)
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    labelled=st.integers(1, 40),
    unlabelled=st.integers(1, 40),
    batch_size=st.integers(2, 12),
    share=st.floats(0, 1),
    epoch=st.integers(0, 2),
    epoch_of=st.sampled_from(["labelled", "unlabelled"]),
    resident=st.booleans(),
)
def test_an_epoch_goes_once_through_the_unlabelled_samples_or_the_labelled_ones(
    labelled, unlabelled, batch_size, share, epoch, epoch_of, resident
):
    mask = _mask(labelled, unlabelled)
    count = 1 + round(share * (batch_size - 2))
    options: dict[str, Any] = dict(labelled_batch_size=count, epoch_of=epoch_of, resident=resident)
    batches = _epoch(mask, epoch, batch_size=batch_size, **options)
    if epoch_of == "labelled":
        count = min(count, labelled)
    others = min(batch_size - count, unlabelled)
    assert len(batches) == (labelled // count if epoch_of == "labelled" else unlabelled // others)
    seen: Counter[int] = Counter()
    for batch in batches:
        assert int(mask[batch.index].sum()) == count
        assert len(batch.index) == count + others
        seen.update(batch.index.tolist())
    whole = mask if epoch_of == "labelled" else ~mask
    assert all(seen[row] <= 1 for row in range(len(mask)) if whole[row])
    turns = [seen[row] for row in range(len(mask)) if not whole[row]]
    assert max(turns) - min(turns) <= 1, "all of the others are seen equally often"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    world=st.sampled_from([2, 4]),
    per_rank=st.integers(2, 5),
    count=st.integers(1, 7),
    unlabelled=st.sampled_from([8, 60]),
    epoch_of=st.sampled_from(["labelled", "unlabelled"]),
    gather=st.booleans(),
)
def test_ranks_share_a_batch_and_its_labelled_samples(world, per_rank, count, unlabelled, epoch_of, gather):
    mask = _mask(30, unlabelled)
    count = min(count, world * per_rank - 1)
    size = count + min(world * per_rank - count, unlabelled)
    assume(size % world == 0)  # else the last few are left to one process alone
    options: dict[str, Any] = dict(batch_size=world * per_rank, labelled_batch_size=count, epoch_of=epoch_of)
    one = _epoch(mask, 1, **options)
    ranks = [_epoch(mask, 1, rank=r, world_size=world, gather=gather, **options) for r in range(world)]
    for whole, *parts in zip(one, *ranks, strict=True):
        own = [part.index[part.local] for part in parts]
        assert torch.equal(torch.cat(own), whole.index)
        labelled = [int(mask[rows].sum()) for rows in own]
        assert max(labelled) - min(labelled) <= 1


def test_the_order_is_a_function_of_seed_stage_and_epoch():
    mask = _mask(20, 30)
    base: dict[str, Any] = dict(batch_size=8, labelled_batch_size=3)

    def order(epoch: int = 0, **change: Any) -> list[int]:
        return torch.cat([batch.index for batch in _epoch(mask, epoch, **(base | change))]).tolist()

    assert order() == order() == order(resident=False)
    assert len({tuple(o) for o in (order(), order(1), order(seed=1), order(stage="other"))}) == 4


def test_labelled_samples_change_from_epoch_to_epoch():
    mask = _mask(50, 10)
    epochs = [
        {
            int(row)
            for batch in _epoch(mask, e, batch_size=7, labelled_batch_size=2)
            for row in batch.index
            if mask[row]
        }
        for e in range(200)
    ]
    assert len(set.union(*epochs)) == 50


@pytest.mark.parametrize(("labelled", "missing"), [(0, "labelled"), (9, "unlabelled")])
def test_one_kind_alone_is_refused(labelled, missing):
    with pytest.raises(DataError, match=f"no sample is {missing}"):
        _epoch(_mask(labelled, 9 - labelled), batch_size=4, labelled_batch_size=2)


@pytest.mark.parametrize("count", [0, 4])
def test_a_batch_needs_room_for_both(count):
    with pytest.raises(ValueError, match=f"{count} labelled samples in a batch of 4"):
        _epoch(_mask(4, 4), batch_size=4, labelled_batch_size=count)


def test_a_data_module_counts_known_classes_as_labelled():
    data = Digits(augmentation=ImageAugmentation([0.3], [0.3]), labelled_classes=2)
    data.setup()
    loader = data.training_loader("mixed", "split", batch_size=32, labelled_batch_size=5)
    assert {int((batch.labels < 2).sum()) for batch in loader} == {5}
