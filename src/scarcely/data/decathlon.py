"""Many domains: the Visual Decathlon, others in its layout, and class folders (chapters 3 and 4)."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack

from scarcely.data.annotations import Annotations, read_annotations
from scarcely.data.augment import ImageAugmentation
from scarcely.data.decode import load_images
from scarcely.data.domain_set import ChallengeImages, DomainSet, meant
from scarcely.data.imagefolder import Listing, scan
from scarcely.data.module import Split
from scarcely.data.samples import Samples
from scarcely.errors import ConfigError, DataError
from scarcely.spec import Annotated, NonNegativeInt, PositiveInt, Range

__all__ = ["MEAN_STD", "Decathlon"]

MEAN_STD: dict[str, tuple[list[float], list[float]]] = {
    "aircraft": ([0.480, 0.511, 0.534], [0.211, 0.205, 0.237]),
    "cifar100": ([0.507, 0.487, 0.441], [0.268, 0.257, 0.276]),
    "daimlerpedcls": ([0.482] * 3, [0.236] * 3),
    "dtd": ([0.527, 0.470, 0.424], [0.252, 0.241, 0.250]),
    "gtsrb": ([0.339, 0.312, 0.321], [0.276, 0.266, 0.271]),
    "imagenet12": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "omniglot": ([0.081] * 3, [0.271] * 3),
    "svhn": ([0.438, 0.444, 0.473], [0.198, 0.201, 0.197]),
    "ucf101": ([0.500, 0.499, 0.500], [0.109, 0.108, 0.107]),
    "vgg-flowers": ([0.434, 0.383, 0.297], [0.285, 0.238, 0.264]),
}
"""Mean and standard deviation of RGB in [0, 1], of the training images of the release's ten domains."""

_SIGNS = ("gtsrb", "omniglot", "svhn", "usps")
_RELEASE = "decathlon-1.0"
_STATISTICS = "decathlon_mean_std.json"
_LAYOUT = f"the folder that holds {_RELEASE}/annotations/NAME_train.json, or {_RELEASE} itself"


@dataclass(frozen=True)
class _Domain:
    """What is known of a domain before any image is opened; labels of a test part may be -1 throughout."""

    base: Path
    classes: tuple[str, ...]
    train: Listing
    val: Listing
    test: Listing
    ids: tuple[int, ...] = ()  # of the test images
    category_ids: tuple[int, ...] = ()


