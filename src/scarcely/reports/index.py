"""`scripts/report.py`: one page over many runs, or the page of one run again."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from scarcely.errors import ConfigError, DataError
from scarcely.files import write_atomically
from scarcely.reports import table
from scarcely.reports.evidence import read_history
from scarcely.reports.html import main_picture, refresh_report, template
from scarcely.reports.run_table import LESS, choose_metrics
from scarcely.reports.runs import Run, differences, existing, is_run, read_run, run_folders, same, shown

USAGE = """\
python scripts/report.py RUNS... out=index.html metrics=acc,nmi
python scripts/report.py RUN

one page over many runs: scores, settings in which they differ, time, state, a picture of each, and links to
their reports, in a table that can be sorted and searched; of one run, its own report.html again, from what
lies in its folder

  RUNS      folders of runs, or folders that hold such; also runs that are not finished
  out       the page; index.html in the folder that is given, of several folders in the current one
  metrics   of results.json, with * for any letters; those that the runs are judged by if not given
"""
FAILED = "failed.txt"  # in the folder of a run: why it failed
_THUMBNAIL = (240, 160)  # pixels at most, shown at half of it: sharp on fine screens
_MANY = 20  # runs from which on a progress bar is shown
_TOLD = 5  # settings that are named of a run
_SORTED = "last change"
_Item = TypeVar("_Item")


class Column(NamedTuple):
    """A column of the page.

    Attributes:
        name: its heading.
        kind: ``text``, ``number`` or ``date``.
        first: the way that it is sorted first, ``ascending`` or ``descending``.
        meaning: what it shows, in words.
    """

    name: str
    kind: str = "text"
    first: str = "ascending"
    meaning: str = ""


class Cell(NamedTuple):
    """What a cell shows, what it is sorted by (empty: unknown), more to tell, and how it looks."""

    text: str = ""
    sort: str = ""
    more: str = ""
    look: str = ""


@dataclass
class Row:
    """A run as the page shows it.

    Attributes:
        folder: its folder, as seen from that of the page.
        link: relative address of its report, empty where there is none.
        cells: what stands in each column after the first.
        alt: what its picture shows.
        thumbnail: its picture, JPEG in base64, empty where there is none.
        width, height: of the picture as shown, in CSS pixels.
    """

    folder: str
    link: str
    cells: list[tuple[Column, Cell]]
    alt: str = ""
    thumbnail: str = ""
    width: int = 0
    height: int = 0


def write_index(folders: Iterable[str], out: Path, metrics: Sequence[str] = ()) -> tuple[int, list[str]]:
    """Write a page over the runs in and below folders, atomically; no run is changed.

    Args:
        folders: of runs, or that hold such.
        out: the page.
        metrics: names or patterns of the scores; those that the runs are judged by if empty.

    Returns:
        How many runs it shows, and what a reader has to know, such as runs that cannot be read.

    Raises:
        DataError: there is no run, or none that can be read.
        ConfigError: no run has one of the metrics.
    """
    folders = list(folders)
    places = run_folders(folders)
    if not places:
        raise DataError(
            f"there is no run in {', '.join(folders)}",
            where="RUNS",
            instead="a folder with config.yaml or results.json in it",
        )
    runs, notes = _readable(places)
    if not runs:
        raise DataError("no run can be read", where=", ".join(folders), instead=notes[0])
    runs.sort(key=_changed, reverse=True)
    scores = _score_columns(runs, metrics)
    told = _settings(runs)
    columns = [
        Column("run", meaning="its folder, and its report where there is one"),
        *(Column("method"), Column("data"), Column("seed", "number")),
        *scores,
        Column("settings", meaning="in which it differs from others of its method and data"),
        *(Column("time", "number", "ascending", "of all stages that were trained"), Column("device")),
        *(Column(_SORTED, "date", "descending"), Column("state")),
    ]
    rows = [
        _row(run, columns, told[run.folder], out)
        for run in _with_progress(runs, "pictures", enough=len(runs) >= _MANY)
    ]
    script = (Path(__file__).parent / "index.js").read_text(encoding="utf-8")
    from markupsafe import Markup

    page = template("index.html.j2").render(
        title=f"{len(rows)} run{'' if len(rows) == 1 else 's'}",
        columns=columns,
        rows=rows,
        sorted_by=_SORTED,
        notes=notes,
        script=Markup(script),
        # The only script that the page lets run is this one.
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    write_atomically(out, page.encode("utf-8", errors="replace"))
    return len(rows), notes


def _readable(places: Sequence[Path]) -> tuple[list[Run], list[str]]:
    runs, notes = [], []
    for place in _with_progress(places, "runs", enough=len(places) >= _MANY):
        try:
            runs.append(read_run(place))
        except DataError as error:
            reason = " ".join(error.what.split())
            notes.append(f"left out: {place}: {reason[:200]}{'…' if len(reason) > 200 else ''}")
    return runs, notes


def _with_progress(items: Sequence[_Item], what: str, *, enough: bool) -> Iterable[_Item]:
    """Yield items, with a bar on a terminal where they are many."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not (enough and console.is_terminal):
        return items
    return track(items, what, console=console, transient=True)


