"""The two moons: the figure of LSD-C (figure 2), and the command that draws this one or chapter 5's.

LSD-C's shows which pairs each labeler connects, for equally many edges; the other is in `scarcely.surfaces`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from scarcely.errors import ConfigError
from scarcely.functional.pairwise import cosine_adjacency, knn_adjacency, l2_adjacency, sne_adjacency

USAGE = """\
python scripts/two_moons.py out=two_moons.png

  out          the picture to write
  edges=650    undirected edges of every labeler
  noise=0.1    standard deviation of the points around their moon
  temperature=0.3   T of the SNE similarity
  seed=0       of the points

python scripts/two_moons.py surfaces out=surfaces.png

  the decision surface of the Π-model before, while and after the consistency acts
  out          the picture to write
  seed=1       of the run, which takes half a minute
  run          a run of experiment=alternating_ssl/figure1_two_moons to draw instead of training one
"""
DEFAULTS = {"edges": "650", "noise": "0.1", "temperature": "0.3", "seed": "0"}
SURFACES = {"seed": "1", "run": ""}


def count_edges(adjacency: Tensor) -> int:
    """Return the number of undirected edges of an adjacency (N, N), self-pairs left out."""
    return (int(adjacency.sum()) - len(adjacency)) // 2


def threshold_for(
    labeler: Callable[[Tensor, float], Tensor], points: Tensor, edges: int, low: float, high: float
) -> float:
    """Find by bisection the threshold at which a labeler makes a number of edges.

    Args:
        labeler: points (N, D) and a threshold to an adjacency (N, N); edges are monotonic in it.
        points: (N, D).
        edges: how many are wanted.
        low, high: thresholds between which to look.

    Returns:
        The threshold; where no threshold makes exactly that many, the nearest below.
    """
    rising = count_edges(labeler(points, high)) > count_edges(labeler(points, low))
    for _ in range(60):
        middle = (low + high) / 2
        too_many = count_edges(labeler(points, middle)) > edges
        if too_many == rising:
            high = middle
        else:
            low = middle
    return low if rising else high


def moons_with_edges(edges: int, noise: float, seed: int) -> tuple[Tensor, Tensor, int]:
    """Return two moons (N, 2), their labels (N,) and k such that kNN makes exactly that many edges.

    The number of neighbours is whole, so the number of points is chosen to fit, near 200.

    Raises:
        ConfigError: no number of points near 200 fits.
    """
    from sklearn.datasets import make_moons

    for offset in range(120):
        for samples in {200 - offset, 200 + offset}:
            if samples < 20:
                continue
            points, labels = make_moons(samples, noise=noise, random_state=seed)
            tensor = torch.from_numpy(points).float()
            for k in range(3, min(30, samples)):
                if count_edges(knn_adjacency(tensor, k)) == edges:
                    return tensor, torch.from_numpy(labels), k
    raise ConfigError(f"kNN cannot make {edges} edges near 200 points", where="edges", instead="e.g. 650")


def adjacencies(points: Tensor, k: int, edges: int, temperature: float) -> dict[str, Tensor]:
    """Return the adjacency of each labeler, each with the wanted number of edges."""
    centred = points - points.mean(dim=0)  # the cosine is that of directions from the middle

    def sne(x: Tensor, threshold: float) -> Tensor:
        return sne_adjacency(x, threshold, temperature)

    span = float(torch.cdist(points, points).max()) ** 2
    return {
        "L2": l2_adjacency(points, threshold_for(l2_adjacency, points, edges, 1e-6, span)),
        "SNE": sne(points, threshold_for(sne, points, edges, 0.0, 0.999)),
        "cosine": cosine_adjacency(centred, threshold_for(partial(cosine_adjacency), centred, edges, -1, 1)),
        f"kNN (k = {k})": knn_adjacency(points, k),
    }


def draw(arguments: dict[str, str]) -> None:
    """Write the picture."""
    from scarcely.reports.figures import connections

    try:
        edges, seed = int(arguments["edges"]), int(arguments["seed"])
        noise, temperature = float(arguments["noise"]), float(arguments["temperature"])
    except ValueError as error:
        raise ConfigError(str(error), instead="numbers for edges, seed, noise and temperature") from error
    if edges < 1 or seed < 0 or noise < 0 or temperature <= 0:
        raise ConfigError("edges and temperature are above 0, noise and seed not below", instead=USAGE)
    out = Path(arguments["out"])
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out}", where="out", instead="a file in a folder that exists")
    points, labels, k = moons_with_edges(edges, noise, seed)
    found = adjacencies(points, k, edges, temperature)
    figure = connections(points.numpy(), {n: a.numpy() for n, a in found.items()}, labels.numpy())
    figure.savefig(out)
    shown = ", ".join(f"{name} {count_edges(a)}" for name, a in found.items())
    print(f"{len(points)} points; edges: {shown}; {out}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``key=value`` arguments, draw, and return the exit code."""
    from scarcely import surfaces
    from scarcely.cli import run_command

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["surfaces"]:
        return run_command(USAGE, {"out"}, SURFACES, surfaces.write, arguments[1:])
    return run_command(USAGE, {"out"}, DEFAULTS, draw, arguments)
