"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each (Lake et al., 2015)."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar, Literal

from scarcely.data.augment import Augmentation
from scarcely.data.decode import load_images
from scarcely.data.imagefolder import list_images
from scarcely.data.samples import Samples
from scarcely.data.torchvision_sets import TorchvisionSet
from scarcely.errors import ConfigError, DataError
from scarcely.spec import Annotated, PositiveInt, Range

__all__ = ["Omniglot"]

_KNOWN, _NEW = "images_background", "images_evaluation"
_FOLDERS = ("omniglot-py", ".", "omniglot")


class Omniglot(TorchvisionSet):
    """The 964 characters of the 30 background alphabets, and one evaluation alphabet to be discovered.

    The part ``train`` holds the background characters, ``unlabelled`` those of the chosen alphabet
    (their true labels follow the 964). Classes are named ALPHABET/CHARACTER and sorted. Strokes are
    bright on black. Read from ``images_{background,evaluation}/ALPHABET/CHARACTER/*.png`` in the
    root, or in ``omniglot-py`` (where torchvision downloads them) or ``omniglot`` below it; decoded once
    to a cache.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: the folder, or the one above.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        size: side of the images in pixels, made smaller from 105 with antialiasing.
        alphabet: the alphabet whose characters are to be discovered: its name, or its number among the
            20 evaluation alphabets, sorted by name.
    """

    title = "Omniglot"
    source = "https://github.com/brendenlake/omniglot/tree/master/python"
    discovers: ClassVar[bool] = True
    split_keys: ClassVar[tuple[str, ...]] = ("alphabet",)

    def __init__(
        self,
        *,
        name: str = "omniglot",
        kind: Literal["images"] = "images",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        download: bool = True,
        size: PositiveInt = 32,
        alphabet: Annotated[int, Range(low=0, high=19)] | str = 0,
    ) -> None:
        super().__init__(
            name=name, kind=kind, augmentation=augmentation, root=root, resident=resident, download=download
        )
        self.size = size
        self.alphabet = alphabet

    def files(self) -> tuple[str, ...]:
        """Return the two folders."""
        return tuple((self._base() / folder).as_posix() for folder in (_KNOWN, _NEW))

    def archives(self) -> dict[str, str]:
        """Return the published archives."""
        from torchvision import datasets

        sums = datasets.Omniglot.zips_md5
        return {(self._base() / f"{folder}.zip").as_posix(): md5 for folder, md5 in sums.items()}

    def fetch(self, folder: Path) -> None:
        """Let torchvision download the set below `folder`."""
        from torchvision import datasets

        for background in (True, False):
            datasets.Omniglot(folder, background=background, download=True)

    def check(self) -> None:
        """Look whether the set is there, or may be downloaded, and whether there is such an alphabet.

        Raises:
            DataError: see `TorchvisionSet.check`.
            ConfigError: no such alphabet.
        """
        super().check()
        if not self._missing():
            self._chosen()

    def read(self) -> dict[str, Samples]:
        """Return the parts ``train`` and ``unlabelled``.

        Raises:
            DataError: a folder without images, or an image that cannot be decoded.
            ConfigError: no such alphabet.
        """
        self.check()
        if self._missing():
            raise self._absent("prepare_data() was not called")
        known = [
            character
            for alphabet in _subfolders(self.folder / self._base() / _KNOWN)
            for character in _subfolders(alphabet)
        ]
        new = _subfolders(self._chosen())
        parts = {"train": self._load(known, first=0), "unlabelled": self._load(new, first=len(known))}
        self.classes = tuple(f"{character.parent.name}/{character.name}" for character in known + new)
        self.num_known = len(known)
        return parts

    def _load(self, characters: list[Path], first: int) -> Samples:
        base = self.folder / self._base()
        files = [list_images(base, character) for character in characters]
        names = [name for of_one in files for name in of_one]
        labels = [first + i for i, of_one in enumerate(files) for _ in of_one]
        samples, _ = load_images(base, names, labels, size=self.size, channels=1)
        return replace(samples, inputs=255 - samples.inputs, source=None)  # the files are black on white

    def _chosen(self) -> Path:
        """Return the folder of the alphabet."""
        folders = _subfolders(self.folder / self._base() / _NEW)
        names = [folder.name for folder in folders]
        if isinstance(self.alphabet, int) and 0 <= self.alphabet < len(folders):
            return folders[self.alphabet]
        if self.alphabet in names:
            return folders[names.index(str(self.alphabet))]
        close = get_close_matches(str(self.alphabet), names, n=1)
        raise ConfigError(
            f"{self.title} has no evaluation alphabet {self.alphabet!r}"
            + (f"; did you mean {close[0]}?" if close else ""),
            where="data.alphabet",
            instead=f"a number from 0 to {len(names) - 1}, or one of {', '.join(names)}",
        )

    def _base(self) -> Path:
        """Return the folder of the set, relative to the root."""
        wanted = (_KNOWN, _NEW, f"{_KNOWN}.zip", f"{_NEW}.zip")
        for folder in _FOLDERS:
            if any((self.folder / folder / name).exists() for name in wanted):
                return Path(folder)
        return Path(_FOLDERS[0])

    def _missing(self) -> list[str]:
        return [folder for folder in self.files() if not (self.folder / folder).is_dir()]


def _subfolders(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise DataError(
            f"{folder} holds no folders", where="data.root", instead="ALPHABET/CHARACTER/*.png below it"
        )
    return found
