"""PASCAL VOC: photographs with boxes around the objects of 20 classes, and its annotation files (XML)."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal, Unpack
from xml.etree import ElementTree

from scarcely.data.augment import ImageAugmentation
from scarcely.data.object_files import Annotation, ObjectFiles, Reading, check_box
from scarcely.errors import DataError

__all__ = ["CLASSES", "VOC", "read_xml"]

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""In the order of the challenge."""

_LONGEST = 250  # bytes of a name, that with its ending a file may have
_LAYOUT = "ROOT/VOCdevkit/VOC2007, ROOT/VOC2007 or ROOT with ImageSets/Main, Annotations and JPEGImages in it"


class VOC(ObjectFiles):
    """PASCAL VOC as the challenge publishes it; the other arguments are those of `ObjectFiles`.

    The lists in ``ImageSets/Main`` say which images a part has. Where `train_list` and `test_list` are null:

    * ``trainval`` (or ``train`` and ``val``) and ``test``, where ``test`` has annotations (2007);
    * else ``train`` and ``val`` (2012, whose test annotations are not public);
    * else the only one of them, which is the train part: ``protocol=all`` trains on it and scores it.

    Args:
        year: of the challenge, where the folder holds several.
        train_list: name of the list of the train part; with `test_list`, instead of the rule above.
        test_list: name of the list of the test part; null beside a `train_list` for none.
    """

    def __init__(
        self,
        *,
        augmentation: ImageAugmentation,
        name: str = "voc",
        year: Literal[2007, 2012] | None = None,
        train_list: str | None = None,
        test_list: str | None = None,
        **files: Unpack[Reading],
    ) -> None:
        super().__init__(name=name, augmentation=augmentation, **files)
        self.year = year
        self.train_list, self.test_list = train_list, test_list

    def check(self) -> None:
        """Look whether the folders and the lists are there.

        Raises:
            DataError: no root, no such year in it, a folder or a list is missing or empty.
        """
        super().check()
        self._lists(self._folder())

    def find(self) -> tuple[tuple[str, ...], dict[str, list[Annotation]]]:
        """Return the 20 classes, and the annotations of ``train`` and, where there is one, ``test``.

        Raises:
            DataError: see `check`; or an annotation is missing or wrong.
        """
        folder = self._folder()
        found = {}
        for part, names in self._lists(folder).items():
            for name, source in names.items():
                if not _xml(folder, name).is_file():
                    raise DataError(
                        f"the image {name} has no annotation: there is no file {_xml(folder, name)}",
                        where=str(source),
                        instead="data.train_list and data.test_list name lists of annotated images",
                    )
            found[part] = [
                read_xml(_xml(folder, name), folder / "JPEGImages" / f"{name}.jpg") for name in names
            ]
        return CLASSES, found

    def _folder(self) -> Path:
        """Return the folder of the year."""
        assert self.root is not None
        years = [self.year] if self.year else [2007, 2012]
        if (self.root / "ImageSets").is_dir():
            folders = [self.root]
        else:
            folders = [base / f"VOC{year}" for base in (self.root / "VOCdevkit", self.root) for year in years]
        there = [folder for folder in folders if (folder / "ImageSets" / "Main").is_dir()]
        if len(there) != 1:
            raise DataError(
                f"{self.root} holds {' and '.join(folder.name for folder in there)}"
                if there
                else f"{self.root} holds no PASCAL VOC{self.year or ''}",
                where="data.root, data.year",
                instead="data.year=2007 or data.year=2012" if there else _LAYOUT,
            )
        for name in ("Annotations", "JPEGImages"):
            if not (there[0] / name).is_dir():
                raise DataError(f"no folder {there[0] / name}", where="data.root", instead=_LAYOUT)
        return there[0]

    def _lists(self, folder: Path) -> dict[str, dict[str, Path]]:
        """Return the names of the images of each part, with the list that each is from."""
        lists = folder / "ImageSets" / "Main"
        if self.train_list is not None or self.test_list is not None:
            if self.train_list is None:
                raise DataError(
                    "data.test_list is given without data.train_list",
                    where="data.train_list",
                    instead=f"a list in {lists}; data.train_list alone is trained on and scored",
                )
            chosen = {"train": [self.train_list], "test": [self.test_list] if self.test_list else []}
        else:
            chosen = self._rule(folder)
        return {
            part: {name: lists / f"{one}.txt" for one in names for name in _read_list(lists / f"{one}.txt")}
            for part, names in chosen.items()
            if names
        }

    def _rule(self, folder: Path) -> dict[str, list[str]]:
        lists = folder / "ImageSets" / "Main"
        there = [name for name in ("train", "val", "trainval", "test") if (lists / f"{name}.txt").is_file()]
        if not there:
            raise DataError(
                f"{lists} has none of the lists train.txt, val.txt, trainval.txt and test.txt",
                where="data.root",
                instead="one of these, or data.train_list=NAME",
            )
        test = "test" in there and any(
            _xml(folder, name).is_file() for name in _read_list(lists / "test.txt")
        )
        training = ["trainval"] if "trainval" in there else [name for name in there if name != "test"]
        if test and training:
            return {"train": training, "test": ["test"]}
        if "train" in there and "val" in there:
            return {"train": ["train"], "test": ["val"]}
        return {"train": training or ["test"]}


