from __future__ import annotations

import pytest
import torch

from scarcely.data.augment import ImageAugmentation, VectorAugmentation
from scarcely.errors import ConfigError
from scarcely.functional.views import draw_windows, normalize, warp
from tests.oracles import views as oracle


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(n: int = 8, size: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, size, size, channels), dtype=torch.uint8, generator=_generator())


IMAGES = ImageAugmentation([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], padding=2, flip=True)
WARPS = ImageAugmentation([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], degrees=20, shear=10, scale=0.1)
VECTORS = VectorAugmentation(dropout=0.2, noise=0.1)


@pytest.mark.parametrize(
    ("augmentation", "inputs"),
    [(IMAGES, _images()), (WARPS, _images()), (VECTORS, torch.rand(8, 12, generator=_generator()))],
)
def test_a_slice_of_the_draws_gives_the_slice_of_the_views(augmentation, inputs):
    params = augmentation.draw(_generator(), 8, 3, inputs.shape[1:])
    assert all(len(drawn) == 8 for drawn in params.values())
    whole = augmentation.apply(inputs, params, 3)
    part = augmentation.apply(inputs[2:5], {k: v[2:5] for k, v in params.items()}, 3)
    assert len(whole) == len(part) == 3
    for a, b in zip(whole, part):
        assert torch.equal(a[2:5], b)


@pytest.mark.parametrize(
    ("augmentation", "inputs"),
    [(IMAGES, _images()), (WARPS, _images()), (VECTORS, torch.rand(8, 12, generator=_generator()))],
)
def test_inputs_stay_as_they_are_and_views_differ(augmentation, inputs):
    before = inputs.clone()
    views = augmentation.apply(inputs, augmentation.draw(_generator(), 8, 3, inputs.shape[1:]), 3)
    assert torch.equal(inputs, before)
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])


def test_image_views_are_normalised_channels_last_floats():
    views = IMAGES.apply(_images(), IMAGES.draw(_generator(), 8, 2, (6, 6, 3)), 2)
    for view in (*views, IMAGES.clean(_images())):
        assert view.shape == (8, 3, 6, 6)
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)


def test_crops_are_warped_each_view_of_each_image_on_its_own():
    both = ImageAugmentation([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], padding=2, flip=True, degrees=40, scale=0.2)
    images = _images(n=2)
    params = both.draw(_generator(), 2, 3, (6, 6, 3))
    crops = IMAGES.apply(images, {"windows": params["windows"]}, 3)
    for v, view in enumerate(both.apply(images, params, 3)):
        assert view.is_contiguous(memory_format=torch.channels_last)
        for i in range(2):
            matrix = params["warps"][i : i + 1, v]
            expected = warp(crops[v][i : i + 1], matrix, "reflect", [-2.5, -0.4 / 0.3, -0.75])
            torch.testing.assert_close(view[i : i + 1], expected)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_clean_first_view_beside_warped_ones(padding):
    given = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "padding": padding, "degrees": 20, "shear": 10}
    images = _images()
    with_clean, without = (ImageAugmentation(**given, first_clean=clean) for clean in (True, False))
    views = with_clean.apply(images, with_clean.draw(_generator(), 8, 3, (6, 6, 3)), 3)
    assert len(views) == 3
    assert torch.equal(views[0], with_clean.clean(images))
    others = without.apply(images, without.draw(_generator(), 8, 2, (6, 6, 3)), 2)
    for view, other in zip(views[1:], others):
        assert torch.equal(view, other)
        assert not torch.equal(view, views[0])


@pytest.mark.parametrize("wrong", [{"degrees": 181}, {"shear": 90}, {"scale": 1}, {"scale": -0.1}])
def test_warps_beyond_their_range_are_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        ImageAugmentation([0.5], [0.5], **wrong)
    assert caught.value.where == f"data.augmentation.{next(iter(wrong))}"


def test_a_black_image_stays_black():
    views = ImageAugmentation([0.5], [0.5], pad_mode="zero", degrees=45, scale=0.5)
    black = torch.zeros(4, 6, 6, 1, dtype=torch.uint8)
    (view,) = views.apply(black, views.draw(_generator(), 4, 1, (6, 6, 1)), 1)
    torch.testing.assert_close(view, views.clean(black))


