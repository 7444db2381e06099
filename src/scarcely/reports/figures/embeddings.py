"""Features in the plane, by class and by cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scarcely.reports.figures import style
from scarcely.reports.figures.matching import Matching, group_predictions
from scarcely.seeds import derive_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def embedding(
    features: np.ndarray,
    labels: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
    classes: Sequence[str] = (),
    num_clusters: int = 0,
    *,
    matching: Matching | None = None,
    seed: int = 0,
    limit: int = 1000,
    iterations: int = 400,
) -> Figure | None:
    """Draw features in the plane, coloured by class and by cluster.

    t-SNE (van der Maaten and Hinton, 2008) of a seeded sample, after PCA to 30 dimensions; features that
    are two-dimensional already are drawn as they are. A cluster has the colour of its class.

    Args:
        features: (M, D). Rows that are not finite are left out.
        labels: (M,) classes, -1 where unknown (grey).
        predicted: (M,) clusters.
        classes: names of the classes.
        num_clusters: K.
        matching: class of each cluster; made from these samples if not given.
        seed: of the sample and of t-SNE.
        limit: samples drawn at most; 1000 take about three seconds of one core.
        iterations: of t-SNE; twice as many lower its loss by 6 % and take half as long again.

    Returns:
        The figure, or None if no row is finite.
    """
    features = np.asarray(features, dtype=np.float32)
    features = features.reshape(len(features), int(np.prod(features.shape[1:])))
    rows = np.flatnonzero(np.isfinite(features).all(axis=1))
    if not len(rows) or not features.shape[1]:
        return None
    total = len(rows)
    if total > limit:
        rng = np.random.default_rng(derive_seed("embedding", seed))
        rows = np.sort(rng.choice(rows, limit, replace=False))
    flat = features.shape[1] == 2
    points = features[rows] if flat else to_plane(features[rows], seed % 2**32, iterations)
    labels = np.full(len(rows), -1) if labels is None else np.asarray(labels)[rows]
    known = bool((labels >= 0).any())
    num_classes = max(len(classes), int(labels.max()) + 1) if known else 0

    panels: list[Coloring] = []
    if predicted is not None:
        groups = group_predictions(np.asarray(predicted)[rows], labels, len(classes), num_clusters, matching)
        # Without labels, and for clusters left over, there is no class to take a colour from.
        own = np.where(groups.class_of < num_classes, groups.class_of, -1)
        left_over = np.flatnonzero(own < 0)
        own[left_over] = num_classes + np.arange(len(left_over))
        colors = style.palette(num_classes + len(left_over))
        named = groups.word == "class"
        names = [style.class_name(classes, k, 12) if named else str(k) for k in range(len(own))]
        title = f"by predicted {groups.word}" if named else "by cluster"
        title += ", in the colour of its class" if known and not named else ""
        panels.append(Coloring(title, np.asarray(predicted)[rows], colors[own], names))
    else:
        colors = style.palette(num_classes)
    if known:
        names = [style.class_name(classes, c, 12) for c in range(num_classes)]
        panels.insert(0, Coloring("by class", labels, colors, names))
    if not panels:
        panels.append(Coloring("unlabelled", labels, colors, []))

    how = "the two features" if flat else "t-SNE of the features"
    of = f" of {total:,}" if len(rows) < total else ""
    figure = style.new_figure(5 * len(panels), 5.1, f"{len(rows):,}{of} samples: {how}")
    for axes, coloring in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels):
        scatter(axes, points, coloring)
        if flat:
            axes.set_aspect("equal", adjustable="datalim")
    return style.settle(figure)


class Coloring(NamedTuple):
    """One way to colour the points of a panel."""

    title: str
    groups: np.ndarray  # (M,), -1 is drawn grey
    colors: np.ndarray  # (G, 3)
    names: list[str]  # of the groups


def scatter(
    axes: Axes,
    points: np.ndarray,
    coloring: Coloring,
    *,
    marks: np.ndarray | None = None,
    size: float = 0,
    named: bool = True,
) -> None:
    """Draw points (M, 2), unlabelled ones below, with the name of each group on one of its members.

    Args:
        axes: where to.
        points: (M, 2).
        coloring: of the points.
        marks: (M,) bool: triangles instead of circles.
        size: of a point; as fits their number if 0.
        named: write the names.
    """
    known = coloring.groups >= 0
    colors = np.tile(np.array([0.84, 0.85, 0.87]), (len(points), 1))
    colors[known] = coloring.colors[coloring.groups[known]]
    order = np.argsort(known, kind="stable")  # grey below, so that unlabelled samples hide nobody
    size = size or (9 if len(points) > 300 else 18)
    marks = np.zeros(len(points), dtype=bool) if marks is None else marks
    for marked, marker, scale in ((False, "o", 1.0), (True, "^", 1.6)):  # alike to the eye, not in points
        members = order[marks[order] == marked]
        if len(members) or not marked:
            x, y = points[members].T
            axes.scatter(x, y, s=size * scale, c=colors[members], marker=marker, alpha=0.85, linewidths=0)
    present = np.unique(coloring.groups[known])
    if named and len(present) <= style.MANY:
        from matplotlib.patheffects import withStroke

        halo = [withStroke(linewidth=2.5, foreground="white")]
        font: dict[str, Any] = {"fontsize": 8, "fontweight": "bold", "color": style.INK}
        for group in present:
            members = points[coloring.groups == group]
            # On a member: the middle of a crescent is not in it.
            x, y = members[np.abs(members - np.median(members, axis=0)).sum(axis=1).argmin()]
            axes.text(x, y, coloring.names[group], ha="center", va="center", path_effects=halo, **font)
    style.bare_axes(axes)
    style.panel_title(axes, coloring.title)


def to_plane(
    features: np.ndarray,
    seed: int,
    iterations: int,
    start: np.ndarray | None = None,
    perplexity: float = 30.0,
) -> np.ndarray:
    """Reduce (M, D) to (M, 2): PCA, then t-SNE where there is anything to spread.

    Args:
        features: (M, D), finite.
        seed: of t-SNE.
        iterations: of t-SNE.
        start: (M, 2) where its points start from, at any scale; their own PCA if not given.
        perplexity: of t-SNE, where there are samples enough; fewer neighbours take less time.
    """
    number = len(features)
    features = features - features.mean(axis=0)
    spread = float(np.abs(features).max(initial=0.0))
    if spread == 0.0:
        return np.zeros((number, 2), dtype=np.float32)
    # Features of the order of 1e20 would overflow when squared.
    features = features / spread
    from sklearn.decomposition import PCA

    kept = min(30, *features.shape)
    reduced = PCA(kept, svd_solver="full" if kept < 30 else "auto", random_state=seed).fit_transform(features)
    if number >= 5 and np.isfinite(reduced).all():
        from sklearn.manifold import TSNE

        # PCA at the small scale that t-SNE wants; sklearn's own start divides by a spread that may be 0.
        if start is None:
            start = np.zeros((number, 2), dtype=np.float32)
            start[:, : min(kept, 2)] = reduced[:, :2]
        start = (start * (1e-4 / max(float(start[:, 0].std()), 1e-12))).astype(np.float32)
        tsne = TSNE(
            perplexity=min(perplexity, (number - 1) / 3),
            init=start,
            learning_rate="auto",
            max_iter=iterations,
            angle=0.8,  # of Barnes-Hut: a third less time than 0.5, and a loss one or two percent higher
            random_state=seed,
            n_jobs=1,
        )
        plane = tsne.fit_transform(reduced.astype(np.float32))
        if np.isfinite(plane).all():
            return plane
    plane = np.zeros((number, 2), dtype=np.float32)
    plane[:, : min(kept, 2)] = reduced[:, :2]
    return plane
