from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from scarcely.config.signature import constant_of
from scarcely.data.imagenet import ImageNet, held_out
from scarcely.errors import DataError

from .files import RGB, noise, write_image

KNOWN = ("n01440764", "n01443537", "n15075141")  # tench, goldfish, toilet paper


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path_factory.mktemp("cache")))


def new(letter: str) -> list[str]:
    return sorted(wnid for wnid, letters in held_out().items() if letter in letters)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two images of each of three known and of all held-out classes."""
    for number, wnid in enumerate([*KNOWN, *held_out()]):
        for image in range(2):
            write_image(tmp_path / f"train/{wnid}/{wnid}_{image}.png", seed=2 * number + image)
    return tmp_path


def load(root: Path, **options) -> ImageNet:
    module = ImageNet(augmentation=RGB, root=str(root), size=8, **options)
    module.check()
    module.prepare_data()
    module.setup()
    return module


def test_118_classes_are_held_out_in_three_sets_of_30():
    assert len(held_out()) == 118
    assert [len(new(letter)) for letter in "ABC"] == [30, 30, 30]
    assert set().union(*held_out().values()) == set("ABC")
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in held_out())
    assert list(held_out()) == sorted(held_out())
    assert files("scarcely.data").joinpath("imagenet_splits.txt").is_file()


@pytest.mark.parametrize("letter", "ABC")
def test_known_classes_come_first_and_both_are_sorted(root, letter):
    module = load(root, new_set=letter)
    assert module.classes == (*KNOWN, *new(letter))
    assert (module.num_known, module.num_new) == (3, 30)
    assert module.parts["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert module.parts["unlabelled"].labels.tolist() == [label for label in range(3, 33) for _ in range(2)]
    seed = 2 * (len(KNOWN) + list(held_out()).index(new(letter)[0]))
    np.testing.assert_array_equal(module.parts["unlabelled"].inputs[0], noise(seed, 8, 8, 3))
    assert module.parts["unlabelled"].names[0] == f"train/{new(letter)[0]}/{new(letter)[0]}_0.png"
    assert set(module.parts) == {"train", "unlabelled"}


def test_both_parts_together_are_not_copied(root):
    module = load(root)
    assert module.pool("labelled", "split") is module.parts["train"]
    assert module.pool("unlabelled", "split") is module.parts["unlabelled"]
    both = module.pool("mixed", "split")
    assert len(both) == 66
    assert both.inputs.data_ptr() == module.parts["train"].inputs.data_ptr()


def test_a_set_too_large_for_memory_stays_mapped(root, monkeypatch):
    monkeypatch.setattr("scarcely.data.decode._IN_MEMORY", 0)
    module = load(root)
    both = module.pool("mixed", "split")
    assert both.inputs.data_ptr() == module.parts["train"].inputs.data_ptr()
    assert both.source
    assert len({part.source for part in (both, *module.parts.values())}) == 3
    assert not module.training_loader("mixed", "split", batch_size=4).resident


def test_val_is_the_test_part_where_it_has_class_folders(root):
    write_image(root / "val/ILSVRC2012_val_00000001.png")
    assert "test" not in load(root).parts
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")
    test = load(root).parts["test"]
    assert len(test) == 66, "classes of the other sets are left out"
    assert sorted(set(test.labels.tolist())) == list(range(33))


def test_a_bad_file_may_be_skipped(root):
    (root / f"train/{KNOWN[0]}/{KNOWN[0]}_0.png").write_text("x")
    with pytest.raises(DataError, match="not an image"):
        load(root)
    with pytest.warns(UserWarning, match="1 of 66"):
        module = load(root, on_error="skip")
    assert module.skipped == (f"train/{KNOWN[0]}/{KNOWN[0]}_0.png",)
    assert module.parts["train"].labels.tolist() == [0, 1, 1, 2, 2]
    assert len(module.parts["unlabelled"]) == 60


def test_missing_classes_are_told_before_anything_is_read(root, tmp_path_factory):
    shutil.rmtree(root / "train" / new("B")[3])
    shutil.rmtree(root / "train" / new("B")[7])
    module = ImageNet(augmentation=RGB, root=str(root), new_set="B")
    with pytest.raises(DataError, match=f"{new('B')[3]} is missing, and 1 more of set B") as error:
        module.check()
    assert "train/WNID" in str(error.value)
    empty = ImageNet(augmentation=RGB, root=str(tmp_path_factory.mktemp("empty")))
    with pytest.raises(DataError, match="and 29 more of set A"):
        empty.check()
    for wnid in KNOWN:
        shutil.rmtree(root / "train" / wnid)
    with pytest.raises(DataError, match="no known class"):
        ImageNet(
            augmentation=RGB, root=str(root), new_set="C" if new("B")[3] not in new("C") else "A"
        ).check()


def test_a_class_without_images_is_named(root):
    shutil.rmtree(root / "train" / KNOWN[1])
    (root / "train" / KNOWN[1]).mkdir()
    with pytest.raises(DataError, match=f"{KNOWN[1]} holds no image"):
        load(root)


def test_the_configuration_knows_that_there_is_something_to_discover():
    target = "scarcely.data.imagenet.ImageNet"
    assert constant_of(target, "discovers") is True
    assert constant_of(target, "split_keys") == ("new_set",)
