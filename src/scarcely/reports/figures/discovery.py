"""New classes beside known ones: how they come apart, whether they overlap, how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports.figures import style
from scarcely.reports.figures.embeddings import Coloring, scatter, to_plane
from scarcely.seeds import derive_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ITERATIONS = 350  # of t-SNE, for each panel


def evolution(
    features: np.ndarray,
    epochs: Sequence[int] | np.ndarray,
    labels: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
    classes: Sequence[str] = (),
    *,
    seed: int = 0,
    limit: int = 600,
    iterations: int = 300,
) -> Figure | None:
    """Draw the same samples at several epochs of a stage (ranking statistics, figure 2).

    Each panel is a t-SNE of its own. All start from the projection on the same axes, those of a PCA over
    all epochs, and each is turned to fit the one after it: what moves is what training moved. The titles
    tell the silhouette of the classes in the features themselves: 1 for tight classes far apart, 0 for
    classes that overlap.

    Args:
        features: (S, M, D). Samples that are not finite in all are left out.
        epochs: (S,) how many epochs were done, rising.
        labels: (M,) classes, -1 where unknown (grey).
        predicted: (M,) clusters at the end, which give the colours where nothing is labelled.
        classes: names of the classes.
        seed: of the sample and of t-SNE.
        limit: samples drawn at most; three panels of 600 take less than four seconds of one core.
        iterations: of t-SNE.

    Returns:
        The figure, or None if there are fewer than two epochs or no sample.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 3 or len(features) < 2 or not features.shape[2]:
        return None
    rows = np.flatnonzero(np.isfinite(features).all(axis=(0, 2)))
    if not len(rows):
        return None
    if len(rows) > limit:
        rng = np.random.default_rng(derive_seed("evolution", seed))
        rows = np.sort(rng.choice(rows, limit, replace=False))
    features = features[:, rows]
    known = labels is not None and bool((np.asarray(labels)[rows] >= 0).any())
    groups = labels if known else predicted
    groups = np.full(len(rows), -1) if groups is None else np.asarray(groups)[rows]
    number = max(len(classes) if known else 0, int(groups.max()) + 1)
    names = [style.class_name(classes, g, 12) if known else f"cluster {g}" for g in range(number)]
    colors = style.palette(number)

    word = "classes" if known else "clusters"
    apart = [_silhouette(snapshot, groups) for snapshot in features]
    points = _aligned(features, seed % 2**32, iterations)
    title = f"{len(rows):,} unlabelled samples while training"
    if apart[0] == apart[0]:
        title += f": the silhouette of the {word} goes from {apart[0]:.2f} to {apart[-1]:.2f}"
    figure = style.new_figure(4 * len(features), 4.6, title)
    for number, axes in enumerate(np.atleast_1d(figure.subplots(1, len(features)))):
        done = int(epochs[number])
        panel = f"after {done} epoch{'' if done == 1 else 's'}" if done else "before the first epoch"
        if apart[number] == apart[number]:
            panel += f": silhouette {apart[number]:.2f}"
        # The names once: on groups that still overlap they would only hide each other.
        coloring = Coloring(panel, groups, colors, names)
        scatter(axes, points[number], coloring, size=10, named=number == len(features) - 1)
    return style.settle(figure)


def neighbours_alike(features: np.ndarray, groups: np.ndarray) -> float:
    """Return the share of samples whose nearest other sample is of their group.

    Args:
        features: (M, D).
        groups: (M,), -1 for a sample that is left out.

    Returns:
        The share, NaN of fewer than two samples.
    """
    features, groups = features[groups >= 0], groups[groups >= 0]
    if len(groups) < 2:
        return float("nan")
    return float((groups[_nearest(features)] == groups).mean())


