from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.errors import ConfigError
from scarcely.functional.ramp import sigmoid_rampup

quick = settings(deadline=None, max_examples=30, derandomize=True)


@pytest.mark.parametrize(
    ("epoch", "length", "exponent"), [(0, 100, -5), (50, 100, -5 / 4), (75, 100, -5 / 16), (1, 3, -20 / 9)]
)
def test_rampup_follows_the_formula(epoch, length, exponent):
    assert sigmoid_rampup(epoch, length) == pytest.approx(math.exp(exponent), rel=1e-12)


@pytest.mark.parametrize(("epoch", "length"), [(0, 0), (7, 0), (5, 5), (6, 5), (10**9, 1)])
def test_rampup_is_over_from_its_length_on(epoch, length):
    assert sigmoid_rampup(epoch, length) == 1.0


@quick
@given(
    length=st.floats(0, 1000),
    epochs=st.lists(st.floats(-10, 2000), min_size=2, max_size=20).map(sorted),
)
def test_rampup_grows_within_the_unit_interval(length, epochs):
    values = [sigmoid_rampup(epoch, length) for epoch in epochs]
    assert values == sorted(values)
    assert all(math.exp(-5) <= value <= 1 for value in values)


def test_epochs_before_the_start_count_as_the_start():
    assert sigmoid_rampup(-3, 10) == sigmoid_rampup(0, 10)


def test_negative_length_is_refused():
    with pytest.raises(ConfigError, match="ramp-up of -1 epochs"):
        sigmoid_rampup(0, -1)
