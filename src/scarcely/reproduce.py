"""``scripts/reproduce.py``: the rows of the papers' tables, trained where they are missing."""

from __future__ import annotations

import csv
import fnmatch
import io
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scarcely.config.paths import conf_dir
from scarcely.errors import ConfigError, DataError
from scarcely.files import write_atomically

if TYPE_CHECKING:
    from scarcely.reports.runs import Run

USAGE = """\
python scripts/reproduce.py [KEY=VALUE ...]

Trains what is missing of the experiments in conf/experiment, each with its seeds, and writes
results/METHOD.csv and the table in RESULTS.md. A run that was killed goes on; one that is finished is
not trained again. Any setting of train.py holds for all runs, such as trainer=gpu or data.root=DIR, and:

  only=*/digits*,normgrad/shapes   experiments by name, with * for any letters, separated by commas;
                        only=* for all; the default are those that need no download
  seeds=                e.g. 0,1,2; those of the experiment without: ten
  train=true            false: only write down what the runs gave
  launcher=             joblib | submitit_local | submitit_slurm: several at a time, or on a cluster
  runs=outputs/reproduce   where the runs are
  results=results       folder of the CSV files
  page=RESULTS.md       the page with the table; page= for none
"""
DEFAULTS = {
    "only": "*/digits*,normgrad/shapes",
    "seeds": "",
    "train": "true",
    "launcher": "",
    "runs": "outputs/reproduce",
    "results": "results",
    "page": "RESULTS.md",
}
BEGIN, END = "<!-- written by scripts/reproduce.py -->", "<!-- end of what it wrote -->"
_TRAIN = [sys.executable, "-c", "import sys; from scarcely.cli import main; sys.exit(main())"]


@dataclass(frozen=True)
class Experiment:
    """One row of a table.

    Attributes:
        name: below conf/experiment.
        title: what it is.
        expected: the paper's figures by metric, as fractions, and ``std``; empty where it has none.
        seeds: of its sweep.
    """

    name: str
    title: str
    expected: dict[str, float]
    seeds: str

    @property
    def method(self) -> str:
        """The folder that it is in."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Found:
    """What was found for one metric of an experiment; a line of the CSV.

    Attributes:
        experiment, title: as in `Experiment`.
        settings: what sets these runs apart from others of the experiment.
        metric: name in results.json.
        paper, paper_std: of the paper, NaN where it has none.
        mean, std: over n runs, the deviation of a sample; NaN where none was run.
        n, seeds: how many runs, and which.
        protocol, data, samples: what was scored, and on which data.
        command: of one of the runs.
        device, seconds: the hardware, and the mean time of a run, stages from the cache left out.
        commit, torch, date: of the last run.
    """

    experiment: str
    title: str
    settings: str
    metric: str
    paper: float
    paper_std: float
    mean: float = math.nan
    std: float = math.nan
    n: int = 0
    seeds: str = ""
    protocol: str = ""
    data: str = ""
    samples: str = ""
    command: str = ""
    device: str = ""
    seconds: float = math.nan
    commit: str = ""
    torch: str = ""
    date: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, train, write, and return the exit code."""
    from scarcely.cli import run_command

    arguments = list(sys.argv[1:] if argv is None else argv)
    own = [a for a in arguments if a.partition("=")[0] in DEFAULTS or a in ("-h", "--help")]
    overrides = [a for a in arguments if a not in own]
    return run_command(USAGE, set(), DEFAULTS, partial(_command, overrides), own)


def _command(overrides: Sequence[str], arguments: Mapping[str, str]) -> None:
    chosen = choose(experiments(), arguments["only"])
    page = Path(arguments["page"]) if arguments["page"] else None
    if page is not None and page.is_file() and not _has_place(page):
        raise ConfigError(
            f"{page} has no place for the table",
            where="page",
            instead=f"a line {BEGIN!r} and a line {END!r} in it, or page= for none",
        )
    if arguments["train"] not in ("true", "false"):
        raise ConfigError(f"train={arguments['train']}", where="train", instead="true or false")
    for override in overrides:
        if "=" not in override or override.partition("=")[0] in (
            "seed",
            "experiment",
            "output_dir",
            "run_dir",
        ):
            raise ConfigError(f"{override} cannot be given here", where="the command", instead=USAGE)
    runs = Path(arguments["runs"]).expanduser()
    failed = []
    for number, experiment in enumerate(chosen, start=1):
        seeds = arguments["seeds"] or experiment.seeds
        if arguments["train"] == "true":
            print(f"\n[{number}/{len(chosen)}] {experiment.name}, seeds {seeds}", file=sys.stderr, flush=True)
            if train(experiment, seeds, runs, overrides, arguments["launcher"]):
                failed.append(experiment.name)
            write([experiment], runs, Path(arguments["results"]))  # so far: nothing is lost
    write(chosen, runs, Path(arguments["results"]))
    if page is not None:
        write_page(page, read(Path(arguments["results"])), experiments())
        print(page, file=sys.stderr)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(chosen)} experiments have runs that failed, as told above",
            where=", ".join(failed),
            instead="the same command, once that is mended: what is finished stays",
        )


