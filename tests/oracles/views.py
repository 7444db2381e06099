"""Crop, flip and normalisation of one image at a time, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def padded_pixel(image: Tensor, y: int, x: int, mode: str) -> list[int]:
    """Channels at (y, x) of an (H, W, C) image that goes on beyond its edges."""
    height, width, channels = image.shape
    if 0 <= y < height and 0 <= x < width:
        return image[y, x].tolist()
    if mode == "zero":
        return [0] * channels
    y, x = (-y if y < 0 else y), (-x if x < 0 else x)
    y = 2 * (height - 1) - y if y >= height else y
    x = 2 * (width - 1) - x if x >= width else x
    return image[y, x].tolist()


def view(image: Tensor, top: int, left: int, mirrored: bool, padding: int, mode: str) -> Tensor:
    """Cut the (H, W, C) window at (top, left) of the padded image, then mirror it."""
    height, width, channels = image.shape
    out = torch.zeros(height, width, channels, dtype=torch.uint8)
    for i in range(height):
        for j in range(width):
            target = width - 1 - j if mirrored else j
            pixel = padded_pixel(image, top - padding + i, left - padding + j, mode)
            out[i, target] = torch.tensor(pixel, dtype=torch.uint8)
    return out


def normalized(image: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """(H, W, C) uint8 to (C, H, W) float64, one channel at a time."""
    channels = [(image[..., c].double() / 255 - mean[c]) / std[c] for c in range(image.shape[-1])]
    return torch.stack(channels)
