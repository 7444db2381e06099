"""Low-rank factors of adapters, of one domain or of all together (chapter 4, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scarcely.errors import ConfigError


def joint_svd(alphas: Sequence[Tensor], rank: int) -> tuple[Tensor, list[Tensor]]:
    """Factor the adapters of T domains with one common left factor: α_t ≈ β γ_tᵀ (chapter 4, eq. 1).

    The truncated SVD of [α_1 … α_T] gives β = U Σ and γ_t = V_t. No other factors of that rank have a
    smaller Σ_t ‖α_t − β γ_tᵀ‖²: it is the sum of the squared singular values left out.

    Args:
        alphas: T matrices (C_out, C_in).
        rank: K, from 1 to min(C_out, T·C_in).

    Returns:
        β (C_out, K) and T matrices γ_t (C_in, K), of the adapters' type.

    Raises:
        ConfigError: no adapters, adapters of different shapes, or a rank out of its range.
    """
    return Decomposition.of(alphas).factors(rank)


@dataclass(frozen=True)
class Decomposition:
    """The SVD of adapters side by side, in double precision.

    Attributes:
        u: (C_out, R), R the full rank.
        sigma: (R,), singular values, the largest first.
        v: (T, C_in, R).
        dtype: of the adapters.
    """

    u: Tensor
    sigma: Tensor
    v: Tensor
    dtype: torch.dtype

    @classmethod
    @torch.no_grad()
    def of(cls, alphas: Sequence[Tensor]) -> Decomposition:
        """Decompose T matrices (C_out, C_in)."""
        if not alphas or len({alpha.shape for alpha in alphas}) > 1 or alphas[0].dim() != 2:
            shapes = ", ".join(str(tuple(alpha.shape)) for alpha in alphas) or "none"
            raise ConfigError(
                f"adapters of these shapes cannot be factored together: {shapes}",
                where="alphas",
                instead="at least one matrix, and all of one shape",
            )
        u, sigma, vh = torch.linalg.svd(torch.cat(list(alphas), dim=1).double(), full_matrices=False)
        return cls(u, sigma, vh.mT.unflatten(0, (len(alphas), -1)), alphas[0].dtype)

    @property
    def full_rank(self) -> int:
        """Return min(C_out, T·C_in)."""
        return len(self.sigma)

    def factors(self, rank: int) -> tuple[Tensor, list[Tensor]]:
        """Return β (C_out, K) and the T matrices γ (C_in, K), in rows, as they come back from a file.

        Products of the same numbers in another order in memory differ in their last bits.
        """
        check_rank(rank, self.full_rank)
        beta = self.u[:, :rank] * self.sigma[:rank]
        matrices = (beta, *self.v[..., :rank])
        beta, *gammas = (m.to(self.dtype, copy=True, memory_format=torch.contiguous_format) for m in matrices)
        return beta, gammas

    def error(self, rank: int) -> float:
        """Return Σ_t ‖α_t − β γ_tᵀ‖², the sum of the squared singular values left out."""
        return self.sigma[rank:].square().sum().item()

    def energy(self, rank: int) -> float:
        """Return the share of the squared singular values that is kept; 1 for adapters of zeros."""
        total = self.sigma.square().sum().item()
        return 1 - self.error(rank) / total if total else 1.0

    def rank_of(self, fraction: float | None = None, energy: float | None = None) -> int:
        """Return the rank for a share of the full rank, or the least that keeps a share of the energy.

        With neither it is half of C_in or C_out, whichever is smaller, and at least 1.
        """
        if fraction is not None:
            rank = math.floor(fraction * self.full_rank + 1e-9)  # 0.29 · 100 is 28.999…
        elif energy is not None:
            kept = self.sigma.square().cumsum(0)
            # as many as fall short of it, and one more; all where rounding lets none reach it
            rank = min(int((kept < energy * kept[-1]).sum()) + 1, self.full_rank)
        else:
            rank = min(self.u.shape[0], self.v.shape[1]) // 2
        return max(rank, 1)


def check_rank(rank: int, most: int) -> None:
    """Refuse a rank that no factorisation has.

    Raises:
        ConfigError: it is below 1 or above the full rank.
    """
    if not 1 <= rank <= most:
        raise ConfigError(
            f"adapters cannot have rank {rank}: their full rank is {most}",
            where="rank",
            instead=f"1 to {most}",
        )
