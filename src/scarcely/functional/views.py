"""Random views of small images: crop, flip, normalisation and warps of a whole batch at once.

Images stay uint8 and (H, W, C) until the last step. In that layout W neighbouring pixels are one
contiguous run of bytes, so a crop of all views of all images is one gather of runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scarcely.errors import ConfigError

__all__ = ["check_padding", "crop_flip", "denormalize", "draw_warps", "draw_windows", "normalize", "warp"]

PadMode = Literal["zero", "reflect"]


def draw_windows(
    count: int, views: int, padding: int, flip: bool, generator: torch.Generator, room: int = 0
) -> Tensor:
    """Draw where each view of each image is cut out.

    Args:
        count: number of images.
        views: number of views of each.
        padding: pixels added on every side; the window moves by up to twice as many.
        flip: whether half the views are mirrored.
        generator: a CPU generator, so that every device sees the same windows.
        room: pixels by which the side of the image is larger than that of the window.

    Returns:
        (count, views, 3) int64 on the CPU: top and left edge in the padded image, in
        [0, 2 * padding + room], and 1 where the view is mirrored.
    """
    windows = torch.zeros(count, views, 3, dtype=torch.int64)
    moves = 2 * padding + room
    if moves:
        windows[..., :2] = torch.randint(moves + 1, (count, views, 2), generator=generator)
    if flip:
        windows[..., 2] = torch.randint(2, (count, views), generator=generator)
    return windows


def crop_flip(
    images: Tensor, windows: Tensor, padding: int, pad_mode: PadMode, flip: bool, size: int | None = None
) -> Tensor:
    """Cut one window out of the padded image for every view, mirrored or not.

    Args:
        images: (N, H, W, C) uint8.
        windows: (N, V, 3) from `draw_windows`, on the device of the images.
        padding: pixels on every side, as drawn with.
        pad_mode: ``zero`` (black) or ``reflect`` (the edge pixel not repeated).
        flip: whether any view may be mirrored; known beforehand, so that nothing asks the device.
        size: side S of the windows; None for the size of the image.

    Returns:
        (V, N, H, W, C) or (V, N, S, S, C) uint8, contiguous.

    Raises:
        ConfigError: the image is too small to reflect that many pixels.
    """
    n, height, width, channels = images.shape
    rows, columns = (height, width) if size is None else (size, size)
    check_padding(height, width, padding, pad_mode)
    lines, mirrored_at = _lines(images, padding, pad_mode, flip)
    length = lines.shape[1] // channels

    top, left, mirrored = windows.permute(2, 1, 0).unsqueeze(-1)  # each (V, N, 1)
    # A row of a view is a line of the buffer: padding above and below is only arithmetic.
    row = top - padding + torch.arange(rows, device=images.device)
    image = torch.arange(n, device=images.device).unsqueeze(-1) * height
    if pad_mode == "zero":
        inside = (row >= 0) & (row < height)
        line = torch.where(inside, image + row, n * height)
    else:
        row = row.abs()
        line = image + (height - 1) - (height - 1 - row).abs()
    # A window at `left` lies as far from the other end when the padded row is read from right to left.
    from_right = width + 2 * padding - columns - left
    column = torch.where(mirrored.bool(), mirrored_at + from_right, left) if flip else left
    start = (line * length + column).flatten()

    # Runs as wide as a window from every pixel on, overlapping; one gather copies those that are wanted.
    starts = lines.shape[0] * length - columns + 1
    runs = lines.flatten().as_strided((starts, columns * channels), (channels, 1))
    return runs.index_select(0, start).view(windows.shape[1], n, rows, columns, channels)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale to [0, 1], then subtract the mean and divide by the standard deviation of each channel.

    Args:
        images: (..., H, W, C) uint8.
        mean: C values in [0, 1].
        std: C values above 0.

    Returns:
        (..., C, H, W) float32; the memory stays in the order (H, W, C), which is channels_last.
    """
    *batch, height, width, channels = images.shape
    # One multiplication and addition per value, with rows of constants as long as an image: inner
    # loops of C = 3 values would take most of the time.
    scale, shift = _constants(tuple(mean), tuple(std), height * width, images.device)
    flat = images.reshape(-1, height * width * channels).to(torch.float32)
    torch.addcmul(shift, flat, scale, out=flat)
    return flat.view(*batch, height, width, channels).movedim(-1, -3)


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo `normalize`: (..., C, H, W) floats to (..., H, W, C) uint8, rounded and clamped."""
    scale = images.new_tensor(std, dtype=torch.float32)
    shift = images.new_tensor(mean, dtype=torch.float32)
    pixels = images.movedim(-3, -1).float() * scale + shift
    return (pixels * 255).round_().clamp_(0, 255).to(torch.uint8)


def draw_warps(
    count: int, views: int, degrees: float, shear: float, scale: float, generator: torch.Generator
) -> Tensor:
    """Draw how each view of each image is rotated, sheared and scaled.

    Args:
        count: number of images.
        views: number of views of each.
        degrees: rotation by up to so many, either way.
        shear: along the rows, by up to so many degrees, either way.
        scale: enlarged or made smaller by up to this share.
        generator: a CPU generator, so that every device sees the same warps.

    Returns:
        (count, views, 2, 2) float32 on the CPU: R(angle) · S(shear) / size, which takes a place in
        the view, (x, y) in pixels from its centre, to the place in the image that is seen there.
    """
    bounds = torch.tensor([math.radians(degrees), math.radians(shear), scale])
    angle, slant, grown = ((torch.rand(count, views, 3, generator=generator) * 2 - 1) * bounds).unbind(-1)
    cos, sin, tan = angle.cos(), angle.sin(), slant.tan()
    matrix = torch.stack([cos, cos * tan - sin, sin, sin * tan + cos], dim=-1).unflatten(-1, (2, 2))
    return matrix / (1 + grown)[..., None, None]


def warp(images: Tensor, matrices: Tensor, pad_mode: PadMode, black: Sequence[float]) -> Tensor:
    """Rotate, shear and scale images about their centre, with bilinear interpolation.

    Args:
        images: (N, C, H, W) floats.
        matrices: (N, 2, 2), from a place in the view to one in the image (see `draw_warps`).
        pad_mode: what lies beyond the image: ``zero`` (black), or the image itself, reflected at its
            outer edge (``reflect``).
        black: value of black in each channel.

    Returns:
        (N, C, H, W), channels_last.
    """
    height, width = images.shape[-2:]
    # places in pixels from the centre; no matrix product, which a GPU may round to ten bits
    x, y = (
        torch.arange(side, dtype=images.dtype, device=images.device) - (side - 1) / 2
        for side in (width, height)
    )
    m = matrices.to(images.dtype)[:, :, :, None, None]
    seen_x = (m[:, 0, 0] * x + m[:, 0, 1] * y[:, None]) * (2 / width)  # torch counts from -1 to 1
    seen_y = (m[:, 1, 0] * x + m[:, 1, 1] * y[:, None]) * (2 / height)
    grid = torch.stack([seen_x, seen_y], dim=-1)
    if pad_mode == "reflect":
        seen = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    else:
        ground = _channels(tuple(black), images.device)
        seen = F.grid_sample(images - ground, grid, padding_mode="zeros", align_corners=False) + ground
    return seen.contiguous(memory_format=torch.channels_last)


def check_padding(height: int, width: int, padding: int, pad_mode: PadMode) -> None:
    """Refuse to reflect more pixels than an image has.

    Raises:
        ConfigError: `pad_mode` is ``reflect`` and the padding is not smaller than the image.
    """
    if pad_mode == "reflect" and padding >= min(height, width):
        raise ConfigError(
            f"images of {height}x{width} pixels cannot be padded by reflecting {padding}",
            where="data.augmentation.padding",
            instead=f"at most {min(height, width) - 1}, or data.augmentation.pad_mode=zero",
        )


def _lines(images: Tensor, padding: int, pad_mode: PadMode, flip: bool) -> tuple[Tensor, int]:
    """Lay each image row out, padded, so that every window on it and on its mirror image is one run.

    Returns the (N * H + 1, L * C) buffer, whose last line is black in zero mode, and the pixel at
    which the mirrored padded row begins. With zeros a line is pad, row, pad, mirrored row, pad. With
    reflection the padded row and its mirror image are parts of one periodic line (row, then row
    backwards, sharing both end pixels), which is therefore only extended by the padding.
    """
    n, height, width, channels = images.shape
    p = padding
    row = images.reshape(n * height, width * channels)
    mirror = images.flip(2).reshape(row.shape) if flip or (p and pad_mode == "reflect") else row

    def pixels(of: Tensor, start: int, stop: int) -> Tensor:
        return of[:, start * channels : stop * channels]

    if pad_mode == "zero":
        mirrored_at = width + p
        length = width + 2 * p + (width + p if flip else 0)
        lines = images.new_zeros(n * height + 1, length * channels)
        body = lines[:-1]
        pixels(body, p, p + width).copy_(row)
        if flip:
            pixels(body, mirrored_at + p, mirrored_at + p + width).copy_(mirror)
        return lines, mirrored_at

    mirrored_at = width - 1
    # Without flips only the first `padding` pixels of the backward half are needed.
    back = width - 1 if flip else p
    length = p + width + back + (p if flip else 0)
    lines = images.new_empty(n * height + 1, length * channels)
    body = lines[:-1]
    pixels(body, 0, p).copy_(pixels(mirror, width - 1 - p, width - 1))
    pixels(body, p, p + width).copy_(row)
    pixels(body, p + width, p + width + back).copy_(pixels(mirror, 1, 1 + back))
    if flip:
        pixels(body, p + width + back, length).copy_(pixels(row, 1, 1 + p))
    return lines, mirrored_at


@lru_cache(maxsize=32)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], pixels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Kept between calls: a copy to the device in every step would make the host wait. Made outside
    # inference mode, since training may be what uses them next.
    with torch.inference_mode(False):
        m = torch.tensor(mean, dtype=torch.float64)
        s = torch.tensor(std, dtype=torch.float64)
        scale, shift = (v.float().repeat(pixels).to(device) for v in (1 / (255 * s), -m / s))
    return scale, shift


@lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    # kept for the same reason
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32)[:, None, None].to(device)
