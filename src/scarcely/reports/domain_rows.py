"""The domains of one run over several: where they come from, what each reached, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scarcely.metrics.decathlon import decathlon_score


def source_domain(results: Mapping[str, Any]) -> str | None:
    """Name the domain whose network the others start from; None if none was trained as that in this run.

    It is the first, and what all others are trained by is not what it was trained by.
    """
    rows = results.get("domains") or []
    if not rows:
        return None
    first = str(rows[0]["name"])
    methods = {m for d, m in (place_of(stage, rows) for stage in results.get("stages") or []) if d == first}
    return first if methods and str(results.get("method")) not in methods else None


def split_stage(stage: str, domains: Iterable[str]) -> tuple[str, str]:
    """Return the domain of a stage, empty if it is of none, and its method: ``("birds", "finetune")``."""
    domain = max((name for name in domains if stage.startswith(f"{name} ")), key=len, default="")
    # Behind the method may stand what was tried, "decay 0.0005".
    return (domain, stage.removeprefix(f"{domain} ").split(" ")[0]) if domain else ("", stage)


def place_of(stage: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the same of an entry of ``stages``, the domains those of entries of ``domains``."""
    return split_stage(str(stage.get("name", "stage")), [str(row["name"]) for row in rows])


def domain_points(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the points that each domain brings to S; none where E_max is not known (chapter 3, eq. 1)."""
    limits = results.get("max_errors") or {}
    return {
        row["name"]: decathlon_score({"": 1 - row["accuracy"]}, {"": limits[row["name"]]})
        for row in results.get("domains") or []
        if limits.get(row["name"])
    }


def domain_grid(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Arrange what is known of each domain of a run over several.

    The parameters of its own are given as a multiple of one network, where that of the source was trained
    in the same run, or else as their number.

    Returns:
        The head of the table and its rows, a row a domain; columns that would be empty are left out.
    """
    rows, source = results.get("domains") or [], source_domain(results)
    limits = results.get("max_errors") or {}
    one = rows[0].get("parameters") if source is not None else None
    columns: dict[str, list[str]] = {
        "domain": [row["name"] for row in rows],
        "classes": [_count(row.get("classes")) for row in rows],
        "training\nimages": [_count(row.get("train")) for row in rows],
        "accuracy\n%": [_in_percent(row.get("accuracy")) for row in rows],
        "E_max\n%": [_in_percent(limits.get(row["name"])) for row in rows],
        "source\nafter, %": [_in_percent(row.get("source_accuracy")) for row in rows],
        "own\nparameters": [_own(row.get("parameters"), one) for row in rows],
        "time\ns": [_count(row.get("seconds")) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cell != "–" for cell in cells)}
    if "source\nafter, %" in columns and source is not None:
        columns["source\nafter, %"][0] = "source"
    return list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)]


def _count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else "–"


def _in_percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "–"


def _own(parameters: Any, one: Any) -> str:
    if not isinstance(parameters, int) or not one:
        return _count(parameters)
    return f"{parameters / one:.3g}×"
