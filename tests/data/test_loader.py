from __future__ import annotations

import gc
import threading
import time
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.data.augment import ImageAugmentation, VectorAugmentation
from scarcely.data.loader import Batch, DeviceLoader
from scarcely.data.samples import Samples
from scarcely.errors import ConfigError, DataError

IMAGES = ImageAugmentation([0.5], [0.25], padding=1, flip=True)
VECTORS = VectorAugmentation(dropout=0.3, noise=0.1)


def _images(n: int) -> Samples:
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randint(0, 256, (n, 4, 3, 1), dtype=torch.uint8, generator=generator)
    return Samples(inputs, torch.arange(n) % 5 - 1)


def _vectors(n: int) -> Samples:
    return Samples(torch.rand(n, 6, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 3)


def _same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.index, b.index)
        and torch.equal(a.labels, b.labels)
        and len(a.views) == len(b.views)
        and all(torch.equal(x, y) for x, y in zip(a.views, b.views))
    )


def _joined(batches: list[Batch]) -> Batch:
    return Batch(
        torch.cat([b.index for b in batches]),
        tuple(torch.cat(views) for views in zip(*(b.views for b in batches))),
        torch.cat([b.labels for b in batches]),
    )


def _epoch(loader: DeviceLoader, epoch: int = 0) -> list[Batch]:
    loader.set_epoch(epoch)
    return list(loader)


def _threads() -> int:
    return sum(thread.name == "scarcely-loader" for thread in threading.enumerate())


CASES = pytest.mark.parametrize(
    ("samples", "augmentation"), [(_images(37), IMAGES), (_vectors(37), VECTORS)], ids=["images", "vectors"]
)


@CASES
@pytest.mark.parametrize("resident", [True, False])
def test_an_epoch_is_the_same_each_time_and_for_each_new_loader(samples, augmentation, resident):
    options: dict[str, Any] = dict(batch_size=8, views=2, seed=3, stage="x", resident=resident)
    loader = DeviceLoader(samples, augmentation, **options)
    first, second = _epoch(loader, 5), _epoch(loader, 5)
    resumed = _epoch(DeviceLoader(samples, augmentation, **options), 5)
    assert len(first) == len(loader) == 4
    for a, b, c in zip(first, second, resumed):
        assert _same(a, b)
        assert _same(a, c)


def test_epoch_seed_and_stage_each_change_order_and_views():
    base: dict[str, Any] = dict(batch_size=32, seed=0, stage="a", shuffle=False)
    reference = _epoch(DeviceLoader(_images(32), IMAGES, **base), 0)[0]
    for change, epoch in (({"seed": 1}, 0), ({"stage": "b"}, 0), ({}, 1)):
        fixed = _epoch(DeviceLoader(_images(32), IMAGES, **(base | change)), epoch)[0]
        assert torch.equal(fixed.index, reference.index)
        assert not torch.equal(fixed.views[0], reference.views[0])
        shuffled = _epoch(DeviceLoader(_images(32), IMAGES, **(base | change | {"shuffle": True})), epoch)[0]
        assert not torch.equal(shuffled.index, reference.index)
    orders = {
        tuple(_epoch(DeviceLoader(_images(32), IMAGES, batch_size=32, **change), epoch)[0].index.tolist())
        for change, epoch in (({}, 0), ({"seed": 1}, 0), ({"stage": "b"}, 0), ({}, 1))
    }
    assert len(orders) == 4


def test_steps_of_an_epoch_get_their_own_views():
    same = Samples(_images(1).inputs.repeat(16, 1, 1, 1), torch.zeros(16, dtype=torch.int64))
    first, second = _epoch(DeviceLoader(same, IMAGES, batch_size=8))
    assert not torch.equal(first.views[0], second.views[0])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(4, 40),
    per_rank=st.integers(1, 4),
    world=st.sampled_from([2, 4]),
    views=st.integers(1, 3),
    drop_last=st.booleans(),
    vectors=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_put_together_are_the_batches_of_one_process(
    n, per_rank, world, views, drop_last, vectors, epoch
):
    samples, augmentation = (_vectors(n), VECTORS) if vectors else (_images(n), IMAGES)
    options: dict[str, Any] = dict(batch_size=per_rank * world, views=views, drop_last=drop_last)
    one = _epoch(DeviceLoader(samples, augmentation, **options), epoch)
    loaders = [
        DeviceLoader(samples, augmentation, rank=rank, world_size=world, **options) for rank in range(world)
    ]
    ranks = [_epoch(loader, epoch) for loader in loaders]
    assert len({len(batches) for batches in ranks}) == 1, "ranks take different numbers of steps"
    seen = torch.cat([b.index for batches in ranks for b in batches])
    assert len(seen.unique()) == len(seen), "a sample occurs twice"
    for step, parts in enumerate(zip(*ranks)):
        whole = _joined(list(parts))
        assert len({len(part.index) for part in parts}) == 1
        # Full batches are those of one process bit for bit; a last one may be shorter by less than
        # the number of ranks, and then only its rows are comparable.
        assert torch.equal(whole.index, one[step].index[: len(whole.index)])
        if len(whole.index) == len(one[step].index):
            assert _same(whole, one[step])
        else:
            assert len(one[step].index) - len(whole.index) < world


