"""Average precision and binary cross-entropy over several labels, literally: one entry after the other."""

from __future__ import annotations

import math


def average_precision(scores, targets):
    """The mean, over the examples of the class, of the precision among all scored at least as high."""
    counted = [(score, target) for score, target in zip(scores, targets) if target != -1]
    precisions = []
    for score, target in counted:
        if target == 1:
            above = [other for s, other in counted if s >= score]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions) if precisions else math.nan


def binary_cross_entropy(scores, targets):
    """The mean over the entries that are not -1."""
    total, count = 0.0, 0
    for score_row, target_row in zip(scores, targets):
        for score, target in zip(score_row, target_row):
            if target != -1:
                p = 1 / (1 + math.exp(-score))
                total -= math.log(p if target == 1 else 1 - p)
                count += 1
    return total / count if count else 0.0
