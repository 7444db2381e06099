"""The estimators, and functions that choose one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np

from scarcely.api.arrays import UNLABELLED, require_count
from scarcely.api.base import Estimator, LabelledEstimator
from scarcely.api.settings import ALL_KNOWN, task_of


class Clusterer(Estimator):
    """Find clusters in images or vectors without any label (LSD-C, chapter 7, or k-means).

        clusterer = Clusterer(n_clusters=10, random_state=0).fit(images)
        clusterer.labels_, clusterer.predict(others)

    Images are (N, H, W) or (N, H, W, C), square, uint8 or floats between 0 and 1; vectors are (N, D), dense
    or sparse. Below 32 pixels the small network of the digits is trained from scratch, with their recipe;
    from 32 on a ResNet-18 after RotNet, which wants a GPU. A sparse matrix is taken for tf-idf. Mean and
    deviation of the channels are measured, colour images are flipped, and shifts are an eighth of the side;
    `overrides` change all of it.

    Args:
        n_clusters: how many.
        method: ``lsdc``, ``kmeans``, or another method of the task ``clustering``.
        epochs: of the method itself; None for the recipe's.
        batch_size: likewise.
        backbone: the network, a name in conf/backbone.
        pretext: what is learnt first, ``rotnet``, ``denoising``, ``none``, or the path of a checkpoint.
        overrides: further settings as ``train.py`` takes them, a list of ``"method.optimizer.lr=0.01"`` or a
            mapping ``{"method.optimizer.lr": 0.01}``; they win over everything else.
        folder: keep the run there, with its report (``run/report.html``); None for a temporary folder.
        accelerator: ``auto`` is a GPU where there is one.
        random_state: the same whole number gives the same result on the same CPU, bit for bit.
        verbose: show a progress bar and the table of scores.

    Attributes:
        labels_: (N,) cluster of each sample, from 0.
        classes_: (n_clusters,) the numbers of the clusters, the columns of `predict_proba`.
        metrics_: what the run measured.
        n_features_in_, features_in_shape_: numbers of a sample, and their shape.
        seed_: of the run.
    """

    _kind = "clusterer"
    _task = "clustering"
    _rivals = "method='lsdc' or 'kmeans'"

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        method: str = "lsdc",
        epochs: int | None = None,
        batch_size: int | None = None,
        backbone: str | None = None,
        pretext: str | None = None,
        overrides: Sequence[str] | Mapping[str, object] = (),
        folder: str | os.PathLike[str] | None = None,
        accelerator: Literal["auto", "cpu", "gpu"] = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            method=method,
            epochs=epochs,
            batch_size=batch_size,
            backbone=backbone,
            pretext=pretext,
            overrides=overrides,
            folder=folder,
            accelerator=accelerator,
            random_state=random_state,
            verbose=verbose,
        )
        self.n_clusters = n_clusters

    def fit(self, X: Any, y: None = None) -> Self:
        """Find the clusters.

        Args:
            X: samples, of the forms that the class names.
            y: not looked at, as everywhere in scikit-learn's clusterers.

        Raises:
            ArrayError: samples that cannot be learnt from (a ValueError too).
            ConfigError: settings that do not exist, or do not fit.
        """
        encoded = self._train(X, None, (), {"num_clusters": self.n_clusters})
        self.classes_ = np.arange(self.n_clusters)
        self.labels_ = self._predictions(encoded).probabilities.argmax(dim=1).numpy()
        return self

    def fit_predict(self, X: Any, y: None = None) -> np.ndarray:
        """Find the clusters and return `labels_`."""
        return self.fit(X).labels_

    def _check_sizes(self, samples: int) -> None:
        require_count(self.n_clusters, samples, "n_clusters", "samples")


class Discoverer(LabelledEstimator):
    """Discover the classes of unlabelled images beside known ones (ranking statistics, chapter 6).

        discoverer = Discoverer(num_new=5, random_state=0).fit(images, y)      # y = -1: unlabelled
        discoverer.labels_[y == -1], discoverer.predict(others)

    What is unlabelled is taken for samples of new classes alone. Images, their network and all other
    arguments are those of `Clusterer`.

    Args:
        num_new: how many new classes; ``auto`` estimates it, which takes longer.
        method: ``ranking_statistics``, ``dtc``, ``kcl`` or ``mcl``.
        epochs: see `Clusterer`.
        batch_size: likewise.
        backbone: likewise.
        pretext: likewise.
        overrides: likewise; ``stages.supervised.epochs=20`` are those of the stage on the known classes.
        folder: likewise.
        accelerator: likewise.
        random_state: likewise.
        verbose: likewise.

    Attributes:
        labels_: (N,) y where it is known, elsewhere one of the new classes.
        known_classes_: the values of y.
        classes_: these, and the new ones, which are numbered on from the largest.
        num_new_: how many new ones there are.
        metrics_, n_features_in_, features_in_shape_, seed_: see `Clusterer`.
    """

    _task = "discovery"
    _rivals = "method='ranking_statistics', 'dtc', 'kcl' or 'mcl'"

    def __init__(
        self,
        num_new: int | Literal["auto"] = "auto",
        *,
        method: str = "ranking_statistics",
        epochs: int | None = None,
        batch_size: int | None = None,
        backbone: str | None = None,
        pretext: str | None = None,
        overrides: Sequence[str] | Mapping[str, object] = (),
        folder: str | os.PathLike[str] | None = None,
        accelerator: Literal["auto", "cpu", "gpu"] = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            method=method,
            epochs=epochs,
            batch_size=batch_size,
            backbone=backbone,
            pretext=pretext,
            overrides=overrides,
            folder=folder,
            accelerator=accelerator,
            random_state=random_state,
            verbose=verbose,
        )
        self.num_new = num_new

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the known classes and discover the others.

        Args:
            X: images, of the forms that `Clusterer` names.
            y: (N,) whole numbers: the label, or -1 where it is unknown.

        Raises:
            ArrayError: samples or labels that cannot be learnt from (a ValueError too).
            ConfigError: settings that do not exist, or do not fit.
        """
        labels, known, given = self._known(X, y)
        unlabelled = labels == UNLABELLED
        if self.num_new != "auto":
            require_count(self.num_new, int(unlabelled.sum()), "num_new", "unlabelled samples")
        names = [str(label) for label in known]
        # the recipe of the digits would hide the labels of some classes: here y says what is known
        encoded = self._train(X, labels, names, {"num_new": self.num_new, **ALL_KNOWN})
        method = self._network[0]
        self.num_new_ = int(method.num_new)
        self.known_classes_ = known
        new = known[-1] + 1 + np.arange(self.num_new_)
        self.classes_ = np.concatenate([known, new])
        found = self._predictions(encoded[unlabelled], method.logits).probabilities
        if self._joint_columns(encoded) != len(self.classes_):  # a head of the new classes alone
            self.classes_ = new
        self.labels_ = given.copy()
        self.labels_[unlabelled] = new[found.argmax(dim=1).numpy()]
        return self

    def _joint_columns(self, encoded: np.ndarray) -> int:
        return int(self._predictions(encoded[:1]).probabilities.shape[1])


