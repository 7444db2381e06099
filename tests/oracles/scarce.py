"""Losses for few labels, literally: one sample and one class after the other."""

from __future__ import annotations

import math

import torch


def softmax(scores):
    total = sum(torch.exp(s) for s in scores)
    return [torch.exp(s) / total for s in scores]


def mean(terms):
    return sum(terms) / len(terms) if terms else torch.zeros((), dtype=torch.float64)


def pseudo_label_loss(scores, targets, previous):
    """Algorithm 1, line 9: 0.5 L_temp + 0.5 L_pseudo; in the first epoch L_pseudo alone."""
    terms = []
    for i in range(len(scores)):
        p = softmax(scores[i])
        pseudo = sum(-targets[i, k] * torch.log(p[k]) for k in range(len(p)))
        seen = any(previous[i, k] > 0 for k in range(len(p)))
        temporal = sum(
            previous[i, k] * (torch.log(previous[i, k]) - torch.log(p[k]))
            for k in range(len(p))
            if previous[i, k] > 0
        )
        terms.append(0.5 * pseudo + 0.5 * temporal if seen else pseudo)
    return mean(terms)


def consistency_mse(scores, other):
    """Mean Teacher's softmax MSE, mean over classes and batch."""
    terms = []
    for i in range(len(scores)):
        p, q = softmax(scores[i]), softmax(other[i])
        terms += [(p[k] - q[k]) ** 2 for k in range(len(p))]
    return mean(terms)


def labelled_cross_entropy(scores, labels):
    return mean([-torch.log(softmax(scores[i])[labels[i]]) for i in range(len(labels)) if labels[i] >= 0])


def weight_average(trajectory, decay):
    """The teacher after each step of the student, from the same start."""
    teacher, result = trajectory[0], []
    for step, student in enumerate(trajectory[1:], start=1):
        alpha = min(1 - 1 / (step + 1), decay)
        teacher = alpha * teacher + (1 - alpha) * student
        result.append(teacher)
    return result


def cosine(lr, epoch, epochs):
    return 0.5 * lr * (1 + math.cos(math.pi * epoch / epochs))