def test_the_first_of_several_image_views_is_clean_where_asked_for_and_a_single_one_is_not():
    augmentation = ImageAugmentation([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], padding=2, flip=True, first_clean=True)
    images = _images()
    views = augmentation.apply(images, augmentation.draw(_generator(), 8, 3, (6, 6, 3)), 3)
    assert torch.equal(views[0], augmentation.clean(images))
    # the others are those that the same draws give two views of an augmentation without it
    for view, alone in zip(views[1:], IMAGES.apply(images, IMAGES.draw(_generator(), 8, 2, (6, 6, 3)), 2)):
        assert torch.equal(view, alone)
    (single,) = augmentation.apply(images, augmentation.draw(_generator(), 8, 1, (6, 6, 3)), 1)
    assert not torch.equal(single, augmentation.clean(images))


def test_without_padding_and_flip_every_view_is_the_clean_one():
    plain = ImageAugmentation([0.5], [0.5])
    images = _images(channels=1)
    views = plain.apply(images, plain.draw(_generator(), 8, 2, (6, 6, 1)), 2)
    assert len(views) == 2
    for view in views:
        assert torch.equal(view, plain.clean(images))


def test_invert_gives_the_pixels_back():
    assert torch.equal(IMAGES.invert(IMAGES.clean(_images())), _images())


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    vectors = torch.ones(400, 500)
    augmentation = VectorAugmentation(dropout=0.2)
    (view,) = augmentation.apply(vectors, augmentation.draw(_generator(), 400, 1, (500,)), 1)
    # 200,000 draws: standard deviation of the share 0.0009.
    assert abs((view == 0).double().mean() - 0.2) < 0.005
    assert set(view.unique().tolist()) == {0.0, 1.25}
    assert abs(view.double().mean() - 1) < 0.006


def test_noise_has_the_standard_deviation_asked_for():
    vectors = torch.zeros(400, 500)
    augmentation = VectorAugmentation(noise=0.3)
    (view,) = augmentation.apply(vectors, augmentation.draw(_generator(), 400, 1, (500,)), 1)
    assert abs(view.double().std() - 0.3) < 0.003
    assert abs(view.double().mean()) < 0.004


def test_the_first_of_several_vector_views_is_clean_and_a_single_one_is_not():
    vectors = torch.rand(16, 40, generator=_generator())
    several = VECTORS.apply(vectors, VECTORS.draw(_generator(), 16, 3, (40,)), 3)
    assert torch.equal(several[0], vectors)
    (single,) = VECTORS.apply(vectors, VECTORS.draw(_generator(), 16, 1, (40,)), 1)
    assert not torch.equal(single, vectors)
    noisy = VectorAugmentation(dropout=0.2, first_clean=False)
    first, _ = noisy.apply(vectors, noisy.draw(_generator(), 16, 2, (40,)), 2)
    assert not torch.equal(first, vectors)


def test_vectors_without_any_change_are_all_clean():
    plain = VectorAugmentation()
    vectors = torch.rand(4, 3, generator=_generator())
    views = plain.apply(vectors, plain.draw(_generator(), 4, 3, (3,)), 3)
    assert len(views) == 3
    assert all(torch.equal(view, vectors) for view in views)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ImageAugmentation([0.5], [0.5, 0.5]),
        lambda: ImageAugmentation([], []),
        lambda: ImageAugmentation([0.5], None),
        lambda: ImageAugmentation([], None),
        lambda: ImageAugmentation(None, None).check((8, 8, 3)),
        lambda: ImageAugmentation([0.5], [0.5], crop=9).check((8, 8, 1)),
        lambda: ImageAugmentation([0.5], [0.5], crop=8).check((8, 9, 1)),
        lambda: ImageAugmentation([0.5], [0.0]),
        lambda: ImageAugmentation([0.5], [0.5], padding=-1),
        lambda: ImageAugmentation([0.5], [0.5], pad_mode="edge"),  # type: ignore[arg-type]
        lambda: VectorAugmentation(dropout=1.0),
        lambda: VectorAugmentation(noise=-0.1),
        lambda: ImageAugmentation([0.5], [0.5]).check((8, 8, 3)),
        lambda: ImageAugmentation([0.5], [0.5], padding=8).check((8, 9, 1)),
        lambda: ImageAugmentation([0.5], [0.5]).check((8,)),
        lambda: VectorAugmentation().check((8, 8, 1)),
    ],
)
def test_what_cannot_work_is_refused_before_any_batch(build):
    with pytest.raises(ConfigError):
        build()