def _nearest(features: np.ndarray) -> np.ndarray:
    """Return for each of (M, D) the row of the nearest other one."""
    features = features.astype(np.float64)
    features = features - features.mean(axis=0)
    squares = (features**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(axis=1)


def _silhouette(features: np.ndarray, groups: np.ndarray) -> float:
    """Return the silhouette of the groups in (M, D), NaN where it is not defined; -1 is no group."""
    features, groups = features[groups >= 0].astype(np.float64), groups[groups >= 0]
    if not 2 <= len(np.unique(groups)) < len(groups):
        return float("nan")
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(features, groups))


def _aligned(features: np.ndarray, seed: int, iterations: int) -> np.ndarray:
    """Reduce (S, M, D) to (S, M, 2), with a common start and each turned to fit the next."""
    if features.shape[2] == 2:
        return features
    from scipy.linalg import orthogonal_procrustes
    from sklearn.decomposition import PCA

    centred = features - features.mean(axis=1, keepdims=True)
    spread = np.abs(centred).max(axis=(1, 2), keepdims=True)  # an epoch of longer features outweighs no other
    centred = centred / np.where(spread > 0, spread, 1)
    flat = centred.reshape(-1, centred.shape[2])
    kept = min(2, *flat.shape)
    start = np.zeros((*features.shape[:2], 2), dtype=np.float32)
    start[..., :kept] = PCA(kept, random_state=seed).fit_transform(flat).reshape(*features.shape[:2], kept)
    points = np.stack([to_plane(f, seed, iterations, s, perplexity=20) for f, s in zip(features, start)])
    points -= points.mean(axis=1, keepdims=True)
    for number in range(len(points) - 2, -1, -1):
        turn, _ = orthogonal_procrustes(points[number], points[number + 1])
        points[number] = points[number] @ turn
    return points


class OldNew(NamedTuple):
    """Features of samples of known and of new classes.

    Attributes:
        old: (L, D).
        old_labels: (L,) from 0.
        new: (M, D).
        new_labels: (M,) from 0 for the first new class, -1 where unknown.
        old_classes, new_classes: their names.
    """

    old: np.ndarray
    old_labels: np.ndarray
    new: np.ndarray
    new_labels: np.ndarray
    old_classes: Sequence[str] = ()
    new_classes: Sequence[str] = ()


