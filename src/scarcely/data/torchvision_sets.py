"""What the sets that torchvision downloads have in common: look first, fetch beside, move when complete."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, Unpack

from scarcely.data.augment import Augmentation
from scarcely.data.module import DataModule, Split
from scarcely.errors import DataError

__all__ = ["TorchvisionSet"]

_TIMEOUT = 60.0
"""Seconds without an answer after which a download is given up; torchvision would wait for ever."""

_Result = TypeVar("_Result")


class TorchvisionSet(DataModule):
    """Base of the sets that torchvision can download: a subclass names the files and reads them.

    A root that holds the set is only read. One that holds archives of it as they are published has
    them checked and unpacked. Otherwise everything is downloaded into a folder beside, and moved
    when it is complete and has the sums that torchvision knows: an interrupted download leaves no
    half set. What is there is never written over.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn and normalised.
        root: folder below which torchvision's layout of the set lies, or shall lie.
        resident: where the images are kept (see `DataModule`).
        download: whether a set that is not there is downloaded.
        split: which labels are used (see `Split`).
    """

    title: ClassVar[str]
    """Name of the set in messages."""
    source: ClassVar[str]
    """Where its files are published."""

    def __init__(
        self,
        *,
        name: str,
        kind: Literal["images"] = "images",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        download: bool = True,
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
        self.download = download

    # What a subclass fills in

    def files(self) -> tuple[str, ...]:
        """Return every file that `read` needs, relative to the root."""
        raise NotImplementedError(f"{type(self).__name__} must define files()")

    def archives(self) -> dict[str, str]:
        """Return the published archives, relative to the root, with their MD5 sums.

        They are unpacked into the folder in which they lie.
        """
        return {}

    def fetch(self, folder: Path) -> None:
        """Let torchvision download the set below `folder`."""
        raise NotImplementedError(f"{type(self).__name__} must define fetch()")

    def sound(self, file: str) -> bool:
        """Return whether a file has the content that was published, as far as can be known.

        Asked only when reading failed, to name the file at fault.
        """
        return True

    # What they get

    @property
    def folder(self) -> Path:
        """The root; a DataError where there is none."""
        if self.root is None:
            raise DataError(
                f"{self.title} needs a folder",
                where="data.root",
                instead="data.root=FOLDER, or SCARCELY_DATA=FOLDER in the environment",
            )
        return self.root

    def check(self) -> None:
        """Look whether the set is there, or may be downloaded.

        Raises:
            DataError: no root, a root that cannot be a folder, a set that is there in part, or one that
                is not there and shall not be downloaded.
        """
        missing = self._missing()
        if missing and self._beside(".lock").exists():
            # Another process may be moving the files in; where one may not write there is no lock to take.
            with suppress(OSError), self._locked():
                missing = self._missing()
        if not missing:
            return
        exists = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not exists.is_dir():
            raise DataError(
                f"{exists} is not a folder", where="data.root", instead=f"a folder that holds {self.title}"
            )
        if self._archives_there():
            return
        if len(missing) < len(self.files()):
            raise DataError(
                f"{self.title} is there only in part: {self.folder / missing[0]} is missing"
                + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
                where="data.root",
                instead=f"put the file there (from {self.source}), or remove the others: the whole set"
                " is then downloaded anew",
            )
        if not self.download:
            raise self._absent("data.download=false forbids to download it")

    def prepare_data(self) -> None:
        """Unpack or download the set if it is not there.

        Raises:
            DataError: as `check` does, or the download fails.
        """
        self.check()
        if not self._missing():
            return
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if self._missing():
                    try:
                        self._fill()
                    except BaseException:
                        self._leave(made)
                        raise
        except OSError as error:
            raise self._absent(f"the folder cannot be filled: {error.strerror or error}") from error

    def _fill(self) -> None:
        beside = self._beside(".partial")
        shutil.rmtree(beside, ignore_errors=True)  # what a killed download left
        try:
            if self._archives_there():
                self._unpack(beside)
            else:
                self._download(beside)
            for file in self._missing():
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.rename(beside / file, self.folder / file)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _leave(self, made: list[Path]) -> None:
        """Remove the folders that were made for a set that did not come, and the lock in them."""
        if made:
            self._beside(".lock").unlink(missing_ok=True)
        for folder in made:  # the innermost first; one that holds anything stays
            with suppress(OSError):
                folder.rmdir()

    def load(self, make: Callable[[], _Result]) -> _Result:
        """Call `make`, which reads files of the set, and name the one at fault if it fails.

        Raises:
            DataError: a file is missing, damaged or of another format.
        """
        self.check()
        if self._missing():
            raise self._absent("prepare_data() was not called")
        try:
            return make()
        except Exception as error:  # whatever the parsers of torchvision raise on damaged files
            bad = next((file for file in self.files() if not self.sound(file)), None)
            if bad is not None:
                raise self.damaged(self.folder / bad, "its content is not as published") from error
            raise self.damaged(f"a file of {self.title} in {self.folder}", _reason(error)) from error

    def damaged(self, file: str | Path, reason: str) -> DataError:
        """Return the error for a file that is there but cannot be read."""
        return DataError(
            f"{file} is damaged: {reason}",
            where="data.root",
            instead=f"the file from {self.source}; or remove all files of the set to have it downloaded",
        )

    def _missing(self) -> list[str]:
        return [file for file in self.files() if not (self.folder / file).is_file()]

    def _archives_there(self) -> bool:
        archives = self.archives()
        return bool(archives) and all((self.folder / archive).is_file() for archive in archives)

    def _unpack(self, beside: Path) -> None:
        from torchvision.datasets.utils import check_integrity, extract_archive

        for archive, md5 in self.archives().items():
            path = self.folder / archive
            if not check_integrity(path, md5):
                raise self.damaged(path, "its checksum is not the published one")
            target = (beside / archive).parent
            target.mkdir(parents=True, exist_ok=True)
            extract_archive(str(path), str(target))

    def _download(self, beside: Path) -> None:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT)
        try:
            self.fetch(beside)
        except Exception as error:  # URL, TLS, socket and torchvision's own errors
            raise self._absent(f"it could not be downloaded ({_reason(error)})") from error
        finally:
            socket.setdefaulttimeout(before)

    def _beside(self, ending: str) -> Path:
        # Named after the files, not after the set: two sets may be labels of the same files.
        return self.folder / f".{Path(self.files()[0]).parts[0]}{ending}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import filelock

        with filelock.FileLock(self._beside(".lock")):
            yield

    def _absent(self, reason: str) -> DataError:
        files = self.files()
        shown = ", ".join(files[:6]) + (f" and {len(files) - 6} more" if len(files) > 6 else "")
        archives = ", ".join(self.archives())
        return DataError(
            f"{self.title} is not in {self.folder}, and {reason}",
            where="data.root",
            instead=f"put {shown} below that folder"
            + (f" (or, packed, {archives})" if archives else "")
            + f" from {self.source}, or set data.root to the folder that holds them",
        )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
