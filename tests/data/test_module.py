from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scarcely.data.augment import ImageAugmentation
from scarcely.data.module import DataModule
from scarcely.data.samples import Samples
from scarcely.errors import ConfigError, DataError


def _samples(n: int, first: int = 0, shape: tuple[int, ...] = (4, 5, 1), label: int | None = None) -> Samples:
    pixels = torch.arange(first, first + n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, *shape).clone()
    labels = torch.arange(n) % 3 if label is None else torch.full((n,), label)
    return Samples(pixels, labels)


class Toy(DataModule):
    def __init__(self, parts: dict[str, Samples] | None = None, **options) -> None:
        options = {"augmentation": ImageAugmentation([0.5], [0.5]), "kind": "images"} | options
        super().__init__(name="toy", **options)
        self._given = parts if parts is not None else {"train": _samples(6), "test": _samples(4, 6)}
        self.reads = 0

    def read(self) -> dict[str, Samples]:
        self.reads += 1
        self.classes = ("a", "b", "c")
        return self._given


class Rooted(Toy):
    needs_root = True


def _ready(*args, **options) -> Toy:
    data = Toy(*args, **options)
    data.setup()
    return data


def test_setup_reads_once():
    data = Toy()
    data.setup("fit")
    data.setup("validate")
    assert data.reads == 1


def test_shape_and_classes_are_those_of_the_network():
    data = _ready()
    assert data.input_shape == (1, 4, 5)
    assert data.num_classes == 3


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"test": _samples(2)}, "no training sample"),
        ({"train": _samples(0)}, "no training sample"),
        ({"train": _samples(2), "test": _samples(2, shape=(5, 4, 1))}, "differ in shape"),
        ({"train": _samples(2, label=3)}, "3 classes are named"),
        ({"train": _samples(2), "unlabelled": _samples(2, label=-2)}, "unlabelled"),
        ({"train": Samples(torch.zeros(2, 3), torch.tensor([0, 1]))}, "vectors"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(DataError, match=message):
        _ready(parts)


def test_an_augmentation_that_does_not_fit_is_refused_before_training():
    with pytest.raises(ConfigError, match="reflecting 4"):
        _ready(augmentation=ImageAugmentation([0.5], [0.5], padding=4))


def test_a_missing_root_is_found_before_anything_is_read(tmp_path: Path):
    with pytest.raises(DataError, match="needs the folder"):
        Rooted().check()
    with pytest.raises(DataError, match="no folder"):
        Rooted(root=str(tmp_path / "none")).check()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match="no folder"):
        Rooted(root=str(file / "below")).check()
    Rooted(root=str(tmp_path)).check()
    Toy().check()


def test_pools_hold_the_parts_that_role_and_protocol_name():
    unlabelled = _samples(3, 10, label=-1)
    data = _ready({"train": _samples(6), "test": _samples(4, 6), "unlabelled": unlabelled})

    def pixels(role, protocol) -> list[int]:
        return data.pool(role, protocol).inputs[:, 0, 0, 0].tolist()

    assert pixels("train", "all") == list(range(10))
    assert pixels("train", "split") == list(range(6))
    assert pixels("pretext", "all") == list(range(13))
    assert pixels("pretext", "split") == [0, 1, 2, 3, 4, 5, 10, 11, 12]
    assert pixels("test", "all") == pixels("test", "split") == [6, 7, 8, 9]


def test_the_same_samples_are_never_joined_or_placed_twice():
    data = _ready()
    assert data.pool("train", "all") is data.pool("pretext", "all")
    assert data.pool("train", "split") is data.parts["train"]
    first = data.training_loader("pretext", "all", batch_size=2)
    second = data.training_loader("train", "all", batch_size=5)
    third = data.evaluation_loader("train", "all", batch_size=5)
    assert first.samples is second.samples is third.samples


def test_a_missing_test_part_says_what_needs_it():
    data = _ready({"train": _samples(6)})
    assert len(data.pool("train", "all")) == 6
    with pytest.raises(DataError, match="protocol=split needs"):
        data.pool("test", "split")


def test_fingerprint_is_of_all_parts():
    one = _ready().fingerprint()
    assert one == _ready().fingerprint()
    assert one != _ready({"train": _samples(6), "test": _samples(4, 7)}).fingerprint()
    assert one != _ready({"train": _samples(6), "unlabelled": _samples(4, 6)}).fingerprint()


def test_lightning_gets_the_loaders_in_use():
    data = _ready()
    train = data.training_loader("train", "split", batch_size=2)
    val = [data.evaluation_loader("test", "split", batch_size=2)]
    data.use(train=train, val=val)
    assert data.train_dataloader() is train
    assert data.val_dataloader() is val
    data.use(train=train)
    assert data.val_dataloader() == []


def test_loaders_serve_their_pool():
    data = _ready()
    train = data.training_loader("train", "split", batch_size=3, views=2, seed=1, stage="x")
    assert sorted(torch.cat([b.index for b in train]).tolist()) == list(range(6))
    assert all(len(b.views) == 2 for b in train)
    clean = list(data.evaluation_loader("test", "all", batch_size=3))
    assert torch.cat([b.index for b in clean]).tolist() == [0, 1, 2, 3]
    assert torch.equal(torch.cat([b.labels for b in clean]), data.parts["test"].labels)


def test_a_stage_may_bring_its_own_augmentation():
    data = _ready()
    own = ImageAugmentation([0.0], [1.0])
    assert data.training_loader("train", "split", batch_size=3, augmentation=own).augmentation is own


@pytest.mark.parametrize(
    ("resident", "mapped", "in_place"),
    [
        ("auto", False, True),
        ("auto", True, False),
        ("host", False, False),
        ("device", True, True),
    ],
)
def test_on_the_cpu_nothing_is_copied_and_maps_are_read_ahead(resident, mapped, in_place, tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (4, 2, 2, 1))
    samples = Samples(
        torch.from_numpy(array), torch.zeros(4, dtype=torch.int64), None, "h" if mapped else None
    )
    data = _ready({"train": samples}, resident=resident)
    loader = data.training_loader("train", "all", batch_size=2)
    assert loader.resident is in_place
    assert loader.samples.inputs.data_ptr() == samples.inputs.data_ptr()


def test_asking_before_setup_says_so():
    with pytest.raises(RuntimeError, match="setup"):
        Toy().pool("train", "all")


def test_lightning_trains_and_validates_on_the_loaders(tmp_path: Path):
    import pytorch_lightning as pl

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(20, 3)
            self.seen: list[int] = []
            self.scored: list[int] = []

        def training_step(self, batch, _):
            self.seen += batch.index.tolist()
            return torch.nn.functional.cross_entropy(self.layer(batch.views[0].flatten(1)), batch.labels)

        def validation_step(self, batch, _):
            self.scored += batch.index.tolist()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = _ready()
    data.use(
        train=data.training_loader("train", "all", batch_size=5),
        val=data.evaluation_loader("test", "all", batch_size=3),
    )
    net = Net()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(net, datamodule=data)
    assert sorted(net.seen) == list(range(10))
    assert net.scored == [0, 1, 2, 3]


@pytest.mark.gpu
def test_small_sets_move_to_the_gpu_and_host_sets_do_not():
    assert _ready().training_loader("train", "all", batch_size=2, device="cuda").samples.inputs.is_cuda
    host = _ready(resident="host").training_loader("train", "all", batch_size=2, device="cuda")
    assert not host.samples.inputs.is_cuda
    assert next(iter(host)).views[0].is_cuda
