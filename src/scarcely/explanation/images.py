"""Whole images with what is explained of them: each class that the image shows and the model knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from scarcely.data.module import Protocol, Role
from scarcely.data.objects import ObjectImages
from scarcely.functional.views import normalize
from scarcely.methods.normgrad import Explained
from scarcely.seeds import derive_seed

PICTURE = 160  # pixels of the shorter side of a picture at most: as much as a report shows of one


class WholeImages:
    """The images of a pool in their own proportions.

    Args:
        data: where they come from.
        role: of the pool.
        protocol: likewise.
        outputs: {class of the data: column of the model's output} of the classes that the model knows.
        shorter: pixels of the shorter side; None for images as they are.
        mean: of each channel, for values in [0, 1].
        std: likewise.
        device: where the model is.
    """

    def __init__(
        self,
        data: ObjectImages,
        role: Role,
        protocol: Protocol,
        *,
        outputs: Mapping[int, int],
        shorter: int | None,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self.data, self.role, self.protocol = data, role, protocol
        self.outputs, self.shorter = outputs, shorter
        self.mean, self.std, self.device = mean, std, device
        self.annotated = data.annotated(role, protocol)

    def __len__(self) -> int:
        return len(self.annotated)

    def classes(self, index: int) -> list[int]:
        """Return the classes to explain of an image: not difficult throughout, and known to the model."""
        one = self.annotated[index]
        return [c for c in sorted(set(one.labels[~one.difficult].tolist())) if c in self.outputs]

    def counts(self, indices: Sequence[int]) -> dict[str, int]:
        """Count the (image, class) pairs that are not explained, and why."""
        left_out = skipped = 0
        for one in (self.annotated[i] for i in indices):
            easy = set(one.labels[~one.difficult].tolist())
            left_out += len(easy - set(self.outputs))
            skipped += len((set(one.labels.tolist()) - easy) & set(self.outputs))
        return {"left_out": left_out, "skipped": skipped}

    def main(self, index: int) -> int:
        """Return the class of the largest object among those to explain."""
        one, wanted = self.annotated[index], torch.tensor(self.classes(index))
        eligible = torch.isin(one.labels, wanted) & ~one.difficult
        areas = (one.boxes[:, 2:] - one.boxes[:, :2]).prod(dim=1)
        return int(one.labels[areas.masked_fill(~eligible, -1).argmax()])

    def chosen(self, seed: int) -> list[int]:
        """Return the images with something to explain, in random order: the first n are a fair choice."""
        order = np.random.default_rng(derive_seed(seed, "saliency", self.role)).permutation(len(self))
        return [i for i in order.tolist() if self.classes(i)]

    def network_input(self, indices: Sequence[int]) -> Tensor:
        """Return images of one size as the network sees them, (N, C, H, W)."""
        images = [self.data.original(self.role, self.protocol, i, self.shorter) for i in indices]
        return normalize(torch.stack(images).to(self.device), self.mean, self.std)

    def picture(self, index: int) -> Tensor:
        """Return an image for a report, (h, w, C) uint8."""
        shorter = min(PICTURE, *self.annotated[index].size)
        return self.data.original(self.role, self.protocol, index, shorter)

    def every_class(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Return the (image, class) pairs of images."""
        return [(i, c) for i in indices for c in self.classes(i)]

    def main_class(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Return one pair an image, with its main class."""
        return [(i, self.main(i)) for i in indices]


class Batches:
    """(image, class) pairs in batches of images of one size.

    Args:
        images: whence.
        pairs: image and class.
        batch_size: pairs in a batch, at most.
    """

    def __init__(self, images: WholeImages, pairs: Sequence[tuple[int, int]], batch_size: int) -> None:
        self.images = images
        by_size: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for index, label in pairs:
            by_size.setdefault(images.annotated[index].size, []).append((index, label))
        self._batches = [
            group[start : start + batch_size]
            for group in by_size.values()
            for start in range(0, len(group), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Explained]:
        for pairs in self._batches:
            index = [i for i, _ in pairs]
            classes = [c for _, c in pairs]
            once = list(dict.fromkeys(index))
            images = self.images.network_input(once)
            objects = {i: self.images.annotated[i].objects() for i in once}
            yield Explained(
                images=images[torch.tensor([once.index(i) for i in index], device=images.device)],
                targets=torch.tensor([self.images.outputs[c] for c in classes], device=images.device),
                classes=classes,
                objects=[objects[i] for i in index],
                index=index,
            )
