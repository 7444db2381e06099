"""The stage of ``num_new=auto``: estimate the number of new classes on the features so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scarcely.backbones.base import Backbone
from scarcely.functional.class_count import estimate_num_new
from scarcely.methods.base import Method
from scarcely.methods.optimizer import Optimizer
from scarcely.seeds import derive_seed
from scarcely.spec import PositiveInt

CURVES = ("candidates", "anchor_accuracy", "silhouette", "plausible")


class CountClasses(Method):
    """Estimate C_u as Han, Vedaldi and Zisserman (2019) do; nothing is trained.

    Args:
        backbone: the network of the stage before.
        num_known: C_l.
        highest: largest number tried; null: three times the known classes, between 10 and 100.
    """

    num_new: Tensor
    candidates: Tensor
    anchor_accuracy: Tensor
    silhouette: Tensor
    plausible: Tensor

    def __init__(self, backbone: Backbone, num_known: int, highest: PositiveInt | None = None) -> None:
        super().__init__(backbone, Optimizer())
        self.num_known = num_known
        self.highest = highest or min(max(3 * num_known, 10), 100)
        self.register_buffer("num_new", torch.zeros((), dtype=torch.int64))
        for curve in CURVES:
            self.register_buffer(curve, torch.zeros(0))

    def prepare(self, batches: Any) -> None:
        """Estimate the number on the features of all labelled and unlabelled samples."""
        all_samples = self.predict_all(batches)
        known = (all_samples.labels >= 0) & (all_samples.labels < self.num_known)
        most = min(self.highest, int((~known).sum()))
        estimate = estimate_num_new(
            all_samples.features[known],
            all_samples.labels[known],
            all_samples.features[~known],
            range(1, most + 1),
            seed=derive_seed(self.place.seed, self.place.stage, "count"),
        )
        self.num_new.fill_(estimate.num_new)
        for curve in CURVES:
            setattr(self, curve, torch.tensor(getattr(estimate, curve), dtype=torch.float64))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *arguments: Any, **others: Any
    ) -> None:
        for curve in CURVES:  # as long as the estimate that was saved
            if prefix + curve in state_dict:
                setattr(self, curve, torch.empty_like(state_dict[prefix + curve]))
        super()._load_from_state_dict(state_dict, prefix, *arguments, **others)

    def final_metrics(self, batches: Any) -> dict[str, float]:
        """Return the number that was found."""
        return {"num_new": float(self.num_new)}


def read_estimate(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the number and the curves from the weights of a finished stage, as plain values."""
    curves = {curve: state[curve].tolist() for curve in CURVES}
    for counts in ("candidates", "plausible"):
        curves[counts] = [int(k) for k in curves[counts]]
    return {"num_new": int(state["num_new"]), **curves}
