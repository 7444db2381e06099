"""What all methods share: one stage of training as a LightningModule.

A method says what its networks are, what a training step computes and how it predicts. The
base keeps the learning rate, the random numbers and the record of scalars, so that each of
them is a function of (seed, stage, epoch, step) and costs no wait for the device in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from scarcely import checkpoints
from scarcely.backbones.base import Backbone
from scarcely.data.augment import Augmentation
from scarcely.data.loader import Batch
from scarcely.errors import ConfigError, UserError
from scarcely.methods.optimizer import Optimizer
from scarcely.seeds import derive_seed
from scarcely.spec import Literal


class TrainingError(UserError):
    """Training cannot go on, e.g. the loss is not finite."""


@dataclass(frozen=True)
class Place:
    """Where a module is being trained: all that random numbers depend on, and how.

    Attributes:
        scaled: gradients are scaled against underflow, as under ``16-mixed``.
    """

    seed: int = 0
    stage: str = "train"
    epochs: int = 1
    rank: int = 0
    world_size: int = 1
    protocol: str = "split"
    scaled: bool = False


@dataclass
class Predictions:
    """What a method says about each sample, on the CPU.

    Attributes:
        probabilities: (N, K) float32, or None where there is no classifier.
        features: (N, D) float32.
        index: (N,) int64 into the samples.
        labels: (N,) int64, -1 where unknown.
    """

    features: Tensor
    index: Tensor
    labels: Tensor
    probabilities: Tensor | None = None


class Method(pl.LightningModule):
    """A stage of training.

    Subclasses set ``views`` (augmented views a batch holds), build their networks in
    ``__init__`` from the backbone that the run hands over, and write ``training_step``, which
    ends with ``self.record(...)``. ``logits`` is what evaluation and prediction use.

    Args:
        backbone: the network; its state is what the next stage inherits.
        optimizer: optimizer and schedule.
        freeze: number or name of the last block that is not trained; 0 trains all.
        frozen_bn: ``train`` or ``eval`` mode of frozen BatchNorm layers.
    """

    views: int = 1
    inheritance: str = ""  # what of an earlier stage or a checkpoint was taken over
    scores: dict[str, float]  # of the last validation, for the record of the epoch
    scored: str = ""  # what the scores speak of, where that is not all samples: "new/"
    learns_targets: bool = False  # whether it learns from all classes that an image shows, its `targets`
    targets: Tensor  # (N, C) int8 of its pool, as `ObjectImages.targets`; set where it learns from them

    def __init__(
        self,
        backbone: Backbone,
        optimizer: Optimizer,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.optimizer = optimizer
        self.place = Place()
        self._names: tuple[str, ...] = ()
        self._steps: list[Tensor] = []
        if freeze:
            backbone.freeze(freeze, frozen_bn)

    # -- what a method says -------------------------------------------------------------------

    def features(self, x: Tensor) -> Tensor:
        """Return (N, D) features of normalised inputs."""
        return self.backbone(x)

    def logits(self, features: Tensor) -> Tensor | None:
        """Return (N, K) class or cluster scores of features (N, D); None without a classifier."""
        return None

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the probability of each class (N, K) of scores (N, K): an image is of one of them."""
        return scores.float().softmax(dim=1)

    def joint_logits(self, features: Tensor) -> Tensor | None:
        """Return scores (N, C_l + C_u) of known and new classes together, of a method with such a head."""
        return None

    def take(
        self, tensors: Mapping[str, Tensor], *, source: str, least: float, where: str
    ) -> checkpoints.Match:
        """Fill the backbone with the weights of the stage or checkpoint before.

        Args:
            tensors: its whole state dict.
            source: where it came from, for the messages.
            least: smallest share of the network that must be filled.
            where: the setting that named it.

        Raises:
            CheckpointError: less than that fits.
        """
        return checkpoints.fill(self.backbone, tensors, source=source, least=least, where=where)

    def adopt(self, tensors: Mapping[str, Tensor]) -> Collection[str]:
        """Take more than the backbone, which is filled already, from the stage or checkpoint before.

        Args:
            tensors: its whole state dict.

        Returns:
            The names of the tensors that were taken.
        """
        return ()

    def check(self, batch_size: int) -> None:
        """Look, before any training, whether the settings fit the networks that were built.

        Raises:
            ConfigError: the labeler cannot label a batch of this size and these features, or no place in
                a batch is left for unlabelled samples.
        """
        labelled = getattr(self, "labelled_batch_size", None)
        if labelled is not None and labelled >= batch_size:
            raise ConfigError(
                f"labelled_batch_size={labelled} of batch_size={batch_size} leaves no unlabelled samples",
                where="method.labelled_batch_size",
                instead=f"1 to {batch_size - 1}, or null for samples as they come",
            )
        labeler = getattr(self, "labeler", None)
        if labeler is not None and getattr(self, "space", "features") == "features":
            try:
                labeler(torch.zeros(batch_size, self.backbone.num_features))
            except ConfigError as error:
                where = f"method.labeler.{error.where}" if error.where else "method.labeler"
                raise ConfigError(error.what, where=where, instead=error.instead) from error

    def ready(self) -> None:
        """Do what depends on the weights that training starts from, before an interrupted run goes on."""

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        return self.optimizer.lr_at(epoch, self.place.epochs)

    def arrays(self) -> dict[str, Tensor]:
        """Return further arrays for predictions.npz, one number or row a sample that was trained on."""
        return {}

    def prepare(self, batches: Any) -> None:
        """Look at the training data once before the first step; for what is no gradient descent."""

    def final_metrics(self, batches: Any) -> dict[str, float]:
        """Return the scores of a finished pretext; clusterers and classifiers are scored by the run."""
        return {}

    def augmentation(self, given: Augmentation) -> Augmentation:
        """Return how the views of a batch are made, for a method that needs other ones than the data's."""
        return given

    def epoch_metrics(self) -> dict[str, float]:
        """Return further numbers for the record of an epoch."""
        return {}

    # -- what all do alike --------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (N, K), or the features (N, D) of a method without a classifier."""
        features = self.features(x)
        logits = self.logits(features)
        return features if logits is None else logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer over everything that is trained."""
        return self.optimizer.build(self.parameters(), scaled=self.place.scaled)

    def on_train_epoch_start(self) -> None:
        """Set what the epoch alone decides: learning rate and random state."""
        epoch = self.current_epoch
        lr = self.learning_rate(epoch)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        torch.manual_seed(derive_seed(self.place.seed, self.place.stage, epoch, "rank", self.place.rank))
        loader: Any = self.trainer.train_dataloader
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)

    def draw(self, name: str, step: int, *, shared: bool = True) -> np.random.Generator:
        """Return the random numbers of this step, by name; ``shared`` gives every rank the same.

        Where there is one rank the two are alike: the loss over all pairs of the batch is then that
        of several ranks with global pairs.
        """
        rank = () if shared or self.place.world_size == 1 else (self.place.rank,)
        seed = derive_seed(self.place.seed, self.place.stage, self.current_epoch, step, name, *rank)
        return np.random.default_rng(seed)

    def gather(self, rows: Tensor, *, gradients: bool = False) -> Tensor:
        """Return the rows (n, ...) of all ranks in the order of the global batch, (N, ...).

        With ``gradients`` each rank's rows get the sum of what all ranks ask of them: where the loss
        of a rank is a mean over its own part, DDP's mean over the ranks is the gradient of the whole.
        """
        if self.place.world_size == 1:
            return rows
        gathered = self.all_gather(rows, sync_grads=gradients)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def mean_of_all(self, total: Tensor, count: Tensor) -> Tensor:
        """Return total / count so that DDP's mean over the ranks is the mean over all their samples.

        Args:
            total: scalar, the sum of this rank.
            count: scalar, the number of its samples; 0 everywhere gives 0.
        """
        counts = self.gather(count.reshape(1).to(total.dtype))
        return total * self.place.world_size / counts.sum().clamp(min=1)

    def record(self, scalars: dict[str, Tensor]) -> None:
        """Keep the scalars of this step on the device; they are read once an epoch or every n steps."""
        if not self._names:
            self._names = tuple(scalars)
        self._steps.append(torch.stack([scalars[n].detach().float().reshape(()) for n in self._names]))

    def recent(self, steps: int) -> dict[str, float]:
        """Return the means over the last steps: one wait for the device.

        Raises:
            TrainingError: a loss is not finite; names the step and its samples.
        """
        if not self._steps:
            return {}
        values = torch.stack(self._steps[-steps:]).cpu()
        self._require_finite(values, len(self._steps) - len(values))
        return dict(zip(self._names, _nanmean(values).tolist(), strict=True))

    def epoch_summary(self) -> dict[str, float]:
        """Return the means over the epoch, over all ranks, and forget the steps.

        Raises:
            TrainingError: a loss or a weight is not finite.
        """
        if not self._steps:
            return {}
        values = torch.stack(self._steps)
        self._steps = []
        self._require_finite(values.cpu(), 0)
        self._require_finite_weights()
        means = _nanmean(values)
        if self.place.world_size > 1:
            means = self.trainer.strategy.reduce(means, reduce_op="mean")
        return dict(zip(self._names, means.cpu().tolist(), strict=True))

    def _require_finite(self, values: Tensor, first: int) -> None:
        losses = [i for i, n in enumerate(self._names) if n.startswith("loss")]
        wrong = ~torch.isfinite(values[:, losses]).all(dim=1)
        if not wrong.any():
            return
        step = first + int(wrong.nonzero()[0, 0])
        loader: Any = self.trainer.train_dataloader
        samples = ""
        if hasattr(loader, "_order"):
            size = loader.batch_size
            rows = loader._order(self.current_epoch)[step * size : (step + 1) * size]
            samples = f"; its samples are {rows[:8].tolist()}…"
        shown = dict(zip(self._names, values[step - first].tolist(), strict=True))
        raise TrainingError(
            f"the loss is not finite any more: {shown}",
            where=f"stage {self.place.stage}, epoch {self.current_epoch}, step {step} of it{samples}",
            instead="a smaller method.optimizer.lr; the last good checkpoint is kept",
        )

    def _require_finite_weights(self) -> None:
        # a finite loss may have an infinite gradient, and the last step of an epoch has no loss after it
        state = self.state_dict()
        largest = {n: t.detach().abs().max() for n, t in state.items() if t.is_floating_point() and t.numel()}
        finite = torch.stack([t.float() for t in largest.values()]).isfinite().tolist()
        wrong = [name for name, ok in zip(largest, finite, strict=True) if not ok]
        if wrong:
            raise TrainingError(
                f"weights are not finite any more: {', '.join(wrong[:5])}",
                where=f"stage {self.place.stage}, epoch {self.current_epoch}, its last step",
                instead="a smaller method.optimizer.lr; the last good checkpoint is kept",
            )

    # -- prediction ---------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score one batch; the counts stay on the device until the epoch ends."""
        metric = getattr(self, "metric", None)
        if metric is not None:
            metric.update(self(batch.views[0]), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Keep the scores for the record of the epoch."""
        metric = getattr(self, "metric", None)
        if metric is not None:
            self.scores = {f"{self.scored}{k}": float(v) for k, v in metric.compute().items()}
            metric.reset()

    @torch.no_grad()
    def predict_all(
        self, batches: Any, scores_of: Callable[[Tensor], Tensor | None] | None = None
    ) -> Predictions:
        """Return features and probabilities of all samples that the loader gives, in its order.

        The mode of the module is restored.

        Args:
            batches: a loader.
            scores_of: features (n, D) to scores (n, K); `logits` if not given.
        """
        scores_of = scores_of or self.logits
        was_training = self.training
        self.eval()
        features, probabilities, index, labels = [], [], [], []
        for batch in batches:
            f = self.features(batch.views[0])
            scores = scores_of(f)
            features.append(f.float().cpu())
            index.append(batch.index.cpu())
            labels.append(batch.labels.cpu())
            if scores is not None:
                probabilities.append(self.probabilities(scores).cpu())
        self.train(was_training)
        return Predictions(
            features=torch.cat(features),
            index=torch.cat(index),
            labels=torch.cat(labels),
            probabilities=torch.cat(probabilities) if probabilities else None,
        )


def _nanmean(values: Tensor) -> Tensor:
    # a precision without any positive pair is NaN in one step, not in the epoch
    return values.nanmean(dim=0)


def mlp_head(num_features: int, num_outputs: int, hidden: int | None = None, norm: bool = False) -> nn.Module:
    """Return a linear head, or one with a hidden layer and ReLU, with BatchNorm before it if ``norm``."""
    if hidden is None:
        return nn.Linear(num_features, num_outputs)
    between = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(
        nn.Linear(num_features, hidden), *between, nn.ReLU(inplace=True), nn.Linear(hidden, num_outputs)
    )
