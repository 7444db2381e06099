"""A run over several domains: the source's network, then each other domain from it (chapters 3 and 4)."""

from scarcely.domains.run import train_domains

__all__ = ["train_domains"]
