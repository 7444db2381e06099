"""Alternating optimisation for scarce labels (Rebuffi, Ehrhardt et al., 2020; thesis, chapter 5)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.functional.scarce import pseudo_label_loss, random_part
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.scarce import ScarceLabels
from scarcely.seeds import derive_seed
from scarcely.spec import Annotated, Literal, NonNegativeInt, PositiveInt, Range


class AlternatingSSL(ScarceLabels):
    """Cycles of two phases: labels flow from the first to the second, weights from the second to the first.

    Phase one trains the classifier alone on the labelled samples, whose features are computed once, and
    labels all unlabelled samples. Phase two starts again from the prepared weights and learns these
    pseudo-labels on a random part of the unlabelled samples, with the predictions of its previous epoch
    for consistency (algorithm 1). The epochs of the stage are those of phase two, the same number in each
    cycle; phase one takes place before the first of them.

    Args:
        backbone: the network, prepared by a pretext or a checkpoint.
        num_classes: K.
        optimizer: of phase two; its schedule begins anew in each cycle.
        classifier: optimizer of phase one.
        classifier_epochs: epochs of phase one.
        cycles: number of cycles.
        final_cycles: how many of them, the last ones, use all unlabelled samples.
        split: share of the unlabelled samples that the other cycles use; 1 switches the split off.
        temporal: consistency with the previous epoch (figure 3).
        restart: go back to the prepared weights before phase two (section 4.2).
        labels: ``hard`` pseudo-labels, the likeliest class, or ``soft`` ones, the probabilities.
        final_classifier: phase one once more at the end, so that true labels decide last; algorithm 1 ends
            with phase two.
        freeze: last block that is not trained.
        frozen_bn: mode of frozen BatchNorm layers.
    """

    views = 1

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Optimizer,
        classifier: Optimizer,
        classifier_epochs: PositiveInt = 50,
        cycles: PositiveInt = 15,
        final_cycles: NonNegativeInt = 3,
        split: Annotated[float, Range(above=0, high=1)] = 2 / 3,
        temporal: bool = True,
        restart: bool = True,
        labels: Literal["hard", "soft"] = "hard",
        final_classifier: bool = False,
        freeze: int | str = 0,
        frozen_bn: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(backbone, num_classes, optimizer, freeze, frozen_bn)
        self.classifier, self.classifier_epochs = classifier, classifier_epochs
        self.cycles, self.final_cycles, self.split = cycles, final_cycles, split
        self.temporal, self.restart, self.soft = temporal, restart, labels == "soft"
        self.final_classifier = final_classifier
        self._prepared: dict[str, Tensor] = {}
        self._bank: dict[str, Tensor] = {}
        self._numbers: dict[str, float] = {}

    # -- the order of things ----------------------------------------------------------------------

    def cycle_of(self, epoch: int) -> tuple[int, int, int]:
        """Return the cycle of an epoch, the epoch within it, and how many epochs a cycle has."""
        length = max(1, self.place.epochs // self.cycles)
        return epoch // length, epoch % length, length

    def subset(self, epoch: int, count: int) -> Tensor | None:
        """Return which of the unlabelled samples the cycle of an epoch uses; None for all (section 3.3)."""
        cycle, _, length = self.cycle_of(epoch)
        if self.split == 1 or cycle >= self.place.epochs // length - self.final_cycles:
            return None
        return random_part(count, self.split, derive_seed(self.place.seed, self.place.stage, cycle, "split"))

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of phase two: the schedule of a cycle."""
        _, within, length = self.cycle_of(epoch)
        return self.optimizer.lr_at(within, length)

    def ready(self) -> None:
        """Keep the prepared weights, buffers and the classifier too: each cycle starts from them."""
        self._prepared = {name: tensor.clone() for name, tensor in self.state_dict().items()}

    def on_train_epoch_start(self) -> None:
        """Begin a cycle with phase one, the pseudo-labels and the restart."""
        cycle, within, _ = self.cycle_of(self.current_epoch)
        self._bank = {name: tensor.to(self.device) for name, tensor in self._bank.items()}
        if within == 0:
            self._numbers = self._phase_one(cycle) | self._test("phase_one") | self.assign_labels(cycle)
            if self.restart:
                self.load_state_dict(self._prepared)
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
        super().on_train_epoch_start()

    # -- phase one: the labelled samples ----------------------------------------------------------

    def _batches(self, role: str, *, share: bool = False, true_labels: bool = False) -> Any:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        place = {"rank": self.place.rank, "world_size": self.place.world_size} if share else {}
        batch_size = 2 * self.trainer.train_dataloader.batch_size  # type: ignore[union-attr]
        return data.evaluation_loader(
            role,
            self.place.protocol,
            batch_size=batch_size,
            device=self.device,
            true_labels=true_labels,
            **place,
        )

    def _phase_one(self, cycle: int) -> dict[str, float]:
        self._agree()
        size = self.trainer.train_dataloader.batch_size  # type: ignore[union-attr]
        labelled = self.fit_classifier(cycle, self._batches("labelled"), size)
        return {"phase_one/labelled_accuracy": labelled}

    @torch.no_grad()
    def _agree(self) -> None:
        """Give all ranks the buffers of the first: those of BatchNorm come from a rank's own samples."""
        if self.place.world_size > 1:
            for buffer in [*self.backbone.buffers(), *self.head.parameters()]:
                torch.distributed.broadcast(buffer, 0)

    def fit_classifier(self, cycle: int, labelled: Iterable[Batch], batch_size: int) -> float:
        """Train the classifier alone, on features that are computed once, without augmentation.

        Each rank does so with all labelled samples: they are few.

        Args:
            cycle: which one, for the order of the samples.
            labelled: batches of the labelled samples as they are.
            batch_size: of the steps.

        Returns:
            Accuracy on the labelled samples.
        """
        features, labels = self._features_of(labelled)
        head = copy.deepcopy(self.head)  # apart from the network, whose gradients may be gathered
        optimizer = self.classifier.build(head.parameters())
        seed = derive_seed(self.place.seed, self.place.stage, cycle, "phase one")
        generator = torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            for epoch in range(self.classifier_epochs):
                for group in optimizer.param_groups:
                    group["lr"] = self.classifier.lr_at(epoch, self.classifier_epochs)
                for rows in (
                    torch.randperm(len(labels), generator=generator).to(features.device).split(batch_size)
                ):
                    loss = F.cross_entropy(head(features[rows]), labels[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        self.head.load_state_dict(head.state_dict())
        self._agree()  # features of several GPUs may round apart
        right, count = self.count_hits(head(features), labels).tolist()
        return right / count

    @torch.no_grad()
    def _features_of(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        was_training = self.training
        self.eval()
        found = [(self.features(batch.views[0]).float(), batch.labels) for batch in batches]
        self.train(was_training)
        features, labels = zip(*found, strict=True)
        return torch.cat(features), torch.cat(labels)

    @torch.no_grad()
    def assign_labels(self, cycle: int) -> dict[str, float]:
        """Label all unlabelled samples, without augmentation.

        Returns:
            Accuracy of the pseudo-labels, by labels that serve this score alone, and the share of them that
            another class has than in the cycle before.
        """
        was_training = self.training
        self.eval()
        batches = self._batches("unlabelled", share=True, true_labels=True)
        count = len(batches.samples)
        targets = torch.zeros(count, self.num_classes, device=self.device)
        hits = torch.zeros(2, dtype=torch.int64, device=self.device)
        for batch in batches:
            scores = self(batch.views[0]).float()
            targets[batch.index] = scores.softmax(dim=1)
            hits += self.count_hits(scores, batch.labels)
        self.train(was_training)
        targets = self.sum_of_all(targets)
        assigned = targets.argmax(dim=1)
        if not self.soft:
            targets = F.one_hot(assigned, self.num_classes).float()
        before = self._bank.get("assigned", assigned)
        switched = assigned != before
        last = self._bank.get("switched_in", torch.zeros_like(assigned)).masked_fill(switched, cycle)
        empty = torch.zeros(count, self.num_classes, device=self.device)
        self._bank = {
            "targets": targets,
            "previous": empty,
            "current": empty.clone(),
            "assigned": assigned,
            "switched_in": last,
        }
        first = {} if cycle == 0 else {"pseudo/switched": float(switched.float().mean())}
        return {"pseudo/labels_accuracy": self.share_of_all(hits), **first}

    @torch.no_grad()
    def _test(self, phase: str) -> dict[str, float]:
        if self.place.protocol != "split":
            return {}
        was_training = self.training
        self.eval()
        hits = torch.zeros(2, dtype=torch.int64, device=self.device)
        for batch in self._batches("test", share=True):
            hits += self.count_hits(self(batch.views[0]), batch.labels)
        self.train(was_training)
        return {f"{phase}/accuracy": self.share_of_all(hits)}

    # -- phase two: the unlabelled samples --------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch of unlabelled samples."""
        scores = self(batch.views[0])
        bank, index = self._bank, batch.index
        loss = pseudo_label_loss(scores, bank["targets"][index], bank["previous"][index])
        if self.temporal:
            bank["current"].index_copy_(0, index, scores.detach().float().softmax(dim=1))
        self.record({"loss": loss})
        return loss

    def epoch_metrics(self) -> dict[str, float]:
        """Return what phase one said in the first epoch of a cycle, and the accuracy after the last."""
        numbers, self._numbers = self._numbers, {}
        cycle, within, length = self.cycle_of(self.current_epoch)
        if within < length - 1:
            return {"cycle": float(cycle), **numbers}
        self._agree()
        last = self._test("phase_two")
        return {"cycle": float(cycle), **numbers, **last}

    def on_train_epoch_end(self) -> None:
        """Turn the predictions of this epoch into those of the previous one, those of all ranks."""
        if self.temporal:
            current = self.sum_of_all(self._bank["current"])
            self._bank |= {"previous": current, "current": self._bank["previous"].zero_()}
        if self.final_classifier and self.current_epoch + 1 == self.place.epochs:
            self._phase_one(self.cycle_of(self.place.epochs)[0])

    # -- state ------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep pseudo-labels and predictions; cycle and split follow from the epoch."""
        checkpoint["alternating"] = {name: tensor.cpu() for name, tensor in self._bank.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        self._bank = dict(checkpoint.get("alternating", {}))

    def arrays(self) -> dict[str, Tensor]:
        """Return the cycle in which each unlabelled sample last got another label; 0 for never."""
        return {"switched_in": self._bank["switched_in"].cpu()} if self._bank else {}
