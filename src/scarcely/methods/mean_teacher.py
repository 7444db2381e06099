"""Mean Teacher: the average of the weights teaches the network (Tarvainen and Valpola, 2017)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.functional.scarce import average_decay
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.scarce import Consistency
from scarcely.spec import Literal, NonNegative, PositiveInt, UnitInterval


class MeanTeacher(Consistency):
    """Few labelled samples by cross-entropy, all samples by consistency with the teacher.

    ``backbone`` and ``head`` are the teacher: what predicts, is handed on and is refined. The student,
    which the gradient trains, has its own copy of both.

    Args:
        backbone: the network.
        num_classes: K.
        optimizer: optimizer and schedule.
        consistency: largest weight of the consistency loss.
        rampup: epochs until it is reached.
        decay: of the average of the weights, once enough steps are taken.
        labelled_batch_size: labelled samples in each batch; an epoch goes once through the others.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Optimizer,
        consistency: NonNegative = 100.0,
        rampup: NonNegative = 5,
        decay: UnitInterval = 0.97,
        labelled_batch_size: PositiveInt | None = 31,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(
            backbone, num_classes, optimizer, consistency, rampup, labelled_batch_size, freeze, frozen_bn
        )
        self.decay = decay
        self.student, self.student_head = copy.deepcopy(backbone), copy.deepcopy(self.head)
        backbone.requires_grad_(False)
        self.head.requires_grad_(False)

    def adopt(self, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Let the student start where the teacher does."""
        self.student.load_state_dict(self.backbone.state_dict())
        self.student_head.load_state_dict(self.head.state_dict())
        return ()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of the labelled samples and the consistency of all of them."""
        x, x2 = batch.views
        scores = self.student_head(self.student(x))
        with torch.no_grad():  # in train mode, as the student: with the statistics of its own batch
            taught = self.head(self.backbone(x2))
        return self.loss(scores, taught, batch.labels)

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the teacher towards the student."""
        toward = 1 - average_decay(self.trainer.global_step, self.decay)
        teacher: list[Tensor] = [*self.backbone.parameters(), *self.head.parameters()]
        student: list[Tensor] = [*self.student.parameters(), *self.student_head.parameters()]
        torch._foreach_lerp_(teacher, student, toward)
