"""What a run will need, as tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scarcely.reports.grids import print_grid
from scarcely.reports.wording import format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from scarcely.planning import Plan


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print a row a stage, and what they come to.

    Args:
        plan: to print.
        console: where to; the standard output if not given.
    """
    from rich.console import Console

    about = "" if plan.exact else "about "
    rows = [
        [
            stage.name,
            f"{about}{stage.samples:,}",
            f"{stage.batch_size:,}",
            f"{stage.epochs:,}",
            f"{about}{stage.steps:,}",
            "not known" if stage.cost is None else f"{stage.cost.seconds:.3g} s",
            "not known" if stage.cost is None else format_seconds(stage.seconds),
        ]
        for stage in plan.stages
    ]
    head = ["stage", "samples", "batch", "epochs", "steps", "a step", "in all"]
    print_grid("What the run will need", head, rows, console)
    rows = [
        [
            stage.name,
            f"{cost.parameters:,}",
            f"{cost.trained:,}",
            *map(format_bytes, (cost.weights, cost.gradients, cost.optimizer, cost.kept)),
            *([] if cost.peak is None else [format_bytes(cost.peak)]),
        ]
        for stage in plan.stages
        if (cost := stage.cost) is not None
    ]
    if rows:
        peak = ["GPU held"] if len(rows[0]) > 7 else []
        head = [
            "stage",
            "parameters",
            "trained",
            "weights",
            "gradients",
            "optimizer",
            "activations",
            *peak,
        ]
        print_grid("One device", head, rows, console)
    each = (
        "" if plan.devices == 1 else f" on each of {plan.devices} devices, if they do not wait for each other"
    )
    least = "" if all(stage.cost is not None for stage in plan.stages) else "At least "
    text = console or Console(soft_wrap=True)
    text.print(
        f"{least}{format_seconds(plan.seconds)}{each}, as steps are measured on {plan.device};"
        " without decoding, the last evaluation and the report."
    )
    text.print(f"Samples: {format_bytes(plan.data)} as they are kept; their number is that of {plan.source}.")


def format_bytes(count: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
