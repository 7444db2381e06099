"""What a network looks at: maps laid over their images, sheets of them (chapter 8, figures 2, 5 and 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports.figures import style
from scarcely.reports.saliency_scores import shown_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGES, _FEWER = 4, 2  # example images that have a page of maps, and one of any comparison
_WIDTH = 1080  # pixels of a page, as wide as the report
_NAMES, _HEAD, _GAP = 156, 34, 5  # pixels: names of the rows, title, between tiles
_MARGIN, _LINE, _WORDS, _BREAK = 6, 18, 720, 12  # around a page, a line of text, image and words, groups
_NOTHING = 236  # grey of a tile without a map
_SMALLEST, _LARGEST, _TALLEST = 56, 150, 130  # pixels, widths and height of a tile
_WIDEST = 216  # pixels, width of the image above
_LONGEST = 1500  # pixels that all rows of a page take, where tiles can be so small
_STRENGTH = 0.62  # share of the colour over the grey image
_COLORS = "inferno"  # evenly rising lightness: read in grey and by colour-blind eyes


def overlay(image: np.ndarray, map: np.ndarray) -> np.ndarray:
    """Lay a map over its image: from black, its lowest value, by red to yellow, its highest.

    The image is shown in grey. A map that is constant, or holds no finite value, lays nothing over it.

    Args:
        image: (H, W, 3) uint8.
        map: (H, W), scaled by itself.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: their sizes differ.
    """
    if image.shape[:2] != map.shape:
        raise ValueError(f"a map of {map.shape} is none of an image of {image.shape[:2]} pixels")
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    grey = np.repeat(grey[:, :, None], 3, axis=2)
    scaled = scale(map)
    if scaled is None:
        return grey.round().astype(np.uint8)
    from matplotlib import colormaps

    colors = 255 * colormaps[_COLORS](scaled)[:, :, :3]
    return ((1 - _STRENGTH) * grey + _STRENGTH * colors).round().astype(np.uint8)


def scale(map: np.ndarray) -> np.ndarray | None:
    """Scale a map to [0, 1]; None where it is constant or holds no finite value.

    The highest values are drawn alike, one of two hundred: maps of gradients have single pixels far above all
    others. Values that are not finite become the lowest or, if +∞, the highest of the others.
    """
    map = np.asarray(map, dtype=np.float32)
    known = map[np.isfinite(map)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    if not high > low:
        return None
    if (most := np.quantile(known, 0.995)) > low:
        high = most
    return np.clip((np.nan_to_num(map, nan=low, posinf=high, neginf=low) - low) / (high - low), 0, 1)


class _Tile(NamedTuple):
    """A cell of a sheet: a picture, or what is said in its place; and what stands below."""

    picture: np.ndarray | None
    note: str = ""
    below: str = ""


class _Sheet(NamedTuple):
    """What a page shows: the image above, and rows of tiles."""

    title: str
    image: np.ndarray  # (H, W, 3) uint8
    region: np.ndarray | None
    told: Sequence[str]  # beside the image
    columns: Sequence[str]
    names: Sequence[str]
    maps: np.ndarray | Sequence[Sequence[np.ndarray]]  # rows, columns; all NaN where there is none
    below: Sequence[Sequence[str]] | None = None
    groups: int = 1  # columns that belong together


def map_sheets(maps: Mapping[str, np.ndarray], methods: Sequence[str], layers: Sequence[str]) -> list[Figure]:
    """Draw of each of a few images the maps of all methods (rows) at all layers (columns).

    Args:
        maps: arrays of a saliency run: ``image/e``, ``maps/e`` (methods, layers, h, w), ``regions/e``, names.
        methods: names of the first axis.
        layers: names of the second axis.

    Returns:
        A page an image; none where there is no map.
    """
    columns = [shown_module(layer) for layer in layers]
    return _method_sheets(maps, "maps", methods, columns, "Maps by method and layer")


def combined_sheets(
    maps: Mapping[str, np.ndarray], methods: Sequence[str], weightings: Sequence[str]
) -> list[Figure]:
    """Draw the same of the combinations of layers, ``combined/e`` (methods, weightings, h, w)."""
    columns = [name.replace("-", "\n", 1) for name in weightings]
    how = "each layer scaled to [0, 1], then all added or multiplied, by the weights named"
    return _method_sheets(maps, "combined", methods, columns, "Layers combined", [how])


def _method_sheets(
    maps: Mapping[str, np.ndarray],
    key: str,
    methods: Sequence[str],
    columns: Sequence[str],
    title: str,
    more: Sequence[str] = (),
) -> list[Figure]:
    pages = []
    for e in _examples(maps, key) if methods and columns else ():
        image, region, target = _example(maps, e)
        told = [f"maps of {target}", *more, _LEGEND]
        sheet = _Sheet(f"{title}: {target}", image, region, told, columns, methods, maps[f"{key}/{e}"])
        pages.append(_draw(sheet))
    return pages


def contrast_sheets(
    maps: Mapping[str, np.ndarray], methods: Sequence[str], layers: Sequence[str]
) -> list[Figure]:
    """Draw the maps of the likeliest beside those of the least likely class (figure 5).

    Args:
        maps: ``most/e`` and ``least/e`` (methods, layers, h, w), and the names of these classes; of some
            layers alone where ``sensitivity_layers`` names them.
        methods: names of the first axis.
        layers: names of the second axis.

    Returns:
        A page an image, with at most three layers: the first, one in the middle and the last.
    """
    pages = []
    if "sensitivity_layers" in maps:
        layers = tuple(map(str, maps["sensitivity_layers"]))
    shown = sorted({round(i) for i in np.linspace(0, len(layers) - 1, 3)}) if layers else []
    for e in _examples(maps, "most")[:_FEWER] if methods and layers else ():
        if f"least/{e}" not in maps:
            continue
        image, region, target = _example(maps, e)
        most, least = maps[f"most/{e}"], maps[f"least/{e}"]
        names = [style.safe(maps[key][e], 30) if key in maps else key for key in ("most", "least")]
        told = [
            f"likeliest class: {names[0]}",
            f"least likely class: {names[1]}",
            f"white outline: {target}; ring: the brightest point",
        ]
        columns = [
            f"{shown_module(layers[i])}\n{word}" for i in shown for word in ("likeliest", "least likely")
        ]
        pairs = [[one[m, i] for i in shown for one in (most, least)] for m in range(len(methods))]
        title = "Maps of the likeliest and the least likely class"
        pages.append(_draw(_Sheet(title, image, region, told, columns, methods, pairs, groups=2)))
    return pages


def randomization_sheets(
    maps: Mapping[str, np.ndarray], entries: Sequence[Mapping[str, Any]], preferred: Mapping[str, str]
) -> list[Figure]:
    """Draw how maps change while weights are randomised from the head down (figure 8), a row a method.

    Args:
        maps: ``random/e`` (entries, steps, h, w) and ``random_shown`` (steps,), places in ``modules``.
        entries: of each of these rows ``method``, ``layer``, ``modules`` and ``mean``, the correlation with
            the trained network's map after each of these.
        preferred: of each method the layer to show; where it has none such, its last.

    Returns:
        A page an image.
    """
    rows = _one_a_method(entries, preferred)
    pages = []
    for e in _examples(maps, "random")[:_FEWER] if rows else ():
        image, region, target = _example(maps, e)
        steps = [int(step) for step in maps["random_shown"]]
        found = maps[f"random/{e}"]
        told = [
            f"maps of {target}",
            "from left to right: more modules randomised, from the head down",
            "below: rank correlation with the trained network's map, mean over images",
            _LEGEND,
        ]
        modules = entries[rows[0]]["modules"]
        columns = [shown_module(modules[s]) or "trained" for s in steps]
        names = [f"{entries[r]['method']}\n{shown_module(entries[r]['layer'])}" for r in rows]
        below = [[_signed(entries[r]["mean"][s]) for s in steps] for r in rows]
        title = f"Weights randomised step by step: {target}"
        strips = [list(found[r]) for r in rows]
        pages.append(_draw(_Sheet(title, image, region, told, columns, names, strips, below)))
    return pages


_LEGEND = "white outline: its objects; ring: the brightest point"


def _one_a_method(entries: Sequence[Mapping[str, Any]], preferred: Mapping[str, str]) -> list[int]:
    """Choose for each method one of its entries, if possible one whose correlations are defined."""

    def rank(place: int) -> tuple[bool, bool, int]:
        entry = entries[place]
        defined = any(value is not None for value in entry["mean"])
        return defined, entry["layer"] == preferred.get(str(entry["method"])), place

    methods = list(dict.fromkeys(str(entry["method"]) for entry in entries))
    places = [[p for p, entry in enumerate(entries) if str(entry["method"]) == m] for m in methods]
    return [max(own, key=rank) for own in places]


def _examples(maps: Mapping[str, np.ndarray], key: str) -> list[int]:
    """Number the examples that have this array, the first few."""
    found = (name.partition("/") for name in maps)
    numbers = sorted(int(e) for word, _, e in found if word == key and e.isdigit())
    return [e for e in numbers if f"image/{e}" in maps][:_PAGES]


def _example(maps: Mapping[str, np.ndarray], e: int) -> tuple[np.ndarray, np.ndarray | None, str]:
    target = style.safe(maps["target"][e], 30) if "target" in maps else "the class"
    return maps[f"image/{e}"], maps.get(f"regions/{e}"), target


def _signed(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # no minus before a zero


def _end(name: str, letters: int) -> str:
    """Shorten the name of a module in front: what tells modules apart stands behind."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


