"""Composite samples, literally: one pixel after the other, from parameters that are given."""

from __future__ import annotations

import torch


def ricap(view, boxes, offsets, permutations):
    """Each pixel of each composite comes from the patch that covers it."""
    composed = torch.full_like(view, torch.nan)
    count, _, height, width = view.shape
    for j in range(count):
        for y in range(height):
            for x in range(width):
                for (top, left, h, w), (crop_y, crop_x), permutation in zip(boxes, offsets, permutations):
                    if top <= y < top + h and left <= x < left + w:
                        source = view[int(permutation[j])]
                        composed[j, :, y, x] = source[:, crop_y + y - top, crop_x + x - left]
    return composed


def ricap_weights(boxes, height, width):
    return [h * w / (height * width) for _, _, h, w in boxes]


def mixup(view, permutation, share):
    composed = torch.empty_like(view)
    for j in range(len(view)):
        composed[j] = share * view[j] + (1 - share) * view[int(permutation[j])]
    return composed
