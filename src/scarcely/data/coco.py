"""COCO: photographs with the outlines of objects of 80 classes, and its annotation files (JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from scarcely.data.augment import ImageAugmentation
from scarcely.data.masks import decode_counts, polygon_mask, run_length_mask
from scarcely.data.object_files import Annotation, ObjectFiles, Reading, check_box
from scarcely.errors import DataError

__all__ = ["COCO", "read_instances"]

_FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
_TYPES = {int: "whole number", str: "text", list: "list"}
_FORMAT = (
    "images {id, file_name, width, height}, categories {id, name} and"
    " annotations {id, image_id, category_id, bbox, segmentation, iscrowd}"
)


class COCO(ObjectFiles):
    """COCO as it is published; the other arguments are those of `ObjectFiles`.

    ``annotations/instances_trainYEAR.json`` is the train part, ``instances_valYEAR.json`` the test part;
    where only one of them is there, it is the train part, which ``protocol=all`` scores too. What is marked
    as a crowd is difficult. The classes are the categories, in the order of their ids.

    Args:
        year: of the release.
        annotations: one file instead of these two, below the root or a path; all of its images are the train
            part, and lie below the root or in ``trainYEAR`` or ``valYEAR`` there.
    """

    def __init__(
        self,
        *,
        augmentation: ImageAugmentation,
        name: str = "coco",
        year: Literal[2014, 2017] = 2014,
        annotations: str | None = None,
        **files: Unpack[Reading],
    ) -> None:
        super().__init__(name=name, augmentation=augmentation, **files)
        self.year = year
        self.annotations = annotations

    def check(self) -> None:
        """Look whether there are annotation files.

        Raises:
            DataError: no root, or no annotation file.
        """
        super().check()
        self._files()

    def find(self) -> tuple[tuple[str, ...], dict[str, list[Annotation]]]:
        """Return the categories, and the annotations of ``train`` and, where there is one, ``test``.

        Raises:
            DataError: see `check`; or a file is wrong (see `read_instances`).
        """
        assert self.root is not None
        classes: tuple[str, ...] = ()
        found = {}
        for part, path in self._files().items():
            if self.annotations is None:
                folders = [self.root / path.stem.removeprefix("instances_"), self.root]
            else:
                folders = [self.root, *(self.root / f"{name}{self.year}" for name in ("train", "val"))]
            names, found[part] = read_instances(path, folders)
            classes = classes or names
        return classes, found

    def _files(self) -> dict[str, Path]:
        assert self.root is not None
        if self.annotations is not None:
            candidates = [
                self.root / Path(self.annotations).expanduser(),
                Path(self.annotations).expanduser(),
            ]
        else:
            candidates = [
                self.root / "annotations" / f"instances_{part}{self.year}.json" for part in ("train", "val")
            ]
        there = [path for path in candidates if path.is_file()]
        if not there:
            raise DataError(
                f"there is no file {candidates[0]}",
                where="data.annotations" if self.annotations is not None else "data.root, data.year",
                instead=f"instances_train{self.year}.json, instances_val{self.year}.json or both in"
                " ROOT/annotations; or data.annotations=FILE",
            )
        if self.annotations is not None:
            return {"train": there[0]}
        return dict(zip(("train", "test"), there, strict=False))


def read_instances(path: Path, folders: Sequence[Path]) -> tuple[tuple[str, ...], list[Annotation]]:
    """Read an annotation file as COCO writes it.

    Objects without a segmentation have their box as mask where others of the image have one; an image where
    none has one has boxes alone.

    Args:
        path: the JSON file.
        folders: where its images may lie: that of the first image counts for all.

    Returns:
        The names of the categories in the order of their ids, and the images in the order of the file.

    Raises:
        DataError: the file cannot be read or has another layout; an id, a file or a category's name occurs
            twice; an annotation is of an image or a category that does not exist, its box is empty or outside
            of its image, or its segmentation is none, or of another size.
    """
    content = _load(path)
    images, categories = _entries(content, "images", path), _entries(content, "categories", path)
    if not images:
        raise _wrong(path, "it has no images")
    names = {number: categories[number]["name"] for number in sorted(categories)}
    if len(set(names.values())) < len(names):
        raise _wrong(path, "two categories have the same name")
    objects: dict[int, list[_Object]] = {number: [] for number in images}
    for number, entry in _entries(content, "annotations", path).items():
        image = images.get(entry["image_id"])
        if image is None:
            raise _wrong(path, f"annotation {number} is of image {entry['image_id']}, which does not exist")
        if entry["category_id"] not in names:
            raise _wrong(
                path, f"annotation {number} is of category {entry['category_id']}, which does not exist"
            )
        where = f"{path}, annotation {number}"
        objects[image["id"]].append(_object(entry, names[entry["category_id"]], _size(image), where))
    first = next(iter(images.values()))["file_name"]
    folder = next((base for base in folders if (base / first).is_file()), folders[0])
    annotations = []
    for number, image in images.items():
        of_image, size = objects[number], _size(image)
        if min(size) < 1:
            raise _wrong(path, f"image {number} has {size[1]} x {size[0]} pixels")
        outlined = any(one.outline is not None for one in of_image)
        annotations.append(
            Annotation(
                folder / image["file_name"],
                path,
                size,
                [one.name for one in of_image],
                [one.box for one in of_image],
                [one.crowd for one in of_image],
                partial(_masks, tuple(of_image), size) if outlined else None,
            )
        )
    return tuple(names.values()), annotations


_Outline = tuple[np.ndarray, ...] | np.ndarray
"""The polygons of an object, each (K, 2), or the lengths of its runs, (R,)."""


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    crowd: bool
    outline: _Outline | None


def _object(entry: dict[str, Any], name: str, size: tuple[int, int], where: str) -> _Object:
    outline = _outline(entry.get("segmentation"), size, where)
    box = entry["bbox"]
    # Larger whole numbers than any float can be written too.
    if len(box) != 4 or not all(isinstance(side, int | float) and abs(side) < 2**31 for side in box):
        raise DataError(f"bbox is {str(box)[:80]}", where=where, instead="[x, y, width, height] in pixels")
    x, y, width, height = box
    if outline is not None:  # the release has a sliver or two whose box is flat
        width, height = max(width, 1 if width >= 0 else width), max(height, 1 if height >= 0 else height)
    corners = (x, y, x + width, y + height)
    check_box(corners, size, where=f"{where} ({name})")
    return _Object(name, corners, bool(entry.get("iscrowd", 0)), outline)


def _outline(segmentation: Any, size: tuple[int, int], where: str) -> _Outline | None:
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        return tuple(_polygon(one, size, where) for one in segmentation)
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, list | str):
        raise _no_segmentation(segmentation, where)
    said = segmentation.get("size")
    if said != [*size]:
        raise DataError(
            f"the mask has {said} pixels, its image {[*size]} (height, width)",
            where=where,
            instead="a mask of the image's size",
        )
    try:
        runs = np.asarray(decode_counts(counts) if isinstance(counts, str) else counts, dtype=np.int32)
        run_length_mask(runs, size)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"the run lengths of the mask are wrong: {error}", where=where, instead="as COCO writes them"
        ) from error
    return runs


def _polygon(numbers: Any, size: tuple[int, int], where: str) -> np.ndarray:
    try:
        flat = np.array(numbers, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_segmentation(numbers, where) from error
    if flat.ndim != 1 or len(flat) < 4 or len(flat) % 2 or not np.isfinite(flat).all():
        raise _no_segmentation(numbers, where)
    polygon = flat.reshape(-1, 2)
    (left, top), (right, bottom) = polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()
    # A flat one is drawn too, so that the object is somewhere.
    check_box(
        (left, top, max(right, left + 1e-3), max(bottom, top + 1e-3)), size, where=f"{where}, segmentation"
    )
    return polygon


def _masks(objects: tuple[_Object, ...], size: tuple[int, int]) -> Tensor:
    masks = np.zeros((len(objects), *size), dtype=bool)
    for mask, one in zip(masks, objects, strict=True):
        if isinstance(one.outline, np.ndarray):
            mask |= run_length_mask(one.outline, size)
            continue
        x0, y0, x1, y1 = one.box
        rectangle = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        for polygon in (rectangle,) if one.outline is None else one.outline:
            mask |= polygon_mask(polygon, size)
    return torch.from_numpy(masks)


def _size(image: dict[str, Any]) -> tuple[int, int]:
    return image["height"], image["width"]


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", where="data.root") from error
    except json.JSONDecodeError as error:
        raise _wrong(path, f"broken in line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # bytes that are no text, nesting without end
        raise _wrong(path, f"no JSON: {error}") from error
    if not isinstance(content, dict):
        raise _wrong(path, "it has no keys")
    return content


def _entries(content: dict[str, Any], key: str, path: Path) -> dict[int, dict[str, Any]]:
    """Return the entries of a list by id, once they have the fields that are read."""
    entries = content.get(key)
    if not isinstance(entries, list):
        raise _wrong(path, f"it has no list {key!r}")
    fields = _FIELDS[key].items()
    by_id: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        for field, kind in fields:
            if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                raise _wrong(
                    path, f"{key}[{position}] has no {field} that is a {_TYPES[kind]}: {str(entry)[:80]}"
                )
        if entry["id"] in by_id:
            raise _wrong(path, f"the id {entry['id']} occurs twice in {key}, again in {key}[{position}]")
        by_id[entry["id"]] = entry
    return by_id


def _wrong(path: Path, reason: str) -> DataError:
    return DataError(f"an annotation file of COCO is wrong: {reason}", where=str(path), instead=_FORMAT)


def _no_segmentation(given: Any, where: str) -> DataError:
    return DataError(
        f"the segmentation is {str(given)[:80]}",
        where=where,
        instead="polygons [[x, y, x, y, …], …], or run lengths {size: [height, width], counts: …}",
    )