class Decathlon(DomainSet):
    """Domains of the Visual Decathlon, others in its layout, and class folders.

    A domain of the release is read from ``annotations/NAME_{train,val}.json`` and the test part from
    ``NAME_test.json`` or, without labels, ``NAME_test_stripped.json`` (see `read_annotations`); images lie
    where ``file_name`` says. Classes are in order of their category ids.

    A domain in class folders has one of the layouts of `ImageFolder`; unlabelled images are not used. Of
    each class, in order of the names, every fifth image is for validation and, in a folder without a test
    part, another fifth is tested (chapter 3, section 4: 60, 20 and 20 %).

    Images become squares of `size`, grey ones RGB, decoded once to a cache: train and val part into one
    file. Training sees random crops of `image_size` and their mirror images, everything else sees the
    centre; of `signs` everything sees the whole square. The network sees RGB normalised by the statistics
    of the domain: those given (`augmentation`), or else those in ``decathlon_mean_std.json`` beside the
    annotations, or of `MEAN_STD`; of others, and of class folders, those of their training pixels.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn; mean and std may be null, `crop` is for `image_size` to set.
        root: folder that holds ``decathlon-1.0``, or that folder; not needed for class folders alone.
        resident: where the images are kept (see `DataModule`).
        domains: names of domains of the release, or a mapping from names to class folders, with null for one
            of the release; None for all of the release.
        domain: the one that this object serves; None for looking at the set alone.
        source: domain whose network the others start from; ``auto``: imagenet12, or else the domain with the
            most training images; None for no such domain.
        scored: part that is the part ``test``. ``test`` trains on train and val, ``val`` on train alone;
            ``auto`` is ``test`` where the labels of the test part are known, else ``val``.
        image_size: side in pixels of what the network sees.
        size: side in pixels of the decoded images: the short side is resized to it, the rest cut at the
            centre. None for nine eighths of `image_size`, 72 for 64 pixels.
        train_share: share of each class's training images that is used, at least one; of the source all.
        source_classes: the first classes of the source that are used; None for all.
        signs: domains that are neither cropped nor mirrored, since a mirrored sign is another one.
        on_error: ``skip`` leaves out files that cannot be decoded, counts them and warns.
        workers: decoding threads; 0 for the number of cores.
        split: which labels are used (see `Split`).

    Attributes:
        skipped: files left out under ``on_error=skip``, relative to their folder; set by `read`.

    Raises:
        ConfigError: `size` is smaller than `image_size`.
    """

    split_keys: ClassVar[tuple[str, ...]] = (
        *DomainSet.split_keys,
        "signs",  # what they change is in the augmentation, once it is filled in
        "on_error",
    )

    def __init__(
        self,
        *,
        name: str = "decathlon",
        kind: Literal["images"] = "images",
        augmentation: ImageAugmentation,
        root: str | None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        domains: list[str] | dict[str, str | None] | None = None,
        domain: str | None = None,
        source: str | None = "auto",
        scored: Literal["auto", "val", "test"] = "auto",
        train_share: Annotated[float, Range(above=0, high=1)] = 1.0,
        source_classes: PositiveInt | None = None,
        image_size: PositiveInt = 64,
        size: PositiveInt | None = None,
        signs: Sequence[str] = _SIGNS,
        on_error: Literal["raise", "skip"] = "raise",
        workers: NonNegativeInt = 0,
        **split: Unpack[Split],
    ) -> None:
        super().__init__(
            name=name,
            augmentation=augmentation,
            root=root,
            resident=resident,
            domains=domains,
            domain=domain,
            source=source,
            scored=scored,
            train_share=train_share,
            source_classes=source_classes,
            **split,
        )
        self.image_size = image_size
        self.size = size if size is not None else round(image_size * 9 / 8)
        self.signs = tuple(signs)
        self.on_error: Literal["raise", "skip"] = on_error
        self.workers = workers
        self.skipped: tuple[str, ...] = ()
        self._found: dict[str, _Domain] = {}
        if self.size < image_size:
            raise ConfigError(
                f"no {image_size} pixels can be cut from images of {self.size}",
                where="data.size, data.image_size",
                instead=f"data.size={image_size} at least, or null",
            )

    # The set

    @cached_property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in the order given; of the whole release, sorted.

        Raises:
            DataError: a name twice, one that the release does not have, no domain, or no release.
        """
        names = list(self._release_names if self.domains is None else self.domains)
        self._refuse_twice(names)
        for name in names:
            if not name or any(c in "/\\ " for c in name) or name.startswith("."):
                raise DataError(
                    f"{name!r} cannot be the name of a domain: its results lie in a folder of that name",
                    where="data.domains",
                    instead="letters, digits, - and _",
                )
            if self._class_folder(name) is None and name not in self._release_names:
                close = meant(name, self._release_names)
                raise DataError(
                    f"{self._release / 'annotations'} has no domain {name!r}{close}",
                    where="data.domains",
                    instead=f"one of {', '.join(self._release_names) or 'another release'}; or class folders,"
                    " 'data.domains={NAME: DIR}'",
                )
        if not names:
            raise DataError(
                f"{self.name} has no domains",
                where="data.domains, data.root",
                instead=f"data.root: {_LAYOUT}",
            )
        return tuple(names)

    def usual_source(self) -> str:
        """Return imagenet12, or else the domain with the most training images."""
        if "imagenet12" in self.domain_names:
            return "imagenet12"
        return max(self.domain_names, key=lambda name: len(self._domain(name).train.files))

    def classes_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the classes of a domain, in order of their category ids or of their folders."""
        return self._domain(name).classes

    def scored_part(self, name: str) -> Literal["val", "test"]:
        """Return the part of a domain that is scored.

        Raises:
            DataError: it has no labels, or no images.
        """
        domain = self._domain(name)
        labelled = max(domain.test.labels, default=-1) >= 0
        if self.scored == "test" and not labelled:
            raise DataError(
                f"the classes of the test part of {name} are not known",
                where="data.scored",
                instead=f"data.scored=val; or {name}_test.json with labels beside the other annotations, or"
                " test/CLASS/*.jpg in a class folder",
            )
        if self.scored == "test" or (self.scored == "auto" and labelled):
            return "test"
        if not domain.val.files:
            raise DataError(
                f"{domain.base} has too few images to hold out a fifth of any class",
                where=f"data.domains.{name}",
                instead="a test part: DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg",
            )
        return "val"

    def test_images(self) -> ChallengeImages:
        """Return the test part of the domain as the challenge numbers it, for predictions.

        `load_images` reads them as squares of `size`.

        Raises:
            DataError: there are no test annotations.
        """
        name = self._chosen()
        found = self._domain(name)
        if not found.ids:
            raise DataError(
                f"the domain {name} has no test images with ids",
                where="data.domain",
                instead=f"a domain of the release with {name}_test_stripped.json or {name}_test.json",
            )
        return ChallengeImages(found.base, found.test.files, found.ids, found.category_ids)

    # The one domain

    def check_domain(self, name: str) -> None:
        """Look whether a domain is sound; no image is opened.

        Raises:
            DataError: see `read_annotations` and `scan`; or an image is missing, labels to be scored are not
                known, or the statistics are not numbers.
        """
        super().check_domain(name)
        self._published_statistics(name)

    def read_domain(self, name: str) -> dict[str, Samples]:
        """Return the parts ``train`` and ``test`` of a domain, decoded.

        Raises:
            DataError: an image cannot be decoded.
        """
        domain = self._domain(name)
        self.skipped = ()
        both = self._load(
            domain.base, domain.train.files + domain.val.files, domain.train.labels + domain.val.labels
        )
        if self.scored_part(name) == "test":
            return {"train": both, "test": self._load(domain.base, domain.test.files, domain.test.labels)}
        cut = len(domain.train.files) - len(set(domain.train.files) & set(self.skipped))
        return {"train": both.select(slice(cut)), "test": both.select(slice(cut, None))}

    def statistics_of(self, name: str, train: Samples) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of RGB: those published, or else of the training pixels."""
        return self._published_statistics(name) or super().statistics_of(name, train)

    def views_of(self, name: str) -> dict[str, Any]:
        """Return how images of a domain are cut and mirrored: of signs nothing is."""
        if name in self.signs:
            return {"crop": None, "padding": 0, "flip": False}
        return {"crop": self.augmentation.crop or self.image_size}

    def _load(self, base: Path, files: tuple[str, ...], labels: tuple[int, ...]) -> Samples:
        samples, failed = load_images(
            base, files, labels, size=self.size, on_error=self.on_error, workers=self.workers
        )
        self.skipped += tuple(failed)
        return samples

    def _published_statistics(self, name: str) -> tuple[list[float], list[float]] | None:
        if self._class_folder(name) is not None:
            return None
        path = self._release / _STATISTICS
        if not path.is_file():
            return MEAN_STD.get(name)
        unusable = DataError(
            f"{path} has no usable statistics of {name}",
            where="data.root",
            instead=f"{name}mean and {name}std, three numbers each, those of std above 0; or neither",
        )
        try:
            values = dict(json.loads(path.read_bytes()))
            if f"{name}mean" not in values and f"{name}std" not in values:
                return MEAN_STD.get(name)
            mean, std = ([float(v) for v in values[f"{name}{what}"]] for what in ("mean", "std"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise unusable from error
        if not (len(mean) == len(std) == 3 and all(map(math.isfinite, mean + std)) and min(std) > 0):
            raise unusable
        return mean, std

    # Where the domains lie

    @cached_property
    def _release(self) -> Path:
        if self.root is None:
            raise DataError(f"{self.name} needs the folder of its data", where="data.root", instead=_LAYOUT)
        for folder in (self.root / _RELEASE, self.root):
            if os.path.isdir(
                folder / "annotations"
            ):  # Path.is_dir() raises where a folder may not be entered
                return folder
        raise DataError(
            f"{self.root} holds no {_RELEASE} with its annotations", where="data.root", instead=_LAYOUT
        )

    @cached_property
    def _release_names(self) -> tuple[str, ...]:
        ending = "_train.json"
        found = sorted(os.listdir(self._release / "annotations"))
        return tuple(name.removesuffix(ending) for name in found if name.endswith(ending) and name[0] != ".")

    def _class_folder(self, name: str) -> Path | None:
        folder = self.domains.get(name) if isinstance(self.domains, dict) else None
        return None if folder is None else Path(folder).expanduser()

    def _domain(self, name: str) -> _Domain:
        if name not in self._found:
            folder = self._class_folder(name)
            self._found[name] = (
                _from_annotations(self._release, name) if folder is None else _from_folders(name, folder)
            )
        return self._found[name]


def _from_annotations(release: Path, name: str) -> _Domain:
    annotations = release / "annotations"
    train, val = (read_annotations(annotations / f"{name}_{part}.json") for part in ("train", "val"))
    parts = {"train": train, "val": val}
    test, stripped = (annotations / f"{name}_{part}.json" for part in ("test", "test_stripped"))
    if test.is_file():
        parts["test"] = read_annotations(test)
    elif stripped.is_file():
        parts["test"] = read_annotations(stripped, labelled=False)
    label_of = {category: label for label, category in enumerate(train.categories)}
    listings = {}
    for part, found in parts.items():
        found.check_files(release)
        _check_categories(train, found)
        labels = tuple(label_of[category] for category in found.category_ids)
        listings[part] = Listing(found.files, labels or (-1,) * len(found.files))
    return _Domain(
        base=release,
        classes=tuple(train.categories.values()),
        train=listings["train"],
        val=listings["val"],
        test=listings.get("test", Listing((), ())),
        ids=parts["test"].ids if "test" in parts else (),
        category_ids=tuple(train.categories),
    )


def _check_categories(train: Annotations, other: Annotations) -> None:
    """Refuse categories of a labelled part that are not those of the train part."""
    differ = sorted(set(other.categories.items()) ^ set(train.categories.items()))
    if other.category_ids and differ:
        number = differ[0][0]
        raise DataError(
            f"category {number} is {other.categories.get(number)!r} in {other.path}"
            f" and {train.categories.get(number)!r} in {train.path}",
            where="data.root",
            instead="the same categories in all files of a domain",
        )


def _from_folders(name: str, folder: Path) -> _Domain:
    where = f"data.domains.{name}"
    if not os.path.isdir(folder):
        raise DataError(f"no folder {folder}", where=where, instead="a folder of class folders")
    try:
        classes, found = scan(folder)
    except DataError as error:
        raise DataError(error.what, where=where, instead=error.instead) from error
    train = found["train"]
    if max(train.labels) < 0:
        raise DataError(f"{folder} has no class folders", where=where, instead="DIR/CLASS/*.jpg")
    seen: Counter[int] = Counter()
    fifths = []
    for label in train.labels:
        fifths.append(seen[label] % 5)
        seen[label] += 1

    def only(*wanted: int) -> Listing:
        rows = [row for row, fifth in enumerate(fifths) if fifth in wanted]
        return Listing(tuple(train.files[row] for row in rows), tuple(train.labels[row] for row in rows))

    if "test" in found:
        return _Domain(folder, classes, train=only(0, 1, 2, 3), val=only(4), test=found["test"])
    return _Domain(folder, classes, train=only(0, 1, 2), val=only(4), test=only(3))
