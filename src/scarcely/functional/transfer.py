"""Losses of the rivals of ranking statistics, which carry over what known classes teach (chapter 6).

As the pairwise losses, all are computed in float32, and an N x N matrix is the largest thing that pairs
cost.

Sources: KCL ("Learning to Cluster in Order to Transfer Across Domains and Tasks", Hsu, Lv and Kira, 2018);
DTC ("Learning to Discover Novel Visual Categories via Deep Transfer Clustering", Han, Vedaldi and
Zisserman, 2019), after DEC (Xie, Girshick and Farhadi, 2016); prototypical networks (Snell, Swersky and
Zemel, 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scarcely.functional.pairwise import EPSILON, product
from scarcely.spec import NonNegative, UnitInterval


def similarity_bce(logits: Tensor, same: Tensor, positive_share: UnitInterval | None = None) -> Tensor:
    """Binary cross-entropy on "same class", for every pair of two samples.

    Args:
        logits: (N, N) scores of the pairs; those of a sample with itself do not count.
        same: bool (N, N).
        positive_share: share of the loss that the positive pairs have together, however rare they are. A
            kind of pairs that does not occur adds nothing. None: each pair has the same weight.

    Returns:
        The weighted mean over the pairs, a float32 scalar; 0 if there are none.
    """
    pairs = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    losses = F.binary_cross_entropy_with_logits(logits.float(), same.float(), reduction="none")
    if positive_share is None:
        return _mean(losses, pairs)
    positive, negative = _mean(losses, pairs & same), _mean(losses, pairs & ~same)
    return positive_share * positive + (1 - positive_share) * negative


def kcl_loss(p: Tensor, q: Tensor, similar: Tensor, margin: NonNegative = 2.0) -> Tensor:
    """Contrastive loss on the divergence of two predictions, for every pair of a sample of p and one of q.

    KL(p‖q) for similar pairs, max(0, margin − KL(p‖q)) for others (KCL, eqs. 2 and 3). With q = p each
    pair occurs in both directions. The first argument of the divergence is a constant, in either
    direction (P* in the paper): the gradient goes to q alone.

    Args:
        p: (N, K) probabilities.
        q: (M, K) probabilities.
        similar: bool (N, M).
        margin: σ, in nats.

    Returns:
        The mean over the N·M ordered pairs, a float32 scalar; 0 if there are none.

    Raises:
        ValueError: ``similar`` has another shape than the pairs.
    """
    p, log_q = p.detach().float(), (q.float() + EPSILON).log()
    negative_entropy = (p * (p + EPSILON).log()).sum(dim=1, keepdim=True)
    divergence = negative_entropy - product(p, log_q)
    if similar.shape != divergence.shape:
        raise ValueError(f"labels {tuple(similar.shape)} for pairs {tuple(divergence.shape)}")
    losses = torch.where(similar, divergence, (margin - divergence).clamp(min=0))
    return losses.sum() / max(losses.numel(), 1)


def student_t_logits(embedded: Tensor, centroids: Tensor) -> Tensor:
    """Scores whose softmax is q_ik ∝ (1 + ‖z_i − μ_k‖²)⁻¹ (DTC, eq. 1, with one degree of freedom).

    Args:
        embedded: z, (N, D).
        centroids: μ, (K, D).

    Returns:
        −log(1 + ‖z_i − μ_k‖²), float32 (N, K).
    """
    return -squared_distances(embedded, centroids).log1p()


def sharpened_target(q: Tensor) -> Tensor:
    """Return the target p_ik ∝ q_ik² / Σ_i q_ik of all samples (DTC, eq. 3).

    It prefers confident assignments and clusters of equal size.

    Args:
        q: (N, K) probabilities.

    Returns:
        (N, K), its rows summing to one; a cluster without any share stays empty.
    """
    tiny = torch.finfo(q.dtype).tiny
    weighted = q.square() / q.sum(dim=0).clamp(min=tiny)
    return weighted / weighted.sum(dim=1, keepdim=True).clamp(min=tiny)


def target_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(p‖q) of targets p and q = softmax(logits) (DTC, eq. 2).

    Args:
        target: p, (N, K) probabilities, 0 among them; a constant.
        logits: (N, K).

    Returns:
        The mean over the samples, a float32 scalar; 0 if there are none.
    """
    losses = F.kl_div(logits.float().log_softmax(dim=1), target.detach().float(), reduction="sum")
    return losses / max(len(target), 1)


def prototypical_loss(
    support: Tensor, support_labels: Tensor, query: Tensor, query_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of queries that are told apart by their distances to class means (Snell et al., eq. 2).

    A class scores minus the squared Euclidean distance to its prototype, the mean of its support. Labels
    alone say which samples are of one class; no shape depends on how many classes there are.

    Args:
        support: (S, D) features.
        support_labels: (S,) int64.
        query: (Q, D) features.
        query_labels: (Q,) int64. Queries of a class without support do not count.

    Returns:
        The mean over the queries that count and their accuracy, float32 scalars; 0 if there are none.
    """
    same = (support_labels[:, None] == support_labels).float()
    sizes = same.sum(dim=1)
    prototypes = product(same / sizes[:, None], support.float().mT)  # of its class, at each support
    # the support of a class shares the class's probability
    logits = -squared_distances(query, prototypes) - sizes.log()
    log_probabilities = logits.log_softmax(dim=1)
    of_class = query_labels[:, None] == support_labels
    counted = of_class.any(dim=1)
    # a row of -inf alone would have a NaN gradient: a query without support takes all classes for its own
    chosen = log_probabilities.masked_fill(~of_class & counted[:, None], -torch.inf)
    losses = -chosen.logsumexp(dim=1)
    nearest = support_labels[(logits + sizes.log()).argmax(dim=1)] if len(support) else query_labels
    return _mean(losses, counted), _mean((nearest == query_labels).float(), counted)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances of rows, (N, D) and (M, D) to float32 (N, M).

    Summed difference by difference: |a|² + |b|² − 2ab cancels for features far from the origin.
    """
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(a.float(), b.float(), compute_mode=exact).square()


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over what counts, without waiting for the device to tell how much that is."""
    return values.where(counted, 0).sum() / counted.sum().clamp(min=1)
