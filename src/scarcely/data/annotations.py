"""Annotation files of the Visual Decathlon: which images a part of a domain has, and of which class each is.

The layout is that of COCO: ``images`` {id, file_name}, ``annotations`` {id, image_id, category_id} and
``categories`` {id, name, supercategory}, in any order. Everything is joined by ids.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scarcely.errors import DataError

__all__ = ["Annotations", "read_annotations"]

_FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}


@dataclass(frozen=True)
class Annotations:
    """The images of one part of a domain, in the order of the file.

    Attributes:
        path: the annotation file.
        ids: of the images.
        files: of the images, as written there.
        category_ids: of the images; empty where labels were not asked for.
        categories: name of each category by its id, in order of id. Names that occur more than once have
            their supercategory before them, and the id behind them where that is not enough.
    """

    path: Path
    ids: tuple[int, ...]
    files: tuple[str, ...]
    category_ids: tuple[int, ...]
    categories: dict[int, str]

    def check_files(self, base: Path) -> None:
        """Look whether every image is there.

        Args:
            base: folder that the files are relative to.

        Raises:
            DataError: the first that is not, and how many more.
        """
        there: dict[
            str, set[str]
        ] = {}  # of each folder: listing one is sooner done than asking for each file
        missing = []
        for image, file in zip(self.ids, self.files, strict=True):
            folder, _, name = file.rpartition("/")
            if folder not in there:
                there[folder] = _listed(base / folder)
            if name not in there[folder]:
                missing.append((image, file))
        if missing:
            image, file = missing[0]
            more = f", and {len(missing) - 1:,} more are missing" if len(missing) > 1 else ""
            raise DataError(
                f"image {image} of {self.path} is missing: there is no file {base / file}{more}",
                where="data.root",
                instead="all images that the file names, unpacked below the folder of the release",
            )


def read_annotations(path: Path, *, labelled: bool = True) -> Annotations:
    """Read one annotation file.

    Args:
        path: the JSON file.
        labelled: whether every image must have its class; else only the images are read.

    Raises:
        DataError: the file cannot be read or has another layout; an id occurs twice; an annotation is of an
            image or a category that does not exist; an image has no annotation, or more than one.
    """
    content = _load(path)
    images = _entries(content, "images", path)
    files = tuple(image["file_name"] for image in images.values())
    if not images:
        raise _wrong(path, "it has no images")
    if not labelled:
        return Annotations(path, tuple(images), files, (), {})
    categories = _entries(content, "categories", path)
    category_of: dict[int, int] = {}
    for entry in _entries(content, "annotations", path).values():
        image, category = entry["image_id"], entry["category_id"]
        if image not in images:
            raise _wrong(path, f"annotation {entry['id']} is of image {image}, which does not exist")
        if category not in categories:
            raise _wrong(path, f"annotation {entry['id']} is of category {category}, which does not exist")
        if image in category_of:
            raise _wrong(path, f"image {image} has two annotations, the second is {entry['id']}")
        category_of[image] = category
    if len(category_of) < len(images):
        bare = next(image for image in images if image not in category_of)
        raise _wrong(path, f"image {bare} ({images[bare]['file_name']}) has no annotation")
    return Annotations(
        path, tuple(images), files, tuple(category_of[image] for image in images), _names(categories)
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", where="data.root", instead="the file of the release"
        ) from error
    except json.JSONDecodeError as error:
        raise _wrong(
            path, f"it is broken in line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:  # bytes that are no text, nesting without end
        raise _wrong(path, f"it is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise _wrong(path, "it has no keys")
    return content


def _entries(content: dict[str, Any], key: str, path: Path) -> dict[int, dict[str, Any]]:
    """Return the entries of a list by id, once they have the fields that are read."""
    entries = content.get(key)
    if not isinstance(entries, list):
        raise _wrong(path, f"it has no list {key!r}")
    by_id: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        for field, kind in _FIELDS[key].items():
            if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                what = "whole number" if kind is int else "text"
                raise _wrong(path, f"{key}[{position}] has no {field} that is a {what}: {str(entry)[:80]}")
        if entry["id"] in by_id:
            raise _wrong(path, f"the id {entry['id']} occurs twice in {key}, again in {key}[{position}]")
        by_id[entry["id"]] = entry
    return by_id


def _names(categories: dict[int, dict[str, Any]]) -> dict[int, str]:
    names = {number: str(categories[number]["name"]) for number in sorted(categories)}
    for number in _repeated(names):
        above = categories[number].get("supercategory")
        names[number] = f"{above}/{names[number]}" if above else names[number]
    for number in _repeated(names):
        names[number] += f" ({number})"
    return names


def _repeated(names: dict[int, str]) -> list[int]:
    times = Counter(names.values())
    return [number for number, name in names.items() if times[name] > 1]


def _listed(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _wrong(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is no annotation file of the decathlon: {reason}",
        where="data.root",
        instead="images {id, file_name}, annotations {id, image_id, category_id} and categories {id, name},"
        " one annotation for each image",
    )
