"""Which labels of a data set a method may see: those of some classes, or of a few samples of each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from scarcely.errors import ConfigError, DataError
from scarcely.files import write_atomically
from scarcely.seeds import derive_seed
from scarcely.spec import NonNegativeInt, PositiveInt

__all__ = [
    "ClassChoice",
    "ClassList",
    "Split",
    "check_split",
    "choose_classes",
    "choose_labelled",
    "read_labelled",
    "write_labelled",
]

ClassList = list[NonNegativeInt | str] | None
"""Classes by index or by name."""
ClassChoice = PositiveInt | list[NonNegativeInt | str] | None
"""The same, or how many from the first on."""

_SHOWN = 12
_COLUMNS = ("index", "class", "file")


class Split(TypedDict, total=False):
    """Arguments that every data set takes; all may be left out.

    labelled_classes: the classes whose labels a method may see, for the discovery of the others: indices (in
        the order of the data set) or names, or how many from the first on. The classes are then numbered
        anew, these first and those to be discovered after them; samples of all other classes are left out.
    unlabelled_classes: the classes to be discovered; all others by default.
    labels_per_class: number of training samples of each class whose labels a method may see. The choice
        depends on the data and `labels_seed` alone; a larger number takes the same samples and more.
    labels_seed: of this choice.
    labels_file: a choice that was made before, ``labelled.csv`` of a run; instead of `labels_per_class`.
    """

    labelled_classes: ClassChoice
    unlabelled_classes: ClassList
    labels_per_class: PositiveInt | None
    labels_seed: NonNegativeInt
    labels_file: str | None


def check_split(split: Split) -> None:
    """Look whether the arguments go together.

    Raises:
        ConfigError: they do not.
    """
    labelled, new = split.get("labelled_classes"), split.get("unlabelled_classes")
    if labelled == 0 or labelled == []:
        raise ConfigError(
            "no class is labelled",
            where="data.labelled_classes",
            instead="the known classes, data.labelled_classes=[0,1] or a number; null: all are known",
        )
    if new is not None and labelled is None:
        raise ConfigError(
            "classes to be discovered, but no known ones",
            where="data.unlabelled_classes",
            instead="data.labelled_classes too: a list, or how many from the first on",
        )
    if new == []:
        raise ConfigError(
            "no class is left to be discovered",
            where="data.unlabelled_classes",
            instead="a list of classes, or null for all that are not labelled",
        )
    few = [f"data.{key}" for key in ("labels_per_class", "labels_file") if split.get(key) is not None]
    if len(few) == 2:
        raise ConfigError(
            "a number of labels per class, and a file that says which",
            where=", ".join(few),
            instead="one of the two",
        )
    if few and labelled is not None:
        raise ConfigError(
            "some classes are to be discovered, and of each class few labels are known: no method does both",
            where=f"data.labelled_classes, {few[0]}",
            instead="one of the two",
        )


def choose_classes(
    classes: Sequence[str], choice: ClassChoice, new: ClassList, name: str
) -> tuple[list[int], list[int]]:
    """Return the classes that are labelled and those to be discovered, each in order.

    Args:
        classes: names of all classes.
        choice, new: `Split.labelled_classes` and `Split.unlabelled_classes`.
        name: of the data set, for the messages.

    Raises:
        ConfigError: classes that do not exist, occur twice or in both lists; or nothing is left.
        DataError: there are no classes.
    """
    total = len(classes)
    if not total:
        raise DataError(
            f"{name} has no labels, and so no classes to choose from",
            where="data.labelled_classes",
            instead="images in class folders, or null",
        )
    if isinstance(choice, int):
        if choice > total:
            raise ConfigError(
                f"{name} has only {total} classes, not {choice}",
                where="data.labelled_classes",
                instead=f"a number from 1 to {total - 1}",
            )
        known = list(range(choice))
    else:
        known = _labels_of(classes, choice or [], "data.labelled_classes", name)
    if len(known) == total:
        raise ConfigError(
            f"all {total} classes of {name} are labelled: nothing is left to be discovered",
            where="data.labelled_classes",
            instead="fewer classes",
        )
    if new is None:
        return known, [label for label in range(total) if label not in known]
    discovered = _labels_of(classes, new, "data.unlabelled_classes", name)
    both = [classes[label] for label in known if label in discovered]
    if both:
        raise ConfigError(
            f"classes both labelled and to be discovered: {some(both)}",
            where="data.unlabelled_classes",
            instead="two lists without a class in common",
        )
    return known, discovered


def _labels_of(classes: Sequence[str], items: Sequence[int | str], where: str, name: str) -> list[int]:
    labels = [_label_of(classes, item, where, name) for item in items]
    twice = sorted({classes[label] for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"classes named twice: {some(twice)}", where=where, instead="each class once")
    return sorted(labels)


def _label_of(classes: Sequence[str], item: int | str, where: str, name: str) -> int:
    if isinstance(item, int) and 0 <= item < len(classes):
        return item
    if item in classes:
        return classes.index(str(item))
    close = get_close_matches(item, classes, n=3) if isinstance(item, str) else []
    raise ConfigError(
        f"{name} has no class {item!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""),
        where=where,
        instead=f"an index from 0 to {len(classes) - 1}, or a name of {some(classes)}",
    )


def choose_labelled(labels: Tensor, classes: Sequence[str], per_class: int, seed: int) -> Tensor:
    """Choose the samples whose labels may be seen, equally many of each class.

    Args:
        labels: (N,) int64, -1 where unknown.
        classes: names of the classes.
        per_class: number of samples of each class.
        seed: of the choice; a larger `per_class` takes the same samples and more.

    Returns:
        (N,) bool.

    Raises:
        DataError: there are no classes, or a class has too few samples.
    """
    if not classes:
        raise DataError(
            "there are no labels of which some could be chosen",
            where="data.labels_per_class",
            instead="images in class folders, or null",
        )
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    few = []
    for label, name in enumerate(classes):
        rows = (labels == label).nonzero().flatten()
        if len(rows) < per_class:
            few.append((len(rows), name))
            continue
        generator = torch.Generator().manual_seed(derive_seed(seed, "labels", label))
        chosen[rows[torch.randperm(len(rows), generator=generator)[:per_class]]] = True
    if few:
        least, name = min(few)
        images = "no training sample" if not least else f"only {least} training sample{'s' * (least > 1)}"
        more = f" (and {len(few) - 1} more classes too few)" if len(few) > 1 else ""
        raise DataError(
            f"class {name!r} has {images}, and {per_class} labels of each class were asked for{more}",
            where="data.labels_per_class",
            instead=f"at most {least}" if least else "samples of every class",
        )
    return chosen


def write_labelled(path: Path, labels: Tensor, classes: Sequence[str], names: Sequence[str] | None) -> None:
    """Write which samples have a label that may be seen: position, class and, of images, file.

    Args:
        path: of the file.
        labels: (N,) int64 of the training samples, -1 where hidden or unknown.
        classes: names of the classes.
        names: files of the samples.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS[: 2 + (names is not None)])
    for row in (labels >= 0).nonzero().flatten().tolist():
        rows.writerow([row, classes[int(labels[row])], *([names[row]] if names is not None else [])])
    write_atomically(path, text.getvalue())


