"""Numbers are written so that they can be compared."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from scarcely.reports import mean_std, print_class_count, print_results, results_table
from scarcely.reports.table import describe_metric, describe_protocol, format_metric, format_seconds
from tests.reports.runs import DISCOVERED, SCARCE, digits_run, discovery_run, results, scarce_run


def printed(run, width=100):
    stream = io.StringIO()
    print_results(run, Console(file=stream, width=width))
    return stream.getvalue()


def run(seed, acc, **changes):
    return results(seed=seed, metrics={"acc": acc}, **changes)


def test_mean_std_uses_the_deviation_of_a_sample():
    assert mean_std([0.80, 0.82, 0.84]) == "82.0 ± 2.0"  # √(0.0008 / 2)
    assert mean_std([0.8166]) == "81.7"
    assert mean_std([2543.0, 2545.0], scale=1, decimals=0) == "2544 ± 1"


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [float("inf")], [0.5, None]])
def test_a_failed_run_is_not_left_out_of_the_mean(values):
    assert mean_std(values) == "n/a"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        *(("acc", 0.8166, "81.7 %"), ("ari", -0.01, "-1.0 %"), ("domain/a b/accuracy", 1.0, "100.0 %")),
        *(
            ("decathlon/score", 2543.21, "2,543.2"),
            ("parameters/ratio", 1.4142, "1.41"),
            ("steps", 12345, "12,345"),
        ),
        *(
            ("acc", float("nan"), "n/a"),
            ("acc", None, "n/a"),
            ("pointing/normgrad/layer4/all", 0.5, "50.0 %"),
        ),
    ],
)
def test_fractions_become_percent_and_scores_stay(name, value, text):
    assert format_metric(name, value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.31, "8.3 s"), (59.99, "60.0 s"), (71.9, "1 min 12 s"), (3599.7, "1 h 00 min"), (None, "n/a")],
)
def test_durations_are_written_for_people(seconds, text):
    assert format_seconds(seconds) == text


def test_every_metric_that_the_design_names_is_explained():
    for name in (
        *(
            "acc",
            "nmi",
            "ari",
            "test/acc",
            "kmeans/acc",
            "new/acc",
            "test/old/acc",
            "test/new/acc",
            "test/all/acc",
        ),
        *("test/all/acc_joint", "test/old/accuracy", "test/accuracy", "pseudo/accuracy", "domain/x/accuracy"),
        *("decathlon/score", "parameters/ratio", "pointing/center/all", "sensitivity/normgrad/layer4"),
    ):
        assert describe_metric(name), name
    assert describe_metric("something/else") == ""
    assert "without any matching" in describe_metric("test/old/accuracy")


def test_terminal_shows_scores_beside_the_baseline_and_ends_with_the_report(tmp_path):
    (tmp_path / "report.html").touch()
    text = printed(digits_run(tmp_path))
    acc = next(line for line in text.splitlines() if "ACC" in line)
    assert acc.index("93.4 %") < acc.index("79.1 %")
    assert "10 clusters" in text
    assert "rotnet: 3 epochs, 8.3 s (from the cache)" in text
    assert "scored on the same samples" in " ".join(text.split())
    assert text.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"


def test_the_place_of_the_report_is_not_broken_into_lines(tmp_path):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    assert printed(digits_run(folder), width=40).splitlines()[-1] == f"run: {folder}", (
        "there is no report yet"
    )
    (folder / "report.html").touch()
    assert printed(digits_run(folder), width=40).splitlines()[-1] == f"report: {folder / 'report.html'}"


def test_sizes_are_listed_up_to_twenty_clusters(tmp_path):
    predicted = np.repeat([0, 1], [3, 5])
    few = digits_run(tmp_path, 8, predicted=predicted, num_clusters=3)
    many = digits_run(tmp_path, 8, predicted=predicted, num_clusters=21)
    assert "3 clusters, 0 to 5 samples, 1 empty: 3, 5, 0" in printed(few)
    assert "21 clusters, 0 to 5 samples, 19 empty\n" in "\n".join(
        line.rstrip() for line in printed(many).splitlines()
    )


def test_names_are_not_read_as_markup():
    text = printed(results(data="[red]cats[/red]", metrics={"[bold]x": 0.5}))
    assert "[red]cats[/red]" in text
    assert "[bold]x" in text


def test_the_test_split_has_a_row_of_its_own():
    text = printed(results(protocol="split", metrics={"acc": 0.9, "test/acc": 0.88}))
    assert any("test split" in line and "88.0 %" in line for line in text.splitlines())
    assert "train split alone" in " ".join(text.split())


def test_results_without_scores_are_printed():
    assert "lsdc on digits" in printed({"method": "lsdc", "data": "digits"})


def rows_of(table):
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    return [dict(zip(head, row)) for row in rows]


def test_seeds_of_one_group_are_averaged_and_groups_are_kept_apart():
    runs = [
        run(0, 0.80),
        run(10, 0.84),
        run(2, 0.82),
        run(0, 0.5, data="mnist"),
        run(0, 0.7, protocol="split"),
    ]
    digits, mnist, split = rows_of(results_table(runs))
    assert (digits["acc"], digits["runs"], digits["seeds"]) == ("82.0 ± 2.0", "3", "0, 2, 10")
    assert (mnist["data"], mnist["acc"], mnist["runs"]) == ("mnist", "50.0", "1")
    assert split["protocol"] == "split"
    assert digits["time"] == "1 min 20 s"


def test_runs_can_be_grouped_by_more():
    runs = [run(0, 0.8, labeler="knn"), run(0, 0.6, labeler="l2")]
    table = rows_of(results_table(runs, group_by=("method", "labeler")))
    assert [(row["labeler"], row["acc"]) for row in table] == [("knn", "80.0"), ("l2", "60.0")]


def test_a_metric_that_some_runs_lack_names_its_own_number():
    runs = [run(0, 0.8), results(seed=1, metrics={"acc": 0.8, "nmi": 0.5})]
    (row,) = rows_of(results_table(runs))
    assert row["nmi"] == "50.0 (n=1)"


def test_a_pipe_in_a_name_does_not_break_the_table():
    (line,) = results_table([run(0, 0.8, data="a|b\nc")]).splitlines()[2:]
    assert "a\\|b c" in line
    assert len(results_table([]).splitlines()) == 2


# --- Discovery


def test_every_metric_of_a_discovery_is_explained_in_its_own_words():
    told = {name: describe_metric(name) for name in DISCOVERED}
    assert all(told.values()), [name for name, text in told.items() if not text]
    ways = {told[f"test/old/{way}"] for way in ("acc", "acc_joint", "accuracy")}
    assert len(ways) == 3
    assert "raw inputs" in told["kmeans/new/acc"]
    assert "started from" in told["kmeans/features/new/acc"]


def test_new_classes_stand_beside_both_baselines(tmp_path):
    lines = printed(discovery_run(tmp_path), width=110).splitlines()
    head = next(line for line in lines if "this run" in line)
    assert head.index("this run") < head.index("raw inputs") < head.index("features before this stage")
    acc = next(line for line in lines if "ACC, new classes" in line)
    assert acc.index("90.6 %") < acc.index("68.1 %") < acc.index("65.1 %")
    assert any("NMI, new classes" in line and "77.9 %" in line for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_old_and_new_classes_are_a_table_of_three_ways_to_score(tmp_path, width):
    text = printed(discovery_run(tmp_path), width=width)
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:5]]
        for line in text.splitlines()
        if "test split, " in line or "trained on, " in line
    }
    assert rows["test split, old classes"] == ["96.5 %", "96.1 %", "95.3 %"]
    assert rows["test split, new classes"] == ["91.4 %", "91.1 %", "–"]
    assert rows["test split, old and new classes"] == ["93.9 %", "93.6 %", "–"]
    assert rows["trained on, old classes"] == ["95.0 %", "94.0 %", "100.0 %"]
    assert len(rows) == 6
    for metric in DISCOVERED:  # no loose line repeats the tables
        loose = any(line.startswith(f"{metric} ") for line in text.splitlines())
        assert loose == (metric in ("clusters/used", "confident/share", "confident/acc")), metric


def test_what_a_discovery_was_scored_on_is_said():
    split = describe_protocol(results(protocol="split", metrics=DISCOVERED))
    assert "headline is of the unlabelled classes of the train split" in split
    assert "labels of the old classes alone" in describe_protocol(results(protocol="all", metrics=DISCOVERED))
    assert "old classes" not in describe_protocol(results(protocol="split"))


# --- Few labels


def test_the_headline_of_a_classifier_is_its_accuracy_and_its_error(tmp_path):
    lines = printed(scarce_run(tmp_path)).splitlines()
    boxed = [[cell.strip() for cell in line.split("│")[1:3]] for line in lines if "│" in line]
    assert boxed == [["accuracy, test split", "90.5 %"], ["error, test split", "9.5 %"]]
    loose = dict(line.split(maxsplit=1) for line in lines if line.startswith(("train/", "pseudo/", "test/")))
    assert {key: value.strip() for key, value in loose.items()} == {
        "train/accuracy": "100.0 %",
        "pseudo/accuracy": "91.2 %",
        "test/ece": "0.0529",
    }


def test_an_error_that_cannot_be_had_is_not_made_up():
    lines = printed(results(metrics={"test/accuracy": None})).splitlines()
    assert [line.split("│")[2].strip() for line in lines if "test split" in line] == ["n/a", "n/a"]
    assert "error" not in printed(results())


def test_every_metric_of_few_labels_is_explained_and_what_it_is_of():
    assert all(describe_metric(name) for name in (*SCARCE, "1-test/accuracy"))
    assert "labelled" in describe_metric("train/accuracy")
    for protocol in ("all", "split"):
        told = describe_protocol(results(protocol=protocol, metrics=SCARCE))
        assert "few" in told
        assert "pseudo/" in told
    assert "few" not in describe_protocol(results(protocol="split", metrics={"test/accuracy": 0.5}))


# --- Number of new classes


def counted(estimate, **options):
    stream = io.StringIO()
    print_class_count(estimate, Console(file=stream, width=80, **options))
    return stream.getvalue()


def test_the_estimated_number_is_printed_among_its_neighbours():
    text = counted(
        {
            "num_new": 20,
            "candidates": list(range(1, 41)),
            "anchor_accuracy": [k / 100 for k in range(1, 41)],
            "silhouette": [float("nan")] + [0.5] * 39,
        }
    )
    assert "20 new classes estimated" in text
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in text.splitlines() if "│" in line]
    assert [row[0] for row in rows] == [
        *("1", "…", "16", "17", "18", "19", "→ 20", "21", "22", "23", "24", "…", "40")
    ]
    assert rows[0] == ["1", "1.0 %", "n/a"]
    assert rows[6] == ["→ 20", "20.0 %", "0.5"]


def test_an_estimate_without_curves_and_beside_its_candidates_is_printed(capsys):
    assert "1 new class estimated" in counted({"num_new": 1})
    assert "→" not in counted({"num_new": 3, "candidates": [4, 5]})
    print_class_count({"num_new": 2})
    captured = capsys.readouterr()
    assert "2 new classes" in captured.err
    assert captured.out == ""
