"""The score of many domains: points for each as in the decathlon, more for every error that is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from scarcely.errors import ConfigError

__all__ = ["MAX_ERRORS", "decathlon_score", "max_errors_of"]

MAX_ERRORS = {
    "imagenet12": 0.8026,
    "aircraft": 0.7932,
    "cifar100": 0.3576,
    "daimlerpedcls": 0.1436,
    "dtd": 0.8894,
    "gtsrb": 0.0494,
    "vgg-flowers": 0.3718,
    "omniglot": 0.2462,
    "svhn": 0.0690,
    "ucf101": 0.976,
}
"""E_max of the ten domains of the Visual Decathlon: twice the errors of the fine-tuned networks."""


def decathlon_score(errors: Mapping[str, float], max_errors: Mapping[str, float]) -> float:
    """Return S = Σ 1000 (max(0, E_max − E) / E_max)² over the domains (chapter 3, eq. 1).

    Args:
        errors: error E of each domain on its test part, in [0, 1].
        max_errors: error E_max of each domain from which on it gives no point, above 0 and at most 1:
            `MAX_ERRORS` for the Visual Decathlon, `max_errors_of` for other domains.

    Returns:
        The points: 1,000 for every domain without error, 250 for one with half of its E_max.

    Raises:
        ConfigError: the two do not name the same domains, or an error is out of its range.
    """
    _same_domains(errors, max_errors)
    _check_range("errors", errors)
    _check_range("max_errors", max_errors)
    perfect = [name for name, limit in max_errors.items() if limit == 0]
    if perfect:
        raise ConfigError(
            f"the largest error of {perfect[0]} is 0: nothing could be below it",
            where=f"max_errors[{perfect[0]!r}]",
            instead="above 0; a domain without any error when fine-tuned cannot be scored, leave it out",
        )
    return sum(1000 * (max(0.0, limit - errors[name]) / limit) ** 2 for name, limit in max_errors.items())


def max_errors_of(finetuned_errors: Mapping[str, float]) -> dict[str, float]:
    """Return E_max = min(1, 2 E) of each domain, for domains that are not those of the Visual Decathlon.

    Args:
        finetuned_errors: error of the fine-tuned network on the test part of each domain, in [0, 1].

    Raises:
        ConfigError: an error is out of its range.
    """
    _check_range("finetuned_errors", finetuned_errors)
    return {name: min(1.0, 2 * error) for name, error in finetuned_errors.items()}


def _same_domains(errors: Iterable[str], max_errors: Iterable[str]) -> None:
    found, wanted = set(errors), set(max_errors)
    if not wanted:
        raise ConfigError("there is no domain to score", where="max_errors", instead="one domain at least")
    for name in sorted(found - wanted):
        close = get_close_matches(name, wanted - found, n=1)
        raise ConfigError(
            f"there is no largest error of a domain {name!r}"
            + (f"; did you mean {close[0]}?" if close else ""),
            where="errors",
            instead=f"the domains of max_errors: {', '.join(sorted(wanted))}",
        )
    for name in sorted(wanted - found):
        raise ConfigError(
            f"there is no error of the domain {name!r}",
            where="errors",
            instead="an error for each domain of max_errors, or max_errors of fewer domains",
        )


def _check_range(what: str, errors: Mapping[str, float]) -> None:
    for name, error in errors.items():
        if not 0 <= error <= 1:  # NaN neither
            raise ConfigError(
                f"an error of {error:g} is not possible",
                where=f"{what}[{name!r}]",
                instead="a share from 0 to 1, not per cent",
            )
