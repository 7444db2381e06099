from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.errors import ConfigError
from scarcely.functional.views import crop_flip, denormalize, draw_warps, draw_windows, normalize, warp
from tests.oracles import views as oracle


def _images(n: int, height: int, width: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.integers(1, 4),
    views=st.integers(1, 3),
    padding=st.integers(0, 9),
    mode=st.sampled_from(["zero", "reflect"]),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_crops_equal_the_pixel_by_pixel_oracle(n, height, width, channels, views, padding, mode, flip, seed):
    if mode == "reflect":
        padding = min(padding, min(height, width) - 1)
    images = _images(n, height, width, channels, seed)
    windows = draw_windows(n, views, padding, flip, torch.Generator().manual_seed(seed))
    before = images.clone()
    crops = crop_flip(images, windows, padding, mode, flip)
    assert torch.equal(images, before), "the images were changed"
    assert crops.shape == (views, n, height, width, channels)
    for v in range(views):
        for i in range(n):
            top, left, mirrored = windows[i, v].tolist()
            expected = oracle.view(images[i], top, left, bool(mirrored), padding, mode)
            assert torch.equal(crops[v, i], expected)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize(("top", "left"), [(0, 0), (4, 4), (0, 4), (4, 0), (2, 2)])
@pytest.mark.parametrize("mirrored", [0, 1])
def test_extreme_windows_equal_the_oracle(mode, top, left, mirrored):
    images = _images(2, 3, 5, 3)
    windows = torch.tensor([[[top, left, mirrored]]] * 2)
    crops = crop_flip(images, windows, 2, mode, flip=True)
    for i in range(2):
        assert torch.equal(crops[0, i], oracle.view(images[i], top, left, bool(mirrored), 2, mode))


def test_images_that_are_no_contiguous_tensor_give_the_same_crops():
    images = _images(4, 6, 5, 3)
    strided = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    windows = draw_windows(4, 2, 2, True, torch.Generator().manual_seed(0))
    expected = crop_flip(images, windows, 2, "reflect", True)
    assert torch.equal(crop_flip(strided, windows, 2, "reflect", True), expected)
    assert torch.equal(normalize(strided, [0.5] * 3, [0.2] * 3), normalize(images, [0.5] * 3, [0.2] * 3))


def test_padding_and_flip_together_are_what_torchvision_does_to_each_image():
    from torchvision.transforms import functional as tv

    images = _images(6, 8, 8, 3)
    windows = draw_windows(6, 1, 4, True, torch.Generator().manual_seed(3))
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    ours = normalize(crop_flip(images, windows, 4, "reflect", True), mean, std)[0]
    for image, (top, left, mirrored), view in zip(images, windows[:, 0].tolist(), ours):
        padded = tv.pad(image.permute(2, 0, 1), [4], padding_mode="reflect")
        expected = tv.crop(padded, top, left, 8, 8)
        expected = tv.hflip(expected) if mirrored else expected
        expected = tv.normalize(expected.float() / 255, mean, std)
        # Same formula, other order of float32 operations: values reach 2.8.
        torch.testing.assert_close(view, expected, rtol=0, atol=2e-6)


def test_windows_cover_their_range_evenly_and_flips_half_the_views():
    windows = draw_windows(6000, 2, 2, True, torch.Generator().manual_seed(0))
    for column, values in ((0, 5), (1, 5), (2, 2)):
        counts = windows[..., column].flatten().bincount().double()
        assert len(counts) == values
        # 12,000 draws: the share of a value has a standard deviation below 0.0046.
        assert (counts / 12000 - 1 / values).abs().max() < 0.02
    assert not torch.equal(windows[:, 0], windows[:, 1]), "views must be drawn on their own"


def test_nothing_is_drawn_that_is_switched_off():
    windows = draw_windows(50, 2, 0, False, torch.Generator().manual_seed(0))
    assert not windows.any()
    assert not draw_windows(50, 2, 3, False, torch.Generator().manual_seed(0))[..., 2].any()


@pytest.mark.parametrize("shape", [(3, 4, 5, 3), (1, 1, 1, 1), (2, 3, 3, 1), (1, 2, 2, 4)])
def test_normalize_equals_the_oracle_and_is_channels_last(shape):
    images = _images(*shape)
    mean, std = [0.1 * (c + 1) for c in range(shape[-1])], [0.2 + 0.1 * c for c in range(shape[-1])]
    out = normalize(images, mean, std)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = torch.stack([oracle.normalized(image, mean, std) for image in images])
    # Values reach 5; a product and a sum in float32.
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)


def test_denormalize_gives_every_byte_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    assert torch.equal(denormalize(normalize(images, mean, std), mean, std), images)


