"""Runs over several domains: every figure computed by hand, nothing twice, nothing cut off."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from PIL import Image
from rich.console import Console

from scarcely.metrics.decathlon import MAX_ERRORS
from scarcely.reports import Evidence, build_figures, print_results, write_report
from scarcely.reports.compare import main
from scarcely.reports.domain_table import (
    accuracy_grid,
    collect,
    draw,
    forgetting_grid,
    markdown,
    notes,
    print_tables,
)
from scarcely.reports.figures import domain_accuracies, domain_curves, headline, style
from scarcely.reports.runs import find_runs
from scarcely.reports.table import (
    describe_metric,
    describe_protocol,
    domain_grid,
    domain_points,
    other_metrics,
    source_domain,
    split_stage,
    stage_rows,
    stage_sentence,
)
from tests.oracles import decathlon as oracle


def domain_results(**changes: Any) -> dict[str, Any]:
    """Birds, of which a network of 1,000 parameters was trained, and two domains with 250 of their own."""
    rows = [
        {"name": "birds", "classes": 10, "train": 1200, "accuracy": 0.8, "parameters": 1000, "seconds": 61.2},
        {"name": "signs", "classes": 43, "train": 300, "accuracy": 0.5, "parameters": 250, "seconds": 30.0},
        {"name": "digits", "classes": 5, "train": 70, "accuracy": 0.9, "parameters": 250, "seconds": 11.8},
    ]
    left = dict(zip(("birds", "signs", "digits"), (None, 0.6, 0.25)))
    rows = [row | {"test": 100, "scored": "test", "source_accuracy": left[row["name"]]} for row in rows]
    metrics = {f"domain/{row['name']}/accuracy": row["accuracy"] for row in rows}
    metrics |= {f"domain/{name}/source_accuracy": value for name, value in left.items() if value is not None}
    metrics |= {"mean/accuracy": 2.2 / 3, "parameters/ratio": 1.5, "decathlon/score": 500.0}
    stages = ("birds supervised", "signs lwf", "digits lwf")
    return {
        "method": "lwf",
        "data": "decathlon",
        "seed": 0,
        "protocol": "split",
        "stages": [{"name": s, "epochs": 3, "seconds": 30.0, "cached": False} for s in stages],
        "metrics": metrics,
        "domains": rows,
        "max_errors": {"birds": 0.4, "signs": 1.0, "digits": 0.1},
    } | changes


def history(*stages: str, epochs: int = 4) -> list[dict[str, Any]]:
    """Losses fall from ten times the place of the stage on, so that the first is not the highest."""
    return [
        {"stage": s, "epoch": e, "loss": 10.0 * (i + 1) / (e + 1), "accuracy": 0.1 * (e + 1), "lr": 0.1}
        for i, s in enumerate(stages)
        for e in range(epochs)
    ]


def evidence(folder: Path, **changes: Any) -> Evidence:
    rows = history("birds supervised", "signs lwf", "digits lwf")
    return Evidence(
        **({"run_dir": folder, "config": {}, "results": domain_results(), "history": rows} | changes)
    )


def printed(results: Any, width: int = 80) -> str:
    stream = io.StringIO()
    print_results(results, Console(file=stream, width=width))
    return stream.getvalue()


# --- One run as a table


def test_the_table_holds_a_row_a_domain():
    head, rows = domain_grid(domain_results())
    assert [" ".join(name.split()) for name in head] == [
        *("domain", "classes", "training images", "accuracy %", "E_max %"),
        *("source after, %", "own parameters", "time s"),
    ]
    assert rows == [
        ["birds", "10", "1,200", "80.0", "40.0", "source", "1×", "61"],
        ["signs", "43", "300", "50.0", "100.0", "60.0", "0.25×", "30"],
        ["digits", "5", "70", "90.0", "10.0", "25.0", "0.25×", "12"],
    ]


def test_what_is_not_known_has_no_column_and_parameters_are_counted_without_a_network_of_the_source():
    results = domain_results(max_errors=None, stages=[{"name": "birds lwf"}])
    for row in results["domains"]:
        row["source_accuracy"] = None
    head, rows = domain_grid(results)
    assert not {"E_max\n%", "source\nafter, %"} & set(head)
    assert [row[head.index("own\nparameters")] for row in rows] == ["1,000", "250", "250"]


def test_the_terminal_says_each_figure_once_and_then_the_totals():
    text = printed(domain_results())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "signs 43 300 50.0 100.0 60.0 0.25× 30" in lines
    assert {"mean accuracy 73.3 %", "decathlon score S 500.0", "parameters, × one network 1.5"} <= set(lines)
    assert "domain/" not in text
    assert text.count("50.0") == 1
    assert other_metrics(domain_results()["metrics"]) == []
    assert other_metrics({"domain/x/accuracy": 0.5}) == [("domain/x/accuracy", "50.0 %")]  # no table shows it


def test_the_ten_domains_of_the_release_fit_into_eighty_letters_unbroken():
    results = domain_results()
    source, other, _ = results["domains"]
    first, *names = MAX_ERRORS
    results["domains"] = [source | {"name": first, "train": 1_281_167, "seconds": 99_999}]
    results["domains"] += [other | {"name": name} for name in names]
    results["max_errors"] = dict.fromkeys(MAX_ERRORS, 1.0)
    results["stages"] = [{"name": f"{first} supervised"}]
    lines = printed(results).splitlines()
    assert max(map(len, lines)) <= 80
    for name in MAX_ERRORS:
        assert len([line for line in lines if line.startswith(name) and line.rstrip()[-1].isdigit()]) == 1


def test_names_of_domains_are_text():
    results = domain_results()
    results["domains"][1]["name"] = "[red]signs[/red]"
    assert "[red]signs[/red]" in printed(results, 120)


def test_the_protocol_says_what_was_trained_on_and_what_was_scored():
    results = domain_results()
    assert describe_protocol(results) == (
        "Each domain: trained on its train and val parts, scored on its test part, which training never saw. "
        "All others start from the network of birds."
    )
    results["domains"][2]["scored"] = "val"
    for row in results["domains"]:
        row["decay_chosen_on"] = row["scored"]
    assert "was chosen on these images: accuracies are too high" in describe_protocol(results)
    for row in results["domains"]:
        row["decay_chosen_on"] = "another part"
    assert "weight decay" not in describe_protocol(results)
    told = describe_protocol(results)
    assert "birds, signs: trained on its train and val parts" in told
    assert "digits: trained on its train part alone, scored on its val part" in told
    for row in results["domains"]:
        row["scored"] = "val"
    assert "test" not in describe_protocol(results)


def test_stages_are_summed_up_by_method():
    stages = [
        {"name": "birds supervised", "epochs": 3, "seconds": 70.0, "cached": True},
        {"name": "signs adapters decay 0.0001", "epochs": 2, "seconds": 20.0, "cached": True},
        {"name": "signs adapters decay 0.002", "epochs": 2, "seconds": 20.0, "cached": False},
        {"name": "digits adapters", "epochs": 2, "seconds": 20.0, "cached": False},
        {"name": "signs lwf", "epochs": 1, "seconds": 1.0, "cached": True},
        {"name": "digits lwf", "epochs": 4, "seconds": 2.0, "cached": True},
        {"name": "everything", "epochs": 1, "seconds": 5.0, "cached": False},
    ]
    assert [stage_sentence(row) for row in stage_rows(domain_results(stages=stages))] == [
        "birds supervised: 3 epochs, 1 min 10 s (from the cache)",
        "adapters: 2 domains, 3 trainings, 2 epochs each, 1 min 00 s (1 from the cache)",
        "lwf: 2 domains, 1 to 4 epochs each, 3.0 s (all from the cache)",
        "everything: 1 epoch, 5.0 s",
    ]


def test_a_stage_belongs_to_the_domain_whose_whole_name_it_begins_with():
    names = ["my birds", "my", "birds"]
    assert split_stage("my birds lwf decay 0.1", names) == ("my birds", "lwf")
    assert split_stage("my lwf", names) == ("my", "lwf")
    assert split_stage("birdsong lwf", names) == ("", "birdsong lwf")


@pytest.mark.parametrize(
    ("stages", "source"),
    [
        (["birds supervised", "signs lwf", "digits lwf"], "birds"),
        (["birds adapters", "signs adapters", "birds lwf", "signs lwf"], None),  # the source came from a file
        (["birds lwf", "signs lwf"], None),  # each from scratch
        (["all lwf"], None),
        ([], None),
    ],
)
def test_the_source_is_the_first_domain_if_the_method_was_not_trained_on_it(stages, source):
    assert source_domain(domain_results(stages=[{"name": name} for name in stages])) == source


def test_every_metric_is_explained():
    for name in domain_results()["metrics"]:
        assert describe_metric(name), name
    assert "source" in describe_metric("domain/signs/source_accuracy")


error = st.floats(0, 1)


@given(
    st.dictionaries(
        st.text("abc", min_size=1), st.tuples(error, error.filter(lambda e: e > 1e-3)), min_size=1
    )
)
@settings(max_examples=60, deadline=None)
def test_points_of_all_domains_together_are_the_score(pairs):
    rows = [{"name": name, "accuracy": 1 - e} for name, (e, _) in pairs.items()]
    limits = {name: limit for name, (_, limit) in pairs.items()}
    points = domain_points({"domains": rows, "max_errors": limits})
    wanted = oracle.score({name: 1 - (1 - e) for name, (e, _) in pairs.items()}, limits)
    assert sum(points.values()) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_a_domain_without_any_error_when_fine_tuned_has_no_points():
    assert domain_points(domain_results(max_errors={"birds": 0.4, "digits": 0.0})) == {
        "birds": pytest.approx(250)
    }


# --- One run as pictures


def test_bars_are_accuracies_points_and_what_is_left_of_the_source():
    results = domain_results()
    figure = domain_accuracies(results["domains"], "birds", results["max_errors"], domain_points(results))
    assert headline(figure) == "Mean accuracy over 3 domains: 73.3 %, score S = 500 of 3,000"
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    np.testing.assert_allclose(widths, [[0.8, 0.5, 0.9], [250, 250, 0], [0, 0.6, 0.25]], atol=1e-9)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["birds (source)", "signs", "digits"]
    colors = [to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches]
    assert colors[0] != colors[1] == colors[2]
    # 1 − E_max, but no line where any accuracy brings points; before, dashed
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == pytest.approx([0.6, 0.9])
    assert [line.get_xdata()[0] for line in figure.axes[2].lines] == [0.8]
    assert [text.get_text() for text in figure.axes[2].texts] == ["–", "60.0 %", "25.0 %"]
    assert figure.axes[2].get_xlim()[1] > 0.8


def test_panels_are_there_where_their_numbers_are():
    rows = [row | {"source_accuracy": None} for row in domain_results()["domains"]]
    assert len(domain_accuracies(rows).axes) == 1
    some = domain_accuracies(rows, "birds", None, {"birds": 250.0})
    assert len(some.axes) == 2
    assert "score" not in headline(some)  # it is of all or of none
    rows[1]["source_accuracy"] = 0.6
    left = domain_accuracies(rows).axes[-1]
    assert [text.get_text() for text in left.texts] == ["–", "60.0 %", "–"]
    assert left.lines[:] == []  # what it was before is not known


def test_curves_have_a_column_a_method_and_a_line_a_domain():
    rows = history("birds supervised", "signs adapters", "digits adapters", "signs lwf", "digits lwf")
    figure = domain_curves(rows, ["birds", "signs", "digits"])
    assert headline(figure) == "Training on 3 domains: supervised, then adapters, then lwf"
    grid = np.array(figure.axes).reshape(3, 3)
    assert [axes.get_title(loc="left") for axes in grid[0]] == [
        *("supervised, birds", "adapters, 2 domains", "lwf, 2 domains")
    ]
    lines = [line for line in grid[0, 1].lines if line.get_marker() != "x"]
    np.testing.assert_allclose([line.get_ydata()[0] for line in lines], [20, 30])
    signs, digits, birds = (to_hex(line.get_color()) for line in (*lines, grid[0, 0].lines[0]))
    assert len({signs, digits, birds}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["birds", "signs", "digits"]
    for axes in grid.ravel():  # the panels of a row share their scale: nothing of a later one is cut off
        low, high = axes.get_ylim()
        drawn = np.concatenate([line.get_ydata() for line in axes.lines if line.get_marker() != "x"])
        assert low <= drawn.min() <= drawn.max() <= high


def test_a_training_that_was_tried_is_pale_and_the_last_is_not():
    rows = history("signs adapters decay 0.1", "signs adapters decay 0.2", "signs adapters")
    drawn = [line for line in domain_curves(rows, ["signs"]).axes[0].lines if line.get_marker() != "x"]
    assert [line.get_alpha() < 1 for line in drawn] == [True, True, False]
    assert len({to_hex(line.get_color()) for line in drawn}) == 1


def test_a_loss_that_is_not_finite_is_a_cross_and_an_epoch_run_again_counts_once():
    rows = history("signs lwf")
    rows[2]["loss"] = math.nan
    rows.append({"stage": "signs lwf", "epoch": 0, "loss": 7.0})
    line, crosses = domain_curves(rows, ["signs"]).axes[0].lines
    assert crosses.get_xdata().tolist() == [2]
    assert line.get_ydata()[0] == 7.0
    assert len(line.get_ydata()) == 4


def test_nothing_measured_is_no_curve():
    assert domain_curves([], ["signs"]) is None
    assert domain_curves([{"stage": "signs lwf", "epoch": 0, "loss": math.nan}], ["signs"]) is None


@pytest.mark.parametrize("number", [1, 20])
def test_any_number_of_domains_with_any_names_is_drawn(tmp_path, number):
    names = [f"$domain_{i}$ \x00 of a long name" for i in range(number)]
    row = domain_results()["domains"][1]
    results = domain_results(domains=[row | {"name": name} for name in names], max_errors=None)
    stages = [f"{name} {method}" for name in names for method in ("adapters", "lwf")]
    results["stages"] = [{"name": stage} for stage in stages]
    figures = build_figures(evidence(tmp_path, results=results, history=history(*stages, epochs=1)))
    assert list(figures) == ["domains", "curves"]
    for figure in figures.values():
        assert "could not be drawn" not in " ".join(text.get_text() for text in figure.texts)
        style.to_png(figure)


def test_the_page_shows_the_table_the_pictures_and_the_stages(tmp_path):
    page = write_report(evidence(tmp_path)).read_text(encoding="utf-8")
    assert '<th scope="row">signs</th><td class="number">43</td><td class="number">300</td>' in page
    assert '<th scope="row">lwf: 2 domains</th><td>3 each</td><td class="time">1 min 00 s</td>' in page
    assert "500.0" in page
    assert "the bars of the source darker" in page
    assert "domain/signs" not in page
    for name in ("domains", "curves"):
        assert Image.open(tmp_path / "figures" / f"{name}.png").size[0] > 500


# --- Many runs


def write(
    folder: Path,
    method: str,
    seed: int = 0,
    accuracies: tuple[float, ...] = (0.8, 0.5, 0.9),
    left: tuple[float, ...] | None = None,
    score: float | None = None,
    ratio: float = 1.5,
    limits: dict[str, float] | None = None,
    scored: str = "test",
    data: str = "decathlon",
    config: dict[str, Any] | None = None,
    **own: Any,
) -> Path:
    """Write a run on birds (the source), signs and digits, or on the first of them."""
    folder.mkdir(parents=True)
    names = ("birds", "signs", "digits")[: len(accuracies)]
    after = (None, *(left or [None] * (len(names) - 1)))
    rows = [
        {"name": name, "accuracy": a, "source_accuracy": b, "scored": scored, "parameters": 10}
        for name, a, b in zip(names, accuracies, after, strict=True)
    ]
    metrics = {"mean/accuracy": sum(accuracies) / len(accuracies), "parameters/ratio": ratio}
    metrics |= {} if score is None else {"decathlon/score": score}
    stages = [
        {"name": f"{name} {'lwf' if i == 0 and method != 'lwf' else method}"} for i, name in enumerate(names)
    ]
    results = {"method": method, "data": data, "seed": seed, "protocol": "split", "metrics": metrics}
    results |= {"domains": rows, "stages": stages, "max_errors": limits}
    settings = {"seed": seed, "run_dir": str(folder), "data": {"name": data, "labels_seed": seed}}
    settings |= {"method": {"name": method, **own}, "ckpt": None} | (config or {})
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for seed in (0, 1):
        more = 0.04 * seed
        write(
            folder / f"a{seed}",
            "finetune",
            seed,
            (0.8, 0.5, 0.9),
            (0.05, 0.1),
            700.0 + 10 * seed,
            3.0,
            last=None,
        )
        for i, where in enumerate(("all", "early")):
            accuracies = (0.8, 0.5 + more - 0.1 * i, 0.9)
            write(folder / f"{where}{seed}", "parallel", seed, accuracies, (0.8, 0.8), where=where)
    return folder


def found(*folders):
    return find_runs(map(str, folders))


def test_cells_are_means_over_the_seeds_of_each_method_and_placement(runs):
    head, rows = accuracy_grid(collect(found(runs)))
    assert head == ["method", "parameters", "birds", "signs", "digits", "mean", "S", "runs"]
    assert rows == [
        # 700 and 710: 705 ± 5 √2
        ["finetune", "3.00×", "80.0 ± 0.0", "50.0 ± 0.0", "90.0 ± 0.0", "73.3 ± 0.0", "705 ± 7", "2"],
        # E_max 0.4, 1, 0.2: S 750 and 250 + 0.54² · 1000 + 250; signs 50 and 54, mean 73.33 and 74.67
        [
            *("parallel, where = all", "1.50×", "80.0 ± 0.0", "52.0 ± 2.8"),
            *("90.0 ± 0.0", "74.0 ± 0.9", "771 ± 29", "2"),
        ],
        # 250 + 0.4² · 1000 + 250 and 250 + 0.44² · 1000 + 250
        [
            *("parallel, where = early", "1.50×", "80.0 ± 0.0", "42.0 ± 2.8"),
            *("90.0 ± 0.0", "70.7 ± 0.9", "677 ± 24", "2"),
        ],
    ]


def test_the_second_table_holds_the_accuracy_on_the_source_and_on_the_domain(runs):
    head, rows = forgetting_grid(collect(found(runs)))
    assert head == ["method", "birds before", "signs", "digits"]
    assert rows[:2] == [
        ["finetune", "80.0 ± 0.0", "5.0 ± 0.0 / 50.0 ± 0.0", "10.0 ± 0.0 / 90.0 ± 0.0"],
        ["parallel, where = all", "80.0 ± 0.0", "80.0 ± 0.0 / 52.0 ± 2.8", "80.0 ± 0.0 / 90.0 ± 0.0"],
    ]


def test_methods_that_were_not_tried_on_the_source_again_are_not_in_the_second_table(tmp_path):
    write(tmp_path / "a", "lwf")
    assert forgetting_grid(collect(found(tmp_path))) is None
    write(tmp_path / "b", "finetune", left=(0.1, 0.2), last=None)
    assert [row[0] for row in forgetting_grid(collect(found(tmp_path)))[1]] == ["finetune"]


def test_the_best_mean_and_the_best_score_are_bold_in_markdown(runs):
    text = markdown(collect(found(runs)))
    assert text.count("**") == 4
    assert "**74.0 ± 0.9** | **771 ± 29** | 2 |" in text
    assert "**" not in str(accuracy_grid(collect(found(runs))))


def test_a_mean_over_fewer_domains_is_told_and_never_the_best(runs):
    write(runs / "b", "bn", accuracies=(0.99,), score=1000.0)
    rows = collect(found(runs))
    assert "| bn | 1.50× | 99.0 | – | – | 99.0 | 1000 | 1 |" in markdown(rows)
    assert "**74.0" in markdown(rows)
    assert "bn: without signs, digits; its mean and S are of fewer domains" in notes(found(runs), rows)
    assert "parallel, where = all" in headline(draw(rows))


def test_a_score_is_computed_where_a_finetune_run_of_the_seed_is_there_and_told(runs):
    rows = collect(found(runs))
    assert [row.computed for row in rows] == [0, 2, 2]
    assert notes(found(runs), rows) == [
        "S of 4 runs is computed here, with E_max from the finetune run of the same seed"
    ]
    write(runs / "late", "parallel", 2, where="all")
    rows = collect(found(runs))
    assert rows[1].scores[2] is None
    assert "771 ± 29 (n=2)" in accuracy_grid(rows)[1][1]
    assert any("for want of a finetune run of seed 2" in note for note in notes(found(runs), rows))


def test_e_max_is_of_the_whole_network_and_of_the_run_most_alike(tmp_path):
    write(tmp_path / "two", "finetune", accuracies=(0.7, 0.7, 0.7), last=2)
    write(tmp_path / "wide", "finetune", accuracies=(0.9, 0.9, 0.9), last=None, config={"width": 64})
    write(tmp_path / "thin", "finetune", accuracies=(0.8, 0.8, 0.8), last=None, config={"width": 32})
    write(tmp_path / "x", "bn", accuracies=(0.9, 0.9, 0.9), config={"width": 32})
    (row,) = [row for row in collect(found(tmp_path)) if row.name == "bn"]
    assert row.scores == [pytest.approx(3 * 562.5)]  # ((0.4 − 0.1) / 0.4)² · 1000 each


def test_fine_tuning_without_any_error_gives_no_score(tmp_path):
    write(tmp_path / "a", "finetune", accuracies=(0.8, 0.8, 1.0), last=None)
    write(tmp_path / "x", "bn")
    rows = collect(found(tmp_path))
    assert [row.scores for row in rows] == [[None], [None]]
    assert "S" not in accuracy_grid(rows)[0]


def test_checkpoints_and_devices_do_not_make_rows_but_devices_are_told(tmp_path):
    for seed, device in enumerate(("cpu", "gpu")):
        config = {"ckpt": f"sources/{seed}", "trainer": {"accelerator": device}}
        write(tmp_path / str(seed), "bn", seed, config=config)
    rows = collect(found(tmp_path))
    assert [len(row.runs) for row in rows] == [2]
    assert any("trainer.accelerator" in note and "ckpt" not in note for note in notes(found(tmp_path), rows))


def test_runs_that_cannot_be_compared_are_told(tmp_path):
    write(tmp_path / "a", "bn", score=1.0, limits={"birds": 0.4}, config={"data": {"image_size": 64}})
    write(
        tmp_path / "b",
        "lwf",
        score=1.0,
        limits={"birds": 0.5},
        scored="val",
        config={"data": {"image_size": 32}},
    )
    write(tmp_path / "c", "lwf", score=1.0, scored="val", config={"data": {"image_size": 32}})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "results.json").write_text('{"method": "lsdc", "metrics": {"acc": 0.5}}')
    told = notes(found(tmp_path), collect(found(tmp_path)))
    assert told == [
        "1 of 4 runs are left out: they are not over several domains",
        "the rows differ in more than their method: data.image_size",
        "lwf: 1 of its runs repeat a seed, the deviation is too small",
        "some runs are scored on the val part and others on the test part of birds, signs, digits",
        "S of runs of one seed is against different E_max: they cannot be compared by it",
    ]


def test_runs_that_differ_in_many_settings_are_named_by_their_folders(tmp_path):
    for i in (1, 2):
        write(tmp_path / f"run{i}", "bn", **{key: i for key in "abcde"})
    assert [row.name for row in collect(found(tmp_path))] == [f"bn ({tmp_path / f'run{i}'})" for i in (1, 2)]


def test_the_picture_has_a_panel_a_domain_a_dot_a_method_and_the_fine_tuned_as_a_line(runs):
    figure = draw(collect(found(runs)))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == [
        *("birds (source), %", "signs, %", "digits, %", "mean, %", "score S")
    ]
    signs = panels[1]
    assert [c.lines[0].get_xdata()[0] for c in signs.containers] == pytest.approx([50, 52, 42])
    assert [c.lines[0].get_ydata()[0] for c in signs.containers] == [0, 1, 2]
    (bars,) = signs.containers[1].lines[2]
    (low, _), (high, _) = bars.get_segments()[0]
    assert (high - low) / 2 == pytest.approx(2 * math.sqrt(2))
    assert signs.lines[0].get_xdata()[0] == pytest.approx(50)
    assert [t.get_text() for t in panels[0].get_yticklabels()] == [
        *("finetune", "parallel, where = all", "parallel, where = early")
    ]
    low, high = panels[0].get_xlim()
    assert high - low == pytest.approx(2)  # all alike: the scale is not that of rounding errors


def test_a_narrow_terminal_gets_the_table_in_parts_that_hold_every_cell(runs):
    rows = collect(found(runs))
    stream = io.StringIO()
    print_tables(rows, Console(file=stream, width=60))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    cells = [cell.strip() for line in lines for cell in line.split("│")]
    for head_and_rows in (accuracy_grid(rows), forgetting_grid(rows)):
        for row in head_and_rows[1]:
            assert set(row) <= set(cells)


def test_the_command_prints_both_tables_and_draws(runs, capsys):
    out = runs / "domains.png"
    assert main(["domains", str(runs), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "771 ± 29" in captured.out
    assert "5.0 ± 0.0 / 50.0 ± 0.0" in captured.out
    assert "6 runs" in captured.err
    assert Image.open(out).size[0] > 500
    assert main(["domains", str(runs), "markdown=true"]) == 0
    assert capsys.readouterr().out == markdown(collect(found(runs)))


def test_what_has_no_table_is_told_in_one_message(runs, tmp_path, capsys):
    write(runs / "other", "bn", data="mine")
    assert main(["domains", str(runs)]) == 2
    assert "different data sets: decathlon, mine" in capsys.readouterr().err
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "results.json").write_text('{"method": "lsdc", "metrics": {"acc": 0.5}}')
    assert main(["domains", str(alone)]) == 2
    assert "no run is over several domains" in capsys.readouterr().err
