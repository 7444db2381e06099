"""Few labels: what the pictures of a run say of its phases, its pseudo-labels and its confidence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scarcely.reports import build_figures, figures
from scarcely.reports.figures import scarce, style
from tests.reports.runs import SCARCE, cycles, digits_run, history, results, scarce_run
from tests.reports.test_figures import Watched, pixels, texts


def test_a_run_with_few_labels_has_pictures_of_its_own(tmp_path):
    made = build_figures(scarce_run(tmp_path))
    assert list(made) == [
        *("confusion", "confident", "phases", "calibration", "sizes", "montage", "switched", "curves")
    ]
    assert "unlabelled samples" in figures.headline(made["confusion"])


def test_without_the_arrays_and_rows_there_are_none_of_them(tmp_path):
    absent = {"test_confidence": None, "test_correct": None, "switched_in": None, "history": history()}
    for run in (scarce_run(tmp_path, **absent), digits_run(tmp_path, features=None)):
        assert not {"phases", "calibration", "switched"} & set(build_figures(run))
    assert "switched" not in build_figures(scarce_run(tmp_path, images=None))


# --- Phases


def test_each_line_is_an_accuracy_by_cycle_and_the_bars_are_the_shares_that_switched():
    figure = figures.phases(cycles(3))
    left, right = figure.axes
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in left.lines]
    assert drawn == [
        ([0, 1, 2], pytest.approx([0.6, 0.7, 0.8])),
        ([0, 1, 2], pytest.approx([0.65, 0.75, 0.85])),
        ([0, 1, 2], pytest.approx([0.5, 0.6, 0.7])),
    ]
    names = [text.get_text() for text in left.get_legend().get_texts()]
    assert names == ["test, after phase one", "test, after phase two", "pseudo-labels"]
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in right.patches]
    assert bars == [(1, pytest.approx(0.3)), (2, pytest.approx(0.15))]
    assert (
        figures.headline(figure)
        == "Test accuracy in the last cycle: 80.0 % after phase one, 85.0 % after phase two"
    )


def test_a_cycle_that_was_run_again_counts_once_and_what_is_not_finite_not_at_all():
    rows = [{"cycle": 0.0, "a": 0.1}, {"cycle": 0.0, "a": 0.2}, {"cycle": 1.0, "a": float("nan")}, {"a": 0.3}]
    x, y = scarce.by_cycle(rows, "a")
    assert (x.tolist(), y.tolist()) == ([0.0], [0.2])


def test_without_a_test_split_the_pseudo_labels_are_told():
    rows = [{k: v for k, v in row.items() if not k.startswith("phase_")} for row in cycles(2)]
    assert figures.headline(figures.phases(rows)) == "In the last cycle 65.0 % of the pseudo-labels are right"
    assert figures.phases(history()) is None
    assert figures.phases([]) is None


# --- Calibration


def counted(confidence, correct, bins):
    """Count by hand: a bin holds its lower edge, the last one both."""
    rows = [[] for _ in range(bins)]
    for c, right in zip(confidence, correct):
        rows[next(b for b in range(bins) if c < (b + 1) / bins or b == bins - 1)].append((c, right))
    return rows


def test_bars_are_the_accuracies_of_the_bins_and_their_sizes_are_below(tmp_path):
    run = scarce_run(tmp_path)
    figure = figures.calibration(run.test_confidence, run.test_correct)
    upper, lower = figure.axes
    rows = counted(run.test_confidence, run.test_correct, 15)
    ece = 0.0
    for bar, below, row in zip(upper.patches, lower.patches, rows, strict=True):
        assert below.get_height() == len(row)
        assert bar.get_height() == pytest.approx(np.mean([right for _, right in row]) if row else 0)
        if row:
            mean, right = np.mean(row, axis=0)
            ece += len(row) / 200 * abs(mean - right)
    assert figures.headline(figure).endswith(f"(ECE) {ece:.3g}")
    written = [int(text.get_text()) for text in lower.texts]
    assert written == [len(row) for row in rows if row]
    (means,) = upper.collections
    lines = [segment[0, 1] for segment in means.get_segments()]
    assert lines == pytest.approx([np.mean(row, axis=0)[0] for row in rows if row])
    diagonal = upper.lines[0]
    assert (list(diagonal.get_xdata()), list(diagonal.get_ydata())) == ([0, 1], [0, 1])


def test_the_error_is_that_of_torchmetrics(tmp_path):
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    run = scarce_run(tmp_path)
    sizes, accuracy, mean = scarce.reliability(run.test_confidence, run.test_correct)
    # a binary one whose "probability of class 1" is the confidence, and whose label says whether it was right
    slow = binary_calibration_error(
        torch.tensor(run.test_confidence), torch.tensor(run.test_correct).long(), n_bins=15
    )
    assert np.nansum(sizes * abs(accuracy - mean)) / 200 == pytest.approx(float(slow), abs=1e-6)


def test_the_title_tells_the_error_that_was_measured(tmp_path):
    made = build_figures(scarce_run(tmp_path))
    assert figures.headline(made["calibration"]).endswith(f"(ECE) {SCARCE['test/ece']}")


def test_full_confidence_falls_into_the_last_bin_and_few_samples_are_pale():
    upper, lower = figures.calibration(np.ones(12), np.arange(12) < 9).axes
    assert [bar.get_height() for bar in lower.patches] == [0] * 14 + [12]
    assert upper.patches[14].get_height() == 0.75
    few = figures.calibration(np.ones(9), np.ones(9))
    assert few.axes[0].patches[14].get_facecolor() != upper.patches[14].get_facecolor()
    assert "fewer than 10 samples" in texts(few)
    assert figures.calibration(np.full(3, np.nan), np.ones(3)) is None


# --- Pseudo-labels that switched


def test_the_latest_switches_come_first_and_the_least_confident_of_them():
    last = np.array([0, 1, 3, 3, 2])
    sure = np.array([0.1, 0.9, 0.8, 0.7, 0.6])
    figure = figures.switched(
        Watched(5), last, np.array([0, 1, 0, 1, 0]), sure, np.arange(5) % 2, ("cat", "dog")
    )
    row = pixels(figure)[58 + 28, :, 0].tolist()
    shown = [value for value, run in itertools.groupby(row) if value < 10 and len(list(run)) == 50]
    assert shown == [3, 2, 4, 1]
    told = [text for text in texts(figure) if text.startswith("cycle ")]
    assert told == ["cycle 3", "cycle 3", "cycle 2", "cycle 1"]
    assert figures.headline(figure) == "4 of 5 pseudo-labels switched, 2 of them in cycle 3, the latest"
    assert (
        "right now: 100.0 % of those that switched in cycle 3, 100.0 % of those that never switched"
        in texts(figure)
    )


def test_a_wrong_name_is_red_beside_the_true_class():
    images = np.zeros((2, 50, 50, 1), np.uint8)
    red = np.array([0xBD, 0x1F, 0x01])
    for truth, wrong, told in (
        ([0, 1], True, {"truly cat", "truly dog"}),
        ([1, 1], False, {"truly dog"}),
        ([-1, -1], False, set()),
    ):
        figure = figures.switched(
            images, np.array([1, 2]), np.array([1, 1]), None, np.array(truth), ("cat", "dog")
        )
        assert (pixels(figure) == red).all(axis=-1).any() == wrong
        assert {text for text in texts(figure) if text.startswith("truly")} == told
        assert texts(figure).count("dog") == 2
        assert any(text.get_color() == style.WRONG for text in figure.texts) == wrong


def test_the_gallery_reads_the_shown_images_alone_and_in_file_order():
    images = Watched(200)
    figures.switched(images, np.arange(200) % 7, np.zeros(200, int))
    assert images.read == sorted(set(images.read))
    assert len(images.read) == 45


def test_nobody_switched_is_no_gallery(tmp_path):
    assert figures.switched(Watched(3), np.zeros(3, int), np.zeros(3, int)) is None
    run = scarce_run(tmp_path, switched_in=np.zeros(100, int), results=results(metrics=SCARCE))
    assert "switched" not in build_figures(run)
