"""Losses of the rivals of ranking statistics, literally: one pair, sample or class after the other."""

from __future__ import annotations

import torch

EPSILON = 1e-7


def mean(terms):
    return sum(terms) / len(terms) if terms else torch.zeros(())


def similarity_bce(logits, same, positive_share=None):
    def loss(i, j):
        probability = torch.sigmoid(logits[i, j])
        return -torch.log(probability if same[i, j] else 1 - probability)

    pairs = [(i, j) for i in range(len(logits)) for j in range(len(logits)) if i != j]
    if positive_share is None:
        return mean([loss(i, j) for i, j in pairs])
    positive = mean([loss(i, j) for i, j in pairs if same[i, j]])
    negative = mean([loss(i, j) for i, j in pairs if not same[i, j]])
    return positive_share * positive + (1 - positive_share) * negative


def divergence(p, q):
    """KL(p‖q) of two distributions, the first a constant."""
    p = p.detach()
    return sum(p[k] * (torch.log(p[k] + EPSILON) - torch.log(q[k] + EPSILON)) for k in range(len(p)))


def kcl_loss(p, q, similar, margin=2.0):
    """KCL, eqs. 2 and 3: over all ordered pairs, so that each pair has both directions where q is p."""
    terms = []
    for i in range(len(p)):
        for j in range(len(q)):
            kl = divergence(p[i], q[j])
            terms.append(kl if similar[i, j] else torch.clamp(margin - kl, min=0))
    return mean(terms)


def student_t(embedded, centroids):
    """q (N, K), DTC eq. 1."""
    rows = []
    for z in embedded:
        kernels = [1 / (1 + sum((z[d] - mu[d]) ** 2 for d in range(len(z)))) for mu in centroids]
        rows.append(torch.stack([kernel / sum(kernels) for kernel in kernels]))
    return torch.stack(rows)


def sharpened_target(q):
    """p (N, K), DTC eq. 3."""
    n, clusters = q.shape
    frequencies = [sum(q[i, k] for i in range(n)) for k in range(clusters)]
    rows = []
    for i in range(n):
        weighted = [q[i, k] ** 2 / frequencies[k] if frequencies[k] > 0 else q[i, k] for k in range(clusters)]
        rows.append(torch.stack([w / sum(weighted) for w in weighted]))
    return torch.stack(rows)


def target_divergence(target, q):
    """KL(p‖q), the mean over the samples; 0·log 0 is 0."""
    terms = []
    for p_i, q_i in zip(target, q):
        terms.append(
            sum(a * (torch.log(a) - torch.log(b)) if a > 0 else 0 * b for a, b in zip(p_i.detach(), q_i))
        )
    return mean(terms)


def prototypical_loss(support, support_labels, query, query_labels):
    """Snell et al., algorithm 1: the loss and the accuracy of the queries whose class has a prototype."""
    classes = sorted(set(support_labels.tolist()))
    prototypes = {
        c: mean([row for row, label in zip(support, support_labels.tolist()) if label == c]) for c in classes
    }
    losses, hits = [], []
    for row, label in zip(query, query_labels.tolist()):
        if label not in prototypes:
            continue
        distances = {c: sum((a - b) ** 2 for a, b in zip(row, prototypes[c])) for c in classes}
        losses.append(distances[label] + torch.log(sum(torch.exp(-d) for d in distances.values())))
        nearest = min(classes, key=lambda c, d=distances: d[c].item())
        hits.append(float(nearest == label))
    return mean(losses), (sum(hits) / len(hits) if hits else 0.0)
