"""How many classes an unlabelled set has, judged with the help of classes that are known.

Source: DTC ("Learning to Discover Novel Visual Categories via Deep Transfer Clustering", Han, Vedaldi
and Zisserman, ICCV 2019), the section on an unknown number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, gcd

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scarcely.errors import ConfigError
from scarcely.functional.clustering import confusion_counts, hungarian
from scarcely.seeds import derive_seed
from scarcely.spec import Annotated, PositiveInt, Range, UnitInterval

__all__ = ["ClassCount", "Clusters", "constrained_kmeans", "estimate_num_new", "lloyd"]

VARIANCE_KEPT = 0.99


@dataclass(frozen=True)
class ClassCount:
    """An estimate of the number of new classes, and the curves that it was read from.

    Attributes:
        num_new: the estimate: how many new clusters the chosen candidate has, less those that are tiny.
        chosen: the candidate in the middle of the plausible ones.
        plausible: the candidates whose score is within a standard error of the highest.
        candidates: numbers of new classes that were tried, rising.
        anchor_accuracy: of each candidate, in [0, 1]: what share of the samples of validation classes,
            and of the unlabelled samples in their clusters, is where it belongs.
        silhouette: of each candidate, in [−1, 1]: that of the unlabelled samples.
        score: mean of the two.
        large_clusters: new clusters of each candidate that are not tiny; mean over the rotations.
    """

    num_new: int
    chosen: int
    plausible: tuple[int, ...]
    candidates: tuple[int, ...]
    anchor_accuracy: tuple[float, ...]
    silhouette: tuple[float, ...]
    score: tuple[float, ...]
    large_clusters: tuple[float, ...]


@torch.no_grad()
def estimate_num_new(
    labelled: Tensor,
    labels: Tensor,
    unlabelled: Tensor,
    candidates: Sequence[int],
    *,
    seed: int,
    normalize: bool = False,
    anchor_share: UnitInterval = 0.6,
    rotations: PositiveInt = 10,
    restarts: PositiveInt = 3,
    min_share: UnitInterval = 0.01,
    max_samples: Annotated[int, Range(low=2)] = 5000,
) -> ClassCount:
    """Estimate the number of classes of samples of which none is of a known class (DTC).

    Of the C known classes some are anchors, whose labels hold their samples in their clusters, and the
    others validation classes, whose labels only judge the clusters. For each candidate k, k-means puts
    labelled and unlabelled samples together into C + k clusters. Those that hold an anchor class, or match
    a validation class best, belong to known classes; the other k are new.

    As in the paper, the accuracy of the validation classes and the silhouette of the unlabelled samples
    score a candidate, and of several good ones the middle is taken. What differs, and why:

    * Validation samples alone say nothing against few clusters: a class that shares its cluster with
      unlabelled samples is still in one piece. But no unlabelled sample is of a known class, so those in
      the cluster of a validation class count as mistakes.
    * The paper takes the middle of the best candidates of the two curves, however flat these are. Here
      the curves are averaged, and a flat one has little say.
    * With few known classes much hangs on which are anchors. The curves are means over several choices.
      Candidates that these cannot tell from the best one (the mean difference is within its standard
      error) count as good as the best.

    One class cannot be told from two with certainty: the silhouette of a single cluster counts as 0.

    Args:
        labelled: (N, D) features of samples of known classes.
        labels: (N,) int64, their classes, any numbers from 0.
        unlabelled: (M, D).
        candidates: numbers of new classes to try, in any order, from 1 to M.
        seed: the result is a function of the arguments.
        normalize: scale the features to unit length first. Off, since the length tells: on digits those
            of unknown classes are a quarter shorter, and without it the estimates were too high.
        anchor_share: share of the known classes that are anchors (0.6 in the authors' code); at least
            one is, and at least one is not.
        rotations: choices of anchors; fewer where there are not so many.
        restarts: starts of each k-means.
        min_share: a cluster with fewer unlabelled samples than this share of the largest is not counted.
        max_samples: draw so many of the labelled and of the unlabelled samples, where there are more.

    Raises:
        ConfigError: fewer than two known classes; no candidate, or one below 1 or above M.
        ValueError: shapes do not fit, a label is negative, or a feature is not finite.
    """
    tried = _check(labelled, labels, unlabelled, candidates)
    generator = torch.Generator().manual_seed(derive_seed(seed, "class count"))
    classes, labels = labels.unique(return_inverse=True)
    known = _draw_balanced(labels, max_samples, generator)
    new = torch.randperm(len(unlabelled), generator=generator)[:max_samples].sort().values
    labels = labels[known]
    features = torch.cat([labelled[known], unlabelled[new.to(unlabelled.device)]]).float()
    if normalize:
        features = F.normalize(features, dim=1)
    features = _compress(features)
    distances = _distances(features[len(labels) :])

    anchor_choices = _choose_anchors(len(classes), anchor_share, rotations, generator)
    scores = np.empty((len(tried), len(anchor_choices), 3))
    for i, k in enumerate(tried):
        # The same random numbers for each candidate: their clusterings differ by less luck.
        for j, is_anchor in enumerate(anchor_choices):
            fixed = torch.full((len(features),), -1, dtype=torch.int64, device=features.device)
            fixed[: len(labels)] = torch.where(is_anchor.to(labels.device)[labels], labels, -1)
            clusters = constrained_kmeans(
                features, fixed, len(classes) + k, seed=derive_seed(seed, j), restarts=restarts
            ).labels
            scores[i, j] = _judge(clusters.cpu(), labels.cpu(), is_anchor, distances, min_share)
    accuracy, silhouette, large = scores.mean(axis=1).T
    plausible = _within_standard_error((scores[..., 0] + scores[..., 1]) / 2)
    middle = np.mean([tried[i] for i in plausible])
    chosen = next(i for i, k in enumerate(tried) if k >= middle)  # rounded up, as in the authors' code
    return ClassCount(
        num_new=max(1, round(large[chosen])),
        chosen=tried[chosen],
        plausible=tuple(tried[i] for i in plausible),
        candidates=tried,
        anchor_accuracy=tuple(accuracy.tolist()),
        silhouette=tuple(silhouette.tolist()),
        score=tuple(((accuracy + silhouette) / 2).tolist()),
        large_clusters=tuple(large.tolist()),
    )


@dataclass(frozen=True, eq=False)
class Clusters:
    """A k-means clustering.

    Attributes:
        labels: (N,) int64, in [0, K).
        centroids: (K, D), of the precision of the features; the mean of each cluster that is not empty.
        inertia: sum of the squared distances of all samples to the centroids of their clusters.
    """

    labels: Tensor
    centroids: Tensor
    inertia: float


@torch.no_grad()
def constrained_kmeans(
    features: Tensor,
    fixed_labels: Tensor,
    num_clusters: int,
    *,
    seed: int,
    restarts: int = 4,
    max_iterations: int = 100,
) -> Clusters:
    """k-means in which some samples belong to a given cluster whatever their distance (DTC).

    Clusters with fixed samples start at the mean of these, the others by greedy k-means++ among the free
    samples (Arthur and Vassilvitskii, 2007). The start that ends with the lowest inertia is returned.

    Args:
        features: (N, D), N of at least 1. Half precision is computed in float32.
        fixed_labels: (N,) int64, the cluster of a fixed sample, from 0; −1 for a free one.
        num_clusters: K. More than there are distinct samples leaves clusters empty.
        seed: of the starts; the result is a function of the arguments.
        restarts: number of starts.
        max_iterations: of each start.

    Returns:
        The clusters, of all samples.

    Raises:
        ValueError: there is no sample, or not one label for each, or a label is not below K.
    """
    problem = _Problem(features, fixed_labels, num_clusters)
    generator = torch.Generator().manual_seed(seed)
    runs = [problem.lloyd(problem.plus_plus(generator), max_iterations) for _ in range(restarts)]
    return min(runs, key=lambda run: run.inertia)


@torch.no_grad()
def lloyd(
    features: Tensor, fixed_labels: Tensor, centroids: Tensor, *, max_iterations: int = 100
) -> Clusters:
    """Assign free samples to the nearest centroid and take means, in turn, until nothing changes.

    The inertia never rises. Between equally near centroids the first one wins. A cluster that runs empty
    moves to the free sample that is farthest from its own centroid.

    Args:
        features: (N, D), N of at least 1.
        fixed_labels: (N,) int64, the cluster of a fixed sample, from 0; −1 for a free one.
        centroids: (K, D), to start from.
        max_iterations: assignments at most.

    Raises:
        ValueError: there is no sample, or not one label for each, or a label is not below K.
    """
    problem = _Problem(features, fixed_labels, len(centroids))
    return problem.lloyd(centroids.to(problem.features) - problem.origin, max_iterations)


class _Problem:
    """What all starts share. Fixed samples enter by their sums alone: they cost nothing in an iteration."""

    def __init__(self, features: Tensor, fixed_labels: Tensor, num_clusters: int) -> None:
        if len(features) == 0 or fixed_labels.shape != features.shape[:1]:
            raise ValueError(f"{tuple(fixed_labels.shape)} labels for features {tuple(features.shape)}")
        if int(fixed_labels.min()) < -1 or int(fixed_labels.max()) >= num_clusters:
            raise ValueError(f"a fixed label must be −1 or below the number of clusters, {num_clusters}")
        if not features.isfinite().all():
            raise ValueError("a feature is not finite")
        features = features if features.dtype == torch.float64 else features.float()
        # Distances do not depend on the origin, but their rounding does.
        self.origin = features.mean(dim=0)
        self.features, self.fixed_labels = features - self.origin, fixed_labels
        self.num_clusters = num_clusters
        self.is_free = fixed_labels < 0
        self.free = self.features[self.is_free]
        squares = self.features.square().sum(dim=1)
        self.free_squares = squares[self.is_free]
        # Nearer than this, samples count as the same one: squared distances are not known any better.
        self.resolution = 16 * torch.finfo(features.dtype).eps * float(squares.max())
        held = F.one_hot(fixed_labels[~self.is_free], num_clusters).to(self.features)
        self.held_sums, self.held_counts = held.mT @ self.features[~self.is_free], held.sum(dim=0)

    def plus_plus(self, generator: torch.Generator) -> Tensor:
        """Draw centroids (K, D) to start from."""
        centroids = self.held_sums / self.held_counts.clamp(min=1)[:, None]
        held = self.held_counts > 0
        if len(self.free) == 0:
            return centroids
        nearest = torch.full_like(self.free_squares, torch.inf)
        if held.any():
            nearest = self.squared_distances(centroids[held]).amin(dim=1)
        trials = 2 + int(np.log(self.num_clusters))  # the best of so many draws, as in scikit-learn
        for k in (~held).nonzero().flatten().tolist():
            weights = nearest
            if not 0 < float(weights.sum()) < torch.inf:  # the first centroid, or all samples have one
                weights = torch.ones_like(weights)
            cumulative = weights.cumsum(dim=0, dtype=torch.float64)
            # drawn on the host, so that every device starts alike
            drawn = torch.rand(trials, generator=generator, dtype=torch.float64).to(cumulative)
            picked = torch.searchsorted(cumulative, drawn * cumulative[-1], right=True)
            tried = self.free[picked.clamp(max=len(self.free) - 1)]
            left = self.squared_distances(tried).minimum(nearest[:, None])
            best = left.sum(dim=0).argmin()
            centroids[k], nearest = tried[best], left[:, best]
        return centroids

    def lloyd(self, centroids: Tensor, max_iterations: int) -> Clusters:
        """Return the clusters that centroids (K, D) lead to."""
        labels = None
        for _ in range(max_iterations):
            before, labels = labels, self.nearest(centroids)
            if before is not None and torch.equal(before, labels):
                break
            centroids = self.means(labels, centroids)
        everywhere = self.fixed_labels.clone()
        everywhere[self.is_free] = labels if labels is not None else -1
        from_centroid = (self.features - centroids[everywhere]).square_().sum(dim=1)
        return Clusters(everywhere, centroids + self.origin, float(from_centroid.double().sum()))

    def means(self, labels: Tensor, centroids: Tensor) -> Tensor:
        """Return the centroids (K, D) of the free samples' labels; those of empty clusters move."""
        members = self.free.new_zeros(len(labels), self.num_clusters).scatter_(1, labels[:, None], 1)
        counts = members.sum(dim=0) + self.held_counts
        means = (members.mT @ self.free + self.held_sums) / counts.clamp(min=1)[:, None]
        means = torch.where(counts[:, None] > 0, means, centroids)
        empty = (counts == 0).nonzero().flatten()
        if len(empty) and len(self.free):
            far, which = (self.free - means[labels]).square().sum(dim=1).sort(descending=True, stable=True)
            moved = int((far[: len(empty)] > self.resolution).sum())
            means[empty[:moved]] = self.free[which[:moved]]
        return means

    def nearest(self, centroids: Tensor) -> Tensor:
        """Which of the centroids (K, D) is nearest to each free sample: (F,)."""
        # squared distances, but for the length of the sample itself, which favours no centroid
        return torch.addmm(centroids.square().sum(dim=1), self.free, centroids.mT, alpha=-2).argmin(dim=1)

    def squared_distances(self, centroids: Tensor) -> Tensor:
        """Between the free samples and centroids (K, D): (F, K), never below 0."""
        distances = torch.addmm(centroids.square().sum(dim=1), self.free, centroids.mT, alpha=-2)
        return distances.add_(self.free_squares[:, None]).clamp_(min=0)


def _check(
    labelled: Tensor, labels: Tensor, unlabelled: Tensor, candidates: Sequence[int]
) -> tuple[int, ...]:
    """Return the candidates, rising and each once; refuse what cannot be estimated from."""
    if labels.shape != labelled.shape[:1] or labelled.shape[1:] != unlabelled.shape[1:]:
        shapes = [tuple(t.shape) for t in (labelled, labels, unlabelled)]
        raise ValueError(f"labelled features, labels and unlabelled features do not fit: {shapes}")
    if len(labels) and int(labels.min()) < 0:
        raise ValueError("every labelled sample needs a label")
    if not (labelled.isfinite().all() and unlabelled.isfinite().all()):
        raise ValueError("a feature is not finite")
    known = len(labels.unique())
    if known < 2:
        raise ConfigError(
            f"the number of new classes cannot be estimated from {known} known classes",
            where="labels",
            instead="at least two: one as an anchor, one to validate",
        )
    if not len(candidates):
        raise ConfigError("there is no number of new classes to try", where="candidates")
    wrong = [k for k in candidates if not 1 <= k <= len(unlabelled)]
    if wrong:
        raise ConfigError(
            f"{len(unlabelled)} unlabelled samples cannot form {wrong[0]} classes",
            where="candidates",
            instead=f"numbers from 1 to {len(unlabelled)}",
        )
    return tuple(sorted({int(k) for k in candidates}))


def _draw_balanced(labels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Draw at most so many samples, as many of each class as there are; their positions, rising."""
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    if len(labels) > most:
        classes = labels.unique().tolist()
        each = max(1, most // len(classes))
        order = torch.cat([order[labels[order] == c][:each] for c in classes])
    return order.sort().values


def _choose_anchors(num_classes: int, share: float, most: int, generator: torch.Generator) -> list[Tensor]:
    """Return which classes are anchors, bool (C,), in several ways: all there are, or at most so many.

    The groups to be validated go around random orders of the classes, so that all get their turn.
    """
    num_anchors = min(max(1, round(share * num_classes)), num_classes - 1)
    size = num_classes - num_anchors
    groups: set[tuple[int, ...]] = set()
    if comb(num_classes, size) <= most:
        groups.update(combinations(range(num_classes), size))
    while len(groups) < min(most, comb(num_classes, size)):
        order = torch.randperm(num_classes, generator=generator)
        for j in range(num_classes // gcd(num_classes, size)):
            if len(groups) < most:
                groups.add(tuple(sorted(order.roll(-j * size)[:size].tolist())))
    everyone = torch.arange(num_classes)
    return [~torch.isin(everyone, torch.tensor(group)) for group in sorted(groups)]


def _compress(features: Tensor) -> Tensor:
    """Turn to the principal axes and keep the first that hold 99 % of the variance.

    Of a network's hundreds of features a few dozen axes are left, and time falls in proportion.
    """
    features = features - features.mean(dim=0)
    variances, axes = torch.linalg.eigh((features.mT @ features).double())
    held = variances.clamp(min=0).flip(0).cumsum(dim=0)
    count = int((held < VARIANCE_KEPT * held[-1]).sum()) + 1
    return features @ axes.flip(1)[:, :count].to(features)


def _distances(features: Tensor) -> np.ndarray:
    """Between all pairs, (M, M): made once, for the silhouettes of all clusterings."""
    from sklearn.metrics import pairwise_distances

    return pairwise_distances(features.cpu().numpy())


def _judge(
    clusters: Tensor, labels: Tensor, is_anchor: Tensor, distances: np.ndarray, min_share: float
) -> tuple[float, float, int]:
    """Return anchor accuracy, silhouette and number of large new clusters.

    Args:
        clusters: (N + M,), of the labelled samples and then of the unlabelled ones. A cluster below C
            that is an anchor's holds that class.
        labels: (N,), from 0 to C − 1.
        is_anchor: bool (C,).
        distances: (M, M), between the unlabelled samples.
        min_share: of the largest new cluster.
    """
    of_labelled, of_unlabelled = clusters[: len(labels)], clusters[len(labels) :].numpy()
    num_clusters = max(int(clusters.max()) + 1, len(is_anchor))
    validated = torch.where(is_anchor[labels], -1, labels)
    counts = confusion_counts(validated, of_labelled, len(is_anchor), num_clusters).numpy()
    classes = hungarian(counts)
    # an anchor class has no count, and so whatever cluster was left for it
    holds = (classes >= 0) & ~is_anchor.numpy()[classes]
    sizes = np.bincount(of_unlabelled, minlength=num_clusters)
    right = counts[classes[holds], holds].sum()
    accuracy = right / (counts.sum() + sizes[holds].sum())

    known = holds.copy()
    known[: len(is_anchor)] |= is_anchor.numpy()
    of_new = sizes[~known]
    large = int((of_new >= max(1, min_share * of_new.max(initial=0))).sum())
    return float(accuracy), _silhouette(distances, of_unlabelled), large


def _silhouette(distances: np.ndarray, clusters: np.ndarray) -> float:
    """The mean silhouette; 0 where it is not defined."""
    from sklearn.metrics import silhouette_score

    if not 1 < len(np.unique(clusters)) < len(clusters):
        return 0.0
    return float(silhouette_score(distances, clusters, metric="precomputed"))


def _within_standard_error(scores: np.ndarray) -> np.ndarray:
    """Which rows of scores (candidates, rotations) the rotations cannot tell from the best one."""
    behind = scores[scores.mean(axis=1).argmax()] - scores
    rotations = behind.shape[1]
    error = behind.std(axis=1, ddof=1) / rotations**0.5 if rotations > 1 else 0.0
    return np.flatnonzero(behind.mean(axis=1) <= error)
