"""Arrays in, labels out: the estimators on real tiny runs."""

import importlib
import inspect
import logging
import os
import pickle
import random
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
import scipy.sparse
import torch
from hydra.core.global_hydra import GlobalHydra
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks

import scarcely
from scarcely.data.array_file import ArrayFile
from scarcely.errors import ConfigError, DataError, UserError
from scarcely.metrics import ClusterAccuracy
from tests.data.files import GREY

IMAGES, TRUTH = load_digits().images / 16, load_digits().target
FEW = IMAGES[:200]
TINY = {"epochs": 1, "overrides": ("backbone.width=4",), "accelerator": "cpu", "random_state": 0}
ESTIMATORS = [scarcely.Clusterer, scarcely.Discoverer, scarcely.Classifier]


def cluster_accuracy(labels, truth):
    metric = ClusterAccuracy(int(max(labels)) + 1, int(max(truth)) + 1)
    metric.update(torch.as_tensor(labels), torch.as_tensor(truth))
    return float(metric.compute()["acc"])


def state():
    """What a fit could change in the process around it."""
    loggers = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "lightning.pytorch")}
    return {
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "warnings": list(warnings.filters),
        "loggers": loggers,
        "environment": dict(os.environ),
        "hydra": GlobalHydra.instance().hydra,
        "here": sorted(os.listdir()),
    }


@pytest.fixture(scope="module")
def watched():
    """A clusterer that was fitted, the process before and after it, and what it printed."""
    importlib.import_module("scarcely.stages")  # Lightning has filters and loggers of its own
    logging.getLogger("pytorch_lightning").setLevel(logging.INFO)
    torch.manual_seed(7)
    before = state()
    clusterer = scarcely.Clusterer(5, **TINY).fit(FEW)
    return clusterer, before, state()


@pytest.fixture
def clusterer(watched):
    return watched[0]


# -- what scikit-learn expects ---------------------------------------------------------------------


def test_importing_scarcely_imports_neither_torch_nor_scikit_learn():
    code = "import scarcely, sys; dir(scarcely); print({'torch', 'sklearn', 'hydra'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_all_public_names_are_there():
    for name in scarcely.__all__:
        assert getattr(scarcely, name) is not None
    assert scarcely.saliency.attribute.__doc__
    assert scarcely.adapters.attach.__doc__
    with pytest.raises(AttributeError, match="has no attribute 'cluster'"):
        scarcely.cluster  # noqa: B018


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_checks_of_scikit_learn_that_need_no_fit_pass(kind):
    for check in (
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_valid_tag_types,
    ):
        check(kind.__name__, kind())


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_every_argument_is_documented_and_survives_a_clone(kind):
    for name in inspect.signature(kind).parameters:
        assert f"\n        {name}: " in kind.__doc__
    given = kind(method="mine", epochs=3, random_state=5, overrides={"seed": 1})
    assert clone(given).get_params() == given.get_params()


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_predicting_before_fitting_is_told(kind):
    for ask in ("predict", "predict_proba", "transform", "to_tensor"):
        with pytest.raises(NotFittedError):
            getattr(kind(), ask)(FEW)


# -- a fit -----------------------------------------------------------------------------------------


def test_the_labels_are_those_that_are_predicted_for_the_same_samples(clusterer):
    assert clusterer.labels_.shape == (200,)
    assert clusterer.labels_.dtype.kind == "i"
    assert set(clusterer.labels_) <= set(clusterer.classes_) == set(range(5))
    np.testing.assert_array_equal(clusterer.predict(FEW), clusterer.labels_)
    probabilities = clusterer.predict_proba(FEW[:7])
    assert probabilities.shape == (7, 5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert clusterer.transform(FEW[:7]).shape == (7, 256)
    assert (clusterer.n_features_in_, clusterer.features_in_shape_) == (64, (8, 8))


def test_the_network_gives_the_probabilities_that_are_predicted(clusterer):
    inputs = clusterer.to_tensor(FEW[:7])
    assert inputs.shape == (7, 1, 16, 16)
    with torch.no_grad():
        probabilities = clusterer.network_(inputs).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, clusterer.predict_proba(FEW[:7]), atol=1e-5)


def test_the_same_random_state_gives_the_same_weights_bit_for_bit_and_is_used(clusterer):
    again = clone(clusterer).fit(torch.tensor(FEW).unsqueeze(3))
    np.testing.assert_array_equal(again.predict_proba(FEW[..., None]), clusterer.predict_proba(FEW))
    assert clusterer.seed_ == again.seed_ == 0


def test_a_fit_leaves_the_process_as_it_was(watched):
    _, before, after = watched
    for what in before:
        assert before[what] == after[what], what


