"""Ranking statistics: discover new classes beside known ones (Han, Rebuffi et al., 2020; "AutoNovel")."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.functional.pairwise import pairwise_bce
from scarcely.functional.ramp import sigmoid_rampup
from scarcely.methods.base import mlp_head
from scarcely.methods.discovery import Discovery, unlabelled_only
from scarcely.methods.optimizer import Optimizer
from scarcely.metrics.pairs import pair_quality
from scarcely.spec import Literal, NonNegative, PositiveInt


class RankingStatistics(Discovery):
    """Train a head for the known and a head for the new classes together, on one representation.

    Two views of each image, x and x̄, in two forward passes. Labelled samples teach the first head by
    cross-entropy (eq. 1). Pairs of unlabelled samples whose features rank alike are labelled positive,
    and the second head learns from them (eq. 2, 3). Both heads shall say the same of x and x̄ (eq. 4).

    Args:
        backbone: features Φ, from the supervised stage.
        num_known: C_l.
        num_new: C_u.
        num_classes: known and true new classes together, for the scores alone.
        optimizer: optimizer and schedule.
        labeler: features (N, D) to the adjacency (N, N) bool; one of `functional.pairwise`.
        consistency: λ of the ramp-up ω(t) of eq. 5; 0 switches the consistency off (table 1).
        rampup: T, epochs of the ramp-up.
        labelled_loss: the cross-entropy of the labelled samples (table 1).
        pair_loss: the binary cross-entropy of the pairs (table 1).
        incremental: grow the first head to C_l + C_u classes, and teach it the predictions of the
            second (section 2.5).
        self_training: weight of these self-made labels, ramped up over T too (appendix B).
        labelled_batch_size: labelled samples in each batch; the others are unlabelled. null: samples as they
            come from the union (appendix B), where a small share of unlabelled ones leaves few pairs in a
            batch.
        epoch_of: which of the two an epoch goes through once, where there are so many in each batch.
        hidden: size of a hidden layer of both heads, with BatchNorm; null for linear heads.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
        pairs: pairs within each device's share of the batch, or of the whole batch.
    """

    views = 2

    def __init__(
        self,
        backbone: Backbone,
        num_known: int,
        num_new: int,
        num_classes: int,
        optimizer: Optimizer,
        labeler: Callable[[Tensor], Tensor],
        consistency: NonNegative = 5.0,
        rampup: NonNegative = 50,
        labelled_loss: bool = True,
        pair_loss: bool = True,
        incremental: bool = False,
        self_training: NonNegative = 0.05,
        labelled_batch_size: PositiveInt | None = None,
        epoch_of: Literal["labelled", "unlabelled"] = "unlabelled",
        hidden: PositiveInt | None = None,
        freeze: int | str = 3,
        frozen_bn: Literal["train", "eval"] = "train",
        pairs: Literal["local", "global"] = "local",
    ) -> None:
        super().__init__(backbone, num_known, num_new, num_classes, optimizer, freeze, frozen_bn)
        size = backbone.num_features
        self.head = mlp_head(size, num_known + (num_new if incremental else 0), hidden, norm=True)
        self.new_head = mlp_head(size, num_new, hidden, norm=True)
        self.labeler = labeler
        self.consistency, self.rampup = consistency, rampup
        self.labelled_loss, self.pair_loss = labelled_loss, pair_loss
        self.incremental, self.self_training = incremental, self_training
        self.labelled_batch_size, self.epoch_of, self.pairs = labelled_batch_size, epoch_of, pairs

    def adopt(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Take over the head of the supervised stage; a grown head gets room for the new classes.

        Their weights stay random; their biases start one below the lowest of the known classes, so
        that no labelled sample is mistaken for a new class at the start.
        """
        own = self.head.state_dict()
        given = {name: tensors[f"head.{name}"] for name in own if f"head.{name}" in tensors}
        known = {n for n, t in given.items() if t.shape == (self.num_known, *own[n].shape[1:])}
        if any(n not in given or (given[n].shape != t.shape and n not in known) for n, t in own.items()):
            return []  # no head, or one of another kind
        for name, tensor in own.items():
            source = given[name].flatten()
            tensor.view(-1)[: len(source)] = source  # the known classes are the first rows
        if self.incremental and known:
            bias = [layer for layer in self.head.modules() if isinstance(layer, nn.Linear)][-1].bias.detach()
            bias[self.num_known :] = bias[: self.num_known].min() - 1
        return [f"head.{name}" for name in own]

    def logits(self, features: Tensor) -> Tensor:
        """Return scores (N, C_u) of the new classes."""
        return self.new_head(features)

    def joint_logits(self, features: Tensor) -> Tensor | None:
        """Return scores (N, C_l + C_u) of the grown head; None if it was not grown."""
        return self.head(features) if self.incremental else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return L_CE + L_BCE + ω(t)·L_MSE of one batch (eq. 5), and the self-made labels' loss."""
        x, x2 = (view[batch.local] for view in batch.views)
        labels = batch.labels[batch.local]
        new_of_all = self.is_new(batch.labels)
        new = new_of_all[batch.local]
        old = ~new
        features, features2 = self.backbone(x), self.backbone(x2)
        known, known2 = self.head(features).float(), self.head(features2).float()
        p_known, p_known2 = known.softmax(dim=1), known2.softmax(dim=1)
        p_new, p_new2 = (self.new_head(f).float().softmax(dim=1) for f in (features, features2))

        ramp = sigmoid_rampup(self.current_epoch, self.rampup)
        consistency = F.mse_loss(p_known, p_known2) + F.mse_loss(p_new, p_new2)
        loss = self.consistency * ramp * consistency
        scalars = {"loss/consistency": consistency}
        if self.labelled_loss:
            scalars["loss/labelled"] = self._cross_entropy(known, labels, old)
            loss = loss + scalars["loss/labelled"]
        if self.pair_loss:
            scalars["loss/pairs"], quality = self._pair_loss(features, p_new, p_new2, batch, new_of_all)
            scalars |= quality
            loss = loss + scalars["loss/pairs"]
        if self.incremental:
            made = self.num_known + p_new.detach().argmax(dim=1)
            scalars["loss/self"] = self._cross_entropy(known, made, new)
            loss = loss + self.self_training * ramp * scalars["loss/self"]
        hits = (known.argmax(dim=1) == labels) & old
        self.record({"loss": loss, "accuracy": hits.sum() / old.sum(), **scalars})
        return loss

    def _cross_entropy(self, scores: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        """Return the mean over the samples that count (eq. 1); 0 if there are none."""
        total = F.cross_entropy(scores, labels.where(counted, -1), ignore_index=-1, reduction="sum")
        return self.mean_of_all(total, counted.sum())

    def _pair_loss(
        self, features: Tensor, p: Tensor, p2: Tensor, batch: Batch, columns: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of all pairs of unlabelled samples (eq. 3), and the quality of their labels.

        Where pairs are global, the batch and its unlabelled samples ``columns`` are those of all devices.
        """
        rows = columns[batch.local]
        ranked = unlabelled_only(features, rows)
        if self.pairs == "global":  # every row of this device against every column of the batch
            ranked, p2 = self.gather(ranked), self.gather(p2, gradients=True)
        adjacency = self.labeler(ranked)
        counted = rows[:, None] & columns
        loss = pairwise_bce(p, p2, adjacency[batch.local], counted)
        if self.pairs == "global":
            loss = self.mean_of_all(loss * counted.sum(), counted.sum())
        return loss, pair_quality(adjacency, batch.labels, columns)

    def epoch_metrics(self) -> dict[str, float]:
        """Return the weight of the consistency."""
        return {"rampup": self.consistency * sigmoid_rampup(self.current_epoch, self.rampup)}
