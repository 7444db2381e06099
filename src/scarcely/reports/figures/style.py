"""What all figures share: colours, text that is never a formula, empty and finished figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
INK, MUTED, GRID = "#24292f", "#6e7781", "#d8dee4"
RIGHT, WRONG, UNKNOWN = "#3f90da", "#bd1f01", "#c4c9cf"
# Ten colours that stay apart for colour-blind eyes and in grey (Petroff, arXiv:2107.02270).
TEN = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
MANY = 20  # above this many classes or clusters, numbers and names no longer fit beside each other


def palette(size: int) -> np.ndarray:
    """Return (size, 3) colours in [0, 1]: up to ten are safe for colour-blind eyes.

    More than ten follow the golden angle around the hues of OKLCH and step through four lightnesses, so
    that neighbours differ in lightness even where their hues look alike.
    """
    if size <= len(TEN):
        from matplotlib.colors import to_rgb

        return np.array([to_rgb(color) for color in TEN[:size]]).reshape(-1, 3)
    index = np.arange(size)
    hue = 2 * np.pi * ((0.1 + index * 0.618033988749895) % 1.0)
    lightness = np.array([0.62, 0.80, 0.45, 0.70])[index % 4]
    a, b = 0.13 * np.cos(hue), 0.13 * np.sin(hue)
    # OKLab to linear sRGB: the constants of Ottosson's definition of the space.
    root = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(root**3 @ to_linear.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def plain(text: object, limit: int | None = None) -> str:
    """Make any text drawable: no unprintable characters, not longer than ``limit``."""
    clean = "".join(char if char.isprintable() else "\ufffd" for char in str(text))
    return clean if limit is None or len(clean) <= limit else clean[: limit - 1] + "…"


def safe(text: object, limit: int | None = None) -> str:
    """As `plain`, and with dollars escaped: matplotlib would read a formula between two of them."""
    return plain(text, limit).replace("$", r"\$")


def safe_lines(text: str) -> str:
    """As `safe`, line breaks kept."""
    return "\n".join(map(safe, text.split("\n")))


def class_name(classes: Sequence[str], index: int, limit: int = 18) -> str:
    """Return the drawable name of a class; its number where it has none."""
    return safe(classes[index], limit) if index < len(classes) else f"class {index}"


def percent(part: float, whole: float) -> str:
    """Return a share as text, ``n/a`` of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "n/a"


def new_figure(width: float, height: float, title: str, *, arranged: bool = True) -> Figure:
    """Make an empty figure of a size in inches; ``arranged`` leaves the places of its axes to matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layout: Any = "constrained" if arranged else "none"
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    # Given a height, the arrangement would leave no room for the title; without, nobody else places it.
    top = None if arranged else 1 - 6 / (height * DPI)
    figure.suptitle(title, x=0.01, y=top, ha="left", va="top", fontsize=11, fontweight="bold", color=INK)
    return figure


def note(title: str, text: str) -> Figure:
    """Make a figure that says why there is no picture."""
    figure = new_figure(7, 1.4, title, arranged=False)
    figure.text(0.5, 0.4, text, ha="center", va="center", fontsize=10, color=MUTED)
    return figure


def settle(figure: Figure) -> Figure:
    """Arrange once and keep it: else every drawing (file, logger) would, which takes most of its time."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    return figure


def to_png(figure: Figure) -> bytes:
    """Draw a figure once; ``savefig`` would draw it twice, to measure it first."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Title": headline(figure)})
    return buffer.getvalue()


def headline(figure: Figure) -> str:
    """Return the title drawn over a figure as plain text."""
    return figure.get_suptitle().replace(r"\$", "$")


def clean_axes(axes: Axes) -> None:
    """Take away the ink that carries no data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(labelsize=8, colors=INK, length=2.5, color=GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def bare_axes(axes: Axes) -> None:
    """Leave the frame alone, for pictures and points without units."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(GRID)


def panel_title(axes: Axes, text: str) -> None:
    """Write the title of one of several axes."""
    axes.set_title(text, loc="left", fontsize=9, color=INK)


def finite(values: np.ndarray) -> np.ndarray:
    """Return the values that can be drawn."""
    return values[np.isfinite(values)]


def slanted_ticks(axes: Axes, names: Sequence[str], size: float) -> None:
    """Write names below the axis so that long ones do not run into each other."""
    slanted = max(map(len, names), default=0) * len(names) > 80
    axes.set_xticks(
        np.arange(len(names)),
        names,
        fontsize=size,
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )


def thin(number: int, limit: int = 100) -> np.ndarray:
    """Choose the ticks to write out where there is no room for all."""
    return np.arange(0, number, math.ceil(number / limit) or 1)