# -- rows ----------------------------------------------------------------------------------------


def _score_columns(runs: Sequence[Run], metrics: Sequence[str]) -> list[Column]:
    """Return the scores to show; of saliency runs the best that each reached, at whatever layer."""
    finished = [run for run in runs if run.metrics]
    keys = choose_metrics(finished, metrics) if finished or metrics else []
    if not metrics:
        keys = [key for key in keys if not key.startswith(("kmeans/", "pointing/"))]
    columns = [
        Column(
            table.metric_name(key),
            "number",
            "ascending" if any(word in key for word in LESS) else "descending",
            " ".join(part for part in (f"{key}:", table.describe_metric(key)) if part),
        )
        for key in keys
    ]
    if not metrics:
        names = dict.fromkeys(
            line.name for run in finished for line in table.headline_metrics(run.metrics) if _pointing(line)
        )
        columns += [Column(name, "number", "descending") for name in names]
    return columns


def _pointing(line: table.Headline) -> bool:
    return line.key.startswith("pointing/")


def _scores(run: Run) -> dict[str, Cell]:
    """Return every score of a run by its name on the page."""
    keys = {table.metric_name(key): key for key in run.metrics}
    keys |= {line.name: line.key for line in table.headline_metrics(run.metrics) if _pointing(line)}
    cells = {}
    for name, key in keys.items():
        value = run.metrics.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            more = key if key.startswith("pointing/") else ""
            cells[name] = Cell(table.format_metric(key, value), repr(value), more)
    return cells


def _row(run: Run, columns: Sequence[Column], settings: str, out: Path) -> Row:
    changed = _changed(run)
    seconds = _seconds(run)
    known = _scores(run) | {
        "method": _text(run.settings.get("method")),
        "data": _text(run.settings.get("data")),
        "seed": _number(run.settings.get("seed")),
        "settings": Cell(settings, settings),
        "time": Cell() if seconds is None else Cell(table.format_seconds(seconds), repr(seconds)),
        "device": _text(_device(run)),
        _SORTED: Cell(f"{changed:%Y-%m-%d %H:%M}", changed.isoformat(), changed.isoformat()),
        "state": _state(run),
    }
    folder = os.path.relpath(run.folder, out.absolute().parent)
    report = run.folder / "report.html"
    link = _address(os.path.relpath(report, out.absolute().parent)) if report.is_file() else ""
    row = Row(folder, link, [(column, known.get(column.name, Cell())) for column in columns[1:]])
    _add_picture(row, run)
    return row


def _address(path: str) -> str:
    """Return a relative path as an address: a name may hold '#', '?' or bytes that are no text."""
    address = quote(os.fsencode(path.replace(os.sep, "/")))
    return address if address.startswith(("../", "./")) else f"./{address}"


def _text(value: Any) -> Cell:
    return Cell() if value is None else Cell(shown(value), shown(value))


def _number(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int):
        return Cell()
    return Cell(str(value), str(value))


def _seconds(run: Run) -> float | None:
    """Return how long all stages took; None where that is not known."""
    found = [stage.get("seconds") for stage in run.results.get("stages") or []]
    known = [s for s in found if isinstance(s, (int, float)) and math.isfinite(s)]
    return float(sum(known)) if known else None


def _device(run: Run) -> Any:
    environment = run.results.get("environment")
    if isinstance(environment, Mapping):
        return environment.get("device")
    return run.settings.get("environment.device")


