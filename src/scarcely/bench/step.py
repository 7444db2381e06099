"""A whole training step of LSD-C with its input, against the step as one writes it first."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scarcely.bench.input import Inputs
from scarcely.bench.pairs import loss_of_rows, squared_distances_of_rows
from scarcely.bench.rows import Row, Settings, apart, endless, require_agreement, take_turns
from scarcely.config.compose import compose_run
from scarcely.data.loader import Batch
from scarcely.functional.compose import draw_ricap
from scarcely.job import Job
from scarcely.methods.lsdc import LSDC
from scarcely.stages import build_method

LEAST_SPEEDUP, LEAST_SPEEDUP_ON_GPU = 1.2, 3.0  # from this batch size on, on more than one core
PROMISED_BATCH = 256


def measure(settings: Settings, threads: int) -> list[Row]:
    """Compare steps on images that are made into views by each side's own means."""
    device, batch = settings.device, settings.batch
    inputs = Inputs.make(max(batch, settings.images), batch, device)
    method = build_lsdc(settings.width, settings.k, device)
    ours, plain = OurStep(method), PlainStep(method)
    batches, pil_batches = endless(inputs.loader), endless(inputs.pil_loader)
    # where a GPU multiplies in TF32, pairs near a threshold may change sides
    most = 1e-2 if device == "cuda" else 1e-3
    difference = require_agreement(losses_apart(ours, plain, next(batches)), most, "loss of a step")

    def our_step() -> None:
        torch.backends.cudnn.benchmark = device == "cuda"  # as in a run
        ours(next(batches), 0)

    def plain_step() -> None:
        torch.backends.cudnn.benchmark = False
        plain([view.to(device) for view in next(pil_batches)], 0)

    our_step()
    plain_step()
    least = {"cpu": LEAST_SPEEDUP, "cuda": LEAST_SPEEDUP_ON_GPU}[device]
    return [
        Row.of_times(
            *take_turns(our_step, plain_step, settings),
            least=least if batch >= PROMISED_BATCH and (device == "cuda" or threads > 1) else None,
            measure="step",
            name=f"step of LSD-C: ResNet-18, kNN, RICAP, batch {batch}",
            threads=threads,
            device=device,
            difference=difference,
        )
    ]


def build_lsdc(width: int, k: int, device: str) -> LSDC:
    """Return LSD-C as a run on CIFAR-10 builds it, untrained: kNN labels, RICAP, ResNet-18."""
    parts = ["method/labeler=knn", "method.composition=ricap", "method.freeze=3"]  # all said: defaults move
    sizes = [f"backbone.width={width}", f"method.labeler.k={k}"]
    config = compose_run(["method=lsdc", "data=cifar10", *parts, *sizes])
    return cast(LSDC, build_method(last_job(config, 1, 10), (3, 32, 32)).to(device))


def last_job(config: Mapping[str, Any], epochs: int, num_classes: int) -> Job:
    """Return the last stage of a run, without what precedes it; scored once, at its end."""
    planned = config["plan"][-1]
    return Job(
        name=planned["name"],
        method=planned["method"] | {"epochs": epochs},
        backbone=config["backbone"],
        data=config["data"],
        trainer=config["trainer"],
        seed=config["seed"],
        protocol=config["protocol"],
        num_clusters=num_classes,
        num_classes=num_classes,
        eval_every=epochs,
    )


class OurStep:
    """A step as a run takes it, without Lightning.

    Args:
        method: LSD-C, on its device.
    """

    def __init__(self, method: LSDC) -> None:
        self.method = method.train()
        self.optimizer = method.configure_optimizers()

    def __call__(self, batch: Batch, step: int) -> None:
        """Take a step."""
        loss = self.method.training_step(batch, step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class PlainStep:
    """The same step as one writes it first.

    Images in the order (N, C, H, W); frozen blocks that just do not require a gradient; views composed
    of patches by concatenation; all pairs as the rows of a matrix; an optimizer with its defaults.

    Args:
        method: LSD-C with kNN labels of features, RICAP and SGD; its networks are copied.
    """

    def __init__(self, method: LSDC) -> None:
        self.backbone = copy.deepcopy(method.backbone).to(memory_format=torch.contiguous_format).train()
        self.head = copy.deepcopy(method.head)
        self.k = cast(Any, method.labeler).keywords["k"]
        self.draw, self.beta, self.identity = method.draw, method.beta, method.ricap_identity
        self.consistency_weight = method.epoch_metrics()["rampup"]
        values = method.optimizer
        trained = [p for p in (*self.backbone.parameters(), *self.head.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            trained, lr=values.lr, momentum=values.momentum, weight_decay=values.weight_decay
        )

    def __call__(self, views: Sequence[Tensor], step: int) -> None:
        """Take a step."""
        loss = self.loss(views, step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        """Return L_clus + ω(t)·L_cons of three views (LSD-C, eq. 7)."""
        x, *others = views
        count, _, height, width = x.shape
        generator = self.draw("compose", step)
        drawn = draw_ricap(generator, count, height, width, len(others), self.beta, self.identity)
        permutations = torch.from_numpy(drawn.permutations).to(x.device)
        features = self.features(x)
        p = self.head(features).softmax(dim=1)
        p1, p2 = (
            self.head(self.features(composed(view, drawn.boxes, offsets, permutations))).softmax(dim=1)
            for view, offsets in zip(others, drawn.offsets, strict=True)
        )
        adjacency = self.labels(features.detach()).float()
        target = torch.zeros_like(adjacency)
        for weight, permutation in zip(drawn.weights.tolist(), permutations, strict=True):
            target = target + weight * adjacency[:, permutation]
        return loss_of_rows(p, p1, target) + self.consistency_weight * F.mse_loss(p1, p2)

    def features(self, x: Tensor) -> Tensor:
        """Run all blocks alike, (N, C, H, W) to (N, D)."""
        x = self.backbone.stem(x)
        for name in self.backbone.block_names:
            x = getattr(self.backbone, name)(x)
        return self.backbone.pool(x)

    def labels(self, features: Tensor) -> Tensor:
        """Connect what is nearer than the k-th nearest of either sample, (N, D) to (N, N)."""
        distances = squared_distances_of_rows(features)
        reach = distances.sort(dim=1).values[:, self.k - 1]
        near = (distances < reach[:, None]) | (distances < reach)
        return near | torch.eye(len(features), dtype=torch.bool, device=features.device)


def composed(view: Tensor, boxes: np.ndarray, offsets: np.ndarray, permutations: Tensor) -> Tensor:
    """RICAP of a view (N, C, H, W) by concatenation: two patches are the upper half, two the lower."""
    patches = [
        view[permutation][:, :, y : y + height, x : x + width]
        for (_, _, height, width), (y, x), permutation in zip(
            boxes.tolist(), offsets.tolist(), permutations, strict=True
        )
    ]
    halves = [torch.cat(patches[:2], dim=3), torch.cat(patches[2:], dim=3)]
    return torch.cat(halves, dim=2)


def losses_apart(ours: OurStep, plain: PlainStep, batch: Batch) -> float:
    """Return the relative difference of both losses of the same views; nothing is trained."""
    with torch.no_grad():
        return apart(ours.method.training_step(batch, 0), plain.loss(batch.views, 0))
