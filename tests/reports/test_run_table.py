"""`scripts/table.py`: any set of runs as one table."""

import csv
import io
import json
import math
import statistics

import pytest
import yaml

from scarcely.errors import ConfigError
from scarcely.reports import run_table
from scarcely.reports.runs import find_runs

PAPER = {"acc": 0.817, "std": 0.009}


def run(folder, acc, *, method="lsdc", data="digits", seed=0, expected=None, metrics=None, **settings):
    """Write the folder of a finished run."""
    place = folder / f"{method}-{data}-{'-'.join(map(str, settings.values()))}-{seed}"
    place.mkdir(parents=True)
    config = {"method": {"name": method, "labeler": settings}, "data": {"name": data}, "seed": seed}
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    results = {
        "method": method,
        "data": data,
        "seed": seed,
        "protocol": "all",
        "expected": expected,
        "metrics": {"acc": acc, **(metrics or {})},
    }
    (place / "results.json").write_text(json.dumps(results))


@pytest.fixture
def folder(tmp_path):
    for seed, acc in enumerate((0.90, 0.94, 0.92)):
        run(tmp_path, acc, k=10, seed=seed, expected=PAPER, metrics={"test/ece": 0.1 * acc})
    for seed, acc in enumerate((0.80, 0.84)):
        run(tmp_path, acc, k=20, seed=seed, metrics={"test/ece": 0.01})
    run(tmp_path, 0.5, method="kmeans", data="usps", metrics={"test/ece": 0.3})
    return tmp_path


def table_of(folder, *arguments):
    """Return a table as rows of cells."""
    return run_table.collect(find_runs([str(folder)]), *arguments)


def test_rows_are_what_the_runs_differ_in_and_the_seed_is_averaged(folder):
    table = table_of(folder)
    assert table.settings == ["method", "data", "method.labeler.k"]
    assert {row.names: len(row.runs) for row in table.rows} == {
        ("kmeans", "usps", None): 1,
        ("lsdc", "digits", 10): 3,
        ("lsdc", "digits", 20): 2,
    }


def test_a_cell_is_mean_and_sample_deviation_beside_the_papers_figure(folder):
    text = run_table.markdown(table_of(folder, ["acc"]))
    deviation = statistics.stdev([90, 94, 92])
    row = next(line for line in text.splitlines() if "| 10 |" in line)
    assert row == f"| lsdc | digits | 10 | **92.0 ± {deviation:.1f}** | 81.7 ± 0.9 | 3 | 0, 1, 2 |"


def test_the_best_of_each_data_set_is_marked_and_less_is_better_of_errors(folder):
    table = table_of(folder, ["acc", "test/ece"])
    best = {(row.names[2], key.metric) for row in table.rows for key, cell in row.cells.items() if cell.best}
    assert best == {(10, "acc"), (20, "test/ece")}, "and of a data set with one row nothing is"


def test_rows_that_are_equally_good_are_both_best(tmp_path):
    for k in (1, 2):
        run(tmp_path, 0.75, k=k)
    assert [row.cells[run_table.Key("acc")].best for row in table_of(tmp_path).rows] == [True, True]


def test_a_setting_can_tell_columns_apart(folder):
    table = table_of(folder, ["acc"], ["method"], "data")
    assert [(key.metric, key.value) for key in table.columns] == [("acc", "digits"), ("acc", "usps")]
    assert "data=digits | data=digits, paper | data=usps" in run_table.markdown(table)
    usps = {row.names: row.cells[run_table.Key("acc", "usps")].values for row in table.rows}
    assert usps == {("kmeans",): [0.5], ("lsdc",): []}


def test_csv_has_the_numbers_as_they_are(folder):
    rows = list(csv.DictReader(io.StringIO(run_table.as_csv(table_of(folder, ["acc"])))))
    ten = next(row for row in rows if row["method.labeler.k"] == "10")
    assert float(ten["mean"]) == pytest.approx(0.92)
    assert float(ten["std"]) == pytest.approx(0.02)
    assert (ten["n"], ten["best"], ten["paper"], ten["paper_std"]) == ("3", "1", "0.817", "0.009")
    alone = next(row for row in rows if row["method"] == "kmeans")
    assert (alone["std"], alone["paper"]) == ("", ""), "one run has no deviation"


def test_latex_escapes_names_and_keeps_bold(tmp_path):
    for name, acc in (("a_b & 50% {x}", 0.9), ("plain", 0.8)):
        run(tmp_path, acc, k=name)
    text = run_table.latex(table_of(tmp_path))
    assert r"a\_b \& 50\% \{x\}" in text
    assert r"\textbf{90.0}" in text
    body = text.splitlines()[2:-2]
    assert {line.count(" & ") for line in body} == {len(body[0].split(" & ")) - 1}


def test_a_run_that_lacks_a_metric_is_counted_apart(tmp_path):
    run(tmp_path, 0.9, seed=0)
    run(tmp_path, math.nan, seed=1)
    (row,) = table_of(tmp_path).rows
    assert row.cells[run_table.Key("acc")].values == [0.9]
    assert "90.0 (n=1)" in run_table.markdown(table_of(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "where"),
    [((["nix*"],), "metrics"), (([], ["method.x"]), "rows"), (([], [], "method.x"), "columns")],
)
def test_what_no_run_has_is_told(folder, arguments, where):
    with pytest.raises(ConfigError) as error:
        table_of(folder, *arguments)
    assert error.value.where == where


def test_the_command_writes_every_format_and_a_picture(folder, tmp_path, capsys):
    for suffix in ("md", "csv", "tex"):
        out = tmp_path / f"table.{suffix}"
        assert run_table.main([str(folder), f"out={out}", f"figure={tmp_path / 'table.png'}"]) == 0
        assert "92" in out.read_text()
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    assert run_table.main([str(folder), "metrics=acc"]) == 0
    assert "| lsdc | digits |" in capsys.readouterr().out


def test_the_command_says_what_is_wrong(folder, capsys):
    assert run_table.main([str(folder), "out=table.xls"]) == 2
    assert run_table.main([str(folder / "nowhere")]) == 2
    assert run_table.main([]) == 2
    told = capsys.readouterr()
    assert "ending in .md" in told.err
    assert "no folder" in told.err


def test_too_many_bars_are_refused(tmp_path):
    for k in range(61):
        run(tmp_path, 0.5, k=k)
    with pytest.raises(ConfigError, match="too many"):
        run_table.draw(table_of(tmp_path))
