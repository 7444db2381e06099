"""Figures of several runs: grouped as asked, honest about what is averaged, clear about mistakes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from scarcely.reports import runs as runs_module
from scarcely.reports.compare import main
from scarcely.reports.curve import collect, curve, notes, table_of
from scarcely.reports.runs import find_runs
from tests.reports.runs import discovery_run


def write(
    folder: Path, k: Any = 5, seed: int = 0, acc: float | None = 0.9, data: str = "digits", **more: Any
):
    folder.mkdir(parents=True)
    metrics = {} if acc is None else {"new/acc": acc, "test/accuracy": acc / 2}
    results = {"method": "ranking_statistics", "data": data, "seed": seed, "protocol": "split"}
    results |= {"metrics": metrics, "stages": [{"name": "joint", "seconds": 60.0}]}
    labeler = {"_target_": "scarcely.functional.pairwise.rank_adjacency", "k": k}
    config = {"seed": seed, "run_dir": str(folder), "data": {"name": data}, "method": {"labeler": labeler}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(yaml.safe_dump(config | more))
    return folder


@pytest.fixture
def runs(tmp_path):
    for data, better in (("digits", 0.0), ("usps", 0.1)):
        for k in (1, 5, 50):
            for seed in (0, 1):
                acc = 0.5 + better + 0.1 * (k == 5) + 0.02 * seed
                write(tmp_path / "runs" / data / f"k{k} seed{seed}", k, seed, acc, data)
    return tmp_path / "runs"


def draw(runs, *arguments):
    return main(["curve", str(runs), *arguments])


def test_runs_are_found_at_any_depth_and_once(runs):
    found = find_runs([str(runs / "usps"), str(runs), str(runs / "digits" / "k1 seed0")])
    assert len(found) == 12
    assert found[0].results["data"] == "usps"


def test_points_are_means_over_the_seeds_of_each_line(runs):
    points = collect(find_runs([str(runs)]), "method.labeler.k", "new/acc", "data")
    assert [(p.line, p.x) for p in points] == [(d, k) for d in ("digits", "usps") for k in (1, 5, 50)]
    best = points[4]
    assert sorted(best.values) == pytest.approx([0.7, 0.72])
    assert best.mean == pytest.approx(0.71)
    assert best.std == pytest.approx(np.std([0.7, 0.72], ddof=1))


def test_the_curve_shows_means_deviations_and_every_run(runs):
    points = collect(find_runs([str(runs / "digits")]), "method.labeler.k", "new/acc")
    figure = curve(points, "method.labeler.k", "new/acc")
    axes = figure.axes[0]
    assert figure.get_suptitle() == "new/acc is highest at k = 5: 61.0 ± 1.4 %"
    (line, _, (bars,)) = axes.containers[0]
    assert line.get_xdata().tolist() == [1, 5, 50]
    np.testing.assert_allclose(line.get_ydata(), [0.51, 0.61, 0.51])
    low, high = bars.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(0.02 / np.sqrt(2))
    rings = [ring for ring in axes.lines if str(ring.get_markerfacecolor()) == "white"]
    assert sorted(y for ring in rings for y in ring.get_ydata()) == pytest.approx(
        sorted(value for point in points for value in point.values)
    )


@pytest.mark.parametrize(
    ("values", "scale"), [((1, 5, 50), "log"), ((1, 5, 10), "linear"), ((0, 50), "linear")]
)
def test_more_than_a_decade_is_logarithmic(tmp_path, values, scale):
    for k in values:
        write(tmp_path / str(k), k)
    figure = curve(collect(find_runs([str(tmp_path)]), "method.labeler.k", "new/acc"), "k", "new/acc")
    assert figure.axes[0].get_xscale() == scale
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [str(k) for k in values]


def test_words_stand_side_by_side_with_no_line_between(tmp_path):
    for value in ("auto", None, 3):
        write(tmp_path / str(value), value)
    points = collect(find_runs([str(tmp_path)]), "method.labeler.k", "new/acc")
    axes = curve(points, "method.labeler.k", "new/acc").axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["3", "auto", "null"]
    assert axes.containers[0][0].get_linewidth() == 0


def test_a_path_of_ours_is_named_by_its_last_word(runs):
    points = collect(find_runs([str(runs)]), "method.labeler", "new/acc", "method.labeler._target_")
    assert (
        {runs_module.shown(p.x) for p in points}
        == {runs_module.shown(p.line) for p in points}
        == {"rank_adjacency"}
    )


def test_an_error_is_one_less_the_metric_and_its_best_is_the_lowest(runs):
    points = collect(find_runs([str(runs)]), "method.labeler.k", "1-test/accuracy", "data")
    figure = curve(points, "method.labeler.k", "1-test/accuracy", "data")
    assert points[0].mean == pytest.approx(1 - 0.51 / 2)
    assert "lowest at k = 5 (usps): 64.5 ± 0.7 %" in figure.get_suptitle()


def test_the_table_holds_what_is_drawn(runs, capsys):
    out = runs / "k.png"
    assert draw(runs, "x=method.labeler.k", "y=new/acc", "by=data", f"out={out}") == 0
    printed = capsys.readouterr().out
    assert "| digits | 5 | 61.0 ± 1.4 | 2 | 0, 1 | 1 min 00 s |" in printed
    assert "| usps | 50 | 61.0 ± 1.4 | 2 | 0, 1 | 1 min 00 s |" in printed
    assert len(printed.splitlines()) == 2 + 6
    assert Image.open(out).size[0] > 500


def test_the_name_of_the_file_says_its_format(runs):
    out = runs / "k.svg"
    assert draw(runs, "x=method.labeler.k", "y=new/acc", f"out={out}") == 0
    assert ET.parse(out).getroot().tag.endswith("svg")


def test_runs_that_are_not_alike_are_not_averaged_in_silence(runs, tmp_path):
    found = find_runs([str(runs)])
    points = collect(found, "method.labeler.k", "new/acc")
    (told,) = notes(found, points, "method.labeler.k")
    assert "data" in told
    assert (
        notes(found, collect(found, "method.labeler.k", "new/acc", "data"), "method.labeler.k", "data") == []
    )


def test_runs_without_the_metric_are_counted(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", seed=1, acc=None)
    found = find_runs([str(tmp_path)])
    points = collect(found, "method.labeler.k", "new/acc")
    assert notes(found, points, "method.labeler.k") == [
        "1 of 2 runs are left out: they lack the setting or the metric"
    ]
    assert "| 5 | 90.0 | 1 | 0 |" in table_of(points, "method.labeler.k", "new/acc")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x": "labeler.k"}, "method.labeler.k"),
        ({"x": "method.labler.k"}, "method.labeler.k"),
        ({"x": "nothing.alike"}, "one of method.labeler.k"),
        ({"y": "acc"}, "new/acc"),
        ({"y": "new/ac"}, "new/acc"),
        ({"by": "dta"}, "data"),
        ({"z": "1"}, "there is no setting 'z'"),
        ({"out": "nowhere/k.png"}, "cannot write"),
        ({"out": "k.tex"}, ".png, .pdf or .svg"),
    ],
)
def test_a_mistake_is_told_in_one_message(runs, tmp_path, monkeypatch, capsys, changes, told):
    monkeypatch.chdir(tmp_path)
    given = {"x": "method.labeler.k", "y": "new/acc", "out": "k.png"} | changes
    assert draw(runs / "digits", *(f"{key}={value}" for key, value in given.items())) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert told in captured.err
    assert captured.out == ""
    assert not (tmp_path / "k.png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["curve"], "out, x, y must be given"),
        (["curve", "empty", "x=seed", "y=acc", "out=k.png"], "there is no finished run"),
        (["curve", "gone", "x=seed", "y=acc", "out=k.png"], "there is no folder"),
        (["curve", "x=seed", "y=acc", "out=k.png"], "no folder of runs"),
        (["kurve", "empty"], "there is no figure 'kurve'"),
        (["embedding", "empty"], "out must be given"),
    ],
)
def test_what_cannot_be_drawn_is_told(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_without_arguments_it_says_how(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.count("python scripts/figure.py curve") == 2


def test_a_results_file_that_is_cut_off_is_named(runs, capsys):
    (runs / "digits" / "k1 seed0" / "results.json").write_text('{"metrics": ')
    assert draw(runs, "x=seed", "y=new/acc", f"out={runs / 'k.png'}") == 2
    assert "k1 seed0" in capsys.readouterr().err


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path):
    write(tmp_path / "k=5")
    assert draw(tmp_path / "k=5", "x=seed", "y=new/acc", f"out={tmp_path / 'k.png'}") == 0


def discovered(folder, incremental):
    write(folder, method={"name": "ranking_statistics", "incremental": incremental})
    run = discovery_run(folder)
    run.save()
    return folder


def test_embeddings_of_two_runs_are_named_by_what_they_differ_in(tmp_path, monkeypatch):
    runs = [discovered(tmp_path / str(i), bool(i)) for i in (0, 1)]
    assert runs_module.names_of(find_runs(map(str, runs))) == [
        *("method.incremental = false", "method.incremental = true")
    ]
    out = tmp_path / "both.png"
    assert main(["embedding", *map(str, runs), f"out={out}"]) == 0
    width, height = Image.open(out).size
    assert width > 1.8 * height


def test_an_embedding_needs_features(tmp_path, capsys):
    write(tmp_path / "a")
    assert main(["embedding", str(tmp_path / "a"), f"out={tmp_path / 'a.png'}"]) == 2
    assert "kept no features" in capsys.readouterr().err


def test_runs_alike_in_all_settings_are_named_by_their_folders(tmp_path):
    runs = [write(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    assert runs_module.names_of(find_runs(map(str, runs))) == ["a", "b"]
