"""Arrays in, labels out: runs of this framework in scikit-learn's manner, for notebooks.

    labels = scarcely.fit_predict(images, n_clusters=10, random_state=0)

A fit composes, checks and trains what ``train.py`` does, in this process, and leaves it as it was: random
states, threads, warnings, loggers. This module, unlike the others, imports scikit-learn at its top, since its
classes are estimators; ``import scarcely`` imports it when one of them is asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from scarcely.errors import ConfigError, DataError
from scarcely.files import write_atomically

__all__ = ["ArrayError", "Classifier", "Clusterer", "Discoverer", "fit", "fit_predict"]

SMALL = 32  # pixels: smaller images have the network and the values of the digits, larger ones those of CIFAR
LEAST = 16  # pixels: room for the three poolings of small_cnn
UNLABELLED = -1


class ArrayError(DataError, ValueError):
    """Arrays that cannot be learnt from: scikit-learn's ValueError, with what would be right."""


class _Estimator(BaseEstimator):
    """What the estimators share: arrays to a run, its network to predictions.

    Attributes:
        labels_: (N,) of the samples that it was fitted to.
        features_in_shape_: of one sample: (H, W), (H, W, C) or (D,).
        n_features_in_: their number.
        metrics_: of the run, as results.json has them.
        seed_: that random_state gave.
    """

    _task: ClassVar[str]
    _rivals: ClassVar[str]

    method: str

    def __init__(
        self,
        *,
        method: str,
        epochs: int | None,
        batch_size: int | None,
        backbone: str | None,
        pretext: str | None,
        overrides: Sequence[str] | Mapping[str, object],
        folder: str | os.PathLike[str] | None,
        accelerator: Literal["auto", "cpu", "gpu"],
        random_state: int | np.random.RandomState | None,
        verbose: bool,
    ) -> None:
        self.method = method
        self.epochs = epochs
        self.batch_size = batch_size
        self.backbone = backbone
        self.pretext = pretext
        self.overrides = overrides
        self.folder = folder
        self.accelerator = accelerator
        self.random_state = random_state
        self.verbose = verbose

    def predict(self, X: Any) -> np.ndarray:
        """Return the cluster or class of each sample, (N,).

        Args:
            X: samples of the shape that was fitted.

        Raises:
            NotFittedError: before `fit`.
            ArrayError: samples of another shape, or not finite.
        """
        likeliest = self._probabilities(X).argmax(axis=1)
        return self.classes_[likeliest]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each of `classes_`, (N, K) float32, of samples as for `predict`."""
        return self._probabilities(X)

    def transform(self, X: Any) -> np.ndarray:
        """Return the features before the classifier, (N, D) float32, of samples as for `predict`."""
        return self._outputs(X).features.numpy()

    @property
    def network_(self) -> Any:
        """The trained `torch.nn.Module` on the CPU, from what `to_tensor` returns to scores (N, K)."""
        check_is_fitted(self)
        return self._network[0]

    def to_tensor(self, X: Any) -> Any:
        """Return samples as the network takes them: normalised, images (N, C, H, W) of 16 pixels at least."""
        import torch

        encoded = _encoded(self._checked(X))
        return self._network[2].clean(torch.from_numpy(encoded))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "labels_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.sparse = True
        return tags

    # -- a run ------------------------------------------------------------------------------------

    def _train(
        self, X: Any, labels: np.ndarray | None, names: Sequence[str], settings: Mapping[str, object]
    ) -> np.ndarray:
        """Run the framework on arrays, keep its network, and return the arrays as that sees them.

        Args:
            X: samples.
            labels: (N,) positions in `names`, -1 where unknown.
            names: of the known classes.
            settings: of the configuration, that the estimator adds.
        """
        inputs = _inputs(X)
        if len(inputs) < 2:
            raise ArrayError(f"X has {len(inputs)} sample(s)", where="X", instead="2 at least")
        self._check_sizes(len(inputs))
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        kept = None if self.folder is None else Path(self.folder).expanduser().absolute()
        with ExitStack() as stack:
            stack.enter_context(_undisturbed(quiet=not self.verbose))
            folder = kept or Path(stack.enter_context(TemporaryDirectory(prefix="scarcely-")))
            encoded = _encoded(inputs)
            arrays = _file_content(encoded, labels, names)
            file = folder / f"samples-{_digest(arrays)}.npz"
            config = self._config(
                {
                    "method": self.method,
                    "seed": seed,
                    "protocol": "all",  # there is no test part
                    "trainer": self.accelerator,
                    "run_dir": folder / "run",
                    **({} if "SCARCELY_CACHE" in os.environ else {"cache_dir": folder / "cache"}),
                    **({} if kept else {"report": False, "embedding_size": 0, "compare_kmeans": False}),
                    "data.root": file,
                    **_suited(encoded, self.method, sparse=hasattr(X, "tocsr")),
                    **settings,
                }
            )
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda opened: np.savez(opened, **arrays))
            self._run(config, folder / "run")
        self.seed_ = int(seed)
        self.features_in_shape_ = tuple(inputs.shape[1:])
        self.n_features_in_ = int(np.prod(inputs.shape[1:]))
        return encoded

    def _config(self, settings: Mapping[str, object]) -> dict[str, Any]:
        """Return the checked configuration of these settings under those of the user."""
        from scarcely.config.check import check

        own = {key: getattr(self, key) for key in ("epochs", "batch_size", "backbone", "pretext")}
        own = {key: value for key, value in own.items() if value is not None}
        config = _composed({**settings, **own, **_pairs(self.overrides)})
        if (task := config["method"].get("task")) != self._task:
            raise ConfigError(
                f"method={self.method} is for {task}, and {type(self).__name__} for {self._task}",
                where="method",
                instead=self._rivals,
            )
        check(config)
        return config

    def _run(self, config: dict[str, Any], folder: Path) -> None:
        from hydra.utils import instantiate

        from scarcely.predict import load_run, outputs_of
        from scarcely.run import execute

        results = execute(config, "")  # the name is not asked for: run_dir says it
        method, content = load_run(str(folder))
        augmentation = instantiate(content["job"]["data"]["augmentation"], _convert_="all")
        self._network = (method, outputs_of(method, content, folder)[0], augmentation)
        self.metrics_ = dict(results["metrics"])

    def _check_sizes(self, samples: int) -> None:
        """Raise what can be known wrong of the numbers before anything is composed."""

    # -- predictions ------------------------------------------------------------------------------

    def _probabilities(self, X: Any) -> np.ndarray:
        return self._outputs(X).probabilities.numpy()

    def _outputs(self, X: Any) -> Any:
        """Return the `Predictions` of samples as the user has them."""
        return self._predictions(_encoded(self._checked(X)))

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        inputs = _inputs(X)
        if tuple(inputs.shape[1:]) != self.features_in_shape_:
            raise ArrayError(
                f"X has samples of shape {tuple(inputs.shape[1:])},"
                f" and was fitted to {self.features_in_shape_}",
                where="X",
                instead=f"(N, {', '.join(map(str, self.features_in_shape_))})",
            )
        return inputs

    def _predictions(self, encoded: np.ndarray, scores_of: Any = None) -> Any:
        import torch

        from scarcely.data.loader import DeviceLoader
        from scarcely.data.samples import Samples

        method, own, augmentation = self._network
        scores_of = scores_of or own
        on_gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        samples = Samples(torch.from_numpy(encoded), torch.full((len(encoded),), UNLABELLED))
        loader = DeviceLoader.evaluation(samples, augmentation, batch_size=256, device=device)
        modules = [m for m in (method, scores_of) if isinstance(m, torch.nn.Module)]
        try:
            for module in modules:
                module.to(device)
            return method.predict_all(loader, scores_of)
        finally:
            for module in modules:  # pickles are of the CPU, and the GPU is free for others
                module.cpu()


class Clusterer(ClusterMixin, _Estimator):
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
        _require_count(self.n_clusters, samples, "n_clusters", "samples")


class _Labelled(_Estimator):
    """An estimator that some samples tell their label."""

    def fit_predict(self, X: Any, y: Any) -> np.ndarray:
        """Learn and return `labels_`."""
        return self.fit(X, y).labels_

    def _known(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return labels (N,) as positions, -1 where unknown; the classes (C,) known; and y as an array."""
        given = _as_array(y, "y")
        samples = len(_inputs(X))
        if given.shape != (samples,) or given.dtype.kind not in "iu":
            raise ArrayError(
                f"y is {given.shape} {given.dtype} for {samples} samples",
                where="y",
                instead=f"({samples},) whole numbers, -1 where the label is unknown",
            )
        labelled = given != UNLABELLED
        classes, positions = np.unique(given[labelled], return_inverse=True)
        if len(classes) and classes[0] < 0:
            raise ArrayError(
                f"y holds {classes[0]}", where="y", instead="labels from 0 on, and -1 where unknown"
            )
        if len(classes) < 2:
            raise ArrayError(
                f"y knows {len(classes)} class(es)",
                where="y",
                instead="samples of two known classes at least",
            )
        labels = np.full(samples, UNLABELLED)
        labels[labelled] = positions
        return labels, classes, given


