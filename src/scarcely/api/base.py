"""What the estimators share."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

import numpy as np

from scarcely.api.arrays import (
    UNLABELLED,
    ArrayError,
    as_array,
    checked_inputs,
    digest_of,
    encode,
    file_content,
)
from scarcely.api.parameters import Parameters
from scarcely.api.process import undisturbed
from scarcely.api.settings import composed, pairs, suited
from scarcely.errors import ConfigError
from scarcely.files import write_atomically


class Estimator(Parameters):
    """What the estimators share: arrays to a run, its network to predictions.

    Attributes:
        labels_: (N,) of the samples that it was fitted to.
        classes_: (K,) what a sample may be.
        features_in_shape_: of one sample: (H, W), (H, W, C) or (D,).
        n_features_in_: their number.
        metrics_: of the run, as results.json has them.
        seed_: that random_state gave.
    """

    _task: ClassVar[str]
    _rivals: ClassVar[str]

    method: str
    labels_: np.ndarray
    classes_: np.ndarray

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
        self._require_fit()
        return self._network[0]

    def to_tensor(self, X: Any) -> Any:
        """Return samples as the network takes them: normalised, images (N, C, H, W) of 16 pixels at least."""
        import torch

        encoded = encode(self._checked(X))
        return self._network[2].clean(torch.from_numpy(encoded))

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
        inputs = checked_inputs(X)
        if len(inputs) < 2:
            raise ArrayError(f"X has {len(inputs)} sample(s)", where="X", instead="2 at least")
        self._check_sizes(len(inputs))
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            from sklearn.utils import check_random_state

            seed = int(check_random_state(seed).randint(2**31 - 1))
        kept = None if self.folder is None else Path(self.folder).expanduser().absolute()
        with ExitStack() as stack:
            stack.enter_context(undisturbed(quiet=not self.verbose))
            folder = kept or Path(stack.enter_context(TemporaryDirectory(prefix="scarcely-")))
            encoded = encode(inputs)
            arrays = file_content(encoded, labels, names)
            file = folder / f"samples-{digest_of(arrays)}.npz"
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
                    **suited(encoded, self.method, sparse=hasattr(X, "tocsr")),
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
        config = composed({**settings, **own, **pairs(self.overrides)})
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
        return self._predictions(encode(self._checked(X)))

    def _checked(self, X: Any) -> np.ndarray:
        self._require_fit()
        inputs = checked_inputs(X)
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


class LabelledEstimator(Estimator):
    """An estimator that some samples tell their label."""

    @abstractmethod
    def fit(self, X: Any, y: Any) -> Self:
        """Learn from samples of which some have a label."""

    def fit_predict(self, X: Any, y: Any) -> np.ndarray:
        """Learn and return `labels_`."""
        return self.fit(X, y).labels_

    def _known(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return labels (N,) as positions, -1 where unknown; the classes (C,) known; and y as an array."""
        given = as_array(y, "y")
        samples = len(checked_inputs(X))
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
