"""What a run writes down is what the report reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scarcely.errors import DataError
from scarcely.reports import Evidence
from scarcely.reports.evidence import confusion_counts
from tests.reports.runs import digits_run, results, scarce_run


def finish(folder, rows="stage,epoch,loss\npretext,0,1.5\n"):
    """Write the files of a run that the report does not write itself."""
    (folder / "results.json").write_text(json.dumps(results()))
    (folder / "config.yaml").write_text("seed: 0\nlr: 1e-4\nname: ${method.name}\n")
    (folder / "metrics.csv").write_text(rows)


def test_saved_arrays_come_back_the_same(tmp_path):
    run = digits_run(tmp_path, test={"counts": np.arange(6).reshape(2, 3)}, classes=("a", "b<", "ü"))
    finish(tmp_path)
    run.save()
    back = Evidence.load(tmp_path, images=run.images, names=["x"] * len(run.predicted))
    for key in ("predicted", "confidence", "labels", "features", "feature_index", "images"):
        np.testing.assert_array_equal(getattr(back, key), getattr(run, key))
    assert (back.kind, back.classes, back.num_clusters) == ("clustering", ("a", "b<", "ü"), 10)
    np.testing.assert_array_equal(back.test["counts"], run.test["counts"])
    assert back.results == results()


def test_arrays_of_a_run_with_few_labels_come_back_the_same(tmp_path):
    run = scarce_run(tmp_path)
    finish(tmp_path)
    run.save()
    back = Evidence.load(tmp_path, results=run.results)
    for key in ("test_confidence", "test_correct", "switched_in"):
        np.testing.assert_array_equal(getattr(back, key), getattr(run, key))
        assert getattr(back, key).dtype == getattr(run, key).dtype
    assert back.scarce
    assert not digits_run(tmp_path).scarce


def test_config_keeps_numbers_and_interpolations(tmp_path):
    finish(tmp_path)
    assert Evidence.load(tmp_path).config == {"seed": 0, "lr": 1e-4, "name": "${method.name}"}


def test_empty_and_cut_cells_are_absent_and_nan_is_kept(tmp_path):
    finish(tmp_path, "stage,epoch,loss,acc\npretext,0,1.5,\nclustering,0,nan,0.5\nclustering,1,0.2")
    assert Evidence.load(tmp_path).history[0] == {"stage": "pretext", "epoch": 0, "loss": 1.5}
    assert np.isnan(Evidence.load(tmp_path).history[1]["loss"])
    assert Evidence.load(tmp_path).history[2] == {"stage": "clustering", "epoch": 1, "loss": 0.2}


def test_a_run_without_predictions_is_a_pretext(tmp_path):
    finish(tmp_path)
    run = Evidence.load(tmp_path)
    assert (run.kind, run.predicted, run.counts, run.classes) == ("pretext", None, None, ())


@pytest.mark.parametrize("name", ["results.json", "predictions.npz"])
def test_an_unreadable_file_is_named(tmp_path, name):
    finish(tmp_path)
    (tmp_path / name).write_bytes(b"\x00not what it should be")
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        Evidence.load(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="no finished run"):
        Evidence.load(tmp_path)


def test_pickled_predictions_are_not_run(tmp_path):
    finish(tmp_path)
    np.savez(tmp_path / "predictions.npz", predicted=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="predictions"):
        Evidence.load(tmp_path)


def test_arrays_of_different_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="differ in length"):
        digits_run(tmp_path, confidence=np.ones(7))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"switched_in": np.zeros(99, int)}, "switched_in"),
        ({"test_correct": np.ones(199, bool)}, "200 confidences on the test split, 199"),
        ({"test_confidence": None}, "0 confidences on the test split, 200"),
    ],
)
def test_arrays_of_a_run_with_few_labels_must_fit_each_other(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        scarce_run(tmp_path, **changes)


def test_confusion_counts_equal_counting_one_by_one():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(-1, 4, 200), rng.integers(0, 6, 200)
    slow = np.zeros((5, 7), dtype=int)
    for label, cluster in zip(labels, predicted):
        if label >= 0:
            slow[label, cluster] += 1
    np.testing.assert_array_equal(confusion_counts(labels, predicted, 5, 7), slow)


def test_confusion_counts_grow_with_what_they_find():
    assert confusion_counts(np.array([2]), np.array([4]), 1, 1).shape == (3, 5)
    assert confusion_counts(np.zeros(0, int), np.zeros(0, int)).shape == (0, 0)
