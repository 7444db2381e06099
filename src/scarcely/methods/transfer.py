"""What KCL and MCL share: a network that learnt which known samples belong together labels pairs of new ones.

Source: "Learning to Cluster in Order to Transfer Across Domains and Tasks" (Hsu, Lv and Kira, 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.errors import CheckpointError, ConfigError
from scarcely.functional.pairwise import product
from scarcely.methods.base import mlp_head
from scarcely.methods.discovery import Discovery
from scarcely.methods.optimizer import Optimizer
from scarcely.metrics.pairs import pair_quality
from scarcely.spec import Literal, PositiveInt, UnitInterval


class PairHead(nn.Module):
    """Scores all pairs of a batch at the cost of one N x N matrix.

    Hsu et al. concatenate the features of two samples, N²·2D numbers. Here a pair scores the cosine of its
    two feature vectors, each feature scaled and shifted, and the cosine too. Projections, linear or with a
    hidden layer, fit the known classes as well, but tell less of new ones: on digits the area under the
    ROC curve of pairs of new classes falls from 0.78 to between 0.66 and 0.72.

    Args:
        num_features: D.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(num_features)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-5.0))  # at the start a cosine of ½ decides

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, N) of "same class" of features (N, D), float32."""
        unit = F.normalize(self.norm(features).float(), dim=1)
        return self.log_scale.exp() * product(unit, unit) + self.bias


class SimilarityNetwork(nn.Module):
    """The frozen network of a similarity stage: always in eval mode, never trained."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.pair_head = PairHead(backbone.num_features)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> SimilarityNetwork:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor, threshold: float) -> Tensor:
        """Return which pairs of inputs are of one class with a probability above a threshold, bool (N, N)."""
        return (self.pair_head(self.backbone(x)).sigmoid() > threshold).fill_diagonal_(True)


class TransferClustering(Discovery):
    """Cluster the unlabelled samples so that pairs go together where a similarity network says so.

    The frozen network labels the pairs of one view of the images, the trained one clusters another view.

    Args:
        backbone: features, from the similarity stage.
        num_known: C_l.
        num_new: C_u.
        num_classes: known and true new classes together, for the scores alone.
        optimizer: optimizer and schedule.
        threshold: probability above which a pair is labelled similar.
        hidden: size of a hidden layer of the head, with BatchNorm; null for a linear head.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
        pairs: pairs within each device's share of the batch, or of the whole batch.
    """

    views = 2
    follows: ClassVar[str] = "similarity"
    """Name of the method whose stage, or checkpoint, must be the last to train before this one."""

    def __init__(
        self,
        backbone: Backbone,
        num_known: int,
        num_new: int,
        num_classes: int,
        optimizer: Optimizer,
        threshold: UnitInterval = 0.5,
        hidden: PositiveInt | None = None,
        freeze: int | str = 3,
        frozen_bn: Literal["train", "eval"] = "train",
        pairs: Literal["local", "global"] = "local",
    ) -> None:
        super().__init__(backbone, num_known, num_new, num_classes, optimizer, freeze, frozen_bn)
        self.head = mlp_head(backbone.num_features, num_new, hidden, norm=True)
        self.similarity = SimilarityNetwork(backbone)
        self.threshold, self.pairs = threshold, pairs
        self._adopted = False

    def pair_loss(self, p: Tensor, q: Tensor, similar: Tensor) -> Tensor:
        """Return the loss of predictions p (N, K) and q (M, K) whose pairs are labelled (N, M) bool."""
        raise NotImplementedError(f"{type(self).__name__} must define pair_loss()")

    def adopt(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Take the network that labels the pairs from the similarity stage, or from a finished run.

        Returns:
            The names of the tensors that were taken, but for a backbone that both networks start from.

        Raises:
            CheckpointError: there is no such network, or one of another shape.
        """
        own = self.similarity.state_dict()
        for prefix in ("similarity.", ""):
            given = {name: tensors[prefix + name] for name in own if prefix + name in tensors}
            if {n: t.shape for n, t in given.items()} == {n: t.shape for n, t in own.items()}:
                break
        else:
            raise CheckpointError(
                "the stage or checkpoint before has no network that tells which samples are of one class",
                where="ckpt, method.before",
                instead="a run of method=similarity, kcl or mcl; or no ckpt, and similarity as the last"
                " stage that trains before this one",
            )
        self.similarity.load_state_dict(given)
        self._adopted = True
        return [prefix + name for name in given if prefix or not name.startswith("backbone.")]

    def on_fit_start(self) -> None:
        """Look whether there is a network to label the pairs.

        Raises:
            ConfigError: there was no similarity stage.
        """
        if not self._adopted:
            raise ConfigError(
                "pairs would be labelled by a network that learnt nothing: there was no similarity stage",
                where="method.before",
                instead="a list of stages with similarity in it",
            )

    def logits(self, features: Tensor) -> Tensor:
        """Return scores (N, C_u) of the new classes."""
        return self.head(features)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of all pairs of one batch."""
        x, x2 = batch.views
        similar = self.similarity(x, self.threshold)  # with global pairs of the whole batch, on each device
        p = q = self(x2[batch.local]).float().softmax(dim=1)
        if self.pairs == "global":  # every row of this device against every column of the batch
            q = self.gather(p, gradients=True)
        loss = self.pair_loss(p, q, similar[batch.local])
        # true labels, for the report alone
        self.record({"loss": loss, **pair_quality(similar, batch.labels)})
        return loss
