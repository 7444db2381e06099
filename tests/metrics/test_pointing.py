from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.errors import DataError
from scarcely.metrics.pointing import Objects, PointingGame, near
from tests.oracles import saliency as oracle


def peak(y, x, size=(40, 60)):
    m = torch.zeros(size)
    m[y, x] = 1
    return m


def boxes(labels, coordinates, size=(40, 60), difficult=None):
    flags = None if difficult is None else torch.tensor(difficult)
    return Objects(size, torch.tensor(labels), boxes=torch.tensor(coordinates), difficult=flags, name="a.jpg")


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 11),
    st.integers(0, 8),
    st.sampled_from([0, 0.5, 1, 2, 2.9, math.sqrt(8), 15]),
    st.integers(0, 99),
)
def test_nearness_equals_the_distance_to_every_pixel(row, column, tolerance, seed):
    region = torch.rand(12, 9, generator=torch.Generator().manual_seed(seed)) < 0.02
    assert near(region, (row, column), tolerance) == oracle.near(region, (row, column), tolerance)


def test_a_hit_is_strictly_closer_than_the_tolerance():
    image = boxes([0, 1], [[10.0, 10, 20, 20], [50, 30, 60, 40]])  # its last column is 19
    for x, hit in ((15, 1.0), (19, 1.0), (33, 1.0), (34, 0.0)):
        game = PointingGame(2)
        game.update(peak(15, x)[None], [0], [image])
        assert game.compute()["all"].item() == hit


def test_scores_average_over_classes_and_add_up_over_batches():
    image = boxes([0, 1, 2], [[0.0, 0, 10, 10], [40, 0, 60, 10], [20, 20, 40, 40]])
    inside, outside = {0: (5, 5), 1: (5, 50), 2: (30, 30)}, (39, 1)
    pairs = [(0, True), (0, True), (0, True), (0, False), (1, False), (1, False), (2, True)]
    together, apart = (PointingGame(4, tolerance=3) for _ in range(2))
    maps = torch.stack([peak(*(inside[c] if hit else outside)) for c, hit in pairs])
    together.update(maps, [c for c, _ in pairs], [image] * len(pairs))
    for m, (c, _) in zip(maps, pairs):
        apart.update(m[None], torch.tensor([c]), [image])
    scores = together.compute()
    assert scores["all"].item() == pytest.approx((3 / 4 + 0 + 1) / 3)
    assert scores["center/all"].item() == pytest.approx(1 / 3)  # (20, 30) is in the third object
    assert scores["stderr/all"].item() == pytest.approx(math.sqrt(0.75 * 0.25 / 4) / 3)
    for key, value in apart.compute().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, scores[key])
    assert pickle.loads(pickle.dumps(together)).compute()["all"] == scores["all"]


def test_the_difficult_subset_is_of_small_objects_in_company():
    large, small = [0.0, 0, 60, 20], [0.0, 0, 59, 10]  # half of the image, just below a quarter
    game = PointingGame(2)
    m = peak(5, 5)[None]
    game.update(m, [0], [boxes([0, 1], [large, small])])
    assert game.compute()["difficult"].isnan()
    game.update(m, [0], [boxes([0, 0], [small, small])])  # alone, twice
    assert game.compute()["difficult"].isnan()
    game.update(m, [0], [boxes([0, 1], [[0.0, 0, 60, 10], large])])  # a quarter
    assert game.compute()["difficult"].isnan()
    game.update(m, [0], [boxes([0, 0, 1], [small, small, large])])  # overlapping: their union counts
    assert game.compute()["difficult"].item() == 1
    game.update(peak(39, 59)[None], [0], [boxes([0, 1], [small, large])])
    scores = game.compute()
    assert scores["difficult"].item() == 0.5
    assert scores["all"].item() == pytest.approx(4 / 5)
    assert scores["center/difficult"].item() == 1  # eleven rows below, within fifteen


