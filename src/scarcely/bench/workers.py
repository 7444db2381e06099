"""Views of small images by the device loader, against torchvision's transforms in worker processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from scarcely.bench.input import VIEWS, Inputs, views_apart
from scarcely.bench.rows import Row, Settings, require_agreement, take_turns


def measure(settings: Settings, threads: int) -> list[Row]:
    """Compare images a second of whole epochs: as many workers as ours has threads."""
    batch = settings.loaded
    inputs = Inputs.make(settings.images, batch, settings.device)
    difference = 0.0
    if settings.device == "cpu":  # the loader's images are elsewhere on a GPU
        difference = require_agreement(views_apart(inputs), 1e-5, "views")
    images: Any = inputs.pil
    theirs: Any = DataLoader(
        images,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=threads,
        persistent_workers=True,
        pin_memory=settings.device == "cuda",
    )

    def our_epoch() -> None:
        for _ in inputs.loader:
            pass

    def their_epoch() -> None:
        for views in theirs:
            for view in views:
                view.to(settings.device, non_blocking=True)

    our_epoch()
    their_epoch()
    # processor time would leave out workers that live on
    ours, plain = take_turns(our_epoch, their_epoch, replace(settings, clock="wall"))
    row = Row.of_times(
        ours,
        plain,
        measure="workers",
        name=f"crop, flip, normalise: {VIEWS} views, on the device; plain: torchvision, workers: {threads}",
        threads=threads,
        device=settings.device,
        difference=difference,
        note="wall-clock time",
    )
    count = settings.images // batch * batch
    rates = ours.per_second(count), plain.per_second(count)
    return [replace(row, unit="images/s", ours=rates[0], plain=rates[1])]