def read_labelled(
    path: Path, labels: Tensor, classes: Sequence[str], names: Sequence[str] | None = None
) -> Tensor:
    """Read what `write_labelled` wrote.

    Args:
        path: of the file.
        labels: (N,) int64, the true labels of the training samples.
        classes: names of the classes.
        names: files of the samples.

    Returns:
        (N,) bool.

    Raises:
        DataError: no such file, not such a file, or one of other data.
    """
    where = "data.labels_file"
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        found = [(int(row["index"]), row["class"], row.get("file")) for row in rows]
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", where=where, instead="labelled.csv of a run"
        ) from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path} has no columns index and class", where=where, instead="labelled.csv of a run"
        ) from error
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for index, name, file_name in found:
        if not 0 <= index < len(labels) or labels[index] < 0 or classes[int(labels[index])] != name:
            raise DataError(
                f"{path} was written for other data: training sample {index} is not of class {name!r} here",
                where=where,
                instead="labelled.csv of a run on these data",
            )
        if names is not None and file_name and names[index] != file_name:
            raise DataError(
                f"{path} was written for other data: sample {index} is {names[index]} here, not {file_name}",
                where=where,
                instead="labelled.csv of a run on the same files",
            )
        chosen[index] = True
    if not found:
        raise DataError(f"{path} names no sample", where=where, instead="labelled.csv of a run")
    return chosen


def some(names: Sequence[str]) -> str:
    """Name the first of them, and count the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