def test_a_class_that_is_marked_difficult_throughout_does_not_count():
    some = boxes([0, 0, 1], [[0.0, 0, 9, 9], [30, 30, 39, 39], [50, 0, 60, 9]], difficult=[True, False, True])
    assert some.classes() == [0]
    game = PointingGame(2, tolerance=1)
    game.update(peak(5, 55)[None], [1], [some])
    scores = game.compute()
    assert scores["skipped"].item() == 1
    assert scores["all"].isnan()
    game.update(peak(5, 5)[None], [0], [some])  # on the difficult one of its objects
    assert game.compute()["all"].item() == 1


def test_masks_and_boxes_of_the_same_pixels_score_the_same():
    box = boxes([0, 1], [[3.0, 4, 9, 12], [30, 20, 60, 40]])
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 4:12, 3:9] = True
    masks[1, 20:40, 30:60] = True
    mask = Objects((40, 60), torch.tensor([0, 1]), masks=masks)
    assert all(torch.equal(mask.region(c), box.region(c)) for c in (0, 1))
    g = torch.Generator().manual_seed(0)
    games = [PointingGame(2, tolerance=5) for _ in range(2)]
    maps = torch.rand(20, 5, 7, generator=g)
    for game, image in zip(games, (box, mask)):
        game.update(maps, [i % 2 for i in range(20)], [image] * 20)
    a, b = (game.compute() for game in games)
    assert all(torch.equal(a[key].nan_to_num(-1), b[key].nan_to_num(-1)) for key in a)


def test_the_map_is_resized_to_the_image_and_its_first_largest_pixel_counts():
    m = torch.zeros(1, 4, 6)
    m[0, 1, 4] = 1  # of 4 x 6, the brightest of 40 x 60 is at rows 14 and 15, columns 44 and 45
    for column, hit in ((44, 1.0), (46, 0.0)):
        game = PointingGame(2, tolerance=0)
        game.update(m, [0], [boxes([0, 1], [[column, 14.0, column + 1, 15], [0, 0, 5, 5]])])
        assert game.compute()["all"].item() == hit
    game = PointingGame(1, tolerance=0)
    game.update(torch.ones(1, 4, 6), [0], [boxes([0], [[0.0, 0, 1, 1]])])
    assert game.compute()["all"].item() == 1


@pytest.mark.parametrize(
    "box",
    [[-2.0, 0, 5, 5], [0.0, 0, 62, 5], [5.0, 5, 5, 9], [9.0, 5, 5, 9], [0.0, 41, 5, 45], [60.0, 0, 61, 5]],
)
def test_a_box_outside_its_image_is_refused(box):
    with pytest.raises(DataError, match="outside its image of 60 x 40") as error:
        boxes([0], [box])
    assert error.value.where == "a.jpg"


def test_a_box_that_overshoots_by_a_fraction_is_cut():
    assert boxes([0], [[-0.4, 35.0, 60.3, 40.4]]).region(0).sum() == 5 * 60
    assert boxes([0], [[59.6, 3.1, 59.9, 3.3]]).region(0).nonzero().tolist() == [[3, 59]]


def test_objects_that_do_not_fit_are_refused():
    labels = torch.tensor([0, 1])
    with pytest.raises(DataError, match="30 x 60 pixels, the image 40 x 60"):
        Objects((40, 60), labels, masks=torch.zeros(2, 30, 60, dtype=torch.bool))
    with pytest.raises(DataError, match="2 labels have 1 boxes"):
        Objects((40, 60), labels, boxes=torch.tensor([[0.0, 0, 5, 5]]))
    with pytest.raises(DataError, match="either boxes or masks"):
        Objects((40, 60), labels)


@pytest.mark.parametrize("label", [2, 5, -1])
def test_a_class_without_an_object_is_refused(label):
    with pytest.raises(DataError, match="no object of class"):
        PointingGame(3).update(peak(0, 0)[None], [label], [boxes([0, 1], [[0.0, 0, 5, 5]] * 2)])


def test_maps_classes_and_annotations_come_in_equal_numbers():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        PointingGame(3).update(torch.rand(2, 4, 4), [0], [boxes([0], [[0.0, 0, 5, 5]])])
