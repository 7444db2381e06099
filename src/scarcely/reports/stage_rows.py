"""The stages of a run, written for people; those of one method on many domains as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scarcely.reports.domain_rows import place_of
from scarcely.reports.wording import format_seconds


class StageRow(NamedTuple):
    """A stage, or all of one method where a run has them on many domains, written for people."""

    name: str
    parts: str  # what it is made of: "7 domains"
    epochs: str  # of each of these
    time: str
    note: str


def stage_rows(results: Mapping[str, Any]) -> list[StageRow]:
    """Describe the stages of a run, in their order; those of one method on several domains as one."""
    groups: dict[tuple[bool, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for stage in results.get("stages") or []:
        domain, method = place_of(stage, results.get("domains") or [])
        groups.setdefault((domain != "", method), []).append((domain, stage))
    return [
        row
        for (grouped, method), members in groups.items()
        for row in (
            [_summary(method, members)]
            if grouped and len(members) > 1
            else [_stage_row(stage) for _, stage in members]
        )
    ]


def _stage_row(stage: Mapping[str, Any]) -> StageRow:
    epochs = str(stage.get("epochs") or "")  # none where nothing was trained
    note = "from the cache" if stage.get("cached") else ""
    return StageRow(str(stage.get("name", "stage")), "", epochs, format_seconds(stage.get("seconds")), note)


def _summary(method: str, members: Sequence[tuple[str, Mapping[str, Any]]]) -> StageRow:
    domains = len({domain for domain, _ in members})
    parts = f"{domains} domain{'' if domains == 1 else 's'}"
    if len(members) > domains:
        parts += f", {len(members)} trainings"
    stages = [stage for _, stage in members]
    epochs = sorted({stage["epochs"] for stage in stages if stage.get("epochs") is not None})
    told = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else "".join(map(str, epochs))
    cached = sum(bool(stage.get("cached")) for stage in stages)
    note = f"{'all' if cached == len(stages) else cached} from the cache" if cached else ""
    time = format_seconds(sum(stage.get("seconds") or 0.0 for stage in stages))
    return StageRow(method, parts, told, time, note)


def stage_sentence(stage: StageRow) -> str:
    """Say how long a stage took: ``rotnet: 30 epochs, 8.3 s (from the cache)``."""
    epochs = stage.epochs and f"{stage.epochs} epoch{'' if stage.epochs == '1' else 's'}"
    epochs += " each" if stage.epochs and stage.parts else ""
    text = f"{stage.name}: " + ", ".join(part for part in (stage.parts, epochs, stage.time) if part)
    return text + (f" ({stage.note})" if stage.note else "")
