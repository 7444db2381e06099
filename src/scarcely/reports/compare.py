"""`scripts/figure.py`: pictures and tables of several runs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from scarcely.errors import ConfigError, DataError
from scarcely.files import write_atomically
from scarcely.reports import domain_table, label_sweep, pretext_quality, saliency_compare
from scarcely.reports.curve import collect, curve, notes, table_of
from scarcely.reports.evidence import Evidence
from scarcely.reports.figures import old_and_new, old_new_of, style
from scarcely.reports.runs import Point, find_runs, names_of, unfinished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USAGE = """\
python scripts/figure.py curve RUNS... x=method.labeler.k y=new/acc out=k.png
python scripts/figure.py embedding RUN1 RUN2 out=embedding.png
python scripts/figure.py labels RUNS... out=labels.png
python scripts/figure.py pretext RUNS...
python scripts/figure.py domains RUNS... out=domains.png
python scripts/figure.py saliency RUNS... out=saliency.png

curve: a metric against a setting, mean ± standard deviation over the seeds, each run a dot
  RUNS      folders of runs, or folders that hold such
  x         a setting of config.yaml, e.g. method.labeler.k, or method, data, protocol, seed
  y         a metric of results.json; 1-METRIC draws the error
  by        another setting: a line for each of its values, e.g. by=data
  out       the picture to write: png, pdf or svg

embedding: old and new classes in one t-SNE, a panel a run (of methods that discover classes)
  RUNS      one to six runs, e.g. with and without method.incremental=true
  out       the picture to write

labels: test error against labels per class, a line a method (with or without a pretext), dashed: all labels
  RUNS      folders of runs of one data set, or folders that hold such; several seeds are averaged
  out       the picture to write (or --out FILE); without it the table alone
  markdown  true (or --markdown): the table as Markdown

pretext: a table of how good the pretext was (rotation accuracy) and what came of it, by its epoch
  RUNS      folders of runs with pretext_epoch=..., of method=supervised (labelled set) and others
  markdown  true (or --markdown): the table as Markdown

domains: accuracy on each domain, mean and score, a row a method; what each left of the source
  RUNS      folders of runs over several domains, or folders that hold such; several seeds are averaged
  out       the picture to write (or --out FILE); without it the tables alone
  markdown  true (or --markdown): the tables as Markdown

saliency: the pointing game of several saliency runs, of each method its best layer and its best weighting
  RUNS      folders of runs of method=normgrad, e.g. of several networks, or folders that hold such
  out       the picture to write (or --out FILE); without it the tables alone
  markdown  true (or --markdown): the tables as Markdown