class Discoverer(_Labelled):
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
            _require_count(self.num_new, int(unlabelled.sum()), "num_new", "unlabelled samples")
        names = [str(label) for label in known]
        # the recipe of the digits would hide the labels of some classes: here y says what is known
        encoded = self._train(X, labels, names, {"num_new": self.num_new, **_ALL_KNOWN})
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


class Classifier(ClassifierMixin, _Labelled):
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
    kind = Classifier if _task_of(name) == Classifier._task else Discoverer
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


# -- settings ------------------------------------------------------------------------------------

_ALL_KNOWN = {"data.labelled_classes": "null"}


def _suited(encoded: np.ndarray, method: str, *, sparse: bool) -> dict[str, object]:
    """Return the settings that the samples suggest; documented at `Clusterer`."""
    if encoded.ndim == 2:
        return {"data": "tfidf", **({} if sparse else {"~recipe": ""})}
    side, channels = encoded.shape[1], encoded.shape[3]
    pixels = encoded.reshape(-1, channels)
    mean, std = pixels.mean(axis=0) / 255, pixels.std(axis=0) / 255
    settings: dict[str, object] = {
        "data": "arrays",
        "data.augmentation.mean": [round(float(m), 4) for m in mean],
        "data.augmentation.std": [round(max(float(s), 0.01), 4) for s in std],  # of one colour alone: 0
        "data.augmentation.padding": max(1, side // 8),
        "data.augmentation.flip": channels == 3,  # grey images are mostly signs, photographs coloured
    }
    if side >= SMALL:
        return settings
    settings |= {"backbone": "small_cnn", "data.augmentation.first_clean": True}
    return settings | ({"recipe": f"{method}-digits"} if _has_recipe(method) else {"pretext": "none"})


def _has_recipe(method: str) -> bool:
    from scarcely.config.paths import conf_dir

    return (conf_dir() / "recipe" / f"{method}-digits.yaml").is_file()


def _task_of(method: str) -> str:
    """Return the task of a shipped method; of others nothing is known before Hydra has searched."""
    from omegaconf import OmegaConf

    from scarcely.config.paths import conf_dir

    path = conf_dir() / "method" / f"{method}.yaml"
    return str(OmegaConf.select(OmegaConf.load(path), "task")) if path.is_file() else ""


def _pairs(overrides: Sequence[str] | Mapping[str, object]) -> dict[str, object]:
    """Return overrides by key.

    Raises:
        ConfigError: one that is no ``KEY=VALUE``.
    """
    if isinstance(overrides, Mapping):
        return dict(overrides)
    if isinstance(overrides, str):
        overrides = [overrides]
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(
                f"{override!r} is not of the form KEY=VALUE",
                where="overrides",
                instead="e.g. method.beta=0.5",
            )
    return {key: value for key, _, value in (o.partition("=") for o in overrides)}


def _composed(settings: Mapping[str, object]) -> dict[str, Any]:
    """Return the configuration of settings by key, as ``train.py`` composes it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from scarcely.cli import prepare_arguments
    from scarcely.config.compose import compose_run
    from scarcely.config.explain import explain

    written = [key if key.startswith("~") else f"{key}={_text(value)}" for key, value in settings.items()]
    try:
        config = compose_run(prepare_arguments(written))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    config["command"] = ""  # there is none: Python has called
    return config


def _text(value: object) -> str:
    """Return a value as Hydra's grammar has it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


# -- arrays --------------------------------------------------------------------------------------


def _as_array(values: Any, where: str) -> np.ndarray:
    """Return an array of numbers.

    Raises:
        ArrayError: rows of different lengths, or objects that are no numbers.
    """
    if hasattr(values, "tocsr"):
        values = values.toarray()
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ArrayError(f"{where} is no array: {error}", where=where, instead="rows of one shape") from error
    if array.dtype.kind not in "biuf":
        complex_data = "Complex data not supported: " if array.dtype.kind == "c" else ""
        raise ArrayError(f"{complex_data}{where} holds {array.dtype}", where=where, instead="numbers")
    return array


def _inputs(X: Any) -> np.ndarray:
    """Return samples as numbers that have been looked at, images (N, H, W[, C]) or vectors (N, D).

    Raises:
        ArrayError: neither of the two, or numbers that cannot be.
    """
    array = _as_array(X, "X")
    if array.ndim not in (2, 3, 4) or not array.size:
        raise ArrayError(f"X is {array.shape}", where="X", instead=_FORMS)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ArrayError("X holds NaN or infinity", where="X", instead="finite numbers")
    if array.ndim == 2:
        return array
    if array.ndim == 4 and array.shape[3] not in (1, 3):
        first = array.shape[1] in (1, 3)
        raise ArrayError(
            f"X is {array.shape}: images of {array.shape[3]} channels",
            where="X",
            instead="channels last: X.transpose(0, 2, 3, 1)" if first else "1 channel, or 3",
        )
    if array.shape[1] != array.shape[2]:
        raise ArrayError(
            f"X holds images of {array.shape[1]} by {array.shape[2]} pixels",
            where="X",
            instead="square images: cut off or fill up the longer side",
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ArrayError(f"X holds images of {array.dtype}", where="X", instead=_RANGE)
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ArrayError(f"X holds images from {low:g} to {high:g}", where="X", instead=_RANGE)
    return array


_FORMS = "images (N, H, W) or (N, H, W, C), or vectors (N, D)"
_RANGE = "uint8 from 0 to 255, or floats from 0 to 1 (X / X.max())"


def _encoded(inputs: np.ndarray) -> np.ndarray:
    """Return what a network is given: images (N, H, W, C) uint8 of 16 pixels at least, or vectors float32."""
    import torch
    from torch.nn.functional import interpolate

    if inputs.ndim == 2:
        return np.ascontiguousarray(inputs, dtype=np.float32)
    images = inputs if inputs.ndim == 4 else inputs[..., None]
    if images.dtype != np.uint8:
        images = (images * 255).round().astype(np.uint8)
    if images.shape[1] < LEAST:
        planes = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
        large = interpolate(planes, size=(LEAST, LEAST), mode="bilinear", align_corners=False)
        images = large.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(images)


def _file_content(encoded: np.ndarray, labels: np.ndarray | None, names: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of the file that ``data=arrays`` reads, or ``data=tfidf``."""
    arrays: dict[str, Any] = {}
    if labels is not None:
        arrays |= {"labels": labels.astype(np.int64), "classes": np.array(names, dtype=np.str_)}
    if encoded.ndim == 4:
        return arrays | {"images": encoded}
    import scipy.sparse

    rows = scipy.sparse.csr_matrix(encoded)  # as scipy.sparse.save_npz writes it
    arrays |= {"format": np.array(b"csr"), "shape": np.array(rows.shape)}
    return arrays | {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr}


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Name a file by its content: a run that goes on in a folder goes on with the same samples."""
    digest = hashlib.blake2b(digest_size=6)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _require_count(count: Any, samples: int, name: str, of: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ArrayError(f"{name} = {count!r}", where=name, instead="a whole number from 1 on")
    if count > samples:
        raise ArrayError(
            f"{name} = {count}, and there are {samples} {of}", where=name, instead=f"at most {samples}"
        )


# -- the process that it runs in -----------------------------------------------------------------


@contextmanager
def _undisturbed(*, quiet: bool) -> Iterator[None]:
    """Leave random states, threads, warnings, loggers and Hydra as they were; say nothing if `quiet`."""
    import torch
    from hydra.core.singleton import Singleton

    from scarcely import run, stages  # noqa: F401  what they import sets loggers up

    named = [*logging.root.manager.loggerDict, "lightning.pytorch", "lightning.fabric"]
    levels = {name: logging.getLogger(name).level for name in named}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    benchmark, hydra = torch.backends.cudnn.benchmark, Singleton.get_state()
    environment = dict(os.environ)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            if quiet:
                stack.enter_context(redirect_stdout(StringIO()))
                stack.enter_context(redirect_stderr(StringIO()))
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark
        Singleton.set_state(hydra)
        os.environ.clear()
        os.environ.update(environment)
