"""Say in our words what Hydra or OmegaConf found wrong in a command."""

from __future__ import annotations

import difflib
import re

from scarcely.config.help import GROUPS, known_keys, options_of
from scarcely.errors import ConfigError, UserError

MANY = 12  # options that a message lists
HELP = "python train.py --help lists the groups and the settings"


def explain(error: BaseException) -> UserError:
    """Return the error of the user that Hydra's stands for."""
    text = str(error).strip()
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        listed = re.search(r"Available options in '[^']+':\n((?:\t\S+\n?)+)", text)
        return _no_option(missing.group(1), missing.group(2), listed.group(1).split() if listed else None)
    if wrong := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        return no_setting(wrong.group(1))
    if again := re.search(r"An item is already at '([^']+)'", text):
        return ConfigError(
            f"{again.group(1)} exists already: + adds what does not",
            where=again.group(1),
            instead=f"{again.group(1)}=VALUE without the +",
        )
    if added := re.search(r"force-add of config groups is not supported: '\+*([^']+)'", text):
        return ConfigError(
            f"{added.group(1)} chooses an option: nothing is added",
            where=added.group(1).partition("=")[0],
            instead=f"{added.group(1)} without the +",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = getattr(error, "full_key", None) or None
    what = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "provider=", "See http"))
    ]
    return ConfigError("\n".join(what[:4]) or repr(error), where=key or "the command", instead=HELP)


def _no_option(group: str, name: str, options: list[str] | None) -> ConfigError:
    top = next((g for g in sorted(GROUPS, key=len, reverse=True) if f"{group}/".startswith(g + "/")), group)
    inner = group[len(top) + 1 :]  # experiment/lsdc is a folder of the group experiment
    name = f"{inner}/{name}" if inner else name
    known = options_of(top) if top == "experiment" or not options else options
    return no_option(top, name, known)


def no_option(group: str, name: str, options: list[str]) -> ConfigError:
    """Return the error for a choice that a group does not have."""
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    shown = close or options[:MANY]
    more = "" if close or len(options) <= MANY else f", … ({len(options)} in all: python train.py --help)"
    return ConfigError(
        f"there is no {group}={name}", where=group, instead=f"{group}=" + ", ".join(shown) + more
    )


def no_setting(key: str) -> ConfigError:
    """Return the error for a setting that the composed configuration does not have."""
    known = known_keys()
    if known.get(key):
        return ConfigError(
            f"{key} is a setting of an option that is not chosen",
            where=key,
            instead="together with " + " or ".join(sorted(known[key])),
        )
    return ConfigError(f"there is no setting {key!r}", where=key, instead=nearest(key))


def nearest(key: str) -> str:
    """Name the settings that were probably meant."""
    known = known_keys()
    groups = {group.replace("/", "."): group for group in GROUPS}
    candidates = [*groups, *(k for k in known if k not in groups)]
    wanted = key.replace("/", ".").replace("@", ".")
    last = wanted.rpartition(".")[2]
    same = [k for k in candidates if k.rpartition(".")[2] == last]
    if same:
        found = sorted(same, key=lambda k: (-_likeness(k, wanted), len(k)))[:3]
    else:
        ranked = sorted(((_likeness(k, wanted), k) for k in candidates), reverse=True)
        best = ranked[0][0]
        found = [k for likeness, k in ranked[:3] if likeness >= max(0.6, best - 0.1)]
    if not found:
        return HELP
    return " or ".join(
        f"{groups[k]}=" + "|".join(options_of(groups[k])[:MANY]) if k in groups else k for k in found
    )


def _likeness(candidate: str, wanted: str) -> float:
    whole = difflib.SequenceMatcher(None, candidate, wanted).ratio()
    # the last name alone counts a little less: lr for method.optimizer.lr
    ends = difflib.SequenceMatcher(None, candidate.rpartition(".")[2], wanted.rpartition(".")[2]).ratio()
    return max(whole, 0.9 * ends)
