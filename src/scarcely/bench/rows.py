"""What a measure is: two programs that take turns, and a row of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

MEASURES = (
    "pairs",
    "input",
    "workers",
    "step",
    "overhead",
    "framework",
    "methods",
    "epochs",
    "phases",
    "adapters",
    "saliency",
    "growth",
    "processes",
    "startup",
)


@dataclass(frozen=True)
class Settings:
    """What is measured, and how large: the defaults are the sizes of the paper's CIFAR-10 run.

    Attributes:
        only: the measures, by name.
        repeats: turns of each side.
        threads: numbers of threads.
        device: ``cpu`` or ``cuda``.
        clock: ``wall``, or ``cpu`` for processor time, which others on the machine disturb less.
        turn: least seconds of a turn; what is shorter is called again.
        samples, features, clusters: N, D and K of the pairs.
        images: in the set that views are made of.
        loaded: batch size of the input pipeline.
        batch: batch size of the training step.
        width, k: of its ResNet-18 and its kNN labels.
        explained, pixels: images whose maps are made, and their size.
        epochs: of a turn that compares Lightning with a bare loop; the first and the last do not count.
        steps: through the whole stack, in all turns together.
        few_steps: likewise, where many trainings are measured, or none that ends soon.
        overrides: of the run that this is done with.
    """

    only: tuple[str, ...] = MEASURES
    repeats: int = 3
    threads: tuple[int, ...] = (1,)
    device: str = "cpu"
    clock: str = "wall"
    turn: float = 0.2
    samples: int = 256
    features: int = 512
    clusters: int = 10
    images: int = 10_000
    loaded: int = 256
    batch: int = 64
    width: int = 64
    k: int = 20
    explained: int = 16
    pixels: int = 224
    epochs: int = 5
    steps: int = 30
    few_steps: int = 6
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of a side's turns."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise one value a turn."""
        return cls(statistics.median(values), min(values), max(values))

    def per_second(self, count: float) -> Spread:
        """Return the rate at which ``count`` things are done in these seconds."""
        return Spread(count / self.median, count / self.high, count / self.low)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        measure: name of the measure that it belongs to.
        name: what was measured.
        unit: ``s``, ``images/s`` or ``bytes``.
        ours, plain: the two sides.
        ratio: how many times better ours is, by the medians.
        target: what was promised, if anything.
        met: whether it holds.
        threads: number of threads.
        device: ``cpu`` or ``cuda``.
        difference: how far the results of both sides are apart; None where there are no results.
        note: what else there is to know.
    """

    measure: str
    name: str
    unit: str
    ours: Spread
    plain: Spread
    ratio: float
    target: str | None = None
    met: bool | None = None
    threads: int = 1
    device: str = "cpu"
    difference: float | None = None
    note: str = ""

    @classmethod
    def of_times(cls, ours: Spread, plain: Spread, least: float | None = None, **rest: Any) -> Row:
        """Compare seconds; ``least`` is the ratio that was promised."""
        ratio = plain.median / ours.median
        if least is not None:
            rest |= {"target": f"at least {least:g}", "met": ratio >= least}
        return cls(unit="s", ours=ours, plain=plain, ratio=ratio, **rest)


def take_turns(
    ours: Callable[[], Any], plain: Callable[[], Any], settings: Settings
) -> tuple[Spread, Spread]:
    """Time two programs that are warm already: ours, plain, ours, plain ...

    Returns:
        Seconds a call, of each.
    """
    clock = clock_of(settings)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(settings.repeats):
        for program, record in zip((ours, plain), seconds, strict=True):
            calls = 0
            wait_for(settings.device)
            started = clock()
            while not calls or clock() - started < settings.turn:
                program()
                calls += 1
            wait_for(settings.device)
            record.append((clock() - started) / calls)
    return Spread.of(seconds[0]), Spread.of(seconds[1])


def clock_of(settings: Settings) -> Callable[[], float]:
    """Return the clock, in seconds from anywhere."""
    return processor_time if settings.clock == "cpu" else time.perf_counter


def processor_time() -> float:
    """Return the processor time of this process, all threads, and of those that it has waited for."""
    import resource  # not on Windows

    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def wait_for(device: str) -> None:
    """Wait until the device has done everything."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def require_agreement(difference: float, most: float, of: str) -> float:
    """Return the difference of two results; refuse to compare programs that compute different things.

    Raises:
        RuntimeError: it is larger than ``most``, or NaN.
    """
    if not difference <= most:
        raise RuntimeError(f"{of}: ours and the plain implementation are {difference:g} apart, not {most:g}")
    return difference


def apart(a: Any, b: Any) -> float:
    """Return the largest difference of two tensors, relative to the largest value of the second."""
    return ((a - b).abs().max() / b.abs().max()).item()


def endless(loader: Any) -> Iterator[Any]:
    """Go through a loader, epoch after epoch."""
    epoch = 0
    while True:
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        yield from loader
        epoch += 1


# -- the table ------------------------------------------------------------------------------------


def print_table(content: Mapping[str, Any], console: Console | None = None) -> None:
    """Print rows as dicts and the `circumstances` in which they were measured."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 170)  # a log file need not break lines
    table = Table(title="Speed: medians (least–largest)", title_justify="left")
    for heading in ("measure", "device", "threads", "ours", "plain", "ratio", "target", "met", "note"):
        numeric = heading in ("threads", "ours", "plain", "ratio")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    last = None
    for row in content["rows"]:
        if last is not None and row["measure"] != last:
            table.add_section()
        last = row["measure"]
        table.add_row(
            row["name"],
            row["device"],
            str(row["threads"]),
            _spread_text(row["ours"], row["unit"]),
            _spread_text(row["plain"], row["unit"]),
            _three(row["ratio"]),
            row["target"] or "",
            {True: "yes", False: "NO", None: ""}[row["met"]],
            row["note"],
        )
    console.print(table)
    kind = "processor time" if content["settings"]["clock"] == "cpu" else "wall-clock time"
    console.print(
        f"{content['date']}, {content['processor']}, {content['usable_cores']} usable cores, {kind}"
    )
    if content["gpu"]:
        console.print(content["gpu"])


def _spread_text(spread: Mapping[str, float], unit: str) -> str:
    median, low, high = spread["median"], spread["low"], spread["high"]
    if unit == "bytes":
        return f"{median / 1024:,.0f} KiB"
    if unit == "s":
        factor, unit = (1, "s") if median >= 1 else (1e3, "ms") if median >= 1e-3 else (1e6, "µs")
        median, low, high = median * factor, low * factor, high * factor
    return f"{_three(median)} {unit} ({_three(low)}–{_three(high)})"


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
