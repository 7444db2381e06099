"""Residual adapters: one network, and a small part of it for each domain (chapters 3 and 4)."""

from __future__ import annotations

from scarcely.methods.adapted import AdaptedMethod


class Adapters(AdaptedMethod):
    """Series or parallel adapters, BatchNorm alone, or the classifier alone (table 1 of chapters 3 and 4).

    The settings are those of `AdaptedMethod`.
    """