def old_and_new(
    runs: Mapping[str, OldNew], *, seed: int = 0, limit: int = 800, iterations: int = ITERATIONS
) -> Figure | None:
    """Draw old and new classes in one t-SNE, a panel a run (ranking statistics, figure 3).

    Circles are samples of old, labelled classes, triangles those of new ones, equally many of both; the
    colour is the true class. The titles tell the overlap: for how many samples the nearest other one, in
    the features themselves, is of the other kind.

    Args:
        runs: panels by their names; a single one needs none.
        seed: of the sample and of t-SNE.
        limit: samples of each panel at most.
        iterations: of t-SNE.

    Returns:
        The figure, or None if there is no run with samples of both kinds.
    """
    panels = {}
    for name, run in runs.items():
        drawn = _balanced(run, seed, limit)
        if drawn is not None:
            panels[name] = (run, *drawn)
    if not panels:
        return None
    overlaps = [1 - neighbours_alike(features, new.astype(int)) for _, features, new, _ in panels.values()]
    shares = " against ".join(f"{100 * share:.1f} %" for share in overlaps)
    title = f"Old and new classes together: {shares} of nearest neighbours are of the other kind"
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    width = 6.4 * columns if len(panels) > 1 else 7.6
    if len(title) > 11 * width:
        title = title.replace(": ", ":\n", 1)
    figure = style.new_figure(width, 0.6 + 5.3 * lines, title)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, (run, features, is_new, labels)), share in zip(grid, panels.items(), overlaps):
        known, new = _count(run.old_classes, run.old_labels), _count(run.new_classes, run.new_labels)
        names = [style.class_name(run.old_classes, c, 12) for c in range(known)]
        names += [style.class_name(run.new_classes, c, 12) for c in range(new)]
        points = features if features.shape[1] == 2 else to_plane(features, seed % 2**32, iterations)
        told = f"{style.safe(name, 60)}: {100 * share:.1f} %" if len(panels) > 1 else "by true class"
        scatter(
            axes, points, Coloring(told, labels, style.palette(known + new), names), marks=is_new, size=13
        )
    for axes in grid[len(panels) :]:
        axes.remove()
    from matplotlib.lines import Line2D

    kinds = (("o", "old class, labelled"), ("^", "new class, unlabelled in training"))
    figure.legend(
        [Line2D([], [], linestyle="none", marker=mark, color=style.MUTED, markersize=6) for mark, _ in kinds],
        [text for _, text in kinds],
        loc="outside lower right",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    return style.settle(figure)


def _count(classes: Sequence[str], labels: np.ndarray) -> int:
    return max(len(classes), int(np.max(labels, initial=-1)) + 1)


def _balanced(run: OldNew, seed: int, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return features, (M,) whether new, and (M,) classes of equally many samples of both kinds."""
    old, new = (
        np.asarray(f, dtype=np.float32).reshape(len(f), int(np.prod(np.shape(f)[1:])))
        for f in (run.old, run.new)
    )
    usable = [np.flatnonzero(np.isfinite(f).all(axis=1)) for f in (old, new)]
    count = min(len(usable[0]), len(usable[1]), limit // 2)
    if not count or not old.shape[1] or old.shape[1] != new.shape[1]:
        return None
    rng = np.random.default_rng(derive_seed("old and new", seed))
    first, second = (np.sort(rng.choice(rows, count, replace=False)) for rows in usable)
    known = _count(run.old_classes, run.old_labels)
    hidden = np.asarray(run.new_labels)[second]
    labels = np.concatenate([np.asarray(run.old_labels)[first], np.where(hidden >= 0, known + hidden, -1)])
    return np.concatenate([old[first], new[second]]), np.repeat([False, True], count), labels


def class_count(estimate: Mapping[str, Any], truth: int = 0) -> Figure | None:
    """Draw what the number of new classes was read from, with the choice marked.

    Args:
        estimate: ``num_new``, the choice, and by candidate ``candidates``, ``anchor_accuracy`` in [0, 1] and
            ``silhouette`` in [−1, 1].
        truth: the true number, where it is known.

    Returns:
        The figure, or None if there is no candidate.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    candidates = np.asarray(estimate.get("candidates") or [], dtype=float)
    if not len(candidates):
        return None
    choice = int(estimate["num_new"])
    told = f"; there are {truth}" if truth else ""
    figure = style.new_figure(10, 3.2, f"{choice} new class{'' if choice == 1 else 'es'} estimated{told}")
    curves = {
        "anchor_accuracy": "accuracy on known classes whose labels were hidden",
        "silhouette": "silhouette of the unlabelled samples",
    }
    for axes, (key, title) in zip(figure.subplots(1, 2), curves.items()):
        values = np.asarray(estimate.get(key) or [np.nan] * len(candidates), dtype=float)
        marker = "o" if len(candidates) <= 40 else None
        axes.plot(candidates, values, color=style.RIGHT, linewidth=1.6, marker=marker, ms=3.5)
        axes.axvline(choice, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))
        at = np.flatnonzero((candidates == choice) & np.isfinite(values))
        if len(at):
            axes.plot(choice, values[at[0]], "o", color=style.WRONG, ms=7, zorder=3)
        axes.annotate(
            f" {choice}",
            (choice, 0.03),
            xycoords=("data", "axes fraction"),
            va="bottom",
            fontsize=9,
            fontweight="bold",
            color=style.INK,
        )
        if key == "anchor_accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(min(*candidates, choice) - 0.5, max(*candidates, choice) + 0.5)
        axes.set_xlabel("number of new classes", fontsize=9)
        style.clean_axes(axes)
        style.panel_title(axes, title)
    return style.settle(figure)
