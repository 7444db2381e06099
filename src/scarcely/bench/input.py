"""Views of small images by the device loader, against torchvision's transforms image by image."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import DataLoader

from scarcely.bench.rows import Row, Settings, endless, require_agreement, take_turns
from scarcely.config.compose import compose_run
from scarcely.data.arrays import image_samples
from scarcely.data.augment import ImageAugmentation
from scarcely.data.loader import DeviceLoader

LEAST_SPEEDUP = 20.0
VIEWS = 3  # of LSD-C


class PILViews:
    """A data set as torchvision's users write it: one image after the other, one view after the other.

    Args:
        images: (N, H, W, C) uint8.
        augmentation: what is done to an image: crop, flip, normalisation.
        views: of an image.
    """

    def __init__(self, images: np.ndarray, augmentation: ImageAugmentation, views: int = VIEWS) -> None:
        from torchvision import transforms

        self.images = images
        end = [transforms.ToTensor(), transforms.Normalize(augmentation.mean, augmentation.std)]
        crop = transforms.RandomCrop(
            images.shape[1], padding=augmentation.padding, padding_mode=augmentation.pad_mode
        )
        clean = transforms.Compose(end)
        random = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *end])
        first = clean if augmentation.first_clean and views > 1 else random
        self.transforms = [first, *[random] * (views - 1)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        from PIL import Image

        image = Image.fromarray(self.images[index])
        return tuple(transform(image) for transform in self.transforms)


@dataclass
class Inputs:
    """The same images for the project's loader and for torchvision's transforms.

    Attributes:
        images: (N, 32, 32, 3) uint8, noise: neither side looks at what they show.
        augmentation: the project's, of CIFAR-10.
        loader: the project's.
        pil: the data set as torchvision's users write it.
        pil_loader: its batches, without a worker.
    """

    images: Tensor
    augmentation: ImageAugmentation
    loader: DeviceLoader
    pil: PILViews
    pil_loader: Any

    @classmethod
    def make(cls, images: int, batch: int, device: str) -> Inputs:
        """Draw the images and build both loaders.

        Args:
            images: number of them.
            batch: batch size, at most their number.
            device: of the project's loader; torchvision's views are made on the CPU.
        """
        config = compose_run(["method=lsdc", "data=cifar10"])
        augmentation = instantiate(config["data"]["augmentation"], _convert_="all")
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8, generator=generator)
        samples = image_samples(pixels, torch.randint(10, (images,), generator=generator))
        loader = DeviceLoader(samples, augmentation, batch_size=batch, views=VIEWS, device=device)
        pil: Any = PILViews(pixels.numpy(), augmentation)
        pil_loader = DataLoader(pil, batch_size=batch, shuffle=True, drop_last=True)
        return cls(pixels, augmentation, loader, pil, pil_loader)


def measure(settings: Settings, threads: int) -> list[Row]:
    """Compare images a second, on the CPU, whatever the device."""
    batch = settings.loaded
    inputs = Inputs.make(settings.images, batch, "cpu")
    difference = require_agreement(views_apart(inputs), 1e-5, "views")
    ours, plain = endless(inputs.loader), endless(inputs.pil_loader)
    for warmed in (ours, plain):
        next(warmed)
    spreads = take_turns(partial(next, ours), partial(next, plain), settings)
    row = Row.of_times(
        *spreads,
        least=LEAST_SPEEDUP,
        measure="input",
        name=f"crop, flip, normalise: {VIEWS} views, 32 x 32 x 3",
        threads=threads,
        difference=difference,
        note="rates of one core",
    )
    ours_rate, plain_rate = (spread.per_second(batch) for spread in spreads)
    return [replace(row, unit="images/s", ours=ours_rate, plain=plain_rate)]


def views_apart(inputs: Inputs, images: int = 2) -> float:
    """Return how far torchvision's views are from the nearest view that the project could have drawn.

    Both draw at random, so each of torchvision's is compared with all windows, mirrored and not.
    """
    places = range(2 * inputs.augmentation.padding + 1)
    windows = torch.tensor(list(itertools.product(places, places, (0, 1))))
    farthest = 0.0
    for i in range(images):
        possible = inputs.augmentation.apply(
            inputs.images[i : i + 1], {"windows": windows[None]}, len(windows)
        )
        ours, theirs = torch.cat(possible), torch.stack(inputs.pil[i])
        distances = (theirs[:, None] - ours).abs().flatten(2).amax(dim=2)
        farthest = max(farthest, distances.amin(dim=1).max().item())
    return farthest
