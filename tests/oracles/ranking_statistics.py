"""The loss of ranking statistics, literally: one sample, one pair after the other (Han et al., 2020)."""

from __future__ import annotations

import math

EPSILON = 1e-7


def softmax(row):
    exponentials = [score.exp() for score in row]
    return [e / sum(exponentials) for e in exponentials]


def same_ranks(a, b, k):
    """Whether two feature vectors have the same k largest entries (eq. 2), of untied values."""
    top = [set(sorted(range(len(z)), key=lambda d, z=z: -z[d].item())[:k]) for z in (a, b)]
    return top[0] == top[1]


def cross_entropy(scores, labels):
    """Eq. 1 over the samples that are given; 0 where there are none."""
    terms = [-softmax(row)[label].log() for row, label in zip(scores, labels, strict=True)]
    return sum(terms) / len(terms) if terms else 0.0


def pair_loss(features, p, p2, k):
    """Eq. 3 over all ordered pairs of the unlabelled samples that are given, self-pairs included."""
    total, count = 0.0, 0
    for i in range(len(features)):
        for j in range(len(features)):
            alike = i == j or same_ranks(features[i], features[j], k)
            product = sum(a * b for a, b in zip(p[i], p2[j], strict=True))
            total = total - ((product + EPSILON).log() if alike else (1 - product + EPSILON).log())
            count += 1
    return total / count if count else 0.0


def squared_difference(p, p2):
    """Eq. 4 as the authors compute it: the mean over samples and classes."""
    terms = [(a - b) ** 2 for row, row2 in zip(p, p2) for a, b in zip(row, row2, strict=True)]
    return sum(terms) / len(terms)


def ramp(epoch, length):
    return 1.0 if epoch >= length else math.exp(-5 * (1 - epoch / length) ** 2)


def loss(features, known, known2, new, new2, labels, num_known, *, k, weight, length, epoch, self_weight):
    """L_CE + L_BCE + ω(t) L_MSE (eq. 5), and for a grown head the self-made labels (section 2.5).

    Args:
        features: of x; known, known2: scores of the first head for x and x̄; new, new2: of the second.
        self_weight: None for a head that is not grown.
    """
    unlabelled = [i for i, y in enumerate(labels) if y < 0 or y >= num_known]
    labelled = [i for i in range(len(labels)) if i not in unlabelled]
    p_new, p_new2 = [softmax(row) for row in new], [softmax(row) for row in new2]
    p_known, p_known2 = [softmax(row) for row in known], [softmax(row) for row in known2]
    total = cross_entropy([known[i] for i in labelled], [labels[i] for i in labelled])
    pick = lambda rows: [rows[i] for i in unlabelled]  # noqa: E731
    total = total + pair_loss(pick(features), pick(p_new), pick(p_new2), k)
    consistency = squared_difference(p_known, p_known2) + squared_difference(p_new, p_new2)
    total = total + weight * ramp(epoch, length) * consistency
    if self_weight is not None:
        made = [num_known + max(range(len(row)), key=lambda c, row=row: row[c].item()) for row in pick(p_new)]
        total = total + self_weight * ramp(epoch, length) * cross_entropy(pick(known), made)
    return total
