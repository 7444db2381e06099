"""Two interleaved half circles in the plane: the toy set on which pairwise labels can be seen."""

from __future__ import annotations

from typing import Literal, Unpack

import torch

from scarcely.data.augment import VectorAugmentation
from scarcely.data.module import DataModule, Split
from scarcely.data.samples import Samples
from scarcely.spec import NonNegative, NonNegativeInt, PositiveInt

__all__ = ["TwoMoons"]


class TwoMoons(DataModule):
    """Points of scikit-learn's `make_moons`, the upper and the lower half circle.

    Every fifth point is the test part; the points are in random order.

    Args:
        augmentation: how views are drawn.
        samples: number of points.
        noise: standard deviation of the points around their half circle, whose radius is 1.
        data_seed: of the points; the seed of the run leaves them alone, so that runs can be compared.
        name: short name.
        kind: what one sample is.
        root: not used.
        resident: where inputs are kept (see `DataModule`).
        split: which labels are used (see `Split`).
    """

    def __init__(
        self,
        *,
        augmentation: VectorAugmentation,
        samples: PositiveInt = 500,
        noise: NonNegative = 0.1,
        data_seed: NonNegativeInt = 0,
        name: str = "two_moons",
        kind: Literal["vectors"] = "vectors",
        root: None = None,
        resident: Literal["auto", "host", "device"] = "auto",
        **split: Unpack[Split],
    ) -> None:
        super().__init__(
            name=name, kind=kind, augmentation=augmentation, root=root, resident=resident, **split
        )
        self.samples = samples
        self.noise = noise
        self.data_seed = data_seed

    def read(self) -> dict[str, Samples]:
        """Return ``train`` and ``test``, vectors of length 2."""
        from sklearn.datasets import make_moons

        points, labels = make_moons(self.samples, noise=self.noise, random_state=self.data_seed)
        samples = Samples(torch.tensor(points, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64))
        self.classes = ("upper", "lower")
        test = torch.arange(len(samples)) % 5 == 4
        return {"train": samples.select(~test), "test": samples.select(test)}