def test_padding_with_zeros_may_exceed_the_image():
    augmentation = ImageAugmentation([0.0], [1.0], padding=9, pad_mode="zero")
    augmentation.check((2, 2, 1))
    images = _images(4, 2, 1)
    (view,) = augmentation.apply(images, augmentation.draw(_generator(), 4, 1, (2, 2, 1)), 1)
    assert view.shape == (4, 1, 2, 2)


# Crops smaller than the image


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("padding", "mode"), [(0, "reflect"), (2, "reflect"), (2, "zero")])
def test_smaller_crops_equal_the_pixel_by_pixel_oracle(padding, mode, flip):
    size = 4
    cropped = ImageAugmentation([0.5] * 3, [0.2] * 3, padding, mode, flip=flip, crop=size)
    images = _images()
    params = cropped.draw(_generator(), 8, 3, (6, 6, 3))
    views = cropped.apply(images, params, 3)
    for i, image in enumerate(images):
        for view, (top, left, mirrored) in zip(views, params["windows"][i].tolist()):
            expected = torch.zeros(size, size, 3, dtype=torch.uint8)
            for y in range(size):
                for x in range(size):
                    pixel = oracle.padded_pixel(image, top - padding + y, left - padding + x, mode)
                    expected[y, size - 1 - x if mirrored else x] = torch.tensor(pixel, dtype=torch.uint8)
            assert torch.equal(view[i], normalize(expected, [0.5] * 3, [0.2] * 3))


@pytest.mark.parametrize(("padding", "room"), [(0, 0), (0, 8), (2, 0), (1, 3)])
def test_crops_reach_every_place_and_no_other(padding, room):
    windows = draw_windows(4000, 1, padding, False, _generator(), room)
    for edge in windows[..., :2].unbind(-1):
        assert set(edge.unique().tolist()) == set(range(2 * padding + room + 1))


@pytest.mark.parametrize(("side", "crop"), [(6, 4), (7, 4), (6, 6), (72, 64)])
def test_the_clean_view_of_a_crop_is_the_centre(side, crop):
    from torchvision.transforms.functional import center_crop

    images = _images(2, side)
    augmentation = ImageAugmentation([0.5] * 3, [0.2] * 3, flip=True, crop=crop)
    first = (side - crop) // 2
    expected = augmentation.replaced(crop=None).clean(images[:, first : first + crop, first : first + crop])
    clean = augmentation.clean(images)
    assert torch.equal(clean, expected)
    assert clean.is_contiguous(memory_format=torch.channels_last)
    assert augmentation.view_shape((side, side, 3)) == (crop, crop, 3)
    if (side - crop) % 2 == 0:  # an odd rest torchvision rounds to even
        rows = center_crop(images.permute(0, 3, 1, 2), [crop, crop]).permute(0, 2, 3, 1)
        assert torch.equal(clean, normalize(rows, [0.5] * 3, [0.2] * 3))


def test_a_first_clean_view_beside_crops_has_their_size():
    augmentation = ImageAugmentation([0.5] * 3, [0.2] * 3, flip=True, degrees=10, crop=4, first_clean=True)
    images = _images()
    views = augmentation.apply(images, augmentation.draw(_generator(), 8, 3, (6, 6, 3)), 3)
    assert torch.equal(views[0], augmentation.clean(images))
    assert [view.shape for view in views] == [(8, 3, 4, 4)] * 3


def test_what_is_replaced_leaves_the_rest_and_the_original():
    original = ImageAugmentation(
        None, None, padding=3, pad_mode="zero", flip=True, degrees=4, first_clean=True
    )
    copy = original.replaced(mean=[0.1], std=[0.2], flip=False)
    assert (copy.mean, copy.std, copy.flip) == ((0.1,), (0.2,), False)
    assert (original.mean, original.flip) == ((), True)
    unchanged = ("padding", "pad_mode", "degrees", "shear", "scale", "first_clean", "crop")
    assert [getattr(copy, name) for name in unchanged] == [3, "zero", 4, 0, 0, True, None]
    black = torch.zeros(2, 6, 6, 1, dtype=torch.uint8)  # in the corners that turning uncovers, too
    (view,) = copy.apply(black, copy.draw(_generator(), 2, 1, (6, 6, 1)), 1)
    torch.testing.assert_close(view, copy.clean(black))