def test_a_predicting_estimator_leaves_the_random_states_alone(clusterer):
    before = state()
    clusterer.predict(FEW[:3])
    assert before == state()


@pytest.mark.parametrize("how", ["pickle", "joblib"])
def test_a_saved_estimator_predicts_the_same(clusterer, how, tmp_path):
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(clusterer))
    else:
        joblib.dump(clusterer, tmp_path / "estimator.joblib")
        loaded = joblib.load(tmp_path / "estimator.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(FEW), clusterer.predict_proba(FEW))
    assert loaded.get_params() == clusterer.get_params()


def test_kmeans_finds_the_digits_and_is_quiet_unless_asked(capfd, tmp_path):
    kept = tmp_path / "kept run"
    common = {"n_clusters": 10, "method": "kmeans", "random_state": 0, "accelerator": "cpu"}
    labels = scarcely.fit_predict(IMAGES, **common)
    assert cluster_accuracy(labels, TRUTH) > 0.7  # chance is 0.1
    assert capfd.readouterr() == ("", "")
    vectors = load_digits().data / 16
    settings = {"verbose": True, "folder": kept, "overrides": ["embedding_size=0"]}
    again = scarcely.fit(scipy.sparse.csr_matrix(vectors), pretext="none", **common, **settings)
    assert cluster_accuracy(again.labels_, TRUTH) > 0.7
    assert capfd.readouterr().out
    assert (kept / "run" / "report.html").is_file()
    with pytest.raises(ConfigError, match="holds a finished run already"):
        again.fit(vectors)


def test_new_classes_are_numbered_on_from_the_known_ones():
    y = np.where(TRUTH[:200] < 4, 10 * TRUTH[:200], -1)
    settings = {**TINY, "overrides": {"backbone.width": 4, "stages.supervised.epochs": 1}}
    discoverer = scarcely.fit(FEW, y, num_new=3, **settings)
    assert isinstance(discoverer, scarcely.Discoverer)
    np.testing.assert_array_equal(discoverer.known_classes_, [0, 10, 20, 30])
    np.testing.assert_array_equal(discoverer.classes_, [0, 10, 20, 30, 31, 32, 33])
    np.testing.assert_array_equal(discoverer.labels_[y >= 0], y[y >= 0])
    assert set(discoverer.labels_[y < 0]) <= {31, 32, 33}
    assert discoverer.predict_proba(FEW).shape == (200, 7)
    assert set(discoverer.predict(FEW)) <= set(discoverer.classes_)
    loaded = pickle.loads(pickle.dumps(discoverer))
    np.testing.assert_array_equal(loaded.predict(FEW), discoverer.predict(FEW))


def test_few_labels_are_kept_and_the_others_predicted():
    y = TRUTH[:200] + 3
    y[50:] = -1
    settings = {"method": "mean_teacher", **TINY}
    classifier = scarcely.fit(FEW, y, **settings)
    assert isinstance(classifier, scarcely.Classifier)
    np.testing.assert_array_equal(classifier.classes_, range(3, 13))
    np.testing.assert_array_equal(classifier.labels_[:50], y[:50])
    np.testing.assert_array_equal(classifier.labels_[50:], classifier.predict(FEW[50:]))
    assert 0 <= classifier.score(FEW, TRUTH[:200] + 3) <= 1


@pytest.mark.slow
def test_lsdc_clusters_the_digits():
    labels = scarcely.fit_predict(IMAGES, n_clusters=10, epochs=12, random_state=0, accelerator="cpu")
    assert cluster_accuracy(labels, TRUTH) > 0.7  # 0.80 measured


@pytest.mark.slow
def test_ranking_statistics_discovers_the_digits():
    y = np.where(TRUTH < 5, TRUTH, -1)
    settings = {"epochs": 15, "overrides": {"stages.supervised.epochs": 8}, "accelerator": "cpu"}
    labels = scarcely.fit_predict(IMAGES, y, num_new=5, random_state=0, **settings)
    assert cluster_accuracy(labels[y < 0] - 5, TRUTH[y < 0] - 5) > 0.6  # chance is 0.2


# -- what cannot be learnt from --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (np.full((20, 8, 8), np.nan), "NaN or infinity"),
        (np.full((20, 8), np.inf), "NaN or infinity"),
        (np.zeros((20, 8), complex), "Complex data not supported"),
        (np.array([["a", "b"]] * 20), "X holds <U1"),
        (np.array([[1, None]] * 20), "X holds object"),
        ([[1, 2], [3]], "no array"),
        (np.zeros(20), r"X is \(20,\)"),
        (np.zeros((20, 0)), r"X is \(20, 0\)"),
        (np.zeros((20, 8, 8)) + 16, "images from 16 to 16"),
        (np.zeros((20, 8, 8)) - 1, "images from -1 to -1"),
        (np.zeros((20, 8, 8), int), "images of int64"),
        (np.zeros((20, 3, 8, 8)), "8 channels"),
        (np.zeros((20, 8, 9)), "8 by 9 pixels"),
        (np.zeros((1, 8, 8)), "1 sample"),
        (np.zeros((9, 8, 8)), "n_clusters = 10, and there are 9 samples"),
    ],
)
def test_samples_that_cannot_be_learnt_from_are_told_before_anything_is_composed(samples, told, monkeypatch):
    monkeypatch.setattr("scarcely.api.base.composed", None)
    with pytest.raises(ValueError, match=told) as error:
        scarcely.Clusterer(10).fit(samples)
    assert isinstance(error.value, DataError)
    assert error.value.instead


