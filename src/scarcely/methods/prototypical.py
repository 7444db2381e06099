"""Prototypical networks: metric learning on many known classes (Snell, Swersky and Zemel, 2017)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.errors import ConfigError
from scarcely.functional.transfer import prototypical_loss, squared_distances
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import Annotated, Literal, Positive, Range


class Prototypical(Method):
    """Tell the classes of an episode apart by the distances to their means.

    A batch is an episode: consecutive groups of samples of one class, the first half of each group the
    support that makes the prototype, the second half the queries that are scored.

    Args:
        backbone: the network.
        num_classes: number of classes.
        optimizer: optimizer and schedule.
        group: samples of a class that follow one another, an even number.
        scale: features of unit length, and squared distances times this number: without an offset that all
            have in common the strongest features tell samples apart, as ranking statistics wants it. None:
            features as they are.
        freeze: last block that is not trained; 0 trains all.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    least_classes: ClassVar[int] = 2  # in an episode of one class there is nothing to tell apart

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Optimizer,
        group: Annotated[int, Range(low=2)] = 10,
        scale: Positive | None = None,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, optimizer, freeze, frozen_bn)
        self.num_classes, self.group, self.scale = num_classes, group, scale

    def check(self, batch_size: int) -> None:
        """Look whether groups have two halves, and a batch several groups.

        Raises:
            ConfigError: they have not.
        """
        super().check(batch_size)
        if self.group % 2:
            raise ConfigError(
                f"a group of {self.group} samples has no two halves",
                where="method.group",
                instead="an even number",
            )
        if batch_size < 2 * self.group:
            raise ConfigError(
                f"in a batch of {batch_size} samples there are no two groups of {self.group} to tell apart",
                where="method.group, batch_size",
                instead=f"a batch_size of {2 * self.group} at least",
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one episode."""
        whole = len(batch.labels) // self.group * self.group
        features = self._embedded(self.backbone(batch.views[0])[:whole]).unflatten(0, (-1, self.group))
        labels = batch.labels[:whole].unflatten(0, (-1, self.group))
        (support, query), (of_support, of_query) = (t.chunk(2, dim=1) for t in (features, labels))
        loss, accuracy = prototypical_loss(
            support.flatten(0, 1), of_support.flatten(), query.flatten(0, 1), of_query.flatten()
        )
        self.record({"loss": loss, "accuracy": accuracy})
        return loss

    def _embedded(self, features: Tensor) -> Tensor:
        return features if self.scale is None else F.normalize(features, dim=1) * self.scale**0.5

    def final_metrics(self, batches: Any) -> dict[str, float]:
        """Return the share of the training samples whose nearest class mean is that of their class."""
        found = self.predict_all(batches)
        members = F.one_hot(found.labels, self.num_classes).float()
        features = self._embedded(found.features)
        means = members.mT @ features / members.sum(dim=0).clamp(min=1)[:, None]
        distances = squared_distances(features, means).masked_fill(members.sum(dim=0) == 0, torch.inf)
        return {"train/nearest_mean": (distances.argmin(dim=1) == found.labels).float().mean().item()}
