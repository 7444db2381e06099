"""The domain of an image, where it is not given, and its class by that domain's adapters (chapter 3, 5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from scarcely.adapters import AdaptedModel
from scarcely.data.augment import ImageAugmentation
from scarcely.data.loader import Batch
from scarcely.methods.adapted import SOURCE, TARGET, AdaptedMethod
from scarcely.methods.base import Method
from scarcely.methods.supervised import Supervised


class DomainPrediction(Supervised):
    """Cross-entropy on the domains: a network of its own, of half the depth.

    The settings are those of `Supervised`.
    """


def half_as_deep(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the network that predicts: half the blocks of a ResNet-26.

    Beside any other network it is the ResNet-26 of the papers with two blocks a stage.
    """
    target = "scarcely.backbones.resnet26.ResNet26"
    if backbone["_target_"] == target:
        return {**backbone, "blocks": max(1, backbone.get("blocks", 4) // 2)}
    return {"_target_": target, "blocks": 2}


def in_one(methods: Mapping[str, AdaptedMethod], source: str | None) -> tuple[AdaptedModel, dict[str, int]]:
    """Put the domains, each trained beside the same convolutions, into one network.

    Args:
        methods: the domains but the source, in eval mode; the first becomes the network.
        source: name of the source, if it is one of the domains.

    Returns:
        The network, and the index of each domain in it.
    """
    first, *others = (method.backbone for method in methods.values())
    for other in others:
        pairs = zip(first.shared_parameters(), other.shared_parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), "the domains are no one network"
    with TemporaryDirectory() as folder:
        for number, method in enumerate(methods.values()):
            method.backbone.save(Path(folder) / "domain.pt", TARGET)
            first.load(Path(folder) / "domain.pt", f"domain {number}")
    indices = {name: first.domains.index(f"domain {number}") for number, name in enumerate(methods)}
    if source is not None:
        indices[source] = first.domains.index(SOURCE)
    return first.eval(), indices


def normalised_anew(x: Tensor, now: ImageAugmentation, then: Sequence[ImageAugmentation]) -> Tensor:
    """Return images normalised by other statistics, those of each image its own.

    Args:
        x: (N, C, H, W), normalised by ``now``.
        now: its statistics.
        then: N augmentations with the statistics to use.
    """

    def channels(values: Sequence[Sequence[float]]) -> Tensor:
        return x.new_tensor(values)[:, :, None, None]

    pixels = x * channels([now.std]) + channels([now.mean])
    return (pixels - channels([one.mean for one in then])) / channels([one.std for one in then])


@torch.no_grad()
def predict_both(
    predictor: Method,
    network: AdaptedModel,
    domains: Sequence[tuple[int, ImageAugmentation]],
    batches: Iterable[Batch],
    seen_with: ImageAugmentation,
) -> tuple[Tensor, Tensor, Tensor]:
    """Predict the domain of each image, then its class by the adapters of that domain.

    Args:
        predictor: of the domain, in eval mode.
        network: with all domains, in eval mode.
        domains: of each class of the predictor, index in the network and how its images are normalised.
        batches: images as the predictor sees them.
        seen_with: how these are normalised.

    Returns:
        Predicted domain and class, and the label, (N,) int64 each, on the CPU.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    places = torch.tensor([index for index, _ in domains])
    for batch in batches:
        x = batch.views[0]
        domain = predictor(x).argmax(dim=1).cpu()
        own = normalised_anew(x, seen_with, [domains[number][1] for number in domain.tolist()])
        classes = network(own, places[domain]).argmax(dim=1).cpu()
        found.append((domain, classes, batch.labels.cpu()))
    domain, classes, labels = (torch.cat(part) for part in zip(*found, strict=True))
    return domain, classes, labels
