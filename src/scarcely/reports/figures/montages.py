"""Images of each cluster, the most and the least confident."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports.figures import style
from scarcely.reports.figures.matching import Groups, Matching, group_predictions
from scarcely.reports.figures.saliency import overlay, resize_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST, _LEAST = 9, 5  # images of each kind in a row
_FRAME, _GAP, _LABEL, _HEAD = 3, 22, 150, 54  # pixels: around a tile, between the kinds, names, title


def montage(
    images: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray | None = None,
    num_clusters: int = 0,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    *,
    matching: Matching | None = None,
    maps: Mapping[int, np.ndarray] | None = None,
    rows_per_page: int = 20,
    most_rows: int = 100,
) -> list[Figure]:
    """Draw a row of images a cluster: the most confident, then the least confident; red frames are errors.

    Args:
        images: (N, H, W, C) uint8, or (N, H, W); only the images shown are read.
        predicted: (N,) clusters.
        confidence: (N,) probabilities; without them images are spread evenly over the cluster.
        num_clusters: K; empty clusters keep their row.
        labels: (N,) classes, -1 where unknown; where known, an image outside its cluster's class is framed.
        classes: names of the classes.
        matching: class of each cluster and order of the rows; made from the labels if not given.
        maps: of some images, by their index, the (h, w) map of where their cluster is seen: below each of
            these it is laid over the image.
        rows_per_page: clusters on one figure.
        most_rows: clusters shown at all.

    Returns:
        One figure a page; no figure if there is no image.
    """
    predicted = np.asarray(predicted)
    if not len(predicted) or not len(images):
        return []
    groups = group_predictions(predicted, labels, len(classes), num_clusters, matching)
    number = len(groups.sizes)
    order = groups.order[:most_rows]
    pages = [order[start : start + rows_per_page] for start in range(0, len(order), rows_per_page)]
    title = f"Images of each {groups.word}" if number <= most_rows else f"Images of {most_rows} of {number:,}"
    heads = ("most confident", "least confident") if confidence is not None else ("samples", "")
    figures = []
    for page, clusters in enumerate(pages, start=1):
        rows = [_montage_row(predicted, confidence, groups, int(k), classes) for k in clusters]
        numbered = f"{title}, page {page} of {len(pages)}" if len(pages) > 1 else title
        figures.append(_draw_montage(images, rows, heads, numbered, maps or {}))
    return figures


class _MontageRow(NamedTuple):
    name: str
    size: str
    most: np.ndarray
    least: np.ndarray
    wrong: frozenset[int]

    def places(self, step: int) -> Iterator[tuple[int, int]]:
        """Yield (left edge in pixels, image)."""
        for position, index in enumerate(self.most):
            yield position * step, int(index)
        for position, index in enumerate(self.least):
            yield (_MOST + position) * step + _GAP, int(index)


def _montage_row(
    predicted: np.ndarray,
    confidence: np.ndarray | None,
    groups: Groups,
    cluster: int,
    classes: Sequence[str],
) -> _MontageRow:
    members = np.flatnonzero(predicted == cluster)
    if confidence is not None:
        sure = np.nan_to_num(np.asarray(confidence)[members].astype(float))
        members = members[np.argsort(-sure, kind="stable")]
        least = members[_MOST:][-_LEAST:][::-1]
    else:
        spread = np.linspace(0, len(members) - 1, min(_MOST + _LEAST, len(members)))
        members = members[spread.round().astype(int)]
        least = members[_MOST:]
    shown = np.concatenate([members[:_MOST], least])
    own = int(groups.class_of[cluster])
    truth = groups.labels[shown]
    wrong = shown[(truth >= 0) & (truth != own)] if own >= 0 else shown[:0]
    number = int(groups.sizes[cluster])
    name = f"{groups.word} {cluster}" if own < 0 else style.class_name(classes, own, 17)
    size = f"{number:,} sample{'' if number == 1 else 's'}"
    if own >= 0 and groups.word == "cluster":
        size = f"cluster {cluster}: {number:,}"
    return _MontageRow(name, size, members[:_MOST], least, frozenset(wrong.tolist()))


def _draw_montage(
    images: np.ndarray,
    rows: list[_MontageRow],
    heads: tuple[str, str],
    title: str,
    maps: Mapping[int, np.ndarray],
) -> Figure:
    """Paint the page as one array and show it pixel by pixel: hundreds of axes would take seconds."""
    # In file order: the images may be a memory map on a slow disk.
    shown = sorted({int(index) for row in rows for index in (*row.most, *row.least)})
    tiles = {index: tile_of(images[index]) for index in shown}
    high = max((tile.shape[0] for tile in tiles.values()), default=32) + 2 * _FRAME
    wide = max((tile.shape[1] for tile in tiles.values()), default=32) + 2 * _FRAME
    # Below a row, room for two lines of text at least; beside a tile, enough to tell its frame from the next.
    step, beside = max(high * (2 if maps else 1) + 4, 36), wide + 2
    canvas = np.full((step * len(rows), beside * (_MOST + _LEAST) + _GAP, 3), 255, dtype=np.uint8)
    red = [int(style.WRONG[i : i + 2], 16) for i in (1, 3, 5)]
    for number, row in enumerate(rows):
        for left, index in row.places(beside):
            top, tile = number * step, tiles[index]
            if index in row.wrong:
                canvas[top : top + high, left : left + wide] = red
            y, x = top + (high - tile.shape[0]) // 2, left + (wide - tile.shape[1]) // 2
            canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            if index in maps:
                seen = overlay(tile, resize_map(maps[index], tile.shape[:2]))
                canvas[y + high : y + high + tile.shape[0], x : x + tile.shape[1]] = seen

    width, height = canvas.shape[1] + _LABEL, canvas.shape[0] + _HEAD
    figure = style.new_figure(width / style.DPI, height / style.DPI, title, arranged=False)
    axes = figure.add_axes((_LABEL / width, 0, canvas.shape[1] / width, canvas.shape[0] / height))
    axes.imshow(canvas, aspect="auto", interpolation="nearest")
    axes.set_axis_off()

    def write(x: float, y: float, text: str, **style: Any) -> None:
        """Write at a pixel of the page, counted from its upper left corner."""
        figure.text(x / width, 1 - y / height, text, va="center", **style)

    for left, head in zip((0, beside * _MOST + _GAP), heads):
        write(_LABEL + left + _FRAME, _HEAD - 11, head, fontsize=8.5, color=style.MUTED)
    for number, row in enumerate(rows):
        middle = _HEAD + number * step + high / 2
        edge = _LABEL - 8
        write(edge, middle - 8, row.name, ha="right", fontsize=8.5, fontweight="bold", color=style.INK)
        write(edge, middle + 8, row.size, ha="right", fontsize=7.5, color=style.MUTED)
        if not len(row.most):
            write(_LABEL + _FRAME, middle, "empty", fontsize=8.5, color=style.WRONG)
    return figure


def tile_of(image: np.ndarray) -> np.ndarray:
    """Bring one image to (h, w, 3) uint8, its longer side between 42 and 72 pixels."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    image = np.repeat(image[:, :, :1], 3, axis=2) if image.shape[2] < 3 else image[:, :, :3]
    longest = max(image.shape[:2])
    if longest <= 42:
        factor = round(56 / longest) or 1  # whole pixels stay square and sharp
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    if longest <= 72:
        return image
    from PIL import Image

    height, width = (max(1, round(64 * side / longest)) for side in image.shape[:2])
    small = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small)
