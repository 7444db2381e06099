"""Masks by their definitions, pixel by pixel."""

from __future__ import annotations


def inside(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    """Whether a ray to the right crosses the outline an odd number of times."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if (y0 <= y) != (y1 <= y):
            at = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
            crossings += at > x
    return crossings % 2 == 1


def run_lengths(mask: list[list[bool]]) -> list[int]:
    """Return the lengths of alternating runs down the columns, zeros first."""
    counts, value = [0], False
    for column in range(len(mask[0])):
        for row in mask:
            if row[column] != value:
                counts.append(0)
                value = not value
            counts[-1] += 1
    return counts


def compressed(counts: list[int]) -> str:
    """Write run lengths as COCO does: differences to the second before, five bits a character."""
    text = ""
    for position, count in enumerate(counts):
        number = count - counts[position - 2] if position > 2 else count
        while True:
            low, number = number & 31, number >> 5
            done = number == (-1 if low & 16 else 0)
            text += chr(48 + low + (0 if done else 32))
            if done:
                break
    return text