@CASES
def test_gather_gives_each_rank_the_global_batch_and_its_own_part(samples, augmentation):
    options: dict[str, Any] = dict(batch_size=8, views=2)
    one = _epoch(DeviceLoader(samples, augmentation, **options), 1)
    plain = [
        _epoch(DeviceLoader(samples, augmentation, rank=r, world_size=4, **options), 1) for r in range(4)
    ]
    for rank in range(4):
        gathered = _epoch(
            DeviceLoader(samples, augmentation, rank=rank, world_size=4, gather=True, **options), 1
        )
        for step, batch in enumerate(gathered):
            assert _same(batch, one[step])
            assert torch.equal(batch.index[batch.local], plain[rank][step].index)
            assert torch.equal(batch.views[1][batch.local], plain[rank][step].views[1])
            assert torch.equal(plain[rank][step].index[plain[rank][step].local], plain[rank][step].index)


@CASES
@pytest.mark.parametrize("world", [1, 2])
def test_reading_ahead_gives_the_batches_of_resident_samples(samples, augmentation, world):
    options: dict[str, Any] = dict(batch_size=8, views=2, rank=world - 1, world_size=world)
    resident = _epoch(DeviceLoader(samples, augmentation, **options), 2)
    ahead = _epoch(DeviceLoader(samples, augmentation, resident=False, **options), 2)
    assert len(resident) == len(ahead) > 1
    assert all(_same(a, b) for a, b in zip(resident, ahead))


def test_batches_are_rows_of_the_samples():
    samples = _images(20)
    for batch in DeviceLoader(samples, ImageAugmentation([0.5], [0.25]), batch_size=4):
        assert torch.equal(batch.labels, samples.labels[batch.index])
        assert torch.equal(batch.views[0], IMAGES.clean(samples.inputs[batch.index]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 40), size=st.integers(1, 12), world=st.integers(1, 5), resident=st.booleans())
