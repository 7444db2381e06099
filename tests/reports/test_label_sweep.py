"""Test error against labels per class: cells computed by hand, runs put where they belong."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from scarcely.reports import label_sweep
from scarcely.reports.compare import main
from scarcely.reports.label_sweep import ALL, collect, draw, labels_of, markdown, name_of, print_tables
from scarcely.reports.runs import find_runs


def write(
    folder: Path,
    method: str = "mean_teacher",
    labels: int | None = 10,
    seed: int = 0,
    error: float | None = 0.2,
    pretext: str = "none",
    data: str = "digits",
    protocol: str = "split",
    split: dict[str, Any] | None = None,
    before: tuple[str, ...] = ("pretext",),
    **more: Any,
) -> Path:
    folder.mkdir(parents=True)
    metrics = {} if error is None else {"test/accuracy": 1 - error, "pseudo/accuracy": 0.5}
    results = {"method": method, "data": data, "seed": seed, "protocol": protocol, "metrics": metrics}
    own = {"name": data, "labels_per_class": labels, "labels_seed": seed, "labels_file": None}
    config: dict[str, Any] = {"seed": seed, "run_dir": str(folder), "pretext": pretext, "ckpt": None}
    config |= {"refine": None, "data": own | (split or {}), "method": {"name": method, "before": [*before]}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(yaml.safe_dump(config | more))
    return folder


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for seed in (0, 1, 2):
        for labels in (5, 20, 100):
            for pretext, worse in (("none", 0.3), ("rotnet", 0.0)):
                error = 1 / labels + worse + 0.01 * seed
                write(folder / f"{pretext} {labels} {seed}", "mean_teacher", labels, seed, error, pretext)
    for seed in (0, 1):
        write(folder / f"all {seed}", "supervised", None, seed, 0.02 + 0.02 * seed)
    write(folder / "few", "supervised", 5, 0, 0.4)
    return folder


def found(*folders):
    return find_runs(map(str, folders))


def test_cells_are_mean_and_deviation_of_the_test_error_over_the_seeds(runs):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown(collect(found(runs))).splitlines()
    ]
    assert rows[0] == ["method", "5", "20", "100", "all"]
    # 1/5 + 0.3 and 0, 1, 2 % more; the deviation of 0, 1, 2 is 1
    assert rows[2] == [
        "mean_teacher",
        "51.0 ± 1.0 (3 runs)",
        "36.0 ± 1.0 (3 runs)",
        "32.0 ± 1.0 (3 runs)",
        "–",
    ]
    assert rows[3] == [
        "mean_teacher + rotnet",
        "21.0 ± 1.0 (3 runs)",
        "6.0 ± 1.0 (3 runs)",
        "2.0 ± 1.0 (3 runs)",
        "–",
    ]
    # 2 % and 4 %: √2
    assert rows[4] == ["supervised", "40.0 (1 run)", "–", "–", "3.0 ± 1.4 (2 runs)"]
    assert len(rows) == 5


@pytest.mark.parametrize("width", [70, 200])
def test_the_table_of_the_terminal_has_the_same_cells_at_any_width(runs, width):
    stream = io.StringIO()
    print_tables(collect(found(runs)), Console(file=stream, width=width))
    text = stream.getvalue()
    assert "Test error on digits in %, by labels per class" in text
    assert max(map(len, text.splitlines())) <= width
    cells = {cell.strip() for line in text.splitlines() for cell in line.split("│")}
    expected = {70: {"51.0 ±1.0", "(3 runs)"}, 200: {"51.0 ± 1.0 (3 runs)"}}
    assert expected[width] <= cells


def test_the_picture_shows_means_deviations_and_a_dashed_line_for_all_labels(runs):
    figure = draw(collect(found(runs)))
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["5", "20", "100"]
    drawn = {}
    for container in axes.containers:
        line, _, (bars,) = container
        drawn[container.get_label()] = (line.get_xdata().tolist(), line.get_ydata().tolist())
        lengths = [high - low for (_, low), (_, high) in bars.get_segments()]
        assert lengths == pytest.approx([0.02] * 3 if len(lengths) == 3 else [0.0])
    assert drawn == {
        "mean_teacher": ([5, 20, 100], pytest.approx([0.51, 0.36, 0.32])),
        "mean_teacher + rotnet": ([5, 20, 100], pytest.approx([0.21, 0.06, 0.02])),
        "supervised": ([5], pytest.approx([0.4])),
    }
    (dashed,) = [line for line in axes.lines if line.get_marker() == "*"]
    assert list(dashed.get_ydata()) == pytest.approx([0.03, 0.03])
    assert dashed.get_linestyle() == "--"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*drawn, "supervised, all labels: 3.0 ± 1.4 %"]
    assert figure.get_suptitle().replace("\n", " ") == (
        "Test error on digits with 5 labels per class is lowest for mean_teacher + rotnet: 21.0 ± 1.0 %"
    )


def test_a_single_run_is_a_picture_too(tmp_path):
    figure = draw(collect(found(write(tmp_path / "a", labels=1, error=0.0))))
    assert figure.get_suptitle() == "Test error on digits with 1 label per class of mean_teacher: 0.0 %"
    assert np.isfinite(figure.axes[0].get_ylim()).all()


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"labels": 25}, 25),
        ({"method": "supervised", "labels": None}, ALL),
        ({"method": "supervised", "labels": None, "protocol": "all"}, None),
        ({"method": "supervised", "labels": None, "split": {"labelled_classes": [0, 1]}}, None),
        ({"method": "mean_teacher", "labels": None}, None),
    ],
)
def test_how_many_labels_a_run_had(tmp_path, changes, labels):
    (run,) = found(write(tmp_path / "run", **changes))
    assert labels_of(run) == labels


@pytest.mark.parametrize(("classes", "labels"), [("abab", 2), ("aab", None), ("", None), (None, None)])
def test_labels_from_a_file_are_counted(tmp_path, classes, labels):
    folder = write(tmp_path / "run", "supervised", None, split={"labels_file": "before/labelled.csv"})
    if classes is not None:
        rows = [f"{index},{name}" for index, name in enumerate(classes)]
        (folder / "labelled.csv").write_text("\n".join(["index,class", *rows]))
    assert labels_of(*found(folder)) == labels


def test_a_row_is_named_by_what_the_run_began_with(tmp_path):
    teacher = write(tmp_path / "teacher", pretext="rotnet")
    start = str(teacher / "weights.pt")
    names = {
        "mean_teacher + rotnet": teacher,
        "mean_teacher": write(tmp_path / "none"),
        "alternating_ssl refines mean_teacher + rotnet": write(
            *(tmp_path / "refined", "alternating_ssl"), pretext="rotnet", refine=start, ckpt=start
        ),
        "pi_model from mean_teacher + rotnet": write(tmp_path / "from", "pi_model", ckpt=str(teacher)),
        "pi_model from a checkpoint": write(tmp_path / "gone", "pi_model", ckpt="gone/weights.pt"),
        "pi_model + a checkpoint": write(tmp_path / "pretext", "pi_model", pretext="gone/weights.pt"),
        "kmeans": write(tmp_path / "kmeans", "kmeans", pretext="rotnet", before=()),
    }
    for name, folder in names.items():
        assert name_of(*found(folder)) == name


def test_other_seeds_and_choices_of_labels_are_no_other_settings(runs, tmp_path):
    assert label_sweep.notes(found(runs), collect(found(runs))) == []
    more = [*found(runs), *found(write(tmp_path / "long", labels=5, seed=7, epochs=500))]
    (told,) = label_sweep.notes(more, collect(more))
    assert told.endswith("differ in more than their seed: epochs")


def test_runs_that_tell_nothing_are_counted(runs, capsys):
    write(runs / "clustering", "lsdc", None, error=None)
    write(runs / "all samples", "supervised", None, protocol="all")
    (runs / "begun").mkdir()
    (runs / "begun" / "config.yaml").write_text("seed: 0")
    assert main(["labels", str(runs)]) == 0
    told = capsys.readouterr().err
    assert "note: 2 of 23 runs are left out" in told
    assert "note: 1 unfinished run is left out" in told


@pytest.mark.parametrize("option", [["out={}"], ["--out={}"], ["--out", "{}"]])
def test_the_command_prints_the_table_and_draws(runs, tmp_path, capsys, option):
    out = tmp_path / "labels.png"
    assert main(["labels", str(runs), *(part.format(out) for part in option)]) == 0
    captured = capsys.readouterr()
    assert "│ 51.0 ± 1.0 (3 runs) │" in captured.out
    assert "21 runs" in captured.err
    assert Image.open(out).size[0] > 500


def test_without_a_file_there_is_the_table_alone_as_markdown_if_asked(runs, capsys):
    assert main(["labels", str(runs), "--markdown"]) == 0
    assert "| mean_teacher | 51.0 ± 1.0 (3 runs) |" in capsys.readouterr().out
    assert main(["labels", str(runs), "markdown=maybe"]) == 2
    assert "true or false" in capsys.readouterr().err
    assert list(runs.parent.glob("*.png")) == []


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        ([], "no folder of runs"),
        (["gone"], "there is no folder gone"),
        (["empty"], "there is no finished run in empty"),
        (["begun"], "the run in begun is not finished"),
        (["one", "begun"], "the run in begun is not finished"),
        (["one", "two"], "of different data sets: digits, usps"),
        (["all"], "no run has learnt from few labels"),
        (["one", "out=gone/labels.png"], "cannot write"),
        (["one", "--out"], "there is no folder --out"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_message(tmp_path, monkeypatch, capsys, folders, told):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "one")
    write(tmp_path / "two", data="usps")
    write(tmp_path / "all", "supervised", None)
    for name in ("empty", "begun"):
        (tmp_path / name).mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("seed: 0")
    assert main(["labels", *folders]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert told in captured.err
    assert captured.out == ""


def test_an_accuracy_that_is_not_finite_is_left_out(tmp_path):
    write(tmp_path / "runs" / "a", error=0.1)
    write(tmp_path / "runs" / "b", seed=1, error=math.nan)
    runs = found(tmp_path / "runs")
    points = collect(runs)
    assert [point.values for point in points] == [[pytest.approx(0.1)]]
    assert "1 of 2 runs are left out" in label_sweep.notes(runs, points)[0]
