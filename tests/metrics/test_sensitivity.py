from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from scarcely.metrics.sensitivity import Correlation, class_sensitivity, spearman


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 9999))
def test_rank_correlation_equals_scipys_with_ties_too(size, levels, seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randint(-levels, levels + 1, (3, size), generator=g).float()
    b = a + torch.randn(3, size, generator=g) * (seed % 3)
    for x, y, found in zip(a, b, spearman(a, b)):
        if len(set(x.tolist())) == 1 or len(set(y.tolist())) == 1:
            assert math.isnan(found)
        else:
            assert found.item() == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_correlation_sees_order_alone():
    x = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spearman(x, x.exp()), torch.ones(2).double())
    torch.testing.assert_close(spearman(x, -(x**3)), -torch.ones(2).double())
    with pytest.raises(ValueError, match="pair up"):
        spearman(x, x[:, 1:])


@pytest.mark.parametrize("size", [None, (13, 17)])
@pytest.mark.parametrize("value", [0.1, 0.0, math.nan, math.inf])
def test_correlations_that_are_not_defined_are_counted_and_left_out_of_the_mean(value, size):
    g = torch.Generator().manual_seed(0)
    most, least = torch.rand(4, 5, 7, generator=g), torch.rand(4, 5, 7, generator=g)
    expected = class_sensitivity(most[:3], least[:3], size)
    least[3] = 0.1
    least[3, 2, 2] = value  # constant, all but constant, not a number
    found = class_sensitivity(most, least, size)
    if value == 0.0:
        assert found.undefined == 0
        return
    assert found.undefined == 1
    assert math.isnan(found.each[3])
    assert found.mean == pytest.approx(expected.mean)


def test_a_constant_map_stays_undefined_when_resizing_ripples_it():
    most = torch.rand(1, 5, 7)
    assert class_sensitivity(most, torch.full((1, 5, 7), 0.1), (224, 224)).undefined == 1


def test_maps_are_resized_first_and_batches_add_up():
    g = torch.Generator().manual_seed(0)
    most, least = torch.rand(4, 5, 7, generator=g), torch.rand(4, 5, 7, generator=g)
    whole = class_sensitivity(most, least, (20, 21))
    resized = [torch.nn.functional.interpolate(m[:, None], (20, 21), mode="bilinear") for m in (most, least)]
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(*resized)]
    assert whole.each.tolist() == pytest.approx(expected, abs=1e-6)
    halves = [class_sensitivity(most[h], least[h], (20, 21)).each for h in (slice(2), slice(2, 4))]
    assert Correlation.of(torch.cat(halves)).mean == pytest.approx(whole.mean)


def test_without_a_defined_correlation_the_mean_is_not_a_number():
    found = class_sensitivity(torch.ones(2, 3, 3), torch.rand(2, 3, 3))
    assert math.isnan(found.mean)
    assert found.undefined == 2