def read_xml(path: Path, image: Path) -> Annotation:
    """Read an annotation as PASCAL VOC writes it.

    A box there names its first and its last pixel, counted from 1. Parts of an object (the person layouts
    of the challenge) are passed over.

    Args:
        path: the XML file.
        image: the image that it is of.

    Raises:
        DataError: the file cannot be read, a size, a name or a coordinate is missing or no number, or a box
            is empty or outside of its image.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", where="data.root") from error
    except (ElementTree.ParseError, ValueError) as error:  # an encoding that there is not
        raise DataError(
            f"broken XML: {error}", where=str(path), instead="an annotation as PASCAL VOC writes it"
        ) from error
    of_image = root.find("size")
    size = (int(_number(of_image, "height", path)), int(_number(of_image, "width", path)))
    if min(size) < 1:
        raise DataError(
            f"the size is {size[1]} x {size[0]} pixels", where=str(path), instead="that of the image"
        )
    names, boxes, difficult = [], [], []
    for position, entry in enumerate(root.iterfind("object"), start=1):
        where = f"{path}, object {position}"
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise DataError("an object has no name", where=where, instead="<name>its class</name>")
        corners = entry.find("bndbox")
        x0, y0, x1, y1 = (_number(corners, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        box = (x0 - 1, y0 - 1, x1, y1)
        check_box(box, size, where=f"{where} ({name})")
        names.append(name)
        boxes.append(box)
        difficult.append((entry.findtext("difficult") or "0").strip() not in ("0", "false", "False"))
    return Annotation(image, path, size, names, boxes, difficult)


def _number(element: ElementTree.Element | None, key: str, where: object) -> float:
    text = element.findtext(key) if element is not None else None
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = f"there is no {key}" if text is None else f"{key} is {text.strip()!r}"
        raise DataError(what, where=str(where), instead="a number of pixels")
    return number


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))[:8])
        raise DataError(
            f"cannot read the list {path}: {getattr(error, 'strerror', None) or error}",
            where="data.train_list, data.test_list",
            instead=f"a list in that folder: {there}" if there else "a list in that folder",
        ) from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        if len(name.split()) > 1:
            raise DataError(
                f"line {number} is {name!r}: the list is of one class",
                where=str(path),
                instead="the list of all classes, a name a line",
            )
        if "/" in name or len(os.fsencode(name)) > _LONGEST:
            raise DataError(
                f"line {number} is no name of an image: {name[:80]!r}",
                where=str(path),
                instead="the name of its file without the ending, a name a line",
            )
        if name in seen:
            raise DataError(
                f"the image {name} is listed twice, in the lines {seen[name]} and {number}",
                where=str(path),
                instead="each image once",
            )
        seen[name] = number
    if not seen:
        raise DataError("the list names no image", where=str(path), instead="a name a line")
    return list(seen)


def _xml(folder: Path, name: str) -> Path:
    return folder / "Annotations" / f"{name}.xml"
