"""Own images: class folders, train and test folders, or one folder without any labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from scarcely.data.augment import Augmentation
from scarcely.data.decode import load_images
from scarcely.data.module import DataModule
from scarcely.data.samples import Samples
from scarcely.errors import DataError
from scarcely.spec import NonNegativeInt, PositiveInt

__all__ = ["EXTENSIONS", "ImageFolder", "Listing", "list_images", "scan"]

EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "webp", "gif", "tif", "tiff", "ppm", "pgm")
"""Endings (in any case) of the files that count as images; nothing else is opened."""

_TEST = ("test", "val", "valid", "validation")
_UNLABELLED = ("unlabelled", "unlabeled")
_LAYOUTS = (
    "ROOT/CLASS/*.jpg, or ROOT/train/CLASS/*.jpg with ROOT/test/CLASS/*.jpg"
    " and ROOT/unlabelled/*.jpg where there are such, or ROOT/*.jpg without labels"
)


@dataclass(frozen=True)
class Listing:
    """The image files of one part.

    Attributes:
        files: relative to the root, with ``/`` between folders, in the order of the samples.
        labels: class of each file, -1 where there is none.
    """

    files: tuple[str, ...]
    labels: tuple[int, ...]


class ImageFolder(DataModule):
    """Images in folders, cut to squares of one size; decoded once to a cache.

    Layouts of `root`, by what is found there:

    * ``CLASS/*``: every folder is a class, all images are the train part.
    * ``train/CLASS/*``, and beside it ``test/CLASS/*`` for the test part. ``val``, ``valid`` or
      ``validation`` is the test part where there is no ``test``; beside a ``test`` it is not used,
      nor is any other folder.
    * images in `root` (or in ``train``) itself and no class folder: no labels, ``classes`` is empty.
    * ``unlabelled/`` or ``unlabeled/`` beside ``train`` or the class folders: the unlabelled part.

    Files below a class folder count at any depth. Classes are sorted by name. Hidden files and files
    with other endings than `EXTENSIONS` are passed over; a folder reached a second time through
    symbolic links is not read again.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: the folder.
        resident: where the images are kept (see `DataModule`).
        size: side of the squares in pixels: the short side is resized to it, the rest cut at the centre.
        channels: 1 for grey, 3 for RGB.
        on_error: ``skip`` leaves out files that cannot be decoded, counts them and warns.
        allow_empty: leave out class folders without images, instead of refusing them.
        workers: decoding threads; 0 for the number of cores.

    Attributes:
        skipped: files left out under ``on_error=skip``, relative to the root; set by `read`.
    """

    needs_root: ClassVar[bool] = True

    def __init__(
        self,
        *,
        name: str = "imagefolder",
        kind: Literal["images"] = "images",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        size: PositiveInt = 32,
        channels: Literal[1, 3] = 3,
        on_error: Literal["raise", "skip"] = "raise",
        allow_empty: bool = False,
        workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__(name=name, kind=kind, augmentation=augmentation, root=root, resident=resident)
        self.size = size
        self.channels: Literal[1, 3] = channels
        self.on_error = on_error
        self.allow_empty = allow_empty
        self.workers = workers
        self.skipped: tuple[str, ...] = ()

    def read(self) -> dict[str, Samples]:
        """Return the parts ``train``, ``test`` and ``unlabelled``, as far as there are such.

        Raises:
            DataError: a layout that is not understood, an image that cannot be decoded, or fewer than
                two training images.
        """
        self.check()
        assert self.root is not None
        self.classes, listings = scan(self.root, allow_empty=self.allow_empty)
        parts = {}
        skipped: list[str] = []
        for part, listing in listings.items():
            parts[part], failed = load_images(
                self.root,
                listing.files,
                listing.labels,
                size=self.size,
                channels=self.channels,
                on_error=self.on_error,
                workers=self.workers,
            )
            skipped += failed
        self.skipped = tuple(skipped)
        if len(parts["train"]) < 2:
            raise _too_few(self.root, len(parts["train"]), skipped=len(skipped))
        return parts


def scan(root: Path, *, allow_empty: bool = False) -> tuple[tuple[str, ...], dict[str, Listing]]:
    """Find the images of a folder in one of the layouts of `ImageFolder`.

    Args:
        root: an existing folder.
        allow_empty: leave out class folders without images.

    Returns:
        The class names, sorted (empty where there are no labels), and the listing of each part.

    Raises:
        DataError: images beside class folders, an empty class folder, a test class that the train
            part lacks, or fewer than two training images.
    """
    folders = _folders(root)
    special = _special(root, folders)
    train = special.get("train")
    tests = [special[name] for name in _TEST if name in special]
    if train is None and tests and (_folders(tests[0]) or len(folders) == len(special)):
        raise DataError(
            f"{root} has a folder {tests[0].name} but no folder train", where="data.root", instead=_LAYOUTS
        )
    # A class may be called "train", beside "bus" and "tram": then it holds no folders and has neighbours.
    if train is not None and (_folders(train) or len(folders) == len(special)):
        sources = {"train": train}
        if tests:
            sources["test"] = tests[0]
        ignored: set[Path] = set()
    else:
        sources = {"train": root}
        ignored = {special[name] for name in _UNLABELLED if name in special}
    found = {
        part: _labelled(root, folder, allow_empty=allow_empty, ignored=ignored)
        for part, folder in sources.items()
    }

    # Training images may be unlabelled and yet scored on labelled test images.
    named = [[name for name in by_class if name is not None] for by_class in found.values()]
    classes = next((tuple(names) for names in named if names), ())
    index = {name: label for label, name in enumerate(classes)}
    listings = {}
    for part, by_class in found.items():
        unknown = [name for name in by_class if name is not None and name not in index]
        if unknown:
            raise DataError(
                f"the class folder {sources[part] / unknown[0]} has no counterpart in {sources['train']}",
                where="data.root",
                instead="the same class names in both",
            )
        pairs = [
            (file, -1 if name is None else index[name]) for name, files in by_class.items() for file in files
        ]
        if pairs or part == "train":
            listings[part] = Listing(tuple(file for file, _ in pairs), tuple(label for _, label in pairs))
    unlabelled = [
        file for name in _UNLABELLED if name in special for file in list_images(root, special[name])
    ]
    if unlabelled:
        listings["unlabelled"] = Listing(tuple(unlabelled), (-1,) * len(unlabelled))
    if len(listings["train"].files) < 2:
        raise _too_few(sources["train"], len(listings["train"].files))
    return classes, listings


def list_images(root: Path, folder: Path) -> list[str]:
    """Return the image files below a folder, at any depth, sorted, relative to `root` (with ``/``).

    Symbolic links are followed, but no folder is read twice, nor one that holds `folder`.
    """
    seen = {_identity(above) for above in (folder, *folder.parents) if above == root or root in above.parents}
    return sorted(_walk(folder, _prefix(root, folder), seen), key=lambda file: file.split("/"))


def _labelled(
    root: Path, folder: Path, *, allow_empty: bool, ignored: set[Path]
) -> dict[str | None, list[str]]:
    """Return the images of each class folder; of None where the images lie in the folder itself."""
    loose = [_prefix(root, folder) + entry.name for entry in _entries(folder) if _is_image(entry)]
    by_class = {path.name: list_images(root, path) for path in _folders(folder) if path not in ignored}
    filled: dict[str | None, list[str]] = {name: files for name, files in by_class.items() if files}
    if loose and filled:
        raise DataError(
            f"{folder} holds both images (such as {loose[0]})"
            f" and class folders (such as {next(iter(filled))})",
            where="data.root",
            instead=_LAYOUTS,
        )
    if loose:
        return {None: loose}
    if filled and len(filled) < len(by_class) and not allow_empty:
        empty = next(name for name, files in by_class.items() if not files)
        raise DataError(
            f"the class folder {folder / empty} holds no image",
            where="data.root",
            instead="remove the folder, or data.allow_empty=true",
        )
    return filled or {None: []}


def _special(root: Path, folders: list[Path]) -> dict[str, Path]:
    """Return the folders whose names, in any case, say which part they hold."""
    special: dict[str, Path] = {}
    for folder in folders:
        name = folder.name.lower()
        if name not in ("train", *_TEST, *_UNLABELLED):
            continue
        if name in special:
            raise DataError(
                f"{root} holds both {special[name].name} and {folder.name}",
                where="data.root",
                instead="one of them",
            )
        special[name] = folder
    return special


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}", where="data.root") from error
    return sorted(visible, key=lambda entry: entry.name)


def _folders(folder: Path) -> list[Path]:
    # macOS puts a shadow of the whole tree into every archive that it packs.
    return [Path(entry.path) for entry in _entries(folder) if _is_dir(entry) and entry.name != "__MACOSX"]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # a link to itself raises


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.name.rpartition(".")[2].lower() not in EXTENSIONS:
        return False
    # A dangling link counts: decoding it fails, and so its name is told.
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _prefix(root: Path, folder: Path) -> str:
    return "" if folder == root else f"{folder.relative_to(root).as_posix()}/"


def _walk(folder: str | Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    # Strings, not paths: for a million files pathlib alone would take a minute.
    for entry in _entries(folder):
        if _is_dir(entry):
            identity = _identity(entry.path)
            if identity not in seen:
                seen.add(identity)
                yield from _walk(entry.path, f"{prefix}{entry.name}/", seen)
        elif _is_image(entry):
            yield prefix + entry.name


def _identity(folder: str | Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _too_few(folder: Path, count: int, skipped: int = 0) -> DataError:
    found = "only one image" if count else "no image"
    left_out = f" ({skipped:,} could not be decoded)" if skipped else ""
    return DataError(
        f"{folder} holds {found}{left_out}; at least 2 are needed",
        where="data.root",
        instead=f"{_LAYOUTS}; endings: {', '.join(EXTENSIONS)}",
    )