class _Layout(NamedTuple):
    """Where everything on a page is, in pixels from its upper left corner."""

    width: int
    height: int
    picture: tuple[int, int]  # height and width of the image above
    tile: tuple[int, int]
    lefts: list[int]  # of the columns
    tops: list[int]  # of the rows

    @property
    def beside(self) -> int:
        """Left edge of the words beside the image."""
        return _MARGIN + self.picture[1] + 14


def _layout(sheet: _Sheet) -> _Layout:
    rows, columns = len(sheet.maps), len(sheet.columns)
    breaks = (columns - 1) // sheet.groups if sheet.groups > 1 else 0
    room = _WIDTH - _NAMES - breaks * _BREAK
    image_height, image_width = sheet.image.shape[:2]
    # The tiles of a strip are less flat or tall than it is.
    tallness = min(1.6, max(0.3, image_height / image_width))
    fitting = min(room / columns - _GAP, min(_TALLEST, _LONGEST / rows) / tallness)
    wide = round(min(_LARGEST, max(_SMALLEST, fitting)))
    high = round(wide * tallness)
    lefts = [
        _NAMES + c * (wide + _GAP) + (c // sheet.groups * _BREAK if breaks else 0) for c in range(columns)
    ]
    band = max(high, _LINE * len(sheet.told) + 34)
    across = min(_WIDEST, max(1, round(band * image_width / image_height)))
    picture = (min(band, max(1, round(across * image_height / image_width))), across)
    top = _HEAD + band + 40  # two lines of heads
    step = high + (_LINE if sheet.below else _GAP)
    width = max(lefts[-1] + wide, _MARGIN + _WORDS) + _MARGIN
    return _Layout(
        width, top + step * rows, picture, (high, wide), lefts, [top + r * step for r in range(rows)]
    )


def _draw(sheet: _Sheet) -> Figure:
    """Paint a page as one array and write on it: hundreds of axes would take seconds."""
    layout = _layout(sheet)
    (high, wide), width, height = layout.tile, layout.width, layout.height
    tiles = _tiles(sheet, layout)
    figure = style.new_figure(width / style.DPI, height / style.DPI, sheet.title, arranged=False)
    axes = figure.add_axes((0, 0, 1, 1), zorder=-1)
    axes.imshow(_canvas(sheet, layout, tiles), aspect="auto", interpolation="nearest")
    axes.set_axis_off()

    def write(x: float, y: float, text: str, **look: Any) -> None:
        """Write at a pixel of the page."""
        figure.text(x / width, 1 - y / height, text, **{"va": "center", "color": style.INK, **look})

    for number, text in enumerate(sheet.told):
        write(layout.beside, _HEAD + 9 + _LINE * number, text, fontsize=8.5, color=style.MUTED)
    _color_bar(figure, layout.beside, _HEAD + _LINE * len(sheet.told) + 14, layout)
    for left, name in zip(layout.lefts, sheet.columns, strict=True):
        text = "\n".join(_end(line, max(8, wide // 6)) for line in name.split("\n"))
        at = (left + wide / 2, layout.tops[0] - 5)
        write(*at, style.safe_lines(text), ha="center", va="bottom", fontsize=8)
    for top, name in zip(layout.tops, sheet.names, strict=True):
        text = style.safe_lines(_broken(name))
        write(_NAMES - 8, top + high / 2, text, ha="right", fontsize=7.5, fontweight="bold")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2, "alpha": 0.85}
    for r, top in enumerate(layout.tops):
        for c, left in enumerate(layout.lefts):
            if tiles[r][c].note:
                write(left + wide / 2, top + high / 2, tiles[r][c].note, ha="center", fontsize=8, bbox=box)
            if sheet.below:
                text = sheet.below[r][c]
                write(left + wide / 2, top + high + 8, text, ha="center", fontsize=7.5, color=style.MUTED)
    return figure


def _tiles(sheet: _Sheet, layout: _Layout) -> list[list[_Tile]]:
    small = _resized(sheet.image, layout.tile)
    return [[_tile(small, map) for map in row] for row in sheet.maps]


def _canvas(sheet: _Sheet, layout: _Layout, tiles: list[list[_Tile]]) -> np.ndarray:
    canvas = np.full((layout.height, layout.width, 3), 255, dtype=np.uint8)
    picture = _outlined(_resized(sheet.image, layout.picture), sheet.region)
    canvas[_HEAD : _HEAD + layout.picture[0], _MARGIN : _MARGIN + layout.picture[1]] = picture
    high, wide = layout.tile
    for top, row in zip(layout.tops, tiles, strict=True):
        for left, tile in zip(layout.lefts, row, strict=True):
            canvas[top : top + high, left : left + wide] = _NOTHING if tile.picture is None else tile.picture
    return canvas


def _broken(name: str) -> str:
    """Break the name of a method where it is too long for its column."""
    first, *others = name.split("\n")
    cut = 0 if len(first) <= 19 else 1 + max(first.rfind(mark, 0, 19) for mark in "_-")
    lines = [first[:cut], first[cut:], *others] if cut else [first, *others]
    return "\n".join(style.plain(line, 20) for line in lines)


def _color_bar(figure: Figure, x: float, y: float, layout: _Layout) -> None:
    """Explain the colours, at a pixel of the page."""
    from matplotlib import colormaps

    length, thick = 120, 10
    width, height = layout.width, layout.height
    grey = 0.5  # of an image in between
    ramp = (1 - _STRENGTH) * grey + _STRENGTH * colormaps[_COLORS](np.linspace(0, 1, 256))[None, :, :3]
    left = x + 46
    axes = figure.add_axes((left / width, 1 - (y + thick / 2) / height, length / width, thick / height))
    axes.imshow(ramp, aspect="auto")
    axes.set_axis_off()
    for at, text in ((x, "lowest"), (left + length + 6, "highest value of each map")):
        figure.text(at / width, 1 - y / height, text, va="center", fontsize=8, color=style.MUTED)


def _tile(small: np.ndarray, map: np.ndarray) -> _Tile:
    """Lay a map over the small image, a ring around its brightest point, or say why there is none."""
    if np.isnan(map).all():
        return _Tile(None, "none")
    scaled = scale(map)
    if scaled is None:
        return _Tile(overlay(small, np.zeros(small.shape[:2])), "constant")
    shown = overlay(small, resize_map(scaled, small.shape[:2]))
    y, x = np.unravel_index(int(np.nan_to_num(map, nan=-np.inf).argmax()), scaled.shape)
    fraction = np.array([(y + 0.5) / scaled.shape[0], (x + 0.5) / scaled.shape[1]])
    return _Tile(_ringed(shown, fraction * small.shape[:2]))


def _ringed(picture: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Draw a white ring with a dark rim around a point (y, x)."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    distance = np.hypot(y - point[0], x - point[1])
    picture = picture.copy()
    picture[np.abs(distance - 5.5) < 2.2] = 0
    picture[np.abs(distance - 5.5) < 1.0] = 255
    return picture


def _outlined(picture: np.ndarray, region: np.ndarray | None) -> np.ndarray:
    """Draw the outline of a region in white with a dark rim."""
    if region is None:
        return picture
    inside = resize_map(np.asarray(region, dtype=np.float64), picture.shape[:2]) > 0.5
    picture = picture.copy()
    picture[_grown(inside, 3) & ~inside] = 0
    picture[_grown(inside, 2) & ~inside] = 255
    return picture


def _grown(inside: np.ndarray, pixels: int) -> np.ndarray:
    """Grow a region by so many pixels upwards, downwards and to the sides."""
    for _ in range(pixels):
        wider = np.pad(inside, 1)
        wider = wider[2:, 1:-1] | wider[:-2, 1:-1] | wider[1:-1, 2:] | wider[1:-1, :-2] | inside
        inside = wider
    return inside


def resize_map(map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a map (h, w) to (H, W), between its values, or by their means where it shrinks."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(map, dtype=np.float32))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))
