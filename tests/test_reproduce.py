"""Tables of the papers: what is chosen, what is read from runs, and what is kept of earlier ones."""

from __future__ import annotations

import json
import math
import re

import pytest

from scarcely import reproduce
from scarcely.errors import ConfigError, DataError
from scarcely.reproduce import (
    BEGIN,
    END,
    Experiment,
    choose,
    experiments,
    look,
    main,
    read,
    write,
    write_page,
)
from tests.reports.saliency_runs import METHODS, saliency_run, scores

TABLE = Experiment(
    "lsdc/table2_cifar10", "LSD-C table 2: CIFAR-10", {"acc": 0.817, "std": 0.009}, "0,1,2,3,4,5,6,7,8,9"
)
OURS = Experiment("lsdc/digits", "LSD-C on digits", {}, "0,1,2,3,4,5,6,7,8,9")


def run_in(folder, seed: int, acc: float, **settings) -> None:
    folder.mkdir(parents=True)
    results = {
        "method": "lsdc",
        "data": "cifar10",
        "seed": seed,
        "protocol": "all",
        "stages": [
            {"name": "pretext", "seconds": 900.0, "epochs": 2, "cached": seed > 0},
            {"name": "cluster", "seconds": 60.0 + seed, "epochs": 2, "cached": False},
        ],
        "metrics": {"acc": acc, "nmi": acc - 0.1},
        "samples": 60000,
        "expected": {"acc": 0.817, "std": 0.009},
        "command": f"python train.py seed={seed}",
        "environment": {"commit": "abc1234", "torch": "2.15.0", "device": "A processor", "threads": 1},
    }
    (folder / "results.json").write_text(json.dumps(results))
    lines = [f"{key}: {value}" for key, value in settings.items()]
    (folder / "config.yaml").write_text("\n".join(["data: {root: /sets/jpegs}", *lines]) + "\n")


def test_every_experiment_is_known_with_its_figures_and_seeds():
    known = {e.name: e for e in experiments()}
    assert len(known) > 100
    table = known["lsdc/table2_cifar10"]
    assert table.expected == {"acc": 0.817, "std": 0.009}
    assert table.seeds == "0,1,2,3,4,5,6,7,8,9"
    assert table.title == "LSD-C table 2: CIFAR-10, kNN labels, RICAP, RotNet pretext, all 60,000 images"
    assert known["ranking_statistics/digits"].expected == {}
    for experiment in known.values():
        assert experiment.title
        assert not re.search(r"Ours|python|\.$", experiment.title), experiment


def test_experiments_are_chosen_by_patterns():
    chosen = choose(experiments(), "lsdc/table2_*,ranking_statistics/digits")
    assert [e.name for e in chosen][:2] == ["lsdc/table2_cifar10", "lsdc/table2_cifar100_20"]
    assert chosen[-1].name == "ranking_statistics/digits"
    with pytest.raises(ConfigError, match="no experiment is named 'lsdc/table9'"):
        choose(experiments(), "lsdc/table2_*,lsdc/table9")
    with pytest.raises(ConfigError) as error:
        choose(experiments(), "normgrad/shape")
    assert "such as normgrad/shapes" in error.value.instead


def test_a_line_has_the_mean_over_seeds_and_all_that_makes_it_believable(tmp_path):
    for seed, acc in enumerate((0.80, 0.82, 0.84)):
        run_in(tmp_path / str(seed), seed, acc)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.yaml").write_text("seed: 4\n")
    (line,) = look(TABLE, tmp_path)
    assert (line.metric, line.n, line.seeds) == ("acc", 3, "0 1 2"), "one that is not finished is not counted"
    assert line.mean == pytest.approx(0.82)
    assert line.std == pytest.approx(0.02), "of a sample"
    assert (line.paper, line.paper_std) == (0.817, 0.009)
    assert (line.protocol, line.data, line.samples) == ("all", "cifar10 (jpegs)", "60000")
    assert line.seconds == pytest.approx((900 + 60 + 61 + 62) / 3), "a stage from the cache took no time"
    assert (line.device, line.commit) == ("A processor, 1 thread", "abc1234")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", line.date)
    (line,) = look(TABLE, tmp_path / "0")
    assert math.isnan(line.std), "one run has no deviation"
    assert look(TABLE, tmp_path / "nowhere") == []


