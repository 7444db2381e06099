"""What a step of LSD-C costs through the whole stack, against the tensor program that it comes down to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.nn import functional as F

from scarcely import stages
from scarcely.bench.rows import Row, Settings, require_agreement
from scarcely.bench.step import last_job
from scarcely.bench.turns import WARM_UP, Turns
from scarcely.config.compose import compose_run
from scarcely.data.arrays import image_samples
from scarcely.data.loader import Batch
from scarcely.data.module import DataModule
from scarcely.functional.pairwise import mix_target, pairwise_bce
from scarcely.functional.ramp import sigmoid_rampup
from scarcely.job import Job
from scarcely.methods.base import Place
from scarcely.methods.lsdc import LSDC

MOST = 1.05  # times as long as the tensor program


def measure(settings: Settings, threads: int) -> list[Row]:
    """Train an epoch of LSD-C on random images, in turns of several steps with the bare program."""
    parts = ["method/labeler=knn", "method.composition=ricap", "method.freeze=3"]  # all said: defaults move
    sizes = [f"backbone.width={settings.width}", f"method.labeler.k={settings.k}"]
    config = compose_run(["method=lsdc", "data=cifar10", *parts, *sizes, f"batch_size={settings.batch}"])
    turn = -(-settings.steps // settings.repeats)
    data = random_images(config["data"], settings.batch * (WARM_UP + turn * settings.repeats))
    job = last_job(config, 1, data.num_classes)
    turns = Turns([BareStep(job, data, settings.device).steps], settings, turn)
    ours, plain = turns.train(job, data)
    # where a GPU multiplies in TF32, pairs near a threshold may change sides
    most = 1e-2 if settings.device == "cuda" else 1e-3
    difference = require_agreement(turns.losses_apart(), most, "losses of the first steps")
    return [
        Row.of_times(
            ours,
            plain,
            target=f"at most {MOST:g} times the time",
            met=ours.median <= MOST * plain.median,
            measure="framework",
            name=f"step of LSD-C, whole stack: ResNet-18, batch {settings.batch}; plain: its tensor program",
            threads=threads,
            device=settings.device,
            difference=difference,
            note=f"{ours.median / plain.median - 1:+.1%} time, {len(turns.seconds[0])} steps",
        )
    ]


def random_images(config: dict[str, Any], count: int) -> DataModule:
    """Return CIFAR-10 with so many random images in the place of its own, set up."""
    data: Any = instantiate(config, _convert_="all")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    samples = image_samples(pixels, torch.randint(10, (count,), generator=generator))
    data.classes, data.read = tuple("0123456789"), lambda: {"train": samples}
    data.prepare_data = lambda: None  # Lightning would download it
    data.setup()
    return data


class BareStep:
    """The step as tensors alone: three passes, labels, loss, backward pass and fused optimizer.

    Its views are there already. Nothing is recorded, nor computed for the record.

    Args:
        job: LSD-C; the networks begin as a run's do.
        data: its data.
        device: where.
    """

    def __init__(self, job: Job, data: DataModule, device: str) -> None:
        self.method = cast(LSDC, stages.build_method(job, data.input_shape).to(device)).train()
        self.method.place = Place(job.seed, job.name, job.epochs)
        self.optimizer = self.method.configure_optimizers()
        for group in self.optimizer.param_groups:
            group["lr"] = self.method.learning_rate(0)

    def steps(self, _: Any, batches: Sequence[Batch], first: int) -> Iterator[Tensor | None]:
        """Take steps, as `Program`."""
        yield None
        for step, batch in enumerate(batches, start=first):
            loss = self.loss(batch.views, step)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield loss.detach()

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        """Return L_clus + ω(t)·L_cons of three views (LSD-C, eq. 7)."""
        method, (x, *others) = self.method, views
        composed, mixing = method.compose_views(others, step)
        assert mixing is not None
        features = method.backbone(x)
        p = method.head(features).softmax(dim=1)
        p1, p2 = (method.head(method.backbone(view)).softmax(dim=1) for view in composed)
        target = mix_target(method.labeler(features.detach()), *mixing)
        weight = method.consistency * sigmoid_rampup(0, method.rampup)
        return pairwise_bce(p, p1, target) + weight * F.mse_loss(p1, p2)
