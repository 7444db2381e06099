"""The score, the labels and the statistics of many domains, literally: one image or pixel at a time."""

from __future__ import annotations

import math


def score(errors, max_errors):
    """Chapter 3, eq. 1, with α_d = 1000 (E_d^max)^−γ and γ = 2."""
    total = 0.0
    for domain in max_errors:
        alpha = 1000 * max_errors[domain] ** -2
        difference = max_errors[domain] - errors[domain]
        if difference < 0:
            difference = 0
        total += alpha * difference**2
    return total


def category_names(content):
    """Name of the category of each image: look for its annotation, then for the category of that."""
    names = []
    for image in content["images"]:
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                wanted = annotation["category_id"]
                names += [category["name"] for category in content["categories"] if category["id"] == wanted]
    return names


def statistics(images):
    """Mean and deviation of each channel of (N, H, W, C) bytes, over every pixel of every image."""
    means, deviations = [], []
    for channel in range(images.shape[3]):
        values = [
            images[i, y, x, channel].item() / 255
            for i in range(images.shape[0])
            for y in range(images.shape[1])
            for x in range(images.shape[2])
        ]
        mean = sum(values) / len(values)
        means.append(mean)
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)))
    return means, deviations
