"""Numbers are written so that they can be compared."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from scarcely.reports import mean_std, print_results, results_table
from scarcely.reports.table import describe_metric, format_metric, format_seconds
from tests.reports.runs import digits_run, results


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
    text = printed(digits_run(tmp_path))
    acc = next(line for line in text.splitlines() if "ACC" in line)
    assert acc.index("93.4 %") < acc.index("79.1 %")
    assert "10 clusters" in text
    assert "rotnet: 3 epochs, 8.3 s (from the cache)" in text
    assert "scored on the same samples" in " ".join(text.split())
    assert text.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"


def test_the_place_of_the_report_is_not_broken_into_lines(tmp_path):
    folder = tmp_path / ("x" * 90)
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