class Classifier(LabelledEstimator):
    """Classify images or vectors of which few have a label (alternating optimisation, chapter 5).

        classifier = Classifier(random_state=0).fit(images, y)     # y = -1: unlabelled
        classifier.labels_[y == -1], classifier.predict(others)

    Args:
        method: ``alternating_ssl``, ``mean_teacher``, ``pi_model``, or ``supervised``, which learns from the
            labelled samples alone.
        epochs: see `Clusterer`, and so are all others.
        batch_size: likewise.
        backbone: likewise.
        pretext: likewise.
        overrides: likewise.
        folder: likewise.
        accelerator: likewise.
        random_state: likewise.
        verbose: likewise.

    Attributes:
        labels_: (N,) y where it is known, elsewhere the class predicted.
        classes_: the values of y.
        metrics_, n_features_in_, features_in_shape_, seed_: see `Clusterer`.
    """

    _kind = "classifier"
    _task = "classification"
    _rivals = "method='alternating_ssl', 'mean_teacher', 'pi_model' or 'supervised'"

    def __init__(
        self,
        *,
        method: str = "alternating_ssl",
        epochs: int | None = None,
        batch_size: int | None = None,
        backbone: str | None = None,
        pretext: str | None = None,
        overrides: Sequence[str] | Mapping[str, object] = (),
        folder: str | os.PathLike[str] | None = None,
        accelerator: Literal["auto", "cpu", "gpu"] = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            method=method,
            epochs=epochs,
            batch_size=batch_size,
            backbone=backbone,
            pretext=pretext,
            overrides=overrides,
            folder=folder,
            accelerator=accelerator,
            random_state=random_state,
            verbose=verbose,
        )

    def fit(self, X: Any, y: Any) -> Self:
        """Learn the classes.

        Args:
            X: samples, of the forms that `Clusterer` names.
            y: (N,) whole numbers: the label, or -1 where it is unknown.

        Raises:
            ArrayError: samples or labels that cannot be learnt from (a ValueError too).
            ConfigError: settings that do not exist, or do not fit.
        """
        labels, self.classes_, given = self._known(X, y)
        encoded = self._train(X, labels, [str(label) for label in self.classes_], {})
        predicted = self._predictions(encoded).probabilities.argmax(dim=1).numpy()
        self.labels_ = np.where(labels == UNLABELLED, self.classes_[predicted], given)
        return self

    def score(self, X: Any, y: Any) -> float:
        """Return the share of samples (N, ...) whose label (N,) is predicted."""
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(y, self.predict(X)))


def fit(
    X: Any,
    y: Any = None,
    *,
    method: str | None = None,
    random_state: int | np.random.RandomState | None = None,
    **settings: Any,
) -> Clusterer | Discoverer | Classifier:
    """Fit the estimator that the method is of, and return it.

        scarcely.fit(images, n_clusters=10)
        scarcely.fit(images, y, num_new=5)
        scarcely.fit(images, y, method="alternating_ssl")

    Args:
        X: samples, of the forms that `Clusterer` names.
        y: none to cluster; (N,) whole numbers to discover or to classify, -1 where the label is unknown.
        method: ``lsdc`` without y, ``ranking_statistics`` with it; or another.
        random_state: see `Clusterer`.
        **settings: further arguments of the estimator.

    Raises:
        ArrayError: samples or labels that cannot be learnt from (a ValueError too).
        ConfigError: settings that do not exist, or do not fit.
        TypeError: an argument that the estimator does not have.
    """
    name = method or ("lsdc" if y is None else "ranking_statistics")
    if y is None:
        return Clusterer(method=name, random_state=random_state, **settings).fit(X)
    kind = Classifier if task_of(name) == Classifier._task else Discoverer
    return kind(method=name, random_state=random_state, **settings).fit(X, y)


def fit_predict(
    X: Any,
    y: Any = None,
    *,
    method: str | None = None,
    random_state: int | np.random.RandomState | None = None,
    **settings: Any,
) -> np.ndarray:
    """Return the `labels_` of what `fit` returns, (N,); the arguments are the same."""
    return fit(X, y, method=method, random_state=random_state, **settings).labels_
