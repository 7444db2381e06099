"""Average precision of several labels an image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scarcely.metrics.precision import AveragePrecision
from tests.oracles import precision as oracle

ENTRIES = st.tuples(st.integers(-4, 4), st.sampled_from([-1, 0, 1]))  # few scores: ties


def of(scores, targets) -> torch.Tensor:
    metric = AveragePrecision()
    metric.update(torch.as_tensor(scores), torch.as_tensor(targets, dtype=torch.int8))
    return metric.compute().reshape(-1)


@given(st.lists(st.lists(ENTRIES, min_size=3, max_size=3), min_size=1, max_size=12))
def test_it_is_the_mean_precision_over_the_examples_of_a_class(rows):
    columns = list(zip(*rows))
    expected = [oracle.average_precision(*zip(*column)) for column in columns]
    found = of([[s for s, _ in row] for row in rows], [[t for _, t in row] for row in rows])
    assert found.tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_large_scores_are_told_apart():
    """A sigmoid of them would be 1 for both."""
    assert of([[200.0], [100.0]], [[0], [1]]).tolist() == [0.5]


def test_one_class_without_examples_is_left_out_of_the_mean():
    found = of([[0.9, 0.1], [0.2, 0.4]], [[1, 0], [0, -1]])
    assert found[0] == 1
    assert math.isnan(found[1])
    assert found.nanmean() == 1


def test_batches_add_up():
    generator = torch.Generator().manual_seed(0)
    scores, targets = (
        torch.randn(20, 3, generator=generator),
        torch.randint(-1, 2, (20, 3), generator=generator),
    )
    metric = AveragePrecision()
    for part in (slice(0, 7), slice(7, 20)):
        metric.update(scores[part], targets[part])
    torch.testing.assert_close(metric.compute(), of(scores, targets))
