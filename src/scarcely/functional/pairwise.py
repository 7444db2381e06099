"""Which samples of a batch belong together: pseudo-labels for pairs, and the loss that learns from them.

An adjacency is a bool (N, N) matrix, symmetric and true on its diagonal. It is a label: no gradient
flows through it. A sample with a feature that is not finite is connected to nothing but itself, and
leaves the other samples' connections as they are.

Whatever the precision of the network, everything here is computed in full float32, and an N x N matrix
is the largest thing that pairs cost; N x N x D is never built.

Sources: LSD-C ("Linearly Separable Deep Clusters", Rebuffi et al., 2020), table 1 and eqs. 1 to 6;
ranking statistics ("Automatically Discovering and Learning New Visual Categories with Ranking
Statistics", Han et al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scarcely.errors import ConfigError
from scarcely.spec import Annotated, Positive, PositiveInt, Range

# Keeps the logarithms of eq. 5 finite; the value of the authors' code.
EPSILON = 1e-7


@torch.no_grad()
def l2_adjacency(features: Tensor, threshold: Positive, normalize: bool = False) -> Tensor:
    """Connect samples whose squared Euclidean distance is below a threshold (LSD-C, table 1).

    Args:
        features: (N, D).
        threshold: τ, in squared units of the features.
        normalize: scale the features to unit length first. Then this is ``cosine > 1 - τ/2``.

    Returns:
        Bool (N, N).
    """
    features = features.float()
    if normalize:
        features = F.normalize(features, dim=1)
    return _with_self(_squared_distances(features) < threshold)


@torch.no_grad()
def cosine_adjacency(features: Tensor, threshold: Annotated[float, Range(low=-1, high=1)]) -> Tensor:
    """Connect samples whose cosine similarity is above a threshold (LSD-C, table 1).

    Args:
        features: (N, D). A zero vector has cosine 0 with every other.
        threshold: τ.

    Returns:
        Bool (N, N).
    """
    cosine = _gram(F.normalize(features.float(), dim=1)).clamp_(-1, 1)
    return _with_self(cosine > threshold)


@torch.no_grad()
def sne_adjacency(
    features: Tensor, threshold: Annotated[float, Range(low=0, below=1)], temperature: Positive
) -> Tensor:
    """Connect samples whose symmetric SNE similarity is above a threshold (LSD-C, eqs. 1 and 2).

    The similarity is ½ (p_{j|i} + p_{i|j}), where p_{·|i} is the softmax of −‖f_j − f_i‖² / T² over all
    samples but i. Samples with many close neighbours are therefore harder to connect.

    Args:
        features: (N, D).
        threshold: τ.
        temperature: T, in units of the features.

    Returns:
        Bool (N, N).
    """
    logits = _squared_distances(features.float()).div_(-(temperature**2)).fill_diagonal_(-torch.inf)
    conditional = logits.softmax(dim=1)
    return _with_self((conditional + conditional.mT).div_(2) > threshold)


@torch.no_grad()
def knn_adjacency(features: Tensor, k: Annotated[int, Range(low=3)], normalize: bool = False) -> Tensor:
    """Connect each sample with its nearest neighbours, in either direction (LSD-C, table 1).

    As in the authors' code, j is a neighbour of i if its distance is strictly below the k-th smallest
    of row i, where i itself counts: without ties, k = 20 means the 18 nearest others. Samples tied
    with the k-th are all left out. With fewer than k samples of finite features there is no k-th, and
    nothing is connected.

    Args:
        features: (N, D).
        k: from 3 (a smaller k connects nothing) to N.
        normalize: scale the features to unit length first: the neighbours by angle. A zero vector
            is at a right angle to every other.

    Returns:
        Bool (N, N).

    Raises:
        ConfigError: k is below 3, or the batch has fewer than k samples.
    """
    if k < 3:
        raise ConfigError(f"kNN with k = {k} connects nothing", where="k", instead="k of at least 3")
    if k > len(features):
        raise ConfigError(
            f"the batch is too small for kNN: it has {len(features)} samples, and k is {k}",
            where="k",
            instead="a larger batch_size, or a smaller k",
        )
    features = features.float()
    distances = _squared_distances(F.normalize(features, dim=1) if normalize else features)
    if normalize:
        nothing = (features == 0).all(dim=1)
        distances.masked_fill_(nothing[:, None] | nothing, 2).fill_diagonal_(0)
    kth_smallest = distances.topk(k, dim=1, largest=False).values[:, -1:]
    near = (distances < kth_smallest) & (kth_smallest < torch.inf)  # else fewer than k have features
    return _with_self(near | near.mT)


@torch.no_grad()
def rank_adjacency(features: Tensor, k: PositiveInt) -> Tensor:
    """Connect samples whose k largest features are the same ones, in any order (ranking statistics).

    Raw values are ranked: after a ReLU they are magnitudes. Equal values rank by their index, so that
    the labels are a function of the features alone.

    Args:
        features: (N, D).
        k: from 1 to D.

    Returns:
        Bool (N, N).

    Raises:
        ConfigError: k is below 1, or there are fewer than k features.
    """
    if not 1 <= k <= features.shape[1]:
        raise ConfigError(
            f"the {k} top-ranked of {features.shape[1]} features were asked for",
            where="k",
            instead=f"k between 1 and {features.shape[1]}",
        )
    features = features.float()
    if features.device.type == "cpu":  # whether there are ties decides, for which a device would have to wait
        same = _same_top_k(features, k)
        if same is not None:
            return _with_self(same)
    top = _top_k_multi_hot(features, k)
    return _with_self(product(top, top) == k)


def mix_target(
    adjacency: Tensor,
    permutations: Tensor | Sequence[Tensor],
    weights: Tensor | Sequence[float],
    transposed: bool = False,
) -> Tensor:
    """Pairwise labels of pure against composite samples: Σ_σ w_σ A[:, σ] (LSD-C, eq. 6 and figure 3).

    Row i is the pure sample i, column j the composite made from the samples σ(j).

    Args:
        adjacency: (N, N), bool or in [0, 1].
        permutations: S permutations of the batch: (S, N), or a list of (N,).
        weights: w, (S,); the share of each permutation in the composite, summing to one.
        transposed: mix the rows instead, Σ_σ w_σ A[σ, :], as the authors' code does.

    Returns:
        Float32 (N, N), in [0, 1] up to rounding.
    """
    adjacency = adjacency.float()
    weights = torch.as_tensor(weights, dtype=torch.float32, device=adjacency.device)
    target = torch.zeros_like(adjacency)
    for weight, permutation in zip(weights, permutations, strict=True):
        permutation = torch.as_tensor(permutation, device=adjacency.device)
        target.addcmul_(weight, adjacency.index_select(0 if transposed else 1, permutation))
    return target


def pairwise_bce(p: Tensor, q: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Binary cross-entropy on "same cluster", for every pair of a sample of p and a sample of q.

    −[t log(P + ε) + (1 − t) log(1 − P + ε)] with P = p qᵀ clamped to [0, 1] (LSD-C, eqs. 4 and 5).

    Args:
        p: (N, K) probabilities.
        q: (M, K) probabilities.
        target: (N, M), bool or in [0, 1].
        mask: bool, (N, M) or broadcast to it: the pairs that count. All of them by default.

    Returns:
        The mean over the pairs that count, a float32 scalar; 0 if there are none.

    Raises:
        ValueError: the target has another shape than P.
    """
    same = product(p, q).clamp(0, 1)
    if target.shape != same.shape:
        raise ValueError(f"the target has shape {tuple(target.shape)}, the pairs {tuple(same.shape)}")
    # lerp(a, b, t) = (1 - t) a + t b, without three more N x N temporaries.
    loss = -torch.lerp(torch.log(1 - same + EPSILON), torch.log(same + EPSILON), target.float())
    if mask is None:
        return loss.sum() / max(loss.numel(), 1)
    mask = mask.expand_as(loss)
    # A product, because indexing with a mask would wait for the device to tell the number of pairs.
    return (loss * mask).sum() / mask.sum().clamp(min=1)