def _changed(run: Run) -> datetime:
    """Return when a run ended, or was last heard of."""
    names = ("results.json",) if run.finished else ("metrics.csv", "last.ckpt", "config.yaml")
    times = [0.0]
    for name in names:
        with suppress(OSError):
            times.append((run.folder / name).stat().st_mtime)
    return datetime.fromtimestamp(max(times)).astimezone()


def _state(run: Run) -> Cell:
    if run.finished:
        fast = run.settings.get("fast") is True
        return (
            Cell("fast run", "finished, fast", "its figures mean nothing")
            if fast
            else Cell("finished", "finished")
        )
    if _locked(run.folder):
        return Cell(f"running{_progress(run.folder)}", "running")
    with suppress(OSError):
        why = " ".join((run.folder / FAILED).read_text(encoding="utf-8", errors="replace").split())
        return Cell(f"failed{_progress(run.folder)}: {why}"[:160], "failed", why, "failed")
    return Cell(f"interrupted{_progress(run.folder)}", "interrupted", "resume=true goes on with it")


def _progress(folder: Path) -> str:
    """Say how far a run has come that is not finished."""
    try:
        history = read_history(folder / "metrics.csv")
    except DataError:
        return ""
    last = history[-1] if history else {}
    if not isinstance(last.get("epoch"), int):
        return ""
    return f" after epoch {last['epoch'] + 1}" + (f" of {last['stage']}" if last.get("stage") else "")


def _locked(folder: Path) -> bool:
    """Whether a process of this machine is running in a folder.

    The lock is shared and given back at once: it keeps no run from starting but one that starts within the
    same microseconds.
    """
    try:
        import fcntl

        with open(folder / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False


def _settings(runs: Sequence[Run]) -> dict[Path, str]:
    """Say in what each run differs from the others of its method and data."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(repr([run.settings.get(key) for key in ("method", "data")]), []).append(run)
    told = {}
    for group in alike.values():
        differing = differences(group, ("method", "data"))
        # A group that was chosen and the settings within it: the settings say enough.
        keys = [k for k in differing if not any(other.startswith(f"{k}.") for other in differing)]
        for run in group:
            values = {k: shown(same(run.settings[k])) for k in keys if k in run.settings}
            own = [f"{key.removeprefix('method.')} = {value}" for key, value in values.items()]
            more = f", and {len(own) - _TOLD} more" if len(own) > _TOLD else ""
            told[run.folder] = ", ".join(own[:_TOLD]) + more
    return told


def _add_picture(row: Row, run: Run) -> None:
    """Give a row a small copy of the run's main picture; a file that is none is passed over."""
    found = main_picture(run.folder)
    if found is None:
        return
    from PIL import Image

    heading, path = found
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return
    small.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    row.thumbnail = base64.b64encode(buffer.getvalue()).decode("ascii")
    row.width, row.height = max(1, small.width // 2), max(1, small.height // 2)
    method, data = (shown(run.settings.get(key, "?")) for key in ("method", "data"))
    row.alt = f"{heading}: {method} on {data}, seed {shown(run.settings.get('seed', '?'))}"


# -- the command ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Parse folders and ``key=value`` arguments, write, and return the exit code."""
    from scarcely.cli import run_command
    from scarcely.reports.compare import split_folders

    arguments = list(sys.argv[1:] if argv is None else argv)
    defaults = {"out": "", "metrics": ""}
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        return run_command(USAGE, {"RUNS"}, {}, lambda _: None, arguments)
    folders, settings = split_folders(arguments, defaults)
    return run_command(USAGE, set(), defaults, partial(_command, folders=folders), settings)


def _command(arguments: dict[str, str], folders: Sequence[str]) -> None:
    given = existing(folders)
    if len(given) == 1 and is_run(given[0]) and not any(arguments.values()):
        print(refresh_report(given[0]))
        return
    out = _target(arguments["out"] or str((given[0] if len(given) == 1 else Path()) / "index.html"))
    metrics = [part.strip() for part in arguments["metrics"].split(",") if part.strip()]
    number, notes = write_index(folders, out, metrics)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{number} runs: {out}", file=sys.stderr)


def _target(out: str) -> Path:
    path = Path(out).expanduser()
    if path.suffix not in (".html", ".htm") or path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(
            f"cannot write {out!r}", where="out", instead="a file in a folder that exists, ending in .html"
        )
    return path
