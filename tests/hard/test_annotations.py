"""Annotation files of nonsense: each is read as it says, or one message names it."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely.data.annotations import read_annotations
from scarcely.data.coco import COCO
from scarcely.data.objectfolder import ObjectFolder
from scarcely.data.objects import ObjectImages
from scarcely.data.split import read_labelled
from scarcely.data.voc import VOC
from scarcely.errors import UserError
from tests.data.files import RGB, write_image
from tests.data.test_coco import CAT, entry, instances
from tests.data.test_coco import release as coco_release
from tests.data.test_voc import DOG, xml
from tests.data.test_voc import release as voc_release

CASES = int(os.environ.get("SCARCELY_CASES", "400"))  # of each kind of file
ODD = (
    *(None, True, False, 0, -1, 1, 7, 1.5, -0.0, 10**6, 2**31, 2**63, 10**400, -(10**400), 1e300),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "x", "0", "/", "..", "../x", "a\0b", "\ud800"),
    *("é" * 300, [], {}, [[]], [None], [1, 2, 3, 4], {"x": 1}, {"size": [20, 30], "counts": "0"}),
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path_factory.mktemp("cache")))


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Return every place in nested lists and mappings, as the container and the key or position."""
    for key in content if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from places(content[key])


def damaged(content: Any, draw: random.Random) -> Any:
    """Return a copy with one to three changes: values replaced, left out, doubled or exchanged."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        found = list(places(content))
        if not found:
            break
        container, key = draw.choice(found)
        how = draw.choice(["replace"] * 6 + ["drop", "double", "exchange"])
        if how == "replace":
            container[key] = copy.deepcopy(draw.choice(ODD))
        elif how == "drop":
            del container[key]
        elif how == "double" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            other, place = draw.choice(found)
            container[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(container[key])
    return content


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """Cut a file off, or change, insert or repeat some of its bytes."""
    how = draw.choice(["cut", "flip", "insert", "repeat", "zero"])
    at = draw.randrange(len(content) + 1)
    if how == "cut":
        return content[:at]
    if how == "flip":
        changed = bytearray(content)
        for _ in range(draw.choice([1, 3, 30])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)
    if how == "insert":
        return content[:at] + draw.randbytes(draw.choice([1, 4, 100])) + content[at:]
    if how == "repeat":
        return content[:at] + content[draw.randrange(at + 1) :]
    return content[:at] + bytes(len(content) - at)


def survives(read: Callable[[], object], what: object) -> bool:
    """Whether a file was read; a message that names it is the only other end.

    A text that cannot be printed would end the process after all.
    """
    told = None
    try:
        read()
    except UserError as error:
        told = error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}, of {what!r}") from error
    if told is None:
        return True
    assert told.what.strip(), what
    assert told.where, what
    str(told).encode("utf-8", "backslashreplace")
    return False


def objects_of(make: Callable[..., ObjectImages], root: Path, **options: Any) -> Callable[[], None]:
    """Return what reads a data set with objects whole: squares, boxes and masks."""

    def read() -> None:
        data = make(augmentation=RGB, root=str(root), image_size=8, **options)
        data.check()
        data.setup()
        for one in data.objects("train", "all"):
            for label in one.classes():
                assert one.region(label).shape == tuple(one.size)

    return read


def instances_with_everything() -> dict:
    outlined = entry(8, 1, [1, 1, 5, 5], segmentation={"size": [20, 30], "counts": [100, 20, 480]}, iscrowd=1)
    return instances(CAT, outlined, entry(7, 90, [0, 0, 30, 20]))


@pytest.mark.slow
def test_annotation_files_of_coco(tmp_path):
    path = coco_release(tmp_path, train=instances_with_everything()) / "annotations/instances_train2014.json"
    whole, draw = json.loads(path.read_text()), random.Random(0)
    read = objects_of(COCO, tmp_path)
    count = 0
    for case in range(CASES):
        if case % 3:
            text = json.dumps(damaged(whole, draw)).encode()
        else:
            text = damaged_bytes(json.dumps(whole).encode(), draw)
        path.write_bytes(text)
        count += survives(read, text)
    assert 0 < count < CASES


@pytest.mark.parametrize("key", ["bbox", "segmentation"])
def test_whole_numbers_beyond_any_other(tmp_path, key):
    """JSON has them, and floats end at 1e308."""
    huge = {"bbox": [1, 1, 10**400, 5], "segmentation": [[1, 1, 5, 1, 5, 10**400]]}[key]
    content = instances_with_everything()
    root = coco_release(tmp_path, train=content)
    content["annotations"][0][key] = huge
    (root / "annotations/instances_train2014.json").write_text(json.dumps(content))
    assert not survives(objects_of(COCO, root), key)


@pytest.mark.parametrize("name", ["x" * 5000, "../x", "/etc/passwd"])
def test_a_list_names_files_and_no_paths(tmp_path, name):
    folder = voc_release(tmp_path, {"val": "x y"})
    (folder / "ImageSets" / "Main" / "val.txt").write_text(f"x\n{name}\n")
    assert not survives(objects_of(VOC, folder), name)


@pytest.mark.slow
def test_annotation_files_of_the_decathlon(tmp_path):
    path = tmp_path / "some_train.json"
    names = [f"data/some/train/{i}.png" for i in range(4)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    whole = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": 9 + i, "image_id": i, "category_id": i % 2} for i in range(4)],
        "categories": [{"id": i, "name": "a", "supercategory": "b"} for i in range(2)],
    }
    draw, count = random.Random(0), 0
    for case in range(CASES):
        text = (
            json.dumps(damaged(whole, draw)).encode()
            if case % 3
            else damaged_bytes(json.dumps(whole).encode(), draw)
        )
        path.write_bytes(text)
        count += survives(lambda: read_annotations(path).check_files(tmp_path), text)
    assert 0 < count < CASES


@pytest.mark.slow
def test_annotation_files_of_voc(tmp_path):
    folder = voc_release(tmp_path, {"val": "x y"})
    path = folder / "Annotations" / "x.xml"
    whole, draw, count = xml(DOG, ("cat", 5, 5, 9, 9)), random.Random(0), 0
    numbers = (
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-1",
        "",
        "0x10",
        "1_000",
        "٣",
        "9" * 400,
        "1e300",
        "&amp;",
        "<a/>",
    )
    for case in range(CASES):
        if case % 3:
            found = draw.choice(list(re.finditer(r">([^<\n]+)<", whole)))
            text = (whole[: found.start(1)] + draw.choice(numbers) + whole[found.end(1) :]).encode()
        else:
            text = damaged_bytes(whole.encode(), draw)
        path.write_bytes(text)
        count += survives(objects_of(VOC, folder), text)
    assert 0 < count < CASES


def test_an_annotation_that_names_itself_over_and_over_costs_no_memory(tmp_path):
    """Entities within entities: a kilobyte that would be gigabytes."""
    folder = voc_release(tmp_path, {"val": "x y"})
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "lol">{entities}]>' + xml(DOG).replace("<name>dog", "<name>&e9;")
    (folder / "Annotations" / "x.xml").write_text(bomb)
    assert not survives(objects_of(VOC, folder), "entities")


@pytest.mark.slow
def test_lists_of_voc(tmp_path):
    folder = voc_release(tmp_path, {"val": "x y"})
    path, draw, count = folder / "ImageSets" / "Main" / "val.txt", random.Random(0), 0
    lists = [
        "x\ny\n",
        "x",
        "x\r\ny\r\n",
        "x y",
        "../x\n",
        "/etc/passwd\n",
        "a\0b\n",
        "\ufeffx\ny\n",
        "é\n",
        "x" * 5000,
    ]
    for case in range(CASES // 4):
        text = (
            damaged_bytes(draw.choice(lists).encode(), draw) if case >= len(lists) else lists[case].encode()
        )
        path.write_bytes(text)
        count += survives(objects_of(VOC, folder), text)
    assert 0 < count < CASES // 4


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["masks", "masks/cat"])
def test_masks_of_ones_own(tmp_path, layout):
    for number in range(3):
        write_image(tmp_path / f"{number}.jpg", number, (20, 30, 3))
        write_image(tmp_path / layout / f"{number}.png", number, (20, 30))
    path = tmp_path / layout / "1.png"
    draw, count = random.Random(0), 0
    for mode in ("1", "L", "P", "I;16", "RGB", "RGBA", "LA"):
        pixels = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
        image = Image.fromarray(pixels)
        image = Image.fromarray(pixels.astype(np.uint16)) if mode == "I;16" else image.convert(mode)
        image.save(path)
        whole = path.read_bytes()
        for case in range(CASES // 8):
            path.write_bytes(damaged_bytes(whole, draw) if case else whole)
            count += survives(objects_of(ObjectFolder, tmp_path), (mode, path.read_bytes()))
    assert 0 < count < CASES


@pytest.mark.slow
def test_files_of_labelled_samples(tmp_path):
    labels, classes, names = torch.tensor([0, 1, 0, -1]), ("a", "b,c"), ("w", 'x"', "y\n", "z")
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerows([("index", "class", "file"), (0, "a", "w"), (1, "b,c", 'x"'), (2, "a", "y\n")])
    whole, draw, count = text.getvalue().encode(), random.Random(0), 0
    odd = [
        b"",
        b"index\n1\n",
        b"index,class\n" + b"9" * 5000 + b",a\n",
        b"index,class\n0,a,b,c\n",
        b'"' * 200_000,
    ]
    path = tmp_path / "labelled.csv"
    for case in range(CASES):
        content = odd[case] if case < len(odd) else damaged_bytes(whole, draw)
        path.write_bytes(content)
        count += survives(lambda: read_labelled(path, labels, classes, names), content[:200])
    assert 0 < count < CASES