"""
_USAGE_OF = dict(zip(("curve", "embedding", "labels", "pretext", "domains", "saliency"), USAGE.splitlines()))
_FORMATS = ("png", "pdf", "svg")
_MOST = 6  # panels of embeddings


def main(argv: Sequence[str] | None = None) -> int:
    """Parse a command, folders and ``key=value`` arguments, draw, and return the exit code."""
    from scarcely.cli import run_command

    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        return run_command(USAGE, {"out"}, {}, lambda _: None, arguments)
    word, *rest = arguments
    if word not in _USAGE_OF:
        wrong = ConfigError(f"there is no figure {word!r}", instead=f"one of {', '.join(_USAGE_OF)}")
        return run_command("", set(), {}, partial(_refuse, wrong), [])
    required, defaults, command = _COMMANDS[word]
    if word in _TABLES:
        rest = _as_settings(rest)
    folders, settings = split_folders(rest, (*required, *defaults))
    usage = _USAGE_OF[word]
    if required and not settings:
        missing = ConfigError(f"{', '.join(sorted(required))} must be given", instead=usage)
        return run_command("", set(), {}, partial(_refuse, missing), [])
    return run_command(usage, required, defaults, partial(command, folders=folders), settings)


def split_folders(arguments: Sequence[str], keys: Collection[str]) -> tuple[list[str], list[str]]:
    """Tell folders from ``key=value``: a folder may have '=' in its name, if that begins with no key."""
    settings = [a for a in arguments if "=" in a and (a.partition("=")[0] in keys or _no_path(a))]
    return [a for a in arguments if a not in settings], settings


def _as_settings(arguments: Sequence[str]) -> list[str]:
    """Write ``--out FILE``, ``--out=FILE`` and ``--markdown`` as settings."""
    given = ["markdown=true" if argument == "--markdown" else argument for argument in arguments]
    given = [argument.removeprefix("--") if argument.startswith("--out=") else argument for argument in given]
    while "--out" in given[:-1]:
        at = given.index("--out")
        given[at : at + 2] = [f"out={given[at + 1]}"]
    return given


def _no_path(argument: str) -> bool:
    return not os.path.lexists(os.path.expanduser(argument))


def _refuse(error: ConfigError, _: dict[str, str]) -> None:
    raise error


def _curve(arguments: dict[str, str], folders: Sequence[str]) -> None:
    out = picture_target(arguments["out"])
    runs = find_runs(folders)
    x, y, by = arguments["x"], arguments["y"], arguments["by"] or None
    points = collect(runs, x, y, by)
    write_figure(curve(points, x, y, by), out)
    print(table_of(points, x, y, by), end="")
    for note in notes(runs, points, x, by):
        print(f"note: {note}", file=sys.stderr)
    print(f"{sum(len(p.values) for p in points)} runs: {out}", file=sys.stderr)


def _embedding(arguments: dict[str, str], folders: Sequence[str]) -> None:
    out = picture_target(arguments["out"])
    runs = find_runs(folders)
    if len(runs) > _MOST:
        raise ConfigError(
            f"{len(runs)} runs are too many for one picture", instead=f"at most {_MOST} of them"
        )
    panels = {}
    for run, name in zip(runs, names_of(runs), strict=True):
        features = old_new_of(Evidence.load(run.folder))
        if features is None:
            raise DataError(
                f"{run.folder} kept no features of old and new classes",
                where=str(run.folder / "predictions.npz"),
                instead="a run that discovers new classes, with embedding_size above 0",
            )
        panels[name] = features
    seed = runs[0].results.get("seed")
    figure = old_and_new(panels, seed=seed if isinstance(seed, int) else 0)
    if figure is None:
        raise DataError("the features of these runs are not finite", where=", ".join(folders))
    write_figure(figure, out)
    print(f"{len(runs)} runs: {out}", file=sys.stderr)


def _tables(
    arguments: dict[str, str],
    folders: Sequence[str],
    *,
    word: str,
    module: ModuleType,
    count: Callable[[Any], int] | None = None,
) -> None:
    """Print what a module of this package makes of runs, and draw it where it can be drawn."""
    out = picture_target(arguments["out"]) if arguments.get("out") else None
    as_markdown = _as_markdown(arguments)
    runs = find_runs(folders)
    content = module.collect(runs)
    if out is not None:
        write_figure(module.draw(content), out)
    if as_markdown:
        print(module.markdown(content), end="")
    else:
        module.print_tables(content)
    for note in [*module.notes(runs, content), *unfinished(folders)]:
        print(f"note: {note}", file=sys.stderr)
    if count is not None:
        told = f"out={word}.png draws them" if out is None else str(out)
        print(f"{count(content)} runs: {told}", file=sys.stderr)


def _as_markdown(arguments: dict[str, str]) -> bool:
    if arguments["markdown"] not in ("true", "false"):
        raise ConfigError(
            f"markdown = {arguments['markdown']!r} is not possible", where="markdown", instead="true or false"
        )
    return arguments["markdown"] == "true"


def _in_points(points: Sequence[Point]) -> int:
    return sum(len(point.values) for point in points)


def _in_rows(rows: Sequence[domain_table.Row]) -> int:
    return sum(len(row.runs) for row in rows)


_OUT, _MARKDOWN = {"out": ""}, {"markdown": "false"}
_TABLES: dict[str, tuple[dict[str, str], Callable[..., None]]] = {
    "labels": (_OUT | _MARKDOWN, partial(_tables, module=label_sweep, count=_in_points)),
    "pretext": (_MARKDOWN, partial(_tables, module=pretext_quality)),
    "domains": (_OUT | _MARKDOWN, partial(_tables, module=domain_table, count=_in_rows)),
    "saliency": (_OUT | _MARKDOWN, partial(_tables, module=saliency_compare, count=len)),
}
_COMMANDS: dict[str, tuple[set[str], dict[str, str], Callable[..., None]]] = {
    "curve": ({"x", "y", "out"}, {"by": ""}, _curve),
    "embedding": ({"out"}, {}, _embedding),
    **{word: (set(), defaults, partial(make, word=word)) for word, (defaults, make) in _TABLES.items()},
}


def picture_target(out: str, where: str = "out") -> Path:
    """Return the path of a picture to write.

    Raises:
        ConfigError: no folder is there to hold it, or its name says no format.
    """
    path = Path(out).expanduser()
    if not out or path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out!r}", where=where, instead="a file in a folder that exists")
    if path.suffix.lower().lstrip(".") not in _FORMATS:
        raise ConfigError(
            f"cannot write a picture as {path.name!r}",
            where=where,
            instead="a name that ends in .png, .pdf or .svg",
        )
    return path


def write_figure(figure: Figure, out: Path) -> Path:
    """Write a figure, atomically, in the format that the name says."""
    kind = out.suffix.lower().lstrip(".")
    if kind == "png":
        return write_atomically(out, style.to_png(figure))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return write_atomically(out, buffer.getvalue())