def test_the_remedy_for_channels_first_is_named():
    with pytest.raises(UserError, match=r"transpose\(0, 2, 3, 1\)"):
        scarcely.Clusterer(2).fit(np.zeros((20, 3, 8, 8)))


@pytest.mark.parametrize(
    ("y", "told"),
    [
        (np.zeros(19, int), r"y is \(19,\)"),
        (np.zeros(20), "float64"),
        (np.array(["a"] * 20), "y holds <U1"),
        (np.full(20, -1), r"knows 0 class"),
        (np.arange(20) // 10 - 1, r"knows 1 class"),
        (np.arange(20) - 2, "y holds -2"),
    ],
)
def test_labels_that_cannot_be_learnt_from_are_told(y, told):
    for kind in ESTIMATORS[1:]:
        with pytest.raises(ValueError, match=told):
            kind().fit(np.zeros((20, 8, 8)), y)


def test_samples_of_another_shape_are_refused(clusterer):
    with pytest.raises(ValueError, match=r"shape \(9, 9\), and was fitted to \(8, 8\)"):
        clusterer.predict(np.zeros((3, 9, 9)))


def test_settings_that_do_not_fit_are_told_as_on_the_command_line():
    for changed, told in (
        ({"method": "ldsc"}, "ldsc"),
        ({"method": "supervised"}, "is for classification, and Clusterer for clustering"),
        ({"overrides": ["method.betta=0.5"]}, "betta"),
        ({"overrides": ["method.beta"]}, "not of the form KEY=VALUE"),
        ({"epochs": -1}, "epochs = -1"),
        ({"random_state": -1}, "seed = -1"),
        ({"accelerator": "tpu"}, "tpu"),
        ({"n_clusters": 2.5}, "n_clusters = 2.5"),
        ({"n_clusters": True}, "n_clusters = True"),
    ):
        with pytest.raises(UserError, match=told):
            scarcely.Clusterer(**{"accelerator": "cpu", "random_state": 0, **changed}).fit(FEW)


def test_more_new_classes_than_unlabelled_samples_are_refused():
    y = np.arange(20) % 2
    y[:3] = -1
    with pytest.raises(ValueError, match="num_new = 4, and there are 3 unlabelled samples"):
        scarcely.Discoverer(4).fit(np.zeros((20, 8, 8)), y)


# -- the file of arrays ----------------------------------------------------------------------------


def test_images_of_label_minus_one_beside_labelled_ones_are_the_unlabelled_part(tmp_path):
    images = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
    labels = np.array([0, -1, 1, 0, -1, 1])
    np.savez(tmp_path / "a.npz", images=images, labels=labels, classes=["cat", "dog"])
    parts = (data := ArrayFile(augmentation=GREY, root=str(tmp_path / "a.npz"))).read()
    assert data.classes == ("cat", "dog")
    np.testing.assert_array_equal(parts["train"].inputs[..., 0], images[labels >= 0])
    np.testing.assert_array_equal(parts["unlabelled"].inputs[..., 0], images[labels < 0])
    assert parts["train"].labels.tolist() == [0, 1, 0, 1]
    np.savez(tmp_path / "b.npz", images=images)
    assert list(ArrayFile(augmentation=GREY, root=str(tmp_path / "b.npz")).read()) == ["train"]


@pytest.mark.parametrize(
    "images", [np.zeros((3, 4, 4)), np.zeros((3, 4, 5), np.uint8), np.zeros((0, 4, 4), np.uint8)]
)
def test_a_file_of_other_images_is_refused(images, tmp_path):
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(DataError, match="holds images"):
        ArrayFile(augmentation=GREY, root=str(tmp_path / "a.npz")).read()


def test_a_missing_file_is_told_before_it_is_read(tmp_path):
    for root in (None, str(tmp_path / "none.npz")):
        with pytest.raises(DataError) as error:
            ArrayFile(augmentation=GREY, root=root).check()
        assert error.value.where == "data.root"
