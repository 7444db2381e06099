"""Scarcely: learning image representations when the data is awkward."""

__version__ = "0.1.0"