def experiments() -> list[Experiment]:
    """Return all experiments, by name."""
    folder = conf_dir() / "experiment"
    found = []
    for file in sorted(folder.glob("*/*.yaml")):
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        said = [line.removeprefix("#").strip() for line in text.splitlines()[1:]]
        title = said[0] if said[0].endswith(".") else f"{said[0]} {said[1]}"
        found.append(
            Experiment(
                name=file.relative_to(folder).with_suffix("").as_posix(),
                title=title.split(". ")[0].split(" Ours:")[0].removesuffix("."),
                expected=content.get("expected") or {},
                seeds=str(content["hydra"]["sweeper"]["params"]["seed"]),
            )
        )
    return found


def choose(known: Sequence[Experiment], patterns: str) -> list[Experiment]:
    """Return the experiments whose names fit one of some patterns.

    Raises:
        ConfigError: a pattern fits none.
    """
    names = [e.name for e in known]
    wanted = set()
    for pattern in patterns.split(","):
        fitting = fnmatch.filter(names, pattern.strip())
        if not fitting:
            near = get_close_matches(pattern.strip(), names) or names[:3]
            raise ConfigError(
                f"no experiment is named {pattern!r}",
                where="only",
                instead=f"of conf/experiment, such as {', '.join(near)}; with * for any letters",
            )
        wanted |= set(fitting)
    return [e for e in known if e.name in wanted]


def train(experiment: Experiment, seeds: str, runs: Path, overrides: Sequence[str], launcher: str) -> int:
    """Train what is missing of an experiment, in a process of its own; return its exit code."""
    given = [f"experiment={experiment.name}", f"seed={seeds}", f"output_dir={runs / experiment.name}"]
    more = [f"hydra/launcher={launcher}"] if launcher else []
    return subprocess.run([*_TRAIN, "-m", *given, "resume=true", *more, *overrides]).returncode


# -- what was found -------------------------------------------------------------------------------


def write(chosen: Sequence[Experiment], runs: Path, results: Path) -> None:
    """Write the CSV file of each method; lines of experiments that have no run here stay as they are."""
    lines = read(results)
    for experiment in chosen:
        found = look(experiment, runs / experiment.name)
        if found:
            lines = [line for line in lines if line.experiment != experiment.name] + found
    by_method: dict[str, list[Found]] = {}
    for line in sorted(lines, key=lambda line: (line.experiment, line.settings)):
        by_method.setdefault(line.experiment.partition("/")[0], []).append(line)
    for method, own in by_method.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Found)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in asdict(line).items()} for line in own)
        results.mkdir(parents=True, exist_ok=True)
        write_atomically(results / f"{method}.csv", text.getvalue())


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def read(results: Path) -> list[Found]:
    """Return the lines of all CSV files of a folder.

    Raises:
        DataError: one was not written by `write`.
    """
    kinds: dict[str, Callable[[str], Any]] = {"float": _number, "int": int, "str": str}
    found = []
    for file in sorted(results.glob("*.csv")):
        with open(file, newline="", encoding="utf-8") as lines:
            try:
                found += [
                    Found(**{f.name: kinds[str(f.type)](row[f.name]) for f in fields(Found)})
                    for row in csv.DictReader(lines)
                ]
            except (KeyError, ValueError) as error:
                raise DataError(f"{file} is no table of results: {error}", where="results") from error
    return found


def _number(text: str) -> float:
    return float(text) if text else math.nan


def look(experiment: Experiment, folder: Path) -> list[Found]:
    """Return what the finished runs of an experiment found, a line a metric; nothing if there is none."""
    from scarcely.reports.run_table import collect
    from scarcely.reports.runs import find_runs, same, shown

    runs = find_runs([str(folder)]) if any(folder.rglob("results.json")) else []
    if not runs:
        return []
    wanted = [metric for metric in experiment.expected if metric != "std"]
    table = collect(runs, wanted)
    lines = []
    for row in table.rows:
        names = zip(table.settings, row.names, strict=True)
        settings = ", ".join(f"{key}={shown(same(value))}" for key, value in names if len(table.rows) > 1)
        for key, cell in row.cells.items():
            if cell.values:
                lines.append(_line(experiment, settings, key.metric, cell.values, row.runs))
    return lines


