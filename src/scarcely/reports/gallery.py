"""One page of predicted images, by cluster or class: self-contained, no script, no request to anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scarcely.files import write_atomically
from scarcely.reports.html import template

SIDE = 80
"""Pixels of the side of a picture on the page."""

# 800 pictures of 80 pixels are one to two megabytes of photographs, and five of noise.
_PICTURES, _EACH = 800, 12  # on the page; of the surest and of the least sure images of a group
_SHARP = 40  # pixels: below that JPEG blurs what little there is, and PNG is as small


class Group(NamedTuple):
    """The images of one cluster or class.

    Attributes:
        name: of the cluster or class.
        members: (n,) positions of its images.
        confidence: (n,) probability of the class, in the order of `members`.
    """

    name: str
    members: np.ndarray
    confidence: np.ndarray


class Chosen(NamedTuple):
    """Which images of a group are shown: positions in its arrays, the surest and the least sure first."""

    most: np.ndarray
    least: np.ndarray


def by_likeliest(probabilities: np.ndarray, names: Sequence[str]) -> list[Group]:
    """Put each image into the cluster or class that is likeliest.

    Args:
        probabilities: (N, K).
        names: of the K clusters or classes.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    order = np.argsort(predicted, kind="stable")
    parts = np.split(order, np.searchsorted(predicted[order], np.arange(1, len(names))))
    return [Group(name, part, confidence[part]) for name, part in zip(names, parts, strict=True)]


def by_label(probabilities: np.ndarray, names: Sequence[str]) -> list[Group]:
    """Put each image into every class above one half, and into a last group if there is none.

    The confidence in that group is the probability that the likeliest class is not in the image.

    Args:
        probabilities: (N, K) of classes that may occur together.
        names: of the K classes.
    """
    chosen = probabilities > 0.5
    groups = []
    for name, column, own in zip(names, chosen.T, probabilities.T, strict=True):
        index = np.flatnonzero(column)
        groups.append(Group(name, index, own[index]))
    without = np.flatnonzero(~chosen.any(axis=1))
    return [*groups, Group("no class above one half", without, 1 - probabilities[without].max(axis=1))]


def choose(confidence: np.ndarray, each: int) -> Chosen:
    """Choose the images of a group that are shown; of one that is small enough all are, the surest first.

    Args:
        confidence: (n,).
        each: images of either kind.
    """
    order = np.argsort(-confidence, kind="stable")
    return Chosen(order[:each], order[each:][-each:][::-1])


def write_gallery(
    page: Path,
    groups: Sequence[Group],
    names: Sequence[str],
    picture: Callable[[int, int], np.ndarray],
    *,
    title: str,
    several: bool = False,
) -> Path:
    """Write the page, atomically. Only images that are shown are read, one at a time.

    Args:
        page: the HTML file.
        groups: all clusters or classes; those without an image are named.
        names: file of each image.
        picture: position of an image and longest side to (h, w, 3) uint8, no side longer.
        title: of the page.
        several: an image may be in several groups.

    Returns:
        The page.

    Raises:
        WriteError: it cannot be written; an older page is still whole.
    """
    filled = sorted((group for group in groups if len(group.members)), key=lambda group: -len(group.members))
    shown = filled[: _PICTURES // 2]
    each = min(_EACH, _PICTURES // (2 * max(1, len(shown))))
    text = template("gallery.html.j2").render(
        title=title,
        several=several,
        images=len(names),
        rows=[_row(group, len(names)) for group in filled],
        most=max((len(group.members) for group in filled), default=1),
        empty=[group.name for group in groups if not len(group.members)],
        each=each,
        side=SIDE,
        sections=[_section(group, names, picture, each) for group in shown],
    )
    # A file name may be no valid text; that must not lose the page.
    return write_atomically(page, text.encode("utf-8", errors="replace"))


def _row(group: Group, images: int) -> dict[str, Any]:
    number = len(group.members)
    return {
        "name": group.name,
        "number": number,
        "share": percent(number / images),
        "confidence": percent(float(group.confidence.mean())),
    }


def _section(
    group: Group, names: Sequence[str], picture: Callable[[int, int], np.ndarray], each: int
) -> dict[str, Any]:
    chosen = choose(group.confidence, each)

    def tile(position: int) -> dict[str, Any]:
        index = int(group.members[position])
        pixels = picture(index, SIDE)
        return {
            "file": names[index],
            "confidence": percent(float(group.confidence[position])),
            "sharp": max(pixels.shape[:2]) <= _SHARP,
            "source": _embedded(pixels),
        }

    return {
        "name": group.name,
        "number": len(group.members),
        "most": [tile(int(position)) for position in chosen.most],
        "least": [tile(int(position)) for position in chosen.least],
    }


def percent(share: float) -> str:
    """Write a share that is not quite all or nothing as such: ``> 99.9 %``, ``< 0.1 %``."""
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _embedded(pixels: np.ndarray) -> str:
    from PIL import Image

    kind = "png" if max(pixels.shape[:2]) <= _SHARP else "jpeg"
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 80} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
