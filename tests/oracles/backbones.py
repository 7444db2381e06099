"""The skip of the CIFAR ResNet, literally: mean of each 2×2 square, then channels of zeros."""

from __future__ import annotations

import torch


def pooled_skip(x, channels_out):
    count, channels, height, width = x.shape
    out = torch.zeros(count, channels_out, height // 2, width // 2)
    for n in range(count):
        for c in range(channels):
            for i in range(height // 2):
                for j in range(width // 2):
                    square = [x[n, c, 2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)]
                    out[n, c, i, j] = sum(square) / 4
    return out
