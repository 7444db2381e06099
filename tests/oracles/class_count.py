"""k-means with fixed samples and the count of new classes, literally: one sample after the other."""

from __future__ import annotations

from itertools import permutations


def squared_distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b))


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows)]


def nearest(row, centroids):
    distances = [squared_distance(row, c) for c in centroids]
    return distances.index(min(distances))


def lloyd(features, fixed_labels, centroids, max_iterations=100):
    """Labels, centroids and inertia."""
    rows, fixed, centroids = features.double().tolist(), fixed_labels.tolist(), centroids.double().tolist()
    labels = None
    for _ in range(max_iterations):
        before = labels
        labels = [nearest(row, centroids) if label < 0 else label for row, label in zip(rows, fixed)]
        if labels == before:
            break
        clusters = [[row for row, label in zip(rows, labels) if label == k] for k in range(len(centroids))]
        centroids = [mean(cluster) if cluster else old for cluster, old in zip(clusters, centroids)]
        free = [i for i, label in enumerate(fixed) if label < 0]
        distances = {i: squared_distance(rows[i], centroids[labels[i]]) for i in free}
        farthest = sorted((i for i in free if distances[i] > 1e-12), key=lambda i: -distances[i])
        empty = [k for k, cluster in enumerate(clusters) if not cluster]
        for k, i in zip(empty, farthest):
            centroids[k] = rows[i]
    return labels, centroids, inertia(rows, labels, centroids)


def inertia(rows, labels, centroids):
    return sum(squared_distance(row, centroids[label]) for row, label in zip(rows, labels))


def lowest_inertia(features, fixed_labels, num_clusters):
    """Of all ways to put the free samples into clusters."""
    rows, fixed = features.double().tolist(), fixed_labels.tolist()

    def ways(place):
        if place == len(rows):
            yield []
            return
        for first in [fixed[place]] if fixed[place] >= 0 else range(num_clusters):
            for others in ways(place + 1):
                yield [first, *others]

    def of(labels):
        clusters = [[row for row, label in zip(rows, labels) if label == k] for k in set(labels)]
        return sum(squared_distance(row, mean(cluster)) for cluster in clusters for row in cluster)

    return min(map(of, ways(0)))


def judge(clusters, labels, is_anchor, features, min_share):
    """Anchor accuracy, silhouette and number of large new clusters, for every best assignment."""
    num_classes, num_clusters = len(is_anchor), max(*clusters, len(is_anchor) - 1) + 1
    of_labelled, of_unlabelled = clusters[: len(labels)], clusters[len(labels) :]
    validation = [c for c in range(num_classes) if not is_anchor[c]]
    judged = sum(label in validation for label in labels)

    def right(assignment):
        held = dict(zip(validation, assignment))
        return sum(held.get(label) == cluster for label, cluster in zip(labels, of_labelled))

    def result(assignment):
        intruders = sum(cluster in assignment for cluster in of_unlabelled)
        known = {*assignment, *(c for c in range(num_classes) if is_anchor[c])}
        total = sum(silhouette(i, of_unlabelled, features) for i in range(len(of_unlabelled)))
        sizes = [of_unlabelled.count(k) for k in range(num_clusters) if k not in known]
        large = sum(size > 0 and size >= min_share * max(sizes) for size in sizes)
        return right(assignment) / (judged + intruders), total / len(of_unlabelled), large

    assignments = list(permutations(range(num_clusters), len(validation)))
    most = max(map(right, assignments))
    return [result(assignment) for assignment in assignments if right(assignment) == most]


def silhouette(i, clusters, features):
    """(b − a) / max(a, b); 0 for a sample alone in its cluster.

    0 too where all samples are alone, or all in one cluster.
    """

    def mean_distance(cluster):
        others = [j for j, other in enumerate(clusters) if other == cluster and j != i]
        return sum(squared_distance(features[i], features[j]) ** 0.5 for j in others) / len(others)

    own, present = clusters[i], set(clusters)
    if len(present) == 1 or clusters.count(own) == 1:
        return 0.0
    a = mean_distance(own)
    b = min(mean_distance(cluster) for cluster in present - {own})
    return (b - a) / max(a, b) if max(a, b) else 0.0
