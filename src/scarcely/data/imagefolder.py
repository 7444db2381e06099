"""Own images: class folders, train and test folders, one without labels, or one of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, Unpack

from scarcely.data.augment import Augmentation
from scarcely.data.decode import load_images
from scarcely.data.module import DataModule, Split
from scarcely.data.samples import Samples
from scarcely.errors import ConfigError, DataError
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
_TWO_FOLDERS = "data.root=FOLDER, or two folders: data.labelled=DIR data.unlabelled=DIR"
_TAIL = 4096


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

    Instead of a root, two folders: the class folders of `labelled` are the train part (and the test part,
    where it is laid out so), all images at any depth below `unlabelled` are the unlabelled part. No image
    may be in both: what is labelled would be discovered again.

    Files below a class folder count at any depth. Classes are sorted by name. Hidden files and files
    with other endings than `EXTENSIONS` are passed over; a folder reached a second time through
    symbolic links is not read again.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: the folder; null where there are two.
        resident: where the images are kept (see `DataModule`).
        size: side of the squares in pixels: the short side is resized to it, the rest cut at the centre.
        channels: 1 for grey, 3 for RGB.
        on_error: ``skip`` leaves out files that cannot be decoded, counts them and warns.
        allow_empty: leave out class folders without images, instead of refusing them.
        workers: decoding threads; 0 for the number of cores.
        labelled: folder of class folders, together with `unlabelled` and without a root.
        unlabelled: folder of the images whose classes are to be discovered.
        split: which labels are used (see `Split`).

    Attributes:
        skipped: files left out under ``on_error=skip``, relative to the root (of two folders: to the
            folder that holds both, like the names of the samples); set by `read`.
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
        labelled: str | None = None,
        unlabelled: str | None = None,
        **split: Unpack[Split],
    ) -> None:
        super().__init__(
            name=name,
            kind=kind,
            augmentation=augmentation,
            root=root,
            resident=resident,
            **split,
        )
        self.size = size
        self.channels: Literal[1, 3] = channels
        self.on_error = on_error
        self.allow_empty = allow_empty
        self.workers = workers
        self.labelled = Path(labelled).expanduser() if labelled is not None else None
        self.unlabelled = Path(unlabelled).expanduser() if unlabelled is not None else None
        self.skipped: tuple[str, ...] = ()

    def check(self) -> None:
        """Look whether the folder, or both folders, are given and there.

        Raises:
            ConfigError: one of two folders, or more than two.
            DataError: no such folder, or one of two inside of the other.
        """
        if self.labelled is None and self.unlabelled is None:
            if self.root is None:
                raise DataError(
                    f"{self.name} needs the folder of its data", where="data.root", instead=_TWO_FOLDERS
                )
            super().check()
            return
        for key, other in (("labelled", "unlabelled"), ("unlabelled", "labelled")):
            if getattr(self, key) is None:
                raise ConfigError(
                    f"data.{other} is given without data.{key}", where=f"data.{key}", instead=_TWO_FOLDERS
                )
        if self.root is not None:
            raise ConfigError(
                "data.root is given beside data.labelled and data.unlabelled",
                where="data.root",
                instead=_TWO_FOLDERS,
            )
        if self.labelled_classes is not None:
            raise ConfigError(
                "the classes of data.labelled are the known ones",
                where="data.labelled_classes",
                instead="null; or data.root alone, to make some of its classes unlabelled",
            )
        for key in ("labelled", "unlabelled"):
            if not os.path.isdir(getattr(self, key)):
                raise DataError(
                    f"no folder {getattr(self, key)}", where=f"data.{key}", instead="a folder that exists"
                )
        assert self.labelled is not None
        assert self.unlabelled is not None
        known, new = self.labelled.resolve(), self.unlabelled.resolve()
        if known == new or known in new.parents or new in known.parents:
            how = "are the same folder" if known == new else "are one inside of the other"
            raise DataError(
                f"data.labelled and data.unlabelled {how}: {self.labelled}, {self.unlabelled}",
                where="data.unlabelled",
                instead="two folders beside each other; or data.root=FOLDER alone, where all images without"
                " a class lie in FOLDER/unlabelled",
            )

    def listed(self) -> tuple[Path, tuple[str, ...], dict[str, Listing]]:
        """Return the folder that all files lie in, the names of the classes, and the files of each part.

        Raises:
            DataError: a layout that is not understood.
        """
        self.check()
        if self.root is not None:
            return self.root, *scan(self.root, allow_empty=self.allow_empty)
        assert self.labelled is not None
        assert self.unlabelled is not None
        return _two_folders(self.labelled, self.unlabelled, self.allow_empty)

    def read(self) -> dict[str, Samples]:
        """Return the parts ``train``, ``test`` and ``unlabelled``, as far as there are such.

        Raises:
            DataError: a layout that is not understood, an image that cannot be decoded, fewer than two
                training images, or labelled images among the unlabelled ones.
        """
        root, self.classes, listings = self.listed()
        parts = {}
        skipped: list[str] = []
        for part, listing in listings.items():
            with _told_of(self._key(part)):
                parts[part], failed = load_images(
                    root,
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
            with _told_of(self._key("train")):
                raise _too_few(self.labelled or root, len(parts["train"]), skipped=len(skipped))
        if self.unlabelled is not None and not len(parts["unlabelled"]):
            raise _none_unlabelled(self.unlabelled, skipped=len(skipped))
        return parts

    def _key(self, part: str) -> str:
        if self.root is not None:
            return "data.root"
        return "data.unlabelled" if part == "unlabelled" else "data.labelled"


def _two_folders(
    labelled: Path, unlabelled: Path, allow_empty: bool
) -> tuple[Path, tuple[str, ...], dict[str, Listing]]:
    """Find the images of two folders.

    Returns:
        The innermost folder that holds both, the class names, and the listing of each part, relative to
        that folder: names below either folder alone could be the same.
    """
    known, new = Path(os.path.abspath(labelled)), Path(os.path.abspath(unlabelled))
    root = Path(os.path.commonpath([known, new]))
    with _told_of("data.labelled"):
        classes, found = scan(known, allow_empty=allow_empty)
        if not classes or max(found["train"].labels) < 0:
            raise DataError(
                f"{labelled} has no class folders",
                where="data.root",
                instead="DIR/CLASS/*.jpg in data.labelled",
            )
    if "unlabelled" in found:
        raise DataError(
            f"{labelled} holds unlabelled images itself: {found['unlabelled'].files[0]}",
            where="data.labelled",
            instead="move them to data.unlabelled; or data.root alone",
        )
    prefix = _prefix(root, known)
    listings = {
        part: Listing(tuple(prefix + file for file in listing.files), listing.labels)
        for part, listing in found.items()
    }
    with _told_of("data.unlabelled"):
        files = list_images(root, new)
    if not files:
        raise _none_unlabelled(unlabelled)
    _refuse_copies(root, [file for listing in listings.values() for file in listing.files], files)
    listings["unlabelled"] = Listing(tuple(files), (-1,) * len(files))
    return root, classes, listings


def _refuse_copies(root: Path, labelled: Iterable[str], unlabelled: Iterable[str]) -> None:
    """Raise DataError if a file of one list has the content of one of the other."""

    @cache
    def whole(file: str) -> bytes:
        with open(root / file, "rb") as opened:
            return hashlib.file_digest(opened, "blake2b").digest()

    # Sizes and last bytes tell nearly all files apart, and so hardly any is read whole.
    known: dict[tuple[int, bytes], list[str]] = {}
    for file in labelled:
        if (sketch := _sketch(root / file)) is not None:
            known.setdefault(sketch, []).append(file)
    copies = [
        (file, other)
        for file in unlabelled
        if (sketch := _sketch(root / file)) is not None
        for other in known.get(sketch, ())
        if whole(file) == whole(other)
    ]
    if copies:
        more = f", and {len(copies) - 1:,} more" if len(copies) > 1 else ""
        raise DataError(
            f"the unlabelled image {copies[0][0]} is a copy of the labelled {copies[0][1]}{more}",
            where="data.unlabelled",
            instead="a folder without the labelled images",
        )


def _sketch(path: Path) -> tuple[int, bytes] | None:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return (size, file.read()) if size else None
    except OSError:
        return None  # decoding will say what is wrong with it


@contextmanager
def _told_of(key: str) -> Iterator[None]:
    """Let errors about ``data.root`` speak of the key that was set instead."""
    try:
        yield
    except DataError as error:
        if error.where != "data.root" or key == "data.root":
            raise
        raise DataError(error.what, where=key, instead=error.instead) from error


def _none_unlabelled(folder: Path, skipped: int = 0) -> DataError:
    left_out = f" ({skipped:,} could not be decoded)" if skipped else ""
    return DataError(
        f"{folder} holds no image{left_out}",
        where="data.unlabelled",
        instead=f"a folder of images, at any depth; endings: {', '.join(EXTENSIONS)}",
    )


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
        raise _closed(folder, error) from error
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
    try:
        stat = os.stat(folder)
    except OSError as error:
        raise _closed(folder, error) from error
    return stat.st_dev, stat.st_ino


def _closed(folder: str | Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read the folder {folder}: {error.strerror}",
        where="data.root",
        instead="a folder that can be read, and all that lie below it",
    )


def _too_few(folder: Path, count: int, skipped: int = 0) -> DataError:
    found = "only one image" if count else "no image"
    left_out = f" ({skipped:,} could not be decoded)" if skipped else ""
    return DataError(
        f"{folder} holds {found}{left_out}; at least 2 are needed",
        where="data.root",
        instead=f"{_LAYOUTS}; endings: {', '.join(EXTENSIONS)}",
    )