def _line(
    experiment: Experiment, settings: str, metric: str, values: Sequence[float], runs: Sequence[Run]
) -> Found:
    import numpy as np

    last = max(runs, key=lambda run: (run.folder / "results.json").stat().st_mtime)
    environment = last.results.get("environment") or {}
    seconds = [
        sum(stage["seconds"] for stage in run.results["stages"] if not stage.get("cached")) for run in runs
    ]
    told = {key: _alike(run.results.get(key) for run in runs) for key in ("protocol", "data", "samples")}
    root = Path(str(last.settings.get("data.root") or "")).name
    device, threads = environment.get("device", ""), environment.get("threads", "")
    return Found(
        experiment=experiment.name,
        title=experiment.title,
        settings=settings,
        metric=metric,
        **_of_paper(experiment, metric),
        mean=float(np.mean(values)),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        n=len(values),
        seeds=" ".join(str(seed) for seed in sorted(run.results.get("seed", 0) for run in runs)),
        protocol=told["protocol"],
        data=told["data"] if root in ("", "data", "auto") else f"{told['data']} ({root})",
        samples=told["samples"],
        command=str(last.results.get("command", "")),
        device=f"{device}, {threads} thread{'s' * (threads != 1)}" if threads else device,
        seconds=float(np.mean(seconds)),
        commit=str(environment.get("commit", "")),
        torch=str(environment.get("torch", "")),
        date=date.fromtimestamp((last.folder / "results.json").stat().st_mtime).isoformat(),
    )


def _of_paper(experiment: Experiment, metric: str) -> dict[str, float]:
    first = next((name for name in experiment.expected if name != "std"), None)
    std = experiment.expected.get("std", math.nan) if metric == first else math.nan  # it is that of the first
    return {"paper": float(experiment.expected.get(metric, math.nan)), "paper_std": float(std)}


def _alike(values: Iterable[object]) -> str:
    """Return a value that all have, or all that there are."""
    return " or ".join(dict.fromkeys(str(value) for value in values if value is not None))


# -- the page -------------------------------------------------------------------------------------


def _has_place(page: Path) -> bool:
    _, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    return bool(begin) and END in rest


def write_page(page: Path, lines: Sequence[Found], known: Sequence[Experiment]) -> None:
    """Write the table into its place on a page, or a page of it alone where there is none."""
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# Results\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_atomically(page, f"{before}{BEGIN}\n\n{markdown(lines, known)}\n{END}{after}")


def markdown(lines: Sequence[Found], known: Sequence[Experiment]) -> str:
    """Return the table of what was run, and the list of what was not, as Markdown."""
    from scarcely.reports.grids import markdown_table

    rows: dict[tuple[str, str], list[Found]] = {}
    for line in lines:
        rows.setdefault((line.experiment, line.settings), []).append(line)
    head = ["experiment", "what", "paper", "ours", "runs", "protocol, data", "time of a run", "where, when"]
    table = markdown_table(head, [_row(own) for own in rows.values()])
    missing = [e for e in known if e.name not in {line.experiment for line in lines}]
    never = markdown_table(
        ["experiment", "what", "paper"],
        [[f"`{e.name}`", e.title, _paper(e)] for e in missing],
    )
    if not missing:
        return table
    summary = f"<summary>Not run by scripts/reproduce.py: {len(missing)} experiments</summary>"
    return f"{table}\n<details>{summary}\n\n{never}\n</details>\n"


def _row(own: Sequence[Found]) -> list[str]:
    first = own[0]
    minutes, seconds = divmod(round(first.seconds), 60)
    return [
        f"`{first.experiment}`{' ' * bool(first.settings)}{first.settings}",
        first.title,
        "; ".join(
            f"{line.metric} {_figure(line.metric, line.paper, line.paper_std)}"
            for line in own
            if line.paper == line.paper
        ),
        "; ".join(f"{line.metric} {_figure(line.metric, line.mean, line.std)}" for line in own),
        f"{first.n}: seeds {first.seeds}",
        ", ".join(text for text in (first.protocol, first.data, first.samples) if text),
        f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s",
        ", ".join(text for text in (first.device, first.date, first.commit) if text),
    ]


def _paper(experiment: Experiment) -> str:
    of = {metric: _of_paper(experiment, metric) for metric in experiment.expected if metric != "std"}
    return "; ".join(f"{metric} {_figure(metric, *own.values())}" for metric, own in of.items())


def _figure(metric: str, value: float, deviation: float) -> str:
    from scarcely.reports.wording import is_fraction

    scale, decimals = (100, 1) if is_fraction(metric) else (1, 2)
    text = f"{value * scale:.{decimals}f}"
    return text if math.isnan(deviation) else f"{text} ± {deviation * scale:.{decimals}f}"
