"""Documents as sparse tf-idf vectors, read from one file that the user prepared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scarcely.data.arrays import read_arrays
from scarcely.data.augment import Augmentation
from scarcely.data.module import DataModule
from scarcely.data.samples import Samples
from scarcely.errors import DataError

__all__ = ["Reuters10k", "TfidfFile"]

_FORMAT = (
    "an .npz file of scipy.sparse.save_npz with the arrays labels and classes added (both optional),"
    " or a text file of lines LABEL INDEX:VALUE ... (svmlight), plain or as .gz or .bz2"
)


class TfidfFile(DataModule):
    """Rows of one sparse file, with or without labels.

    * ``.npz``: what `scipy.sparse.save_npz` writes, with two arrays added: ``labels``, (N,) positions
      in ``classes`` (-1 where unknown) or (N,) class names; ``classes``, the names. Without
      ``classes`` the distinct labels are the classes; without ``labels`` there are none.
    * Any other ending: svmlight text, ``LABEL INDEX:VALUE ...`` a line, also compressed (``.gz``,
      ``.bz2``). The distinct labels are the classes; a file that has but one label has none.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn.
        root: the file.
        resident: where the vectors are kept (see `DataModule`).
        normalize: scale every row to length √D, so that its squares average 1 (as DEC scales Reuters;
            Xie et al., 2016); rows of zeros stay.

    Attributes:
        title: name of the file without its endings, for reports.
    """

    def __init__(
        self,
        *,
        name: str = "tfidf",
        kind: Literal["vectors"] = "vectors",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        normalize: bool = False,
    ) -> None:
        super().__init__(name=name, kind=kind, augmentation=augmentation, root=root, resident=resident)
        self.normalize = normalize
        packed = self.root is not None and self.root.suffix in (".gz", ".bz2")
        self.title = name if self.root is None else Path(self.root.stem if packed else self.root).stem

    @property
    def file(self) -> Path:
        """The file; a DataError where none is given."""
        if self.root is None:
            raise DataError(
                f"{self.name} needs a file", where="data.root", instead=f"data.root=FILE, {_FORMAT}"
            )
        return self.root

    def check(self) -> None:
        """Look whether the file is there.

        Raises:
            DataError: no file given, none there, or a folder.
        """
        if not self.file.is_file():
            found = f"{self.file} is a folder" if self.file.is_dir() else f"no file {self.file}"
            raise DataError(found, where="data.root", instead=f"data.root=FILE, {_FORMAT}")

    def read(self) -> dict[str, Samples]:
        """Return all rows as the train part.

        Raises:
            DataError: the file cannot be read, its parts do not fit together, a value is not finite,
                or the vectors do not fit into memory.
        """
        self.check()
        matrix, labels, self.classes = _read(self.file)
        if matrix.shape[0] < 2:
            raise DataError(
                f"{self.file} holds {matrix.shape[0]} rows; at least 2 are needed", where="data.root"
            )
        inputs = _dense(self.file, matrix)
        if self.normalize:
            length = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)
            inputs *= inputs.shape[1] ** 0.5 / torch.where(length > 0, length, 1)
        return {"train": Samples(inputs, torch.from_numpy(labels))}


class Reuters10k(TfidfFile):
    """10,000 documents of RCV1 in four root categories, 2,000 tf-idf terms (Xie et al., 2016; LSD-C).

    The corpus may not be passed on, so nothing is downloaded: `root` holds ``reuters10k.npz`` (or is
    such a file) in the format of `TfidfFile`, or the raw documents, of which that file is made once
    (`scarcely.data.rcv1.build`).

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn.
        root: folder that holds ``reuters10k.npz`` or the raw documents, or the file.
        resident: where the vectors are kept (see `DataModule`).
        normalize: scale every row to length √D (see `TfidfFile`).
    """

    def __init__(
        self,
        *,
        name: str = "reuters10k",
        kind: Literal["vectors"] = "vectors",
        augmentation: Augmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        normalize: bool = False,
    ) -> None:
        super().__init__(
            name=name, kind=kind, augmentation=augmentation, root=root, resident=resident, normalize=normalize
        )
        self.title = name

    @property
    def file(self) -> Path:
        """The file; a DataError where no root is given."""
        if self.root is None:
            raise DataError(
                f"{self.name} needs a folder", where="data.root", instead="data.root=FOLDER of reuters10k.npz"
            )
        return self.root if self.root.suffix == ".npz" else self.root / "reuters10k.npz"

    def check(self) -> None:
        """Look whether the file is there, or what it is made of.

        Raises:
            DataError: neither is; the message says what is expected.
        """
        if not self.file.is_file() and not self._raw():
            raise DataError(
                f"no file {self.file}; Reuters-10K may not be passed on and is not downloaded",
                where="data.root",
                instead="a folder with the documents of RCV1: lyrl2004_tokens_*.dat and rcv1-v2.topics.qrels,"
                " or the stories as .zip or *newsML.xml; or with reuters10k.npz, a sparse matrix of 10,000"
                " documents and 2,000 tf-idf terms by scipy.sparse.save_npz, with the arrays labels (0 to 3)"
                " and classes (4 names) added; other files: data=tfidf data.root=FILE",
            )

    def prepare_data(self) -> None:
        """Make the file of the raw documents, once."""
        self.check()
        if not self.file.is_file():
            from scarcely.data.rcv1 import build

            build(self.file.parent, self.file)

    def _raw(self) -> bool:
        from scarcely.data.rcv1 import sources

        return self.file.name == "reuters10k.npz" and bool(sources(self.file.parent))

    def read(self) -> dict[str, Samples]:
        """Return the 10,000 documents as the train part.

        Raises:
            DataError: the file cannot be read, or is not of 10,000 x 2,000 with four classes.
        """
        parts = super().read()
        rows, columns = parts["train"].inputs.shape
        if (rows, columns, len(self.classes)) != (10_000, 2_000, 4):
            raise DataError(
                f"{self.file} holds {rows:,} rows, {columns:,} columns and {len(self.classes)} classes",
                where="data.root",
                instead="10,000 rows, 2,000 columns and 4 classes; other sets: data=tfidf data.root=FILE",
            )
        return parts


def _read(file: Path) -> tuple[Any, np.ndarray, tuple[str, ...]]:
    """Return the sparse matrix, the labels (N,) int64 and the class names."""
    if file.suffix == ".npz":
        import scipy.sparse

        arrays = read_arrays(file, ("format", "shape", "data"), ("labels", "classes"))
        try:
            matrix = scipy.sparse.load_npz(file).tocsr()
        except Exception as error:  # whatever the constructors of scipy raise
            raise _unreadable(file, error) from error
        labels, classes = labels_of(file, arrays, matrix.shape[0])
    else:
        from sklearn.datasets import load_svmlight_file

        try:
            matrix, values = load_svmlight_file(str(file), dtype=np.float32)
        except Exception as error:  # its parser raises as it goes
            raise _unreadable(file, error) from error
        if not np.array_equal(values, np.round(values)):
            raise DataError(f"{file} has labels that are no whole numbers", where="data.root")
        labels, classes = _distinct(values.astype(np.int64))
        if len(classes) == 1:  # files without labels have a constant in their place
            labels, classes = np.full_like(labels, -1), ()
    return matrix, labels, classes


def labels_of(file: Path, arrays: dict[str, np.ndarray], rows: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels (N,) int64, -1 where unknown, and the classes, of the arrays ``labels`` and ``classes``.

    Args:
        file: where they are from, for the messages.
        arrays: what it holds; both may be absent.
        rows: N.

    Raises:
        DataError: they do not fit together, or not the rows.
    """
    labels = arrays.get("labels")
    classes = tuple(str(name) for name in arrays.get("classes", np.empty(0, np.str_)))
    if labels is None:
        return np.full(rows, -1, np.int64), ()
    if labels.shape != (rows,) or labels.dtype.kind not in "iuUS":
        raise DataError(
            f"{file} holds labels {labels.shape} {labels.dtype} for {rows:,} rows",
            where="data.root",
            instead=f"labels ({rows},), whole numbers or class names",
        )
    if labels.dtype.kind in "US":
        labels = labels.astype(np.str_)
        names = np.array(classes) if classes else np.unique(labels)
        unknown = np.setdiff1d(labels, names)
        if len(unknown):
            raise DataError(f"{file} has the label {unknown[0]}, which is not in classes", where="data.root")
        position = {str(name): label for label, name in enumerate(names)}
        return np.array([position[str(name)] for name in labels], np.int64), tuple(position)
    labels = labels.astype(np.int64)
    if classes:
        if labels.min() < -1 or labels.max() >= len(classes):
            raise DataError(
                f"{file} has labels from {labels.min()} to {labels.max()} for {len(classes)} classes",
                where="data.root",
                instead="positions in classes, or -1 where unknown",
            )
        return labels, classes
    known = labels != -1
    numbered = np.full(rows, -1, np.int64)
    numbered[known], classes = _distinct(labels[known])
    return numbered, classes


def _distinct(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    values, positions = np.unique(labels, return_inverse=True)
    return positions.astype(np.int64), tuple(str(value) for value in values)


def _dense(file: Path, matrix: Any) -> torch.Tensor:
    """Return the matrix as (N, D) float32, if it fits into memory and is finite."""
    rows, columns = matrix.shape
    needed = rows * columns * 4
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > memory // 2:
            raise DataError(
                f"{file} holds {rows:,} rows of {columns:,} terms: {needed:,} bytes as vectors,"
                f" more than half of the memory ({memory:,})",
                where="data.root",
                instead="fewer terms (the papers take the 2,000 most frequent) or fewer rows",
            )
    bad = np.flatnonzero(~np.isfinite(matrix.data))
    if len(bad):
        row = int(np.searchsorted(matrix.indptr, bad[0], side="right")) - 1
        raise DataError(f"{file} holds a value that is not finite in row {row}", where="data.root")
    return torch.from_numpy(matrix.astype(np.float32).toarray())


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"cannot read {file}: {error}", where="data.root", instead=_FORMAT)
