"""COCO: its parts, its outlines, and what is wrong with a file in its format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from scarcely.data.coco import COCO
from scarcely.errors import DataError
from tests.oracles.masks import compressed, run_lengths

from .files import RGB, write_image

SIZE = (20, 30)
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 17, "name": "cat"}]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path_factory.mktemp("cache")))


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def entry(image: int, category: int, box: list[float], **more) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def instances(*entries: dict, images: int = 2) -> dict:
    """Return a file's content: images 7, 8, …, and annotations 100, 101, …"""
    return {
        "images": [
            {"id": 7 + k, "file_name": f"{7 + k:012}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for k in range(images)
        ],
        "annotations": [{"id": 100 + k, **one} for k, one in enumerate(entries)],
        "categories": [dict(one) for one in CATEGORIES],
    }


def release(root: Path, year: int = 2014, **parts: dict) -> Path:
    for part, content in parts.items():
        path = root / "annotations" / f"instances_{part}{year}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for one in content["images"]:
            write_image(root / f"{part}{year}" / one["file_name"], one["id"], (*SIZE, 3))
    return root


def coco(root: Path, **options) -> COCO:
    module = COCO(augmentation=RGB, root=str(root), image_size=8, **options)
    module.check()
    module.setup()
    return module


def wrong(root: Path, **options) -> DataError:
    with pytest.raises(DataError) as error:
        coco(root, **options)
    assert error.value.where
    assert error.value.instead
    return error.value


CAT = entry(7, 17, [2, 3, 10, 5], segmentation=[rectangle(2, 3, 10, 5)])


def test_train_and_val_are_the_parts_and_a_sole_one_is_the_train_part(tmp_path):
    both = coco(release(tmp_path / "both", train=instances(CAT), val=instances(images=3)))
    assert {part: len(samples) for part, samples in both.parts.items()} == {"train": 2, "test": 3}
    sole = coco(release(tmp_path / "sole", 2017, val=instances(CAT)), year=2017)
    assert {part: len(samples) for part, samples in sole.parts.items()} == {"train": 2}
    assert sole.parts["train"].names == ("val2017/000000000007.jpg", "val2017/000000000008.jpg")


def test_categories_are_numbered_by_their_ids_whatever_these_are(tmp_path):
    content = instances(
        entry(8, 90, [0, 0, 5, 5]), entry(7, 1, [0, 0, 4, 4]), entry(7, 17, [0, 0, 9, 9], iscrowd=1)
    )
    module = coco(release(tmp_path, train=content))
    assert module.classes == ("person", "cat", "toothbrush")
    assert module.parts["train"].labels.tolist() == [0, 2]
    assert module.targets("train", "all").tolist() == [[1, -1, 0], [0, 0, 1]]


def test_an_own_file_lies_anywhere_and_its_images_below_the_root(tmp_path):
    content = instances(CAT)
    for one in content["images"]:
        one["file_name"] = f"holiday/{one['file_name']}"
        write_image(tmp_path / "photos" / one["file_name"], one["id"], (*SIZE, 3))
    (tmp_path / "own.json").write_text(json.dumps(content))
    module = coco(tmp_path / "photos", annotations=str(tmp_path / "own.json"))
    assert module.parts["train"].names[0] == "holiday/000000000007.jpg"
    (tmp_path / "own.json").rename(tmp_path / "photos" / "own.json")
    assert len(coco(tmp_path / "photos", annotations="own.json").parts["train"]) == 2
    (tmp_path / "photos" / "holiday").rename(tmp_path / "photos" / "val2014")
    (tmp_path / "photos" / "own.json").write_text(json.dumps(instances(CAT)))
    module = coco(tmp_path / "photos", annotations="own.json")
    assert module.parts["train"].names[0] == "val2014/000000000007.jpg"


def test_all_ways_to_write_a_mask_say_the_same(tmp_path):
    expected = np.zeros(SIZE, dtype=bool)
    expected[3:8, 2:12] = expected[10:12, 20:29] = True
    box = [2, 3, 27, 9]
    runs = run_lengths(expected.tolist())
    content = instances(
        entry(7, 17, box, segmentation=[rectangle(2, 3, 10, 5), rectangle(20, 10, 9, 2)]),
        entry(7, 1, box, segmentation={"size": [*SIZE], "counts": runs}, iscrowd=1),
        entry(7, 90, box, segmentation={"size": [*SIZE], "counts": compressed(runs)}),
        entry(7, 90, [4, 1, 3, 2]),
    )
    module = coco(release(tmp_path, train=content))
    first, second = module.annotated("train", "all")
    assert first.difficult.tolist() == [False, True, False, False]
    assert first.boxes.tolist() == [[2, 3, 29, 12]] * 3 + [[4, 1, 7, 3]]
    masks = first.masks()
    for mask in masks[:3]:
        np.testing.assert_array_equal(mask, expected)
    box_alone = np.zeros(SIZE, dtype=bool)
    box_alone[1:3, 4:7] = True
    np.testing.assert_array_equal(masks[3], box_alone)
    assert second.masks is None
    assert second.boxes.shape == (0, 4)
    np.testing.assert_array_equal(module.objects("train", "all")[0].region(2), expected | box_alone)


def test_a_flat_sliver_of_the_release_is_a_pixel_wide(tmp_path):
    sliver = [5.0, 8.0, 5.0, 8.0, 6.0, 8.0, 6.0, 8.0]
    content = instances(entry(7, 17, [5, 8, 1, 0], segmentation=[sliver]))
    image = coco(release(tmp_path, train=content)).objects("train", "all")[0]
    assert image.region(1)[8, 5]
    assert int(image.region(1).sum()) <= 2


CHANGES = {
    "annotation 100 is of image 99": lambda c: c["annotations"][0].update(image_id=99),
    "annotation 100 is of category 3": lambda c: c["annotations"][0].update(category_id=3),
    "id 7 occurs twice in images": lambda c: c["images"].append(c["images"][0]),
    "id 100 occurs twice in annotations": lambda c: c["annotations"].append(c["annotations"][0]),
    "000000000007.jpg is annotated twice": lambda c: c["images"][1].update(file_name="000000000007.jpg"),
    "same name": lambda c: c["categories"].append({"id": 3, "name": "cat"}),
    "no list 'images'": lambda c: c.pop("images"),
    "has no images": lambda c: c.update(images=[], annotations=[]),
    r"images\[0\] has no width that is a whole number": lambda c: c["images"][0].pop("width"),
    "image 8 has 0 x 20": lambda c: c["images"][1].update(width=0),
    "1 of 2 annotated images are missing.*no.jpg": lambda c: c["images"][1].update(file_name="no.jpg"),
    "30 x 20 pixels, its annotation says 31 x 20": lambda c: c["images"][1].update(width=31),
    r"from \(2, 3\) to \(2, 8\) is empty": lambda c: c["annotations"][0].update(
        bbox=[2, 3, 0, 5], segmentation=[]
    ),
    r"from \(2, 3\) to \(-8, 8\) is empty": lambda c: c["annotations"][0].update(bbox=[2, 3, -10, 5]),
    r"to \(42, 8\) is empty or outside": lambda c: c["annotations"][0].update(bbox=[2, 3, 40, 5]),
    r"bbox is \[2, 3\]": lambda c: c["annotations"][0].update(bbox=[2, 3]),
    "annotations.0. has no bbox that is a list": lambda c: c["annotations"][0].pop("bbox"),
    r"from \(50, 3\) to \(60, 8\)": lambda c: c["annotations"][0].update(
        segmentation=[rectangle(50, 3, 10, 5)]
    ),
    r"segmentation is \[1, 2, 3\]": lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]),
    "segmentation is here": lambda c: c["annotations"][0].update(segmentation="here"),
    r"mask has \[30, 20\] pixels, its image \[20, 30\]": lambda c: c["annotations"][0].update(
        segmentation={"size": [30, 20], "counts": [600]}
    ),
    "601 pixels, not 20 x 30": lambda c: c["annotations"][0].update(
        segmentation={"size": [20, 30], "counts": [600, 1]}
    ),
    "'!' does not occur": lambda c: c["annotations"][0].update(
        segmentation={"size": [20, 30], "counts": "!"}
    ),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_wrong_entry_is_named(tmp_path, reason):
    content = instances(CAT)
    release(tmp_path, train=content)
    CHANGES[reason](content)
    (tmp_path / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    error = wrong(tmp_path)
    assert re.search(reason, error.what), error.what
    assert "instances_train2014.json" in error.where


@pytest.mark.parametrize(("text", "reason"), [('{"images": [', "broken in line 1"), ("[]", "no keys")])
def test_a_broken_file_is_named(tmp_path, text, reason):
    release(tmp_path, train=instances(CAT))
    (tmp_path / "annotations" / "instances_train2014.json").write_text(text)
    assert reason in wrong(tmp_path).what


def test_a_folder_without_annotations_is_told_what_is_missing(tmp_path):
    assert "instances_train2017.json" in wrong(tmp_path, year=2017).what
    assert wrong(tmp_path, annotations="own.json").where == "data.annotations"
    assert wrong(tmp_path / "none").where == "data.root"


def test_a_class_of_the_test_part_alone_is_refused(tmp_path):
    train = instances(CAT) | {"categories": CATEGORIES[2:]}
    error = wrong(release(tmp_path, train=train, val=instances(entry(7, 90, [0, 0, 5, 5]))))
    assert "'toothbrush'" in error.what
    assert "instances_val2014.json" in error.where
