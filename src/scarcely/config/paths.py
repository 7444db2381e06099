"""Where the shipped configuration lies."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """Return the folder of the shipped configuration, in a checkout or in an installed wheel."""
    here = Path(__file__).resolve()
    installed, checkout = here.parents[1] / "conf", here.parents[3] / "conf"
    return installed if installed.is_dir() else checkout
