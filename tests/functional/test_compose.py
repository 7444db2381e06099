from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.functional.compose import apply_ricap, draw_ricap, mixup, ricap
from tests.oracles import compose as oracle

quick = settings(deadline=None, max_examples=30, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
BOTH = pytest.mark.parametrize("compose", [ricap, mixup])


def images(n=5, c=2, h=7, w=9):
    """Every value appears once, so that each pixel tells where it comes from."""
    return torch.arange(n * c * h * w, dtype=torch.float32).reshape(n, c, h, w)


def rng(seed=0):
    return np.random.default_rng(seed)


# RICAP


@quick
@given(seed=seeds, identity=st.booleans(), beta=st.sampled_from([0.05, 0.3, 3.0]))
def test_ricap_equals_oracle(seed, identity, beta):
    views = images(), 1e4 + images()
    draw = draw_ricap(rng(seed), 5, 7, 9, views=2, beta=beta, identity=identity)
    composed, (permutations, weights) = ricap(views, rng(seed), beta=beta, identity=identity)
    assert permutations.tolist() == draw.permutations.tolist()
    assert weights.tolist() == pytest.approx(oracle.ricap_weights(draw.boxes.tolist(), 7, 9))
    for view, offsets, result in zip(views, draw.offsets.tolist(), composed):
        expected = oracle.ricap(view, draw.boxes.tolist(), offsets, draw.permutations.tolist())
        assert torch.equal(result, expected)


@pytest.mark.parametrize("w", [0, 4, 9])
@pytest.mark.parametrize("h", [0, 3, 7])
def test_ricap_with_empty_patches_covers_the_image(w, h):
    draw = draw_ricap(rng(), 5, 7, 9, views=1, beta=0.3, identity=False)
    boxes = np.array([(0, 0, h, w), (0, w, h, 9 - w), (h, 0, 7 - h, w), (h, w, 7 - h, 9 - w)])
    draw = replace(draw, boxes=boxes, offsets=np.zeros((1, 4, 2), dtype=np.int64))
    composed = apply_ricap(images(), boxes, draw.offsets[0], torch.from_numpy(draw.permutations))
    expected = oracle.ricap(images(), boxes.tolist(), draw.offsets[0].tolist(), draw.permutations.tolist())
    assert torch.equal(composed, expected)
    assert draw.weights.sum() == pytest.approx(1)


def test_beta_near_zero_draws_empty_patches():
    # Beta(0.01, 0.01) is 0 or 1 nearly always: the composite is a permutation of whole images.
    (composed,), (permutations, weights) = ricap((images(),), rng(), beta=0.01, identity=False)
    assert sorted(weights.tolist()) == [0, 0, 0, 1]
    assert torch.equal(composed, images()[permutations[weights.argmax()]])


@quick
@given(seed=seeds)
def test_ricap_draws_fit_the_image(seed):
    draw = draw_ricap(rng(seed), 5, 7, 9, views=3, beta=0.3, identity=True)
    covered = np.zeros((7, 9), dtype=int)
    for top, left, height, width in draw.boxes:
        covered[top : top + height, left : left + width] += 1
    assert (covered == 1).all()
    assert draw.offsets.shape == (3, 4, 2)
    assert (draw.offsets >= 0).all()
    assert (draw.offsets + draw.boxes[:, 2:] <= (7, 9)).all()


@quick
@given(seed=seeds)
def test_ricap_keeps_large_patches_at_home(seed):
    draws = {
        identity: draw_ricap(rng(seed), 32, 8, 8, views=1, beta=0.3, identity=identity)
        for identity in (True, False)
    }
    assert (draws[True].boxes == draws[False].boxes).all()
    assert (draws[True].offsets == draws[False].offsets).all()
    large = draws[True].weights > 0.25
    assert (draws[True].permutations[large] == np.arange(32)).all()
    assert (draws[True].permutations[~large] == draws[False].permutations[~large]).all()
    assert not (draws[False].permutations == np.arange(32)).all(axis=1).any()


def test_a_patch_of_exactly_a_quarter_is_not_large():
    generator = rng()
    draws = (draw_ricap(generator, 32, 2, 2, views=1, beta=3.0, identity=True) for _ in range(50))
    quarters = next(draw for draw in draws if (draw.weights == 0.25).all())
    assert not (quarters.permutations == np.arange(32)).all(axis=1).any()


def test_crop_positions_reach_both_ends_and_differ_between_views():
    generator = rng()
    tops, alike = set(), 0
    for _ in range(300):
        draw = draw_ricap(generator, 1, 4, 4, views=2, beta=3.0, identity=True)
        tops |= {(int(room), int(top)) for room, top in zip(4 - draw.boxes[:, 2], draw.offsets[0, :, 0])}
        alike += bool((draw.offsets[0] == draw.offsets[1]).all())
    assert {(2, 0), (2, 1), (2, 2)} <= tops
    assert alike < 30


def test_meeting_point_follows_the_beta_distribution():
    generator = rng()
    draws = [draw_ricap(generator, 1, 1000, 1000, views=1, beta=0.3, identity=True) for _ in range(2000)]
    height, width = np.array([draw.boxes[0, 2:] for draw in draws]).T / 1000
    for share in (height, width):
        # Beta(b, b): mean 1/2, variance 1 / (4 (2b + 1)) = 0.156; the bounds are four standard errors.
        assert share.mean() == pytest.approx(0.5, abs=4 * (0.156 / 2000) ** 0.5)
        assert share.var() == pytest.approx(1 / (4 * 1.6), abs=0.01)
    assert abs(np.corrcoef(height, width)[0, 1]) < 4 / 2000**0.5


def test_ricap_refuses_views_that_it_cannot_share_boxes_among():
    for views in ((), (images(), images(w=8)), (images(n=4), images()), (torch.zeros(5, 3),), images()):
        with pytest.raises(ValueError, match="RICAP needs image batches"):
            ricap(views, rng())


# MixUp


@quick
@given(seed=seeds, shape=st.sampled_from([(5,), (5, 4), (5, 2, 3, 3), (1, 2)]))
def test_mixup_equals_oracle(seed, shape):
    views = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))
    composed, (permutations, weights) = mixup(tuple(views), rng(seed))
    assert permutations[0].tolist() == list(range(shape[0]))
    for view, result in zip(views, composed):
        expected = oracle.mixup(view.double(), permutations[1], float(weights[0]))
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=3 * 2**-24)  # three roundings


