"""Prediction of domain and class, literally: one image after the other."""

from __future__ import annotations

import math

import torch


def predict(predictor, networks, images, common, own):
    """Return domain and class of each image (N, H, W, C) uint8; statistics are (mean, std) lists."""
    found = []
    for image in images:
        pixels = image.movedim(-1, 0).float() / 255

        def seen(statistics, pixels=pixels):
            mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
            return ((pixels - mean) / std)[None]

        domain = int(predictor(seen(common)).argmax())
        found.append((domain, int(networks[domain](seen(own[domain])).argmax())))
    return found


def statistics(images_of_domains):
    """Mean and standard deviation of one channel, each domain as often as all others: lists of pixels."""
    often = math.lcm(*map(len, images_of_domains))
    drawn = [value for pixels in images_of_domains for value in pixels * (often // len(pixels))]
    mean = sum(drawn) / len(drawn)
    return mean, (sum((value - mean) ** 2 for value in drawn) / len(drawn)) ** 0.5