def test_evaluation_gives_each_sample_once_in_order_and_clean(n, size, world, resident):
    samples = _images(n)
    parts = []
    for rank in range(world):
        loader = DeviceLoader.evaluation(
            samples, IMAGES, batch_size=size, rank=rank, world_size=world, resident=resident
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(0 < len(batch.index) <= max(1, size // world) for batch in batches)
        parts += batches
    whole = _joined(parts)
    assert torch.equal(whole.index, torch.arange(n))
    assert torch.equal(whole.labels, samples.labels)
    assert len(whole.views) == 1
    assert torch.equal(whole.views[0], IMAGES.clean(samples.inputs))


def test_fewer_samples_than_a_batch_are_one_batch_of_all():
    for world in (1, 2):
        loaders = [
            DeviceLoader(_images(7), IMAGES, batch_size=64, rank=r, world_size=world) for r in range(world)
        ]
        batches = [_epoch(loader) for loader in loaders]
        assert [len(b) for b in batches] == [1] * world
        assert len(_joined([b[0] for b in batches]).index) == 7 // world * world


def test_the_last_batch_is_kept_on_demand():
    sizes = [len(b.index) for b in DeviceLoader(_images(10), IMAGES, batch_size=4, drop_last=False)]
    assert sizes == [4, 4, 2]
    sizes = [
        len(b.index)
        for b in DeviceLoader(_images(11), IMAGES, batch_size=4, drop_last=False, rank=1, world_size=2)
    ]
    assert sizes == [2, 2, 1]


def test_the_epoch_is_read_at_the_first_batch():
    loader = DeviceLoader(_images(16), IMAGES, batch_size=8)
    iterator = iter(loader)
    loader.set_epoch(4)
    assert _same(next(iterator), _epoch(DeviceLoader(_images(16), IMAGES, batch_size=8), 4)[0])


def test_a_batch_size_that_ranks_cannot_share_names_one_that_they_can():
    with pytest.raises(ConfigError, match="batch_size=8 "):
        DeviceLoader(_images(20), IMAGES, batch_size=10, rank=0, world_size=4)


def test_what_does_not_fit_is_refused_when_the_loader_is_made():
    with pytest.raises(ConfigError, match="channels"):
        DeviceLoader(_images(20), ImageAugmentation([0.5] * 3, [0.5] * 3), batch_size=4)
    with pytest.raises(DataError, match="1 samples for 2 devices"):
        DeviceLoader(_images(1), IMAGES, batch_size=4, rank=0, world_size=2)
    with pytest.raises(ConfigError, match="at least 1"):
        DeviceLoader(_images(4), IMAGES, batch_size=0)


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for resident in (True, False):
        _epoch(DeviceLoader(_vectors(20), VECTORS, batch_size=4, views=2, resident=resident))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("taken", [0, 1, 2, 5])
def test_the_thread_ends_when_the_iterator_is_dropped(taken):
    loader = DeviceLoader(_images(40), IMAGES, batch_size=2, resident=False)
    iterator = iter(loader)
    for _ in range(taken):
        next(iterator)
    assert _threads() == min(taken, 1)
    del iterator
    gc.collect()
    assert _threads() == 0


def test_the_thread_ends_when_the_loop_is_broken_by_an_error():
    def loop() -> None:
        for _ in DeviceLoader(_images(40), IMAGES, batch_size=2, resident=False):
            raise KeyError("in the step")

    with pytest.raises(KeyError, match="in the step"):
        loop()
    gc.collect()
    assert _threads() == 0


def test_an_error_in_the_thread_reaches_the_consumer():
    class Broken(ImageAugmentation):
        calls = 0

        def draw(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            Broken.calls += 1
            if Broken.calls == 3:
                raise OSError("the disk is gone")
            return super().draw(*args, **kwargs)

    loader = DeviceLoader(_images(40), Broken([0.5], [0.5], flip=True), batch_size=2, resident=False)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen += [batch.index for batch in loader]
    assert _threads() == 0


def test_the_thread_is_never_more_than_two_batches_ahead():
    drawn = []

    class Counting(ImageAugmentation):
        def draw(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            drawn.append(1)
            return super().draw(*args, **kwargs)

    iterator = iter(
        DeviceLoader(_images(60), Counting([0.5], [0.5], flip=True), batch_size=2, resident=False)
    )
    for taken in range(1, 6):
        next(iterator)
        time.sleep(0.02)  # time enough to run ahead, if it would
        assert taken <= len(drawn) <= taken + 2


def test_lightning_moves_a_batch_and_finds_its_size():
    from lightning_utilities.core.apply_func import apply_to_collection
    from pytorch_lightning.utilities.data import extract_batch_size

    batch = _epoch(DeviceLoader(_images(16), IMAGES, batch_size=8, views=2))[0]
    gathered = _epoch(DeviceLoader(_images(16), IMAGES, batch_size=8, world_size=2, rank=1, gather=True))[0]
    for given_batch in (batch, gathered):
        moved = apply_to_collection(given_batch, torch.Tensor, lambda tensor: tensor.clone())
        assert type(moved) is Batch
        assert _same(moved, given_batch)
        assert moved.local == given_batch.local
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extract_batch_size(batch) == 8


WARPS = ImageAugmentation(
    IMAGES.mean, IMAGES.std, padding=2, pad_mode="zero", degrees=20, shear=10, scale=0.1, first_clean=True
)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("views", [IMAGES, WARPS])
def test_batches_on_the_gpu_are_those_of_the_cpu(resident, views):
    cpu = _epoch(DeviceLoader(_images(40), views, batch_size=8, views=3))
    gpu = _epoch(DeviceLoader(_images(40), views, batch_size=8, views=3, device="cuda", resident=resident))
    for a, b in zip(cpu, gpu):
        assert b.views[0].is_cuda
        assert torch.equal(a.index, b.index.cpu())
        for x, y in zip(a.views, b.views):
            # a fused product and sum, and places between pixels rounded otherwise
            torch.testing.assert_close(x, y.cpu(), rtol=0, atol=1e-6 if views is IMAGES else 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("views", [IMAGES, WARPS])
def test_resident_samples_are_served_without_waiting_for_the_gpu(views):
    loader = DeviceLoader(_images(400), views, batch_size=8, views=3, device="cuda")
    _epoch(loader)  # the constants are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        _epoch(loader, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
