"""Which samples are of one class? The stage before KCL and MCL (Hsu, Lv and Kira, 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.functional.transfer import similarity_bce
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.transfer import PairHead
from scarcely.metrics.pairs import pair_counts, pair_quality, pair_shares
from scarcely.seeds import derive_seed
from scarcely.spec import Literal, UnitInterval

SCORED = 512  # samples whose pairs are scored at once


class Similarity(Method):
    """Binary cross-entropy on all pairs of a batch of labelled samples.

    Args:
        backbone: the network.
        optimizer: optimizer and schedule.
        positive_share: share of the loss that the pairs of one class have together, however rare they
            are: among C classes one pair in C. Null: each pair has the same weight.
        freeze: last block that is not trained; 0 trains all.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    least_classes: ClassVar[int] = 2  # of one class all pairs are alike

    def __init__(
        self,
        backbone: Backbone,
        optimizer: Optimizer,
        positive_share: UnitInterval | None = None,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, optimizer, freeze, frozen_bn)
        self.pair_head = PairHead(backbone.num_features)
        self.positive_share = positive_share

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of all pairs of one batch."""
        logits = self.pair_head(self.backbone(batch.views[0]))
        same = batch.labels[:, None] == batch.labels
        loss = similarity_bce(logits, same, self.positive_share)
        self.record({"loss": loss, **pair_quality(_connected(logits), batch.labels)})
        return loss

    @torch.no_grad()
    def final_metrics(self, batches: Any) -> dict[str, float]:
        """Return share, precision and recall of the pairs called positive, of samples in mixed batches.

        The batches that are given may hold few classes each, and then say little of how rare pairs are.
        """
        self.eval()
        found = self.predict_all(batches)
        seed = derive_seed(self.place.seed, self.place.stage, "pairs")
        order = torch.randperm(len(found.labels), generator=torch.Generator().manual_seed(seed))
        counts = [
            pair_counts(
                _connected(self.pair_head(found.features[rows].to(self.device))).cpu(), found.labels[rows]
            )
            for rows in order.split(SCORED)
        ]
        return {name: float(share) for name, share in pair_shares(torch.stack(counts).sum(dim=0)).items()}


def _connected(logits: Tensor) -> Tensor:
    return (logits.detach() > 0).fill_diagonal_(True)
