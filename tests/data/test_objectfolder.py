"""Own images with boxes or masks, in four layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scarcely.data.objectfolder import VOID, ObjectFolder
from scarcely.errors import ConfigError, DataError

from .files import RGB, write_image
from .test_coco import entry, instances
from .test_voc import xml

SIZE = (20, 30)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path_factory.mktemp("cache")))


def images(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_image(folder / name, seed, (*SIZE, 3))
    return folder


def write_mask(path: Path, *objects: tuple[int, slice, slice], palette: bool = False) -> np.ndarray:
    """Write indices, each (index, rows, columns), on ground of 0."""
    pixels = np.zeros(SIZE, dtype=np.uint8)
    for index, rows, columns in objects:
        pixels[rows, columns] = index
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = Image.fromarray(pixels, mode="P")
        image.putpalette([200, 10, 60] * 256)
    image.save(path)
    return pixels


def objects(root: Path, **options) -> ObjectFolder:
    module = ObjectFolder(augmentation=RGB, root=str(root), image_size=8, **options)
    module.check()
    module.setup()
    return module


def wrong(root: Path, **options) -> DataError:
    with pytest.raises(DataError) as error:
        objects(root, **options)
    assert error.value.where
    assert error.value.instead
    return error.value


# -- four layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pictures", "notes"), [("", ""), ("", "Annotations/"), ("images/", "images/"), ("JPEGImages/", "")]
)
def test_boxes_lie_beside_the_images_or_in_a_folder(tmp_path, pictures, notes):
    images(tmp_path, f"{pictures}a.jpg", f"{pictures}b.png")
    (tmp_path / notes).mkdir(exist_ok=True)
    (tmp_path / notes / "a.xml").write_text(xml(("zebra", 1, 1, 10, 10), ("ant", 2, 2, 3, 3)))
    (tmp_path / notes / "b.xml").write_text(xml(("bee", 1, 1, 10, 10)))
    module = objects(tmp_path)
    assert module.classes == ("ant", "bee", "zebra")
    assert module.parts["train"].names == (f"{pictures}a.jpg", f"{pictures}b.png")
    assert module.parts["train"].labels.tolist() == [2, 1]
    assert module.annotated("train", "all")[0].boxes.tolist() == [[0, 0, 10, 10], [1, 1, 3, 3]]


@pytest.mark.parametrize("pictures", ["", "images/"])
def test_a_json_file_says_all(tmp_path, pictures):
    content = instances(entry(8, 17, [2, 3, 10, 5]))
    images(tmp_path, *(pictures + one["file_name"] for one in content["images"]))
    (tmp_path / "labels.json").write_text(json.dumps(content))
    module = objects(tmp_path)
    assert module.classes == ("person", "cat", "toothbrush")
    assert module.parts["train"].labels.tolist() == [-1, 1]


@pytest.mark.parametrize("palette", [False, True])
def test_a_mask_of_indices_has_an_object_of_each_class(tmp_path, palette):
    images(tmp_path, "images/a.jpg", "images/b.jpg")
    pixels = write_mask(
        tmp_path / "masks/a.png",
        (10, slice(2, 6), slice(3, 9)),
        (2, slice(10, 12), slice(0, 30)),
        (VOID, slice(6, 8), slice(3, 9)),
        palette=palette,
    )
    write_mask(tmp_path / "masks/b.png", palette=palette)
    module = objects(tmp_path)
    assert module.classes == ("class 2", "class 10")
    first, second = module.annotated("train", "all")
    assert first.boxes.tolist() == [[0, 10, 30, 12], [3, 2, 9, 6]]
    np.testing.assert_array_equal(first.masks(), np.stack([pixels == 2, pixels == 10]))
    assert second.masks().shape == (0, *SIZE)
    assert module.targets("train", "all").tolist() == [[1, 1], [0, 0]]
    named = objects(tmp_path, classes=[f"name {k}" for k in range(1, 11)])
    assert named.annotated("train", "all")[0].labels.tolist() == [1, 9]
    assert named.classes[9] == "name 10"


def test_masks_in_folders_of_classes_are_objects_of_these(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg")
    cat = write_mask(tmp_path / "masks/cat/a.png", (255, slice(2, 6), slice(3, 9)))
    bee = write_mask(tmp_path / "masks/bee/a.png", (1, slice(4, 8), slice(3, 9)))  # they may overlap
    write_mask(tmp_path / "masks/cat/b.png")
    module = objects(tmp_path)
    assert module.classes == ("bee", "cat")
    first, second = module.annotated("train", "all")
    np.testing.assert_array_equal(first.masks(), np.stack([bee > 0, cat > 0]))
    assert first.labels.tolist() == [0, 1]
    assert second.masks().shape == (0, *SIZE)
    image = module.objects("train", "all")[0]
    np.testing.assert_array_equal(image.region(1), cat > 0)


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_folders_for_training_and_test_share_their_classes(tmp_path, test):
    for part, name in (("train", "cat"), (test, "ant")):
        images(tmp_path / part, "a.jpg", "b.jpg")
        for stem in ("a", "b"):
            (tmp_path / part / f"{stem}.xml").write_text(xml((name, 1, 1, 10, 10)))
    module = objects(tmp_path)
    assert module.classes == ("ant", "cat")
    assert module.parts["train"].labels.tolist() == [1, 1]
    assert module.parts["test"].labels.tolist() == [0, 0]
    assert module.parts["test"].names == (f"{test}/a.jpg", f"{test}/b.jpg")


def test_classes_that_are_given_have_their_order(tmp_path):
    images(tmp_path, "a.jpg")
    (tmp_path / "a.xml").write_text(xml(("bee", 1, 1, 10, 10)))
    assert objects(tmp_path, classes=["cat", "bee"]).parts["train"].labels.tolist() == [1]
    error = wrong(tmp_path, classes=["cat", "dog"])
    assert "'bee'" in error.what
    assert error.where.endswith("a.xml")
    with pytest.raises(ConfigError, match="cat, cat"):
        ObjectFolder(augmentation=RGB, root=str(tmp_path), classes=["cat", "cat"])


# -- bad input -----------------------------------------------------------------------------------


def test_images_and_annotations_must_pair(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.xml").write_text(xml(("bee", 1, 1, 10, 10)))
    error = wrong(tmp_path)
    assert "b.jpg has no annotation" in error.what
    for stem in ("b", "c"):
        (tmp_path / f"{stem}.xml").write_text(xml())
    error = wrong(tmp_path)
    assert "no image c" in error.what
    assert error.where.endswith("c.xml")
    (tmp_path / "c.xml").unlink()
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(xml())
    assert "two annotations of a" in wrong(tmp_path).what


def test_two_images_of_one_name_are_refused(tmp_path):
    images(tmp_path, "a.jpg", "a.png")
    (tmp_path / "a.xml").write_text(xml())
    assert "same annotation" in wrong(tmp_path).what


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["a.jpg"], "holds no annotation"),
        (["a.xml"], "holds no image"),
        (["a.jpg", "a.xml", "labels.json"], "holds a JSON file, XML files"),
        (["a.jpg", "one.json", "two.json"], "holds 2 JSON files: one.json, two.json"),
        (["a.jpg", "masks/a.png", "masks/cat/a.png"], "holds masks of classes, masks"),
        (["a.jpg", "masks/a.jpg"], "is no PNG"),
        (["test/a.jpg", "test/a.xml"], "holds no annotation"),
    ],
)
def test_a_folder_that_is_not_understood_says_why(tmp_path, files, reason):
    for name in files:
        if name.endswith(("xml", "json")):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("{}")
        else:
            images(tmp_path, name)
    error = wrong(tmp_path)
    assert re.search(reason, error.what), error.what


def test_masks_without_an_image_or_for_none_are_named(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg")
    write_mask(tmp_path / "masks/cat/a.png", (1, slice(2, 6), slice(3, 9)))
    assert "b.jpg has no mask" in wrong(tmp_path).what
    write_mask(tmp_path / "masks/cat/c.png", (1, slice(2, 6), slice(3, 9)))
    assert wrong(tmp_path).where.endswith("c.png")


@pytest.mark.parametrize("layout", ["masks", "masks/cat"])
def test_a_mask_of_another_size_or_of_colours_is_named(tmp_path, layout):
    images(tmp_path, "a.jpg")
    path = tmp_path / layout / "a.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.ones((10, 15), dtype=np.uint8)).save(path)
    error = wrong(tmp_path)
    assert "30 x 20 pixels, its annotation says 15 x 10" in error.what
    assert str(path) in error.where
    Image.fromarray(np.ones((*SIZE, 3), dtype=np.uint8)).save(path)
    assert "colours RGB" in wrong(tmp_path).what
    path.write_bytes(b"no image")
    assert "cannot read the mask" in wrong(tmp_path).what


def test_masks_of_one_image_have_one_size(tmp_path):
    images(tmp_path, "a.jpg")
    write_mask(tmp_path / "masks/cat/a.png", (1, slice(2, 6), slice(3, 9)))
    write_mask(tmp_path / "masks/bee/a.png")
    Image.fromarray(np.ones((10, 15), dtype=np.uint8)).save(tmp_path / "masks/bee/a.png")
    assert "several sizes" in wrong(tmp_path).what


def test_an_index_without_a_name_is_refused(tmp_path):
    images(tmp_path, "a.jpg")
    write_mask(tmp_path / "masks/a.png", (3, slice(2, 6), slice(3, 9)))
    error = wrong(tmp_path, classes=["cat", "bee"])
    assert "class 3, and data.classes names 2" in error.what
    assert error.where.endswith("a.png")
