"""Eight domains made of scikit-learn's digits: a decathlon that runs anywhere, without a download."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from scarcely.data.augment import ImageAugmentation
from scarcely.data.digits import TEST, read_digits
from scarcely.data.domain_set import DomainSet, meant
from scarcely.data.module import Split
from scarcely.data.samples import Samples
from scarcely.errors import DataError
from scarcely.seeds import derive_seed
from scarcely.spec import Annotated, PositiveInt, Range

__all__ = ["DOMAINS", "DigitDomains"]

_VAL = 3  # which of each five samples, from 0, is in the validation part
_PAIRS = 4  # of each digit with another one: the source is to be the largest domain
_DIGITS = tuple("0123456789")


class Drawn(NamedTuple):
    """Images on their way from digits to a domain.

    Attributes:
        ink: (N, 1 or 3, H, W) between 0 and 1; of the digits as they are 1 is ink.
        labels: (N,).
        fifths: (N,), number of the digit modulo 5, which says its part.
    """

    ink: Tensor
    labels: Tensor
    fifths: Tensor


def _sums(digits: Drawn, generator: torch.Generator) -> Drawn:
    first = torch.arange(len(digits.labels)).repeat(_PAIRS)
    second = first.clone()
    for fifth in range(5):  # both digits are of the same part
        rows = (digits.fifths[first] == fifth).nonzero().flatten()
        second[rows] = first[rows[torch.randperm(len(rows), generator=generator)]]
    height, width = digits.ink.shape[2:]
    left = interpolate(digits.ink[first], size=(height, width // 2), mode="area")
    right = interpolate(digits.ink[second], size=(height, width - width // 2), mode="area")
    labels = digits.labels[first] + digits.labels[second]
    return Drawn(torch.cat([left, right], dim=3), labels, digits.fifths[first])


def _groups(digits: Drawn, generator: torch.Generator) -> Drawn:
    return digits._replace(labels=2 * (digits.labels % 2) + (digits.labels >= 5))


def _inverted(digits: Drawn, generator: torch.Generator) -> Drawn:
    paper = 0.3 + 0.7 * torch.rand(digits.ink.shape, generator=generator)
    return digits._replace(ink=(1 - digits.ink) * paper)


def _turned(digits: Drawn, generator: torch.Generator) -> Drawn:
    return digits._replace(ink=digits.ink.rot90(1, (2, 3)))


def _outlined(digits: Drawn, generator: torch.Generator) -> Drawn:
    return digits._replace(ink=max_pool2d(digits.ink, 3, stride=1, padding=1) - digits.ink)


def _occluded(digits: Drawn, generator: torch.Generator) -> Drawn:
    count, _, size, _ = digits.ink.shape
    side = 3 * size // 8
    starts = torch.randint(size - side + 1, (2, count, 1), generator=generator)
    at = torch.arange(size)
    rows, columns = (at >= starts) & (at < starts + side)  # (N, size) each
    hidden = rows[:, None, :, None] & columns[:, None, None, :]
    noise = torch.rand(digits.ink.shape, generator=generator)
    return digits._replace(ink=noise.where(hidden, digits.ink))


def _coloured(digits: Drawn, generator: torch.Generator) -> Drawn:
    count, _, *size = digits.ink.shape
    texture = torch.rand(count, 3, 4, 4, generator=generator)
    ground = 0.4 * interpolate(texture, size=size, mode="bilinear", align_corners=False)
    light = torch.rand(count, 3, 1, 1, generator=generator) < 0.5
    ground = (1 - ground).where(light, ground)  # light or dark, so that the ink differs in every channel
    return digits._replace(ink=ground + digits.ink * (1 - 2 * ground))


class Made(NamedTuple):
    """How a domain is made of the digits.

    Attributes:
        of: the digits, and what is random, to the images of the domain.
        classes: of the domain.
    """

    of: Callable[[Drawn, torch.Generator], Drawn]
    classes: tuple[str, ...]


DOMAINS: dict[str, Made] = {
    "sums": Made(_sums, tuple(map(str, range(19)))),
    "digits": Made(lambda digits, generator: digits, _DIGITS),
    "groups": Made(_groups, ("even, below 5", "even, from 5", "odd, below 5", "odd, from 5")),
    "inverted": Made(_inverted, _DIGITS),
    "turned": Made(_turned, _DIGITS),
    "outlined": Made(_outlined, _DIGITS),
    "occluded": Made(_occluded, _DIGITS),
    "coloured": Made(_coloured, _DIGITS),
}
"""The domains by name."""


class DigitDomains(DomainSet):
    """Eight domains of RGB images, all made of scikit-learn's 1,797 digits.

    - ``sums``: two narrow digits side by side, four pairs of each digit; 19 classes;
    - ``digits``: as they are, white on black; 10 classes;
    - ``groups``: the same images, even or odd, below 5 or not; 4 classes;
    - ``inverted``: black on light noise; 10 classes;
    - ``turned``: by a quarter, to the left; 10 classes;
    - ``outlined``: the outer edge of the ink alone; 10 classes;
    - ``occluded``: noise hides a square of three eighths of the side; 10 classes;
    - ``coloured``: a coloured ground that varies, and the ink in the opposite colour; 10 classes.

    Every fifth digit, in scikit-learn's order, is tested, as in `Digits`, and another fifth validates, the
    same ones in all domains: no domain trains on a digit that another one is tested on. What is random in
    an image is a function of the domain and `size` alone.

    Args:
        name: short name of the set.
        kind: what one sample is.
        augmentation: how views are drawn; mean and std null are those of each domain's training pixels.
        root: not used.
        resident: where the images are kept (see `DataModule`).
        domains: names of those that are used, keys of `DOMAINS`; None for all.
        domain: the one that this object serves; None for looking at the set alone.
        source: domain whose network the others start from; ``auto``: the first with the most classes, sums;
            None for no such domain.
        scored: part that is the part ``test``. ``test`` trains on train and val, ``val`` on train alone;
            ``auto`` is ``test``.
        train_share: share of each class's training images that is used, at least one; of the source all.
        source_classes: the first classes of the source that are used; None for all.
        size: side of the images in pixels, enlarged from 8.
        split: which labels are used (see `Split`).
    """

    def __init__(
        self,
        *,
        name: str = "digit_domains",
        kind: Literal["images"] = "images",
        augmentation: ImageAugmentation,
        root: None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        domains: list[str] | None = None,
        domain: str | None = None,
        source: str | None = "auto",
        scored: Literal["auto", "val", "test"] = "auto",
        train_share: Annotated[float, Range(above=0, high=1)] = 1.0,
        source_classes: PositiveInt | None = None,
        size: Annotated[int, Range(low=8)] = 16,
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
        self.size = size

    @cached_property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in the order given.

        Raises:
            DataError: a name twice, one that there is not, or none.
        """
        names = list(DOMAINS if self.domains is None else self.domains)
        self._refuse_twice(names)
        unknown = [name for name in names if name not in DOMAINS]
        if unknown or not names:
            raise DataError(
                f"there is no domain {unknown[0]!r} of digits{meant(unknown[0], list(DOMAINS))}"
                if unknown
                else f"{self.name} has no domains",
                where="data.domains",
                instead=f"of {', '.join(DOMAINS)}; or null for all",
            )
        return tuple(names)

    def usual_source(self) -> str:
        """Return the first domain with the most classes: sums, as ImageNet in the Visual Decathlon."""
        return max(self.domain_names, key=lambda name: len(DOMAINS[name].classes))

    def classes_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the classes of a domain."""
        return DOMAINS[name].classes

    def scored_part(self, name: str) -> Literal["val", "test"]:
        """Return the part of a domain that is scored."""
        return "val" if self.scored == "val" else "test"

    def read_domain(self, name: str) -> dict[str, Samples]:
        """Return ``train`` and ``test``: four fifths and one, or three and the one that validates."""
        digits, _ = read_digits(self.size)
        ink = digits.inputs.permute(0, 3, 1, 2) / 255
        generator = torch.Generator().manual_seed(derive_seed("digit_domains", name))
        drawn = DOMAINS[name].of(Drawn(ink, digits.labels, torch.arange(len(digits)) % 5), generator)
        pixels = (255 * drawn.ink).round().to(torch.uint8).permute(0, 2, 3, 1)
        samples = Samples(pixels.expand(-1, -1, -1, 3).contiguous(), drawn.labels)
        test, val = drawn.fifths == TEST, drawn.fifths == _VAL
        if self.scored_part(name) == "val":
            return {"train": samples.select(~(test | val)), "test": samples.select(val)}
        return {"train": samples.select(~test), "test": samples.select(test)}