def test_of_the_hundreds_of_scores_of_saliency_runs_a_few_are_kept(tmp_path):
    saliency_run(tmp_path / "0", maps={}, metrics=scores() | {"test/map": 0.93})
    saliency_run(tmp_path / "1", maps={}, metrics=scores(better=0.02), seed=1)
    lines = {line.metric: line for line in look(OURS, tmp_path)}
    assert set(lines) == {
        *("test/map", "pointing/center/all"),
        *(f"pointing/{m}/{at}/all" for m in METHODS for at in ("layer4", "combined-product-uniform")),
        *(f"pointing/{m}-meta/layer4/all" for m in METHODS[:2]),
    }
    best = lines["pointing/grad_cam/layer4/all"]
    assert (best.n, best.mean, best.std) == pytest.approx((2, 0.84, 0.02 / 2**0.5))


def test_runs_of_other_settings_are_a_line_of_their_own(tmp_path):
    run_in(tmp_path / "a", 0, 0.8, epochs=220)
    run_in(tmp_path / "b", 0, 0.2, epochs=1)
    lines = look(TABLE, tmp_path)
    assert {(line.settings, line.mean) for line in lines} == {("epochs=220", 0.8), ("epochs=1", 0.2)}


def test_lines_are_kept_where_there_is_no_run_and_replaced_where_there_is(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    run_in(runs / TABLE.name / "0", 0, 0.8)
    run_in(runs / OURS.name / "0", 0, 0.9)
    write([TABLE, OURS], runs, results)
    assert {(line.experiment, line.metric, line.mean) for line in read(results)} == {
        ("lsdc/table2_cifar10", "acc", 0.8),
        ("lsdc/digits", "acc", 0.9),
        ("lsdc/digits", "nmi", 0.8),
    }
    elsewhere = tmp_path / "elsewhere"  # another machine, with the same results
    run_in(elsewhere / OURS.name / "1", 1, 0.7)
    write([TABLE, OURS], elsewhere, results)
    kept = {(line.experiment, line.metric): line for line in read(results)}
    assert kept["lsdc/table2_cifar10", "acc"].mean == 0.8
    assert kept["lsdc/digits", "acc"].mean == 0.7
    (results / "lsdc.csv").write_text("experiment,mean\nlsdc/digits,much\n")
    with pytest.raises(DataError, match=r"lsdc\.csv is no table of results"):
        read(results)


def test_the_page_has_what_was_run_and_names_what_was_not(tmp_path):
    runs, results, page = tmp_path / "runs", tmp_path / "results", tmp_path / "RESULTS.md"
    page.write_text(f"# Ours\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    for seed, acc in enumerate((0.80, 0.82)):
        run_in(runs / TABLE.name / str(seed), seed, acc)
    write([TABLE], runs, results)
    write_page(page, read(results), [TABLE, OURS])
    text = page.read_text()
    assert text.startswith("# Ours\n\nbefore\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| `lsdc/table2_cifar10`"))
    for told in (
        "acc 81.7 ± 0.9",
        "acc 81.0 ± 1.4",
        "2: seeds 0 1",
        "all, cifar10 (jpegs), 60000",
        "8 min 30 s",
        "abc1234",
    ):
        assert told in row
    missing = text[text.index("Not run by scripts/reproduce.py: 1 experiments") :]
    assert "`lsdc/digits`" in missing
    assert "table2_cifar10" not in missing


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("only=lsdc/table9", "only"),
        ("train=yes", "train"),
        ("seed=3", "seed=3"),
        ("experiment=lsdc/digits", "experiment"),
        ("page={page}", "no place for the table"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(argument, named, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "train", lambda *_: pytest.fail("trained"))
    page = tmp_path / "page.md"
    page.write_text("# Nothing\n")
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(page=page), f"results={tmp_path}"]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_missing_is_trained_and_what_is_there_is_not(tmp_path, capfd):
    tiny = ["fast=true", "trainer=cpu", "backbone.width=4", "compare_kmeans=false", "embedding_size=0"]
    own = [f"runs={tmp_path / 'runs'}", f"results={tmp_path / 'results'}", f"page={tmp_path / 'RESULTS.md'}"]
    given = ["only=lsdc/digits", *own, *tiny, f"cache_dir={tmp_path / 'cache'}"]
    assert main([*given, "seeds=0,1"]) == 0
    files = sorted((tmp_path / "runs").rglob("results.json"))
    assert len(files) == 2
    before = [file.stat().st_mtime_ns for file in files]
    assert main([*given, "seeds=0,1,2"]) == 0
    assert [file.stat().st_mtime_ns for file in files] == before
    (acc,) = (line for line in read(tmp_path / "results") if line.metric == "acc")
    assert (acc.n, acc.seeds) == (3, "0 1 2")
    assert "`lsdc/digits`" in (tmp_path / "RESULTS.md").read_text()
    assert main([*given, "seeds=0", "data.size=5"]) == 2, "too small for this network"
    assert "lsdc/digits" in capfd.readouterr().err.rpartition("error:")[2]