def _with_self(adjacency: Tensor) -> Tensor:
    return adjacency.fill_diagonal_(True)


def _squared_distances(features: Tensor) -> Tensor:
    """(N, N), symmetric, zero on the diagonal, infinite where a feature is not finite."""
    gram = _gram(_centred(features))
    norms = gram.diagonal()
    distances = torch.add(norms[:, None] + norms, gram, alpha=-2).clamp_(min=0)
    return distances.nan_to_num_(nan=torch.inf, posinf=torch.inf).fill_diagonal_(0)


def _centred(features: Tensor) -> Tensor:
    """Move the origin among the samples, or |a|² + |b|² − 2ab would cancel for features far from it.

    It moves to the sample nearest to the mean, not to the mean itself: the difference of two samples
    is mostly exact, so that equal distances stay equal and equal samples stay equal.
    """
    if len(features) == 0:
        return features
    mean = features.nan_to_num(nan=0, posinf=0, neginf=0).mean(dim=0)
    from_mean = (features - mean).square_().sum(dim=1).nan_to_num_(nan=torch.inf)
    return features - features.index_select(0, from_mean.argmin(dim=0, keepdim=True))


def _gram(features: Tensor) -> Tensor:
    """F Fᵀ, exactly symmetric: a matrix product may round (i, j) and (j, i) apart."""
    gram = product(features, features)
    return (gram + gram.mT).div_(2)


def _top_k_multi_hot(features: Tensor, k: int) -> Tensor:
    """(N, D) with a one at each row's k largest features; a row that is not finite is all zeros."""
    largest = features.topk(k, dim=1).values
    kth = largest[:, -1:]
    room = k - (largest > kth).sum(dim=1, keepdim=True, dtype=torch.int32)  # for values level with the k-th
    level = features == kth
    top = (features > kth) | (level & (level.cumsum(dim=1, dtype=torch.int32) <= room))
    return (top & features.abs().amax(dim=1, keepdim=True).isfinite()).float()


def _same_top_k(features: Tensor, k: int) -> Tensor | None:
    """(N, N), whether two rows have the same k largest; None where level values leave a choice of them.

    On a CPU numpy finds the k-th largest sooner than torch, and rows are compared by their bits.
    """
    values = features.detach().numpy()
    kth = np.partition(values, -k, axis=1)[:, -k, None]
    finite = np.isfinite(values.min(axis=1)) & np.isfinite(values.max(axis=1))
    top = (values >= kth) & finite[:, None]
    if np.count_nonzero(top) > k * np.count_nonzero(finite):
        return None
    first: dict[bytes, int] = {}  # row that was the first to have these k
    bits = zip(np.packbits(top, axis=1), finite.tolist(), strict=True)
    number = [first.setdefault(row.tobytes(), i) if real else i for i, (row, real) in enumerate(bits)]
    same = torch.tensor(number)
    return same[:, None] == same


def product(a: Tensor, b: Tensor) -> Tensor:
    """A bᵀ in full float32."""
    with _full_float32(a.device.type):
        return a.float() @ b.float().mT


@contextmanager
def _full_float32(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32: ten bits of mantissa would drown 1 − P, and distances of neighbours."""
    matmuls = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [matmul.fp32_precision for matmul in matmuls]
    try:
        for matmul in matmuls:
            matmul.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for matmul, precision in zip(matmuls, before):
            matmul.fp32_precision = precision
