"""Factors of adapters against power iteration, and the error that they leave."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.adapters import joint_svd
from scarcely.adapters.svd import Decomposition
from scarcely.errors import ConfigError
from tests.oracles import adapters as oracle


def adapters(domains, rows, columns, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, columns, generator=g, dtype=dtype) for _ in range(domains)]


def graded(domains, rows, columns, sigma):
    """Adapters side by side with these singular values."""
    u = torch.linalg.qr(adapters(1, rows, len(sigma), 1, torch.float64)[0]).Q
    v = torch.linalg.qr(adapters(1, domains * columns, len(sigma), 2, torch.float64)[0]).Q
    return list((u @ torch.diag(sigma) @ v.T).split(columns, dim=1))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("domains", "rows", "columns"), [(1, 4, 4), (3, 5, 4), (2, 3, 6), (4, 6, 1)])
def test_the_approximation_is_the_principal_one(domains, rows, columns, rank):
    sigma = 2.0 ** -torch.arange(min(rows, domains * columns), dtype=torch.float64)
    alphas = graded(domains, rows, columns, sigma)
    beta, gammas = joint_svd(alphas, rank)
    assert beta.shape == (rows, rank)
    assert [tuple(gamma.shape) for gamma in gammas] == [(columns, rank)] * domains
    assert all(factor.is_contiguous() for factor in (beta, *gammas)), "as in a file: a resume changes no bit"
    for gamma, expected in zip(gammas, oracle.principal_factors(alphas, rank)):
        torch.testing.assert_close(beta @ gamma.T, expected)


def test_factors_are_those_of_the_paper():
    beta, gammas = joint_svd(adapters(3, 5, 4, dtype=torch.float64), 2)
    identity = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(sum(gamma.T @ gamma for gamma in gammas), identity)  # Σ V_tᵀ V_t = I
    gram = beta.T @ beta  # Σ²: β = U Σ
    torch.testing.assert_close(gram, gram.diagonal().diag())
    assert gram[0, 0] > gram[1, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(0, 999), st.data())
def test_the_error_is_the_tail_of_the_singular_values(domains, rows, columns, seed, data):
    alphas = adapters(domains, rows, columns, seed)
    full = min(rows, domains * columns)
    rank = data.draw(st.integers(1, full))
    beta, gammas = joint_svd(alphas, rank)
    left = oracle.squared_distance(alphas, [beta @ gamma.T for gamma in gammas])
    sigma = torch.linalg.svdvals(torch.cat(alphas, dim=1).double())
    assert left == pytest.approx(sigma[rank:].square().sum().item(), abs=1e-5)  # factors in float32
    assert Decomposition.of(alphas).error(rank) == pytest.approx(left, abs=1e-5)
    if rank == full:
        assert left < 1e-9 * sigma.square().sum().item()


def test_the_rank_of_an_energy_is_the_least_that_keeps_it():
    parts = Decomposition.of(graded(2, 5, 4, torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)))
    squares = [9.0, 4.0, 1.0, 0.25, 0.01]
    for rank in range(1, 6):
        share = sum(squares[:rank]) / sum(squares)
        assert parts.rank_of(energy=share - 1e-6) == rank
        assert parts.energy(rank) == pytest.approx(share)
    assert parts.rank_of(energy=1e-9) == 1
    assert parts.rank_of(energy=1) == 5


def test_the_rank_of_a_fraction_is_of_the_full_rank():
    parts = Decomposition.of(adapters(2, 100, 60))
    assert [parts.rank_of(fraction=f) for f in (1e-9, 0.29, 0.5, 1)] == [1, 29, 50, 100]
    assert parts.rank_of() == 30  # half of C_in, the smaller side


@pytest.mark.parametrize(("domains", "rows", "columns", "rank"), [(1, 1, 1, 1), (3, 8, 1, 1), (2, 3, 2, 1)])
def test_the_default_rank_is_at_least_one(domains, rows, columns, rank):
    assert Decomposition.of(adapters(domains, rows, columns)).rank_of() == rank


def test_adapters_of_zeros_have_factors_of_zeros():
    alphas = [torch.zeros(3, 2)] * 2
    parts = Decomposition.of(alphas)
    assert (parts.rank_of(energy=0.9), parts.energy(1), parts.error(1)) == (1, 1.0, 0.0)
    beta, gammas = joint_svd(alphas, 1)
    assert all(not (beta @ gamma.T).any() for gamma in gammas)


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_a_rank_out_of_its_range_is_refused(rank):
    with pytest.raises(ConfigError, match=f"cannot have rank {rank}: their full rank is 4"):
        joint_svd(adapters(2, 4, 3), rank)


@pytest.mark.parametrize("alphas", [[], [torch.zeros(2, 3), torch.zeros(3, 3)], [torch.zeros(2, 3, 1)]])
def test_adapters_that_do_not_fit_together_are_refused(alphas):
    with pytest.raises(ConfigError, match="cannot be factored together"):
        joint_svd(alphas, 1)
