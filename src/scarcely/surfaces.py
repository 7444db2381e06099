"""The two-moons figure of chapter 5 (figure 1): how the Π-model stretches its border along the moons."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scarcely.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENT = "alternating_ssl/figure1_two_moons"
COLORS = ("#2f6db3", "#c2410c")  # of the two classes where they are certain
ANCHOR = "#ffe14d"  # yellow, as in the paper
MARGIN = 0.3  # around the points


@dataclass
class Surface:
    """What a classifier of points in the plane says, after some epochs.

    Attributes:
        epoch: how many were done.
        probabilities: (H, W, 2) of each class on a grid, the rows from below.
        extent: left, right, lower and upper edge of the grid.
        weight: of the consistency in that epoch; None of a method without.
        accuracy: share of the unlabelled points that are classified right.
    """

    epoch: int
    probabilities: np.ndarray
    extent: tuple[float, float, float, float]
    weight: float | None
    accuracy: float


def grid_over(points: Tensor, step: float = 0.02) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Return a grid (H, W, 2) over points (N, 2) with a margin; its left, right, lower and upper edge."""
    low, high = points.amin(dim=0) - MARGIN, points.amax(dim=0) + MARGIN
    x, y = (torch.arange(float(a), float(b), step) for a, b in zip(low, high, strict=True))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    half = step / 2  # the values are those in the middle of each square
    extent = (float(x[0]) - half, float(x[-1]) + half, float(y[0]) - half, float(y[-1]) + half)
    return torch.stack([columns, rows], dim=2), extent


@torch.no_grad()
def surface_of(method: Any, points: Tensor, labels: Tensor, epoch: int) -> Surface:
    """Ask a method in eval mode about a grid over points (N, 2); labels (N,) are -1 where not scored."""
    from scarcely.functional.ramp import sigmoid_rampup

    grid, extent = grid_over(points)
    probabilities = method(grid.flatten(0, 1)).softmax(dim=1).unflatten(0, grid.shape[:2])
    scored = labels >= 0
    right = method(points[scored]).argmax(dim=1) == labels[scored]
    weight = None
    if hasattr(method, "rampup"):
        weight = method.consistency * sigmoid_rampup(epoch - 1, method.rampup)
    return Surface(epoch, probabilities.numpy(), extent, weight, float(right.float().mean()))


def surfaces_of(run: Path) -> tuple[list[Surface], Tensor, Tensor]:
    """Return the surfaces of a run's kept epochs, its points (N, 2) and their labels, -1 where hidden.

    Raises:
        ConfigError: the run is not one of two classes in the plane with epochs that were kept.
    """
    from hydra.utils import instantiate

    from scarcely.predict import load_run

    kept = {int(path.stem.removeprefix("weights-epoch")): path for path in run.glob("weights-epoch*.pt")}
    if not kept:
        raise ConfigError(
            f"{run} keeps no weights beside the last",
            where="run",
            instead=f"a run of experiment={EXPERIMENT}, or method.keep=[5,15,100]",
        )
    loaded = {epoch: load_run(str(kept[epoch])) for epoch in sorted(kept)}
    _, content = next(iter(loaded.values()))
    if content["input_shape"] != [2] or len(content["classes"]) != 2:
        raise ConfigError(
            f"{run} was not trained on two classes of points in the plane",
            where="run",
            instead=f"a run of experiment={EXPERIMENT}",
        )
    data = instantiate(content["job"]["data"], _convert_="all")
    data.setup()
    protocol = content["job"]["protocol"]
    samples, true = (data.pool("train", protocol, true_labels=shown) for shown in (False, True))
    hidden = true.labels.masked_fill(samples.labels >= 0, -1) if data.scarce else true.labels
    found = [surface_of(m, samples.inputs, hidden, epoch) for epoch, (m, _) in loaded.items()]
    return found, samples.inputs, samples.labels


def draw(surfaces: Sequence[Surface], points: np.ndarray, labels: np.ndarray) -> Figure:
    """Draw a panel for each surface: the darker, the surer; the colour is that of the predicted class.

    Args:
        surfaces: from the first epoch to the last.
        points: (N, 2).
        labels: (N,) of the points, -1 of those without a label.
    """
    from matplotlib.colors import to_rgb

    from scarcely.reports.figures import style

    figure = style.new_figure(
        3.7 * len(surfaces), 3.15, "Decision surface of the Π-model while the consistency grows"
    )
    panels = figure.subplots(1, len(surfaces), squeeze=False)[0]
    colors = np.array([to_rgb(color) for color in COLORS])
    known = labels >= 0
    for axes, surface in zip(panels, surfaces, strict=True):
        sure = surface.probabilities.max(axis=2, keepdims=True)
        shade = 0.08 + 0.92 * (2 * sure - 1)  # 0.5 is nearly white, 1 the full colour
        image = 1 + shade * (colors[surface.probabilities.argmax(axis=2)] - 1)
        axes.imshow(image, origin="lower", extent=surface.extent, interpolation="bilinear")
        axes.scatter(*points[~known].T, s=2.2, c=style.INK, linewidths=0)
        axes.scatter(*points[known].T, s=46, c=ANCHOR, edgecolors=style.INK, linewidths=0.9, zorder=3)
        weight = "" if surface.weight is None else f", consistency × {surface.weight:.3g}"
        style.panel_title(axes, f"epoch {surface.epoch}{weight}: {surface.accuracy:.1%} right")
        style.bare_axes(axes)
    handles = [
        panels[0].scatter([], [], s=46, c=ANCHOR, edgecolors=style.INK, linewidths=0.9),
        panels[0].scatter([], [], s=6, c=style.INK, linewidths=0),
        *(panels[0].scatter([], [], s=60, c=color, marker="s", linewidths=0) for color in COLORS),
    ]
    names = [
        "labelled",
        "unlabelled",
        "predicted upper moon",
        "predicted lower moon (darker: more confident)",
    ]
    figure.legend(handles, names, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
    return figure


def train(folder: Path, seed: int) -> None:
    """Train the experiment of the figure in a folder."""
    from scarcely.config.check import check
    from scarcely.config.compose import compose_run
    from scarcely.run import execute

    plain = ("trainer=cpu", "logger=none", "embedding_size=0")
    config = compose_run([f"experiment={EXPERIMENT}", f"seed={seed}", *plain])
    config |= {"run_dir": str(folder), "command": ""}
    check(config)
    with contextlib.redirect_stdout(io.StringIO()):  # of a folder that will be gone
        execute(config, folder.name)


def write(arguments: dict[str, str]) -> None:
    """Train, unless a run is given, and write the picture."""
    if not arguments["seed"].isdigit():
        raise ConfigError(f"seed={arguments['seed']}", where="seed", instead="a whole number")
    out = Path(arguments["out"]).expanduser()
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out}", where="out", instead="a file in a folder that exists")
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(arguments["run"] or temporary).expanduser()
        if not arguments["run"]:
            train(run, int(arguments["seed"]))
        surfaces, points, labels = surfaces_of(run)
    draw(surfaces, points.numpy(), labels.numpy()).savefig(out)
    shown = ", ".join(f"epoch {s.epoch} {s.accuracy:.1%}" for s in surfaces)
    print(
        f"{len(points)} points, {int((labels >= 0).sum())} labelled; right: {shown}; {out}", file=sys.stderr
    )
