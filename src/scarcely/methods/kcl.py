"""KCL: clustering by the divergence of predictions (Hsu, Lv and Kira, 2018)."""

from __future__ import annotations

from torch import Tensor

from scarcely.backbones.base import Backbone
from scarcely.functional.transfer import kcl_loss
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.transfer import TransferClustering
from scarcely.spec import Literal, NonNegative, PositiveInt, UnitInterval


class KCL(TransferClustering):
    """Small divergence of the predictions of similar pairs, at least the margin for others.

    Args:
        backbone: features, from the similarity stage.
        num_known: C_l.
        num_new: C_u.
        num_classes: known and true new classes together, for the scores alone.
        optimizer: optimizer and schedule.
        margin: divergence from which on a dissimilar pair costs nothing, in nats.
        threshold: probability above which a pair is labelled similar.
        hidden: size of a hidden layer of the head, with BatchNorm; null for a linear head.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
        pairs: pairs within each device's share of the batch, or of the whole batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_known: int,
        num_new: int,
        num_classes: int,
        optimizer: Optimizer,
        margin: NonNegative = 2.0,
        threshold: UnitInterval = 0.5,
        hidden: PositiveInt | None = None,
        freeze: int | str = 3,
        frozen_bn: Literal["train", "eval"] = "train",
        pairs: Literal["local", "global"] = "local",
    ) -> None:
        super().__init__(
            backbone,
            num_known,
            num_new,
            num_classes,
            optimizer,
            threshold,
            hidden,
            freeze,
            frozen_bn,
            pairs,
        )
        self.margin = margin

    def pair_loss(self, p: Tensor, q: Tensor, similar: Tensor) -> Tensor:
        """Return the mean over all ordered pairs."""
        return kcl_loss(p, q, similar, self.margin)
