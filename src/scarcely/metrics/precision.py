"""Average precision of several labels an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat


class AveragePrecision(Metric):
    """Average precision of each class, AP = Σ (Rₙ - Rₙ₋₁) Pₙ, the area under precision over recall.

    The sum goes over the thresholds that the scores themselves make, precision as it is. PASCAL VOC's own
    tool raises each precision to the best one at a higher recall, and so gives a little more.

    Args:
        **kwargs: as for any torchmetrics ``Metric``.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    _scores: list[Tensor]
    _targets: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("_scores", [], dist_reduce_fx="cat")
        self.add_state("_targets", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Take scores (N, C) of any range, and targets (N, C): 1, 0, or -1 for what shall not count."""
        self._scores.append(scores.float())
        self._targets.append(targets)

    def compute(self) -> Tensor:
        """Return (C,) in [0, 1], of one class a scalar; NaN for a class without any example."""
        scores, targets = dim_zero_cat(self._scores), dim_zero_cat(self._targets)
        found = [_average_precision(s, t) for s, t in zip(scores.unbind(1), targets.unbind(1), strict=True)]
        return torch.stack(found)


def _average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    counted = targets >= 0
    if not (targets == 1).any():
        return scores.new_tensor(torch.nan)
    # by rank: torchmetrics takes a sigmoid of scores beyond [0, 1], which makes ties of large ones
    ranks = scores[counted].unique(return_inverse=True)[1]
    return binary_average_precision(ranks / max(1, len(ranks)), targets[counted].long())