def test_mixup_of_a_linear_function_is_mixed_by_its_weights():
    """What mix_target relies on: composite j is made of permutations[s, j] with the shares weights[s]."""
    one_hot = torch.eye(6)
    (composed,), (permutations, weights) = mixup((one_hot,), rng(1))
    mixed = sum(weight * one_hot[permutation] for weight, permutation in zip(weights, permutations))
    torch.testing.assert_close(composed, mixed)


def test_mixup_refuses_views_of_other_samples():
    for views in ((), (torch.zeros(4, 3), torch.zeros(5, 3))):
        with pytest.raises(ValueError, match="MixUp needs views"):
            mixup(views, rng())


# Both


@BOTH
def test_weights_are_float32_shares_and_permutations_are_permutations(compose):
    generator = rng()
    for _ in range(20):
        composed, (permutations, weights) = compose((images(),) * 3, generator)
        assert isinstance(composed, tuple)
        assert len(composed) == 3
        assert weights.dtype == torch.float32
        assert weights.shape == (len(permutations),)
        assert weights.min() >= 0
        assert weights.sum().item() == pytest.approx(1, abs=1e-6)
        assert permutations.dtype == torch.int64
        assert torch.equal(permutations.sort(dim=1).values, torch.arange(5).repeat(len(permutations), 1))


@BOTH
def test_same_generator_state_composes_the_same(compose):
    first, second = compose((images(),), rng(3)), compose((images(),), rng(3))
    assert torch.equal(first[0][0], second[0][0])
    assert torch.equal(first[1][0], second[1][0])
    assert not torch.equal(first[0][0], compose((images(),), rng(4))[0][0])


@BOTH
def test_inputs_are_left_alone(compose):
    view = images()
    compose((view, view), rng())
    assert torch.equal(view, images())


@BOTH
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_preserved(compose, memory_format):
    view = images().contiguous(memory_format=memory_format)
    (composed,), _ = compose((view,), rng())
    assert composed.is_contiguous(memory_format=memory_format)
    (expected,), _ = compose((images(),), rng())
    assert torch.equal(composed, expected)


@BOTH
def test_a_batch_of_one_is_composed_of_itself(compose):
    constant = torch.full((1, 3, 8, 8), 0.7)
    (composed,), (permutations, _) = compose((constant,), rng())
    torch.testing.assert_close(composed, constant)
    assert permutations.eq(0).all()
