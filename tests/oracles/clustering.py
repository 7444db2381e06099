"""Clustering scores, literally: from lists of labels and clusters, trying every assignment and every pair."""

from __future__ import annotations

import math
from itertools import combinations, permutations


def confusion_counts(labels, clusters, num_classes, num_clusters):
    counts = [[0] * num_clusters for _ in range(num_classes)]
    for label, cluster in zip(labels, clusters):
        if label != -1:
            counts[label][cluster] += 1
    return counts


def accuracy(labels, clusters, num_classes, num_clusters):
    """The best over all one-to-one assignments; surplus clusters go to classes that do not exist."""
    slots = max(num_classes, num_clusters)
    labelled = [(label, cluster) for label, cluster in zip(labels, clusters) if label != -1]
    return max(
        sum(assignment[cluster] == label for label, cluster in labelled) / len(labelled)
        for assignment in permutations(range(slots))
    )


def normalized_mutual_information(labels, clusters):
    n = len(labels)

    def share(condition):
        return sum(map(condition, range(n))) / n

    def entropy(values):
        shares = [share(lambda i, v=v: values[i] == v) for v in set(values)]
        return -sum(s * math.log(s) for s in shares)

    if len(set(labels)) == len(set(clusters)) == 1:
        return 1.0
    information = 0.0
    for label in set(labels):
        for cluster in set(clusters):
            joint = share(lambda i, a=label, b=cluster: labels[i] == a and clusters[i] == b)
            if joint:
                independent = share(lambda i, a=label: labels[i] == a) * share(
                    lambda i, b=cluster: clusters[i] == b
                )
                information += joint * math.log(joint / independent)
    return information / ((entropy(labels) + entropy(clusters)) / 2)


def adjusted_rand_index(labels, clusters):
    pairs = list(combinations(range(len(labels)), 2))
    same_class = [labels[i] == labels[j] for i, j in pairs]
    same_cluster = [clusters[i] == clusters[j] for i, j in pairs]
    if same_class == same_cluster:
        return 1.0
    index = sum(a and b for a, b in zip(same_class, same_cluster))
    expected = sum(same_class) * sum(same_cluster) / len(pairs)
    maximum = (sum(same_class) + sum(same_cluster)) / 2
    return (index - expected) / (maximum - expected)
