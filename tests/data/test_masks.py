"""Polygons and run lengths give the masks that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from scarcely.data.masks import decode_counts, polygon_mask, run_length_mask
from tests.oracles.masks import compressed, inside, run_lengths

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_run_lengths_give_their_mask_back(mask):
    counts = run_lengths(mask.tolist())
    np.testing.assert_array_equal(run_length_mask(counts, mask.shape), mask)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300_000), max_size=12))
def test_compressed_run_lengths_are_the_same(counts):
    assert decode_counts(compressed(counts)) == counts


@pytest.mark.parametrize(
    ("text", "counts"),
    [  # as COCO's own library writes them
        ("Tkm2X6h8000lg\\6", [96100, 200, 280, 200, 280, 200, 209940]),
        (";45000>M^O07", [11, 4, 5, 4, 5, 4, 19, 1, 1, 1, 8]),
    ],
)
def test_text_of_the_release_is_understood(text, counts):
    assert decode_counts(text) == counts


@pytest.mark.parametrize(("text", "reason"), [("1 2", "' ' does not occur"), ("1P", "end within a number")])
def test_text_that_is_no_run_lengths_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        decode_counts(text)


@pytest.mark.parametrize(
    ("counts", "reason"), [([5], "5 pixels, not 2 x 3"), ([4, -2, 4], "negative"), ([7], "7 pixels")]
)
def test_run_lengths_must_fill_the_image(counts, reason):
    with pytest.raises(ValueError, match=reason):
        run_length_mask(counts, (2, 3))


# Eighths: far from the rounding of a crossing, and corners hit pixel centres now and then.
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-8, 96), st.integers(-8, 72)), min_size=3, max_size=7))
def test_a_polygon_holds_the_pixels_whose_centres_are_inside(corners):
    corners = [(x / 8, y / 8) for x, y in corners]
    expected = [[inside(x + 0.5, y + 0.5, corners) for x in range(12)] for y in range(9)]
    mask = polygon_mask(np.array(corners), (9, 12))
    on_an_edge = np.array([[_touched(x + 0.5, y + 0.5, corners) for x in range(12)] for y in range(9)])
    if np.any(expected):
        np.testing.assert_array_equal(mask | on_an_edge, np.array(expected) | on_an_edge)


def _touched(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    """Whether an edge runs through a point: there, the two ways to compute a crossing may round apart."""
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if min(y0, y1) <= y <= max(y0, y1) and abs((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) < 1e-9:
            return True
    return False


def test_a_rectangle_covers_its_pixels_and_no_other():
    mask = polygon_mask(np.array([[2, 1], [5, 1], [5, 4], [2, 4]]), (6, 7))
    expected = np.zeros((6, 7), dtype=bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal(mask, expected)


def test_a_sliver_is_somewhere():
    mask = polygon_mask(np.array([[2.1, 1.1], [4.2, 1.2], [7.0, 6.0]]), (6, 7))
    assert mask.any()
    flat = polygon_mask(np.array([[3.0, 2.0], [3.0, 2.0], [4.0, 2.0]]), (6, 7))
    assert sorted(map(tuple, np.argwhere(flat))) == [(2, 3), (2, 4)]
