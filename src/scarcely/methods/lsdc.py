"""LSD-C: linearly separable deep clusters (Rebuffi, Ehrhardt, Han, Vedaldi, Zisserman, 2020)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.functional import compose
from scarcely.functional.pairwise import mix_target, pairwise_bce
from scarcely.functional.ramp import sigmoid_rampup
from scarcely.methods.base import Method, mlp_head
from scarcely.methods.optimizer import Optimizer
from scarcely.metrics import ClusterAccuracy
from scarcely.metrics.pairs import pair_quality
from scarcely.spec import Literal, NonNegative, Positive, PositiveInt

Permutations = tuple[Tensor, Tensor]


class LSDC(Method):
    """Cluster by pairwise labels taken from the features of each batch.

    Three views of each image: x, x̄ and x̄₂. Pairs of x that are similar in feature space are
    labelled positive; the clustering loss (eq. 5, 6) asks the predictions of x and of the
    composed x̄ to agree with these labels, the consistency (eq. 8) those of x̄ and x̄₂ to agree
    with each other.

    Args:
        backbone: features Φ, from the pretext.
        num_clusters: K.
        num_classes: true classes, for the scores alone.
        optimizer: optimizer and schedule.
        labeler: features (N, D) to the adjacency (N, N) bool; one of `functional.pairwise`.
        space: labels from the ``features`` or from the logits (``prediction``, table 4).
        composition: ``ricap``, ``mixup`` or ``none``.
        beta: parameter of the Beta distribution of boxes or weights.
        ricap_identity: patches of more than a quarter keep the identity permutation.
        mix_transposed: transpose the mixed target, as the authors' code did.
        consistency: λ of the ramp-up; 0 switches the consistency off (table 6).
        rampup: T, epochs of the ramp-up.
        hidden: size of a hidden layer of the head (table 6); null for a linear head.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
        pairs: pairs within each device's share of the batch, or of the whole batch.
    """

    views = 3

    def __init__(
        self,
        backbone: Backbone,
        num_clusters: int,
        num_classes: int,
        optimizer: Optimizer,
        labeler: Callable[[Tensor], Tensor],
        space: Literal["features", "prediction"] = "features",
        composition: Literal["ricap", "mixup", "none"] = "ricap",
        beta: Positive = 0.3,
        ricap_identity: bool = True,
        mix_transposed: bool = False,
        consistency: NonNegative = 5.0,
        rampup: NonNegative = 100,
        hidden: PositiveInt | None = None,
        freeze: int | str = 3,
        frozen_bn: Literal["train", "eval"] = "train",
        pairs: Literal["local", "global"] = "local",
    ) -> None:
        super().__init__(backbone, optimizer, freeze, frozen_bn)
        self.head = mlp_head(backbone.num_features, num_clusters, hidden)
        self.labeler = labeler
        self.space, self.composition, self.beta = space, composition, beta
        self.ricap_identity, self.mix_transposed = ricap_identity, mix_transposed
        self.consistency, self.rampup = consistency, rampup
        self.pairs = pairs
        self.metric = ClusterAccuracy(num_clusters, num_classes) if num_classes else None

    def logits(self, features: Tensor) -> Tensor:
        """Return cluster scores (N, K) of features (N, D)."""
        return self.head(features)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return L_clus + ω(t)·L_cons of one batch (eq. 7)."""
        x, *others = batch.views
        (c1, c2), mixing = self.compose_views(others, batch_idx)
        x, c1, c2 = x[batch.local], c1[batch.local], c2[batch.local]

        features = self.backbone(x)
        logits = self.head(features)
        p = logits.float().softmax(dim=1)
        p1 = self(c1).float().softmax(dim=1)
        p2 = self(c2).float().softmax(dim=1)

        labelled = (features if self.space == "features" else logits).detach()
        if self.pairs == "global":  # every row of this device against every column of the batch
            labelled, p_columns = self.gather(labelled), self.gather(p1, gradients=True)
        else:
            p_columns = p1
        adjacency = self.labeler(labelled)
        target = adjacency.float()
        if mixing is not None:
            target = mix_target(adjacency, *mixing, transposed=self.mix_transposed)

        clustering = pairwise_bce(p, p_columns, target[batch.local])
        weight = self.consistency * sigmoid_rampup(self.current_epoch, self.rampup)
        consistency = F.mse_loss(p1, p2)
        loss = clustering + weight * consistency
        self.record(
            {
                "loss": loss,
                "loss/clustering": clustering,
                "loss/consistency": consistency,
                # true labels, for the report alone; with global pairs the batch holds those of all ranks
                **pair_quality(adjacency, batch.labels),
            }
        )
        return loss

    def compose_views(self, views: list[Tensor], step: int) -> tuple[tuple[Tensor, ...], Permutations | None]:
        """Compose x̄ and x̄₂ with the same boxes, permutations and weights (section 3.3)."""
        if self.composition == "none":
            return tuple(views), None
        rng = self.draw("compose", step, shared=self.pairs == "global")
        if self.composition == "ricap":
            return compose.ricap(views, rng, beta=self.beta, identity=self.ricap_identity)
        return compose.mixup(views, rng, beta=self.beta)

    def epoch_metrics(self) -> dict[str, float]:
        """Return the weight of the consistency."""
        return {"rampup": self.consistency * sigmoid_rampup(self.current_epoch, self.rampup)}
