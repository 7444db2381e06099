"""Reuters-10K term by term (DEC, section 4.1)."""

from __future__ import annotations

import math


def weigh_terms(documents: list[list[str]], terms: list[str]) -> list[list[float]]:
    """Return the weight of each of some terms in each document, rows of length √D."""
    n = len(documents)
    rows = []
    for words in documents:
        row = []
        for term in terms:
            tf = words.count(term)
            df = sum(term in other for other in documents)
            row.append((1 + math.log(tf)) * (math.log((1 + n) / (1 + df)) + 1) if tf else 0.0)
        length = math.sqrt(sum(value**2 for value in row))
        rows.append([value / length * math.sqrt(len(terms)) if length else 0.0 for value in row])
    return rows
