"""ImageNet for the discovery of classes: 882 known ones, and three sets of 30 to be discovered."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from scarcely.data.augment import Augmentation
from scarcely.data.decode import load_images
from scarcely.data.imagefolder import list_images
from scarcely.data.module import DataModule
from scarcely.data.samples import Samples
from scarcely.errors import DataError
from scarcely.spec import NonNegativeInt, PositiveInt

__all__ = ["ImageNet", "held_out"]


class ImageNet(DataModule):
    """ILSVRC 2012 in class folders, with the split of the literature on the discovery of classes.

    Of the 1,000 classes, 118 chosen at random are held out (Vinyals et al., 2016), the others are
    known: the part ``train``. Of the 118 there are three random sets of 30 (Hsu et al., 2018), which
    overlap; the chosen one is the part ``unlabelled``, and its true labels follow the known ones.
    Classes are sorted by WordNet number within each. ``val`` is the part ``test`` where it is sorted
    into class folders. Images are decoded once to a cache, known and new ones into one file, so that
    both together need not be copied: each of the three sets has a cache of its own.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder that holds ``train/WNID/*.JPEG``, and perhaps ``val/WNID/*.JPEG``.
        resident: where the images are kept (see `DataModule`).
        size: side of the squares in pixels: the short side is resized to it, the rest cut at the centre.
        on_error: ``skip`` leaves out files that cannot be decoded, counts them and warns.
        workers: decoding threads; 0 for the number of cores.
        new_set: which of the three sets is to be discovered.

    Attributes:
        skipped: files left out under ``on_error=skip``, relative to the root; set by `read`.
    """

    needs_root: ClassVar[bool] = True
    discovers: ClassVar[bool] = True
    split_keys: ClassVar[tuple[str, ...]] = ("new_set",)

    def __init__(
        self,
        *,
        name: str = "imagenet",
        kind: Literal["images"] = "images",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        size: PositiveInt = 224,
        on_error: Literal["raise", "skip"] = "raise",
        workers: NonNegativeInt = 0,
        new_set: Literal["A", "B", "C"] = "A",
    ) -> None:
        super().__init__(name=name, kind=kind, augmentation=augmentation, root=root, resident=resident)
        self.size = size
        self.on_error: Literal["raise", "skip"] = on_error
        self.workers = workers
        self.new_set = new_set
        self.skipped: tuple[str, ...] = ()

    def check(self) -> None:
        """Look whether the class folders are there that the split asks for.

        Raises:
            DataError: no root, no ``train`` in it, no known class, or not all of the 30 new ones.
        """
        super().check()
        self._classes()

    def read(self) -> dict[str, Samples]:
        """Return the parts ``train``, ``unlabelled`` and, where ``val`` has class folders, ``test``.

        Raises:
            DataError: see `check`; or a class without images, or an image that cannot be decoded.
        """
        self.check()
        assert self.root is not None
        known, new = self._classes()
        self.classes = tuple(known + new)
        self.num_known = len(known)
        self.skipped = ()
        both = self._load(self.root / "train", self.classes)
        cut = int((both.labels < self.num_known).sum())  # in the order of the classes
        parts = {"train": both.select(slice(cut)), "unlabelled": both.select(slice(cut, None))}
        val = self.root / "val"
        if any((val / wnid).is_dir() for wnid in self.classes):
            parts["test"] = self._load(val, self.classes)
        return parts

    def _classes(self) -> tuple[list[str], list[str]]:
        """Return the known and the new classes, each sorted."""
        assert self.root is not None
        train = self.root / "train"
        there = {path.name for path in train.iterdir() if path.is_dir()} if train.is_dir() else set()
        sets = held_out()
        known = sorted(name for name in there if name not in sets and not name.startswith("."))
        new = sorted(wnid for wnid, letters in sets.items() if self.new_set in letters)
        missing = [wnid for wnid in new if wnid not in there]
        if missing or not known:
            what = f"{train / missing[0]} is missing" if missing else f"{train} holds no known class"
            raise DataError(
                what + (f", and {len(missing) - 1} more of set {self.new_set}" if len(missing) > 1 else ""),
                where="data.root",
                instead="the folder of ILSVRC 2012, with train/WNID/*.JPEG",
            )
        return known, new

    def _load(self, folder: Path, classes: tuple[str, ...]) -> Samples:
        assert self.root is not None
        files = [
            list_images(self.root, folder / wnid) if (folder / wnid).is_dir() else [] for wnid in classes
        ]
        empty = [wnid for wnid, of_one in zip(classes, files, strict=True) if not of_one]
        if empty:
            raise DataError(
                f"the class folder {folder / empty[0]} holds no image",
                where="data.root",
                instead="all images of the class",
            )
        samples, failed = load_images(
            self.root,
            [name for of_one in files for name in of_one],
            [label for label, of_one in enumerate(files) for _ in of_one],
            size=self.size,
            on_error=self.on_error,
            workers=self.workers,
        )
        self.skipped += tuple(failed)
        return samples


def held_out() -> dict[str, frozenset[str]]:
    """Return the 118 classes that are not known, by WordNet number, with the sets that each is in."""
    text = Path(__file__).with_name("imagenet_splits.txt").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {wnid: frozenset(letters) for wnid, *letters in lines}
