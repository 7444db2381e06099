"""Crop, flip, normalisation and warp of one image at a time, pixel by pixel."""

from __future__ import annotations

import math

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


def warped(image: Tensor, angle: float, slant: float, size: float, mode: str, black: list[float]) -> Tensor:
    """Rotate by an angle, shear and enlarge the (C, H, W) image about its centre (radians)."""
    channels, height, width = image.shape
    out = torch.zeros(channels, height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            x, y = j - (width - 1) / 2, i - (height - 1) / 2
            x = x + math.tan(slant) * y  # what is seen here was sheared away from there,
            x, y = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
            x, y = x / size + (width - 1) / 2, y / size + (height - 1) / 2
            if mode == "reflect":
                x, y = reflected(x, width), reflected(y, height)
            left, top = math.floor(x), math.floor(y)
            for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                weight = (1 - abs(x - column)) * (1 - abs(y - row))
                inside = 0 <= row < height and 0 <= column < width
                for c in range(channels):
                    value = float(image[c, row, column]) if inside else black[c]
                    out[c, i, j] += weight * value
    return out


def reflected(x: float, length: int) -> float:
    """Place in a row of pixels that a place beyond it mirrors; the mirrors stand at its outer edges."""
    while not -0.5 <= x <= length - 0.5:
        x = -1 - x if x < -0.5 else 2 * length - 1 - x
    return min(max(x, 0.0), length - 1.0)