def test_reflecting_more_than_the_image_is_refused_with_what_would_be_right():
    images = _images(1, 4, 6, 1)
    windows = torch.zeros(1, 1, 3, dtype=torch.int64)
    crop_flip(images, windows, 3, "reflect", True)
    with pytest.raises(ConfigError, match="at most 3"):
        crop_flip(images, windows, 4, "reflect", True)


def test_constants_first_made_in_inference_mode_serve_training_too():
    images = _images(2, 3, 3, 1)
    mean, std = [0.123], [0.321]  # not used elsewhere: the cache must be filled here
    with torch.inference_mode():
        normalize(images, mean, std)
    x = normalize(images, mean, std).requires_grad_()
    x.square().sum().backward()
    assert x.grad is not None


@pytest.mark.slow
def test_three_views_are_made_twenty_times_as_fast_as_image_by_image():
    from PIL import Image
    from torchvision import transforms

    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    images = _images(256, 32, 32, 3)
    pictures = [Image.fromarray(image) for image in images.numpy()]
    one_by_one = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    generator = torch.Generator().manual_seed(0)

    def together() -> None:
        windows = draw_windows(256, 3, 4, True, generator)
        normalize(crop_flip(images, windows, 4, "reflect", True), mean, std)

    def best(of: Callable[[], object], times: int) -> float:
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            of()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = best(together, 20)
        theirs = best(lambda: [one_by_one(picture) for picture in pictures for _ in range(3)], 3)
    finally:
        torch.set_num_threads(threads)
    print(f"\nviews per second: {768 / ours:,.0f} together, {768 / theirs:,.0f} one by one")
    assert theirs / ours > 20


@pytest.mark.gpu
def test_crops_on_the_gpu_equal_those_on_the_cpu():
    images = _images(16, 9, 7, 3)
    for mode in ("zero", "reflect"):
        windows = draw_windows(16, 3, 3, True, torch.Generator().manual_seed(0))
        cpu = crop_flip(images, windows, 3, mode, True)
        assert torch.equal(crop_flip(images.cuda(), windows.cuda(), 3, mode, True).cpu(), cpu)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.integers(1, 3),
    degrees=st.sampled_from([0.0, 10.0, 90.0, 180.0]),
    shear=st.sampled_from([0.0, 20.0, 60.0]),
    scale=st.sampled_from([0.0, 0.1, 0.6]),
    mode=st.sampled_from(["zero", "reflect"]),
    seed=st.integers(0, 1000),
)
def test_warps_equal_the_pixel_by_pixel_oracle(height, width, channels, degrees, shear, scale, mode, seed):
    def generator():
        return torch.Generator().manual_seed(seed)

    images = torch.randn(3, channels, height, width, generator=generator())
    black = [-0.5, 0.25, 1.0][:channels]
    matrices = draw_warps(3, 1, degrees, shear, scale, generator())[:, 0]
    found = warp(images, matrices, mode, black)
    assert found.is_contiguous(memory_format=torch.channels_last)
    drawn = torch.rand(3, 1, 3, generator=generator())[:, 0].double() * 2 - 1
    for i in range(3):
        angle, slant, grown = (drawn[i] * torch.tensor([degrees, shear, scale])).tolist()
        expected = oracle.warped(images[i], math.radians(angle), math.radians(slant), 1 + grown, mode, black)
        torch.testing.assert_close(found[i].double(), expected, atol=2e-4, rtol=0)


def test_warps_by_hand():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 1] = 1  # at the top
    quarter = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])  # the view's right is the image's bottom
    turned = warp(image, quarter, "zero", [0.0])
    assert turned[0, 0].nonzero().tolist() == [[1, 0]], "the top went to the left"
    identity = warp(image, torch.eye(2)[None], "zero", [0.0])
    torch.testing.assert_close(identity, image)


def test_warps_stay_within_their_bounds_and_reach_them():
    matrices = draw_warps(2000, 1, 30, 0, 0.2, torch.Generator().manual_seed(0))[:, 0]
    size = 1 / torch.linalg.det(matrices).sqrt()
    angle = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]).rad2deg()
    for value, low, high in ((size, 0.8, 1.2), (angle, -30, 30)):
        reach = high - low
        assert low - 1e-4 <= value.min() <= low + 0.01 * reach
        assert high - 0.01 * reach <= value.max() <= high + 1e-4
    sheared = draw_warps(2000, 1, 0, 40, 0, torch.Generator().manual_seed(0))[:, 0]
    slant = sheared[:, 0, 1].atan().rad2deg()
    assert -40 <= slant.min() <= -39
    assert 39 <= slant.max() <= 40
    assert torch.equal(draw_warps(3, 2, 0, 0, 0, torch.Generator()), torch.eye(2).expand(3, 2, 2, 2))
