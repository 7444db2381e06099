"""Own images whose objects are annotated: boxes as XML, a JSON file, or masks as PNG."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from scarcely.data.augment import ImageAugmentation
from scarcely.data.coco import read_instances
from scarcely.data.imagefolder import EXTENSIONS
from scarcely.data.object_files import Annotation, ObjectFiles, Reading
from scarcely.data.voc import read_xml
from scarcely.errors import ConfigError, DataError

__all__ = ["VOID", "ObjectFolder"]

VOID = 255
"""Index in a mask of classes for pixels that are neither object nor ground, as in PASCAL VOC."""

_TEST = ("test", "val", "valid", "validation")
_PICTURES = ("images", "JPEGImages")
_ANNOTATIONS = (
    "one of NAME.xml beside each image or in Annotations/, one FILE.json, masks/NAME.png with the index of a"
    " class in each pixel, or masks/CLASS/NAME.png"
)


class ObjectFolder(ObjectFiles):
    """Own images with boxes or masks; the other arguments are those of `ObjectFiles`.

    The folders ``train`` and ``test`` (or ``val``, ``valid``, ``validation``) are the parts; where there is
    no ``train``, the root itself is the train part, which ``protocol=all`` scores too. The images of a part
    lie in its folder, or in ``images`` or ``JPEGImages`` there, and each has its annotation:

    * ``NAME.xml`` beside it or in ``Annotations``: boxes, as PASCAL VOC writes them.
    * one ``FILE.json`` for all: boxes and masks, as COCO writes them; images that it does not name are passed
      over.
    * ``masks/NAME.png``: a palette or grey image; 0 is ground, k the k-th class, `VOID` neither.
    * ``masks/CLASS/NAME.png``: all but 0 is an object of the class. Each image has one mask at least, which
      is 0 throughout where there is no object.

    All pixels of a class in a mask are one object.

    Args:
        classes: names in the order that is wanted. Null: those of a JSON file in the order of their ids,
            those found elsewhere sorted by name; indices of masks are called class 1, class 2 and so on.
    """

    def __init__(
        self,
        *,
        augmentation: ImageAugmentation,
        name: str = "objects",
        classes: list[str] | None = None,
        **files: Unpack[Reading],
    ) -> None:
        super().__init__(name=name, augmentation=augmentation, **files)
        self.given = tuple(classes) if classes is not None else None
        if self.given is not None and len(set(self.given)) < max(1, len(self.given)):
            raise ConfigError(
                f"data.classes is [{', '.join(self.given)}]",
                where="data.classes",
                instead="the name of each class, once; or null for those that are found",
            )

    def check(self) -> None:
        """Look whether each part has images and annotations of one sort.

        Raises:
            DataError: no root, a folder without images or without annotations, or with several sorts of them.
        """
        super().check()
        for folder in self._folders().values():
            _sort(folder)

    def find(self) -> tuple[tuple[str, ...], dict[str, list[Annotation]]]:
        """Return the classes, and the annotations of ``train`` and, where there is such a folder, ``test``.

        Raises:
            DataError: see `check`; or an annotation is missing or wrong, or of an image that is missing.
        """
        declared: tuple[str, ...] = ()
        parts = {}
        for part, folder in self._folders().items():
            sort = _sort(folder)
            if sort == "json":
                pictures = _pictures(folder)
                names, parts[part] = read_instances(_visible(folder, ("json",))[0], [pictures, folder])
                declared += tuple(name for name in names if name not in declared)
            elif sort == "xml":
                parts[part] = [read_xml(xml, image) for image, xml in _pairs(folder, _xmls(folder))]
            elif sort == "index":
                masks = {path.stem: path for path in _masks(folder / "masks")}
                parts[part] = [_indexed(image, mask, self.given) for image, mask in _pairs(folder, masks)]
            else:
                parts[part] = _class_masks(folder)
        if self.given is not None:
            return self.given, parts
        found = {name for annotations in parts.values() for one in annotations for name in one.names}
        # Without the key of the length, class 10 would come before class 2.
        numbered = all(name.startswith("class ") and name[6:].isdigit() for name in found)
        others = sorted(found - set(declared), key=lambda name: (len(name) if numbered else 0, name))
        return (*declared, *others), parts

    def _folders(self) -> dict[str, Path]:
        assert self.root is not None
        if not (self.root / "train").is_dir():
            return {"train": self.root}
        tests = [self.root / name for name in _TEST if (self.root / name).is_dir()]
        return {"train": self.root / "train"} | ({"test": tests[0]} if tests else {})


def _sort(folder: Path) -> Literal["json", "xml", "index", "classes"]:
    """Return how the images of a part are annotated."""
    found: list[Literal["json", "xml", "index", "classes"]] = []
    masks, jsons = folder / "masks", _visible(folder, ("json",))
    if len(jsons) > 1:
        raise DataError(
            f"{folder} holds {len(jsons)} JSON files: {', '.join(path.name for path in jsons[:3])}",
            where="data.root",
            instead="one",
        )
    if jsons:
        found.append("json")
    if (
        _visible(folder, ("xml",))
        or (folder / "Annotations").is_dir()
        or _visible(_pictures(folder), ("xml",))
    ):
        found.append("xml")
    if masks.is_dir():
        if any(path.is_dir() and not path.name.startswith(".") for path in masks.iterdir()):
            found.append("classes")
        if _visible(masks, EXTENSIONS):
            found.append("index")
    if len(found) != 1:
        kinds = {"json": "a JSON file", "xml": "XML files", "index": "masks", "classes": "masks of classes"}
        several = ", ".join(kinds[sort] for sort in found)
        raise DataError(
            f"{folder} holds {several}" if found else f"{folder} holds no annotation",
            where="data.root",
            instead=f"{_ANNOTATIONS}; in ROOT, or in ROOT/train and ROOT/test",
        )
    if not _visible(_pictures(folder), EXTENSIONS) and found != [
        "json"
    ]:  # its names say where its images are
        raise DataError(
            f"{_pictures(folder)} holds no image",
            where="data.root",
            instead=f"files that end in {', '.join(EXTENSIONS)}; in ROOT, or in ROOT/train and ROOT/test",
        )
    return found[0]


def _pictures(folder: Path) -> Path:
    return next((folder / name for name in _PICTURES if (folder / name).is_dir()), folder)


def _visible(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the files with such endings, in any case, sorted; hidden ones left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix[1:].lower() in endings and not path.name.startswith(".") and not path.is_dir()
    )


def _images(folder: Path) -> dict[str, Path]:
    """Return the images of a part by the stems of their names."""
    images: dict[str, Path] = {}
    for path in _visible(_pictures(folder), EXTENSIONS):
        if path.stem in images:
            raise DataError(
                f"{images[path.stem]} and {path.name} would have the same annotation",
                where=str(path),
                instead="a name of its own for each image",
            )
        images[path.stem] = path
    return images


def _pairs(folder: Path, annotations: dict[str, Path]) -> list[tuple[Path, Path]]:
    """Return each image of a part with its annotation, both by the stems of their names."""
    images = _images(folder)
    _none_alone(folder, images, annotations.values())
    bare = next((path for stem, path in images.items() if stem not in annotations), None)
    if bare is not None:
        raise DataError(f"the image {bare} has no annotation", where=str(bare), instead=_ANNOTATIONS)
    return [(path, annotations[stem]) for stem, path in images.items()]


def _none_alone(folder: Path, images: dict[str, Path], annotations: Iterable[Path]) -> None:
    alone = next((path for path in annotations if path.stem not in images), None)
    if alone is not None:
        raise DataError(
            f"there is no image {alone.stem} in {_pictures(folder)}",
            where=str(alone),
            instead=f"{alone.stem}.jpg or with another ending, or no annotation of it",
        )


def _xmls(folder: Path) -> dict[str, Path]:
    places = {folder / "Annotations", folder, _pictures(folder)}
    found: dict[str, Path] = {}
    for path in (path for place in sorted(places) if place.is_dir() for path in _visible(place, ("xml",))):
        if path.stem in found:
            raise DataError(
                f"two annotations of {path.stem}: {found[path.stem]} and {path}",
                where=str(path),
                instead="one",
            )
        found[path.stem] = path
    return found


def _masks(folder: Path) -> list[Path]:
    """Return the masks in a folder."""
    lossy = [path for path in _visible(folder, EXTENSIONS) if path.suffix.lower() != ".png"]
    if lossy:
        raise DataError(f"the mask {lossy[0]} is no PNG", where=str(lossy[0]), instead="masks as PNG files")
    return _visible(folder, ("png",))


def _indexed(image: Path, mask: Path, names: tuple[str, ...] | None) -> Annotation:
    """Read a mask of classes: of each class that occurs, one object."""
    pixels = _pixels(mask)
    indices = [int(index) for index in np.unique(pixels) if index not in (0, VOID)]
    if names is not None and indices and indices[-1] > len(names):
        raise DataError(
            f"the mask has class {indices[-1]}, and data.classes names {len(names)}",
            where=str(mask),
            instead=f"0 for ground, 1 to {len(names)}, {VOID} for neither; or more names",
        )
    return Annotation(
        image,
        mask,
        pixels.shape,
        [names[index - 1] if names is not None else f"class {index}" for index in indices],
        [_box(pixels == index) for index in indices],
        [False] * len(indices),
        partial(_masks_of_indices, mask, tuple(indices)),
    )


def _class_masks(folder: Path) -> list[Annotation]:
    """Read a part whose masks lie in a folder for each class."""
    images = _images(folder)
    masks: dict[str, list[Path]] = {stem: [] for stem in images}
    for place in sorted(path for path in (folder / "masks").iterdir() if path.is_dir()):
        if place.name.startswith("."):
            continue
        of_class = _masks(place)
        _none_alone(folder, images, of_class)
        for path in of_class:
            masks[path.stem].append(path)
    annotations = []
    for stem, image in images.items():
        if not masks[stem]:
            raise DataError(
                f"the image {image} has no mask",
                where=str(image),
                instead="one mask at least, in masks/CLASS; 0 throughout where there is no object",
            )
        read = [(path, _pixels(path) > 0) for path in masks[stem]]
        sizes = {pixels.shape for _, pixels in read}
        if len(sizes) > 1:
            raise DataError(
                f"the masks of {stem} are of several sizes: {sorted(sizes)} (height, width)",
                where=", ".join(str(path) for path in masks[stem]),
                instead="that of the image",
            )
        there = [(path, pixels) for path, pixels in read if pixels.any()]
        annotations.append(
            Annotation(
                image,
                masks[stem][0],
                sizes.pop(),
                [path.parent.name for path, _ in there],
                [_box(pixels) for _, pixels in there],
                [False] * len(there),
                partial(_masks_of_files, tuple(path for path, _ in there), read[0][1].shape),
            )
        )
    return annotations


def _pixels(path: Path) -> np.ndarray:
    """Read the indices of a mask, (H, W)."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode, pixels = image.mode, np.asarray(image).astype(np.int32)
    except Exception as error:  # decoders raise whatever their parsers raise
        raise DataError(f"cannot read the mask: {error}", where=str(path), instead="a PNG file") from error
    if pixels.ndim != 2:
        raise DataError(
            f"the mask has the colours {mode}", where=str(path), instead="a PNG with a palette, or a grey one"
        )
    return pixels


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the smallest box around a mask that is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _masks_of_indices(path: Path, indices: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(_pixels(path) == np.array(indices, dtype=np.int32).reshape(-1, 1, 1))


def _masks_of_files(paths: tuple[Path, ...], size: tuple[int, int]) -> Tensor:
    if not paths:
        return torch.zeros(0, *size, dtype=torch.bool)
    return torch.from_numpy(np.stack([_pixels(path) > 0 for path in paths]))
