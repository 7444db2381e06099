"""The evaluations of chapter 8: each is shown batches of images and tells its scores at the end."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scarcely.methods.normgrad import COMBINED, META, Explained, NormGrad
from scarcely.metrics.pointing import Objects, PointingGame
from scarcely.metrics.sensitivity import Correlation, correlate, resize
from scarcely.saliency import METHODS, Attributor, ExtractAggregate, cascading_randomization
from scarcely.saliency.extract import Pass
from scarcely.seeds import derive_seed

SHOWN_STEPS = 6  # pictures of a cascade in a row of a report
VIRTUAL = ExtractAggregate("conv", "norm")  # NormGrad of a virtual identity behind a layer


class Pointing:
    """The pointing game of every method at every layer, and of every way to combine them (section 4.2).

    Args:
        num_classes: of the data.
        tolerance: pixels of the original image.
    """

    def __init__(self, num_classes: int, tolerance: float) -> None:
        self.num_classes, self.tolerance = num_classes, tolerance
        self.games: dict[str, PointingGame] = {}

    def update(self, module: NormGrad, batch: Explained) -> None:  # noqa: D102
        for name, maps in module.maps(batch.images, batch.targets, module.names).items():
            combined = module.combined(maps, batch.size)
            self.play(maps | {COMBINED + how: m for how, m in combined.items()}, name, batch)

    def play(self, maps: Mapping[str, Tensor], name: str, batch: Explained) -> None:
        """Point by the maps of a method, {layer: (N, h, w)}."""
        for layer, each in maps.items():
            key = f"{name}/{layer}"
            if key not in self.games:
                self.games[key] = PointingGame(self.num_classes, self.tolerance)
            self.games[key].update(each.cpu(), batch.classes, batch.objects)

    def metrics(self) -> dict[str, float]:  # noqa: D102
        found: dict[str, float] = {}
        for key, game in self.games.items():
            scores = {name: float(value) for name, value in game.compute().items()}
            for subset in ("all", "difficult"):
                found[f"pointing/{key}/{subset}"] = scores[subset]
                found[f"pointing/{key}/{subset}_stderr"] = scores[f"stderr/{subset}"]
                found[f"pointing/center/{subset}"] = scores[f"center/{subset}"]  # the same of each
            found |= {"pointing/pairs": scores["pairs/all"]}
            found |= {"pointing/pairs_difficult": scores["pairs/difficult"]}
        return _defined(found)


class Correlations:
    """Rank correlations of maps by name, gathered over batches."""

    def __init__(self) -> None:
        self._each: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, correlation: Correlation) -> None:
        """Keep those of a batch."""
        self._each[name].append(correlation.each.cpu())

    def items(self) -> dict[str, Correlation]:
        """Return those of all batches."""
        return {name: Correlation.of(torch.cat(each)) for name, each in self._each.items()}


class Sensitivity:
    """How alike the maps of the most and the least probable class are (section 4.3).

    Args:
        outputs: columns of the classifier's output that are classes.
    """

    def __init__(self, outputs: Sequence[int]) -> None:
        self.outputs = list(outputs)
        self.found = Correlations()

    def update(self, module: NormGrad, batch: Explained) -> None:  # noqa: D102
        most, least = (
            module.maps(batch.images, targets, module.names)
            for targets in module.most_and_least(batch.images, self.outputs)
        )
        for name, maps in most.items():
            for layer in maps:
                self.found.add(f"{name}/{layer}", correlate(maps[layer], least[name][layer], batch.size))

    def metrics(self) -> dict[str, float]:  # noqa: D102
        found = {}
        for key, correlation in self.found.items().items():
            found[f"sensitivity/{key}"] = correlation.mean
            found[f"sensitivity/{key}/undefined"] = float(correlation.undefined)
        return _defined(found)


class MetaEffect:
    """How alike maps with and without meta-saliency are (section 4.4)."""

    def __init__(self) -> None:
        self.found = Correlations()

    def update(self, module: NormGrad, batch: Explained) -> None:  # noqa: D102
        names = [*module.meta_methods, *(name + META for name in module.meta_methods)]
        maps = module.maps(batch.images, batch.targets, names)
        for name in module.meta_methods:
            for layer, plain in maps[name].items():
                self.found.add(f"{name}/{layer}", correlate(plain, maps[name + META][layer], batch.size))

    def metrics(self) -> dict[str, float]:  # noqa: D102
        return _defined({f"meta/{key}": c.mean for key, c in self.found.items().items()})


class Identity:
    """NormGrad of real convolutions against that of a virtual identity behind them (section 4.1).

    Args:
        layers: convolutions.
        num_classes: of the data.
        tolerance: of the pointing game.
    """

    def __init__(self, layers: Sequence[str], num_classes: int, tolerance: float) -> None:
        self.layers = list(layers)
        self.found = Correlations()
        self.game = Pointing(num_classes, tolerance)

    def update(self, module: NormGrad, batch: Explained) -> None:  # noqa: D102
        with Attributor(module.classifier, self.layers) as attributor:
            both = attributor(batch.images, batch.targets, _RealAndVirtual())
        real, virtual = ({layer: m[:, k] for layer, m in both.items()} for k in (0, 1))
        self.game.play(real, "real", batch)
        self.game.play(virtual, "virtual", batch)
        for layer in self.layers:
            self.found.add(layer, correlate(real[layer], virtual[layer], batch.size))

    def metrics(self) -> dict[str, float]:  # noqa: D102
        found = {}
        hits = self.game.metrics()
        for layer, correlation in self.found.items().items():
            found[f"identity/{layer}"] = correlation.mean
            virtual, real = (hits[f"pointing/{kind}/{layer}/all"] for kind in ("virtual", "real"))
            found[f"identity/{layer}/pointing"] = virtual - real
        return _defined(found)


class _RealAndVirtual:
    """Both of one pass: {layer: (N, 2, h, w)}."""

    single_pass = True

    def maps(self, run: Pass, images: Tensor) -> dict[str, Tensor]:
        real: Any = METHODS["norm_grad_conv"]
        sites = run(images, entries=True)
        return {site.name: torch.stack([real.map(site), VIRTUAL.map(site)], dim=1) for site in sites}


class Randomization:
    """How maps change while the network is randomised from its head down (section 4.5).

    Args:
        layers: where maps are made; those that suit the method.
        modules: what is randomised, one a step.
        examples: images whose maps are kept for pictures, and the sizes (h, w) of these.
        seed: of the run.
    """

    def __init__(
        self,
        layers: Sequence[str],
        modules: Sequence[str],
        examples: Mapping[int, tuple[int, int]],
        seed: int,
    ) -> None:
        self.layers, self.modules = list(layers), list(modules)
        self.examples, self.seed = examples, derive_seed(seed, "randomization") % 2**32
        self.shown = sorted({round(s) for s in np.linspace(0, len(self.modules), SHOWN_STEPS)})
        self.steps: list[str] = []
        self._each: dict[tuple[str, str], list[list[Tensor]]] = defaultdict(list)  # of batches, of steps
        self.maps: dict[int, dict[tuple[str, str], list[Tensor]]] = defaultdict(lambda: defaultdict(list))

    def update(self, module: NormGrad, batch: Explained) -> None:  # noqa: D102
        for names, method, lr in module.passes(module.names):
            layers = [layer for layer in module.layers_of(names[0]) if layer in self.layers]
            if not layers:
                continue
            found = cascading_randomization(
                *(module.classifier, batch.images, batch.targets, layers),
                method=method,
                meta_lr=lr,
                meta_loss=module.meta_loss,
                modules=self.modules,
                seed=self.seed,
            )
            each: dict[tuple[str, str], list[Tensor]] = {(n, layer): [] for n in names for layer in layers}
            self.steps = []
            for step in found:
                for layer in layers:
                    correlations = step.correlations[layer].each.unflatten(0, (-1, len(names)))
                    maps = step.maps[layer].unflatten(0, (-1, len(names)))
                    for column, name in enumerate(names):
                        each[name, layer].append(correlations[:, column].cpu())
                        if len(self.steps) in self.shown:
                            self._keep(batch, (name, layer), maps[:, column])
                self.steps.append(step.module)
            for row, steps in each.items():
                self._each[row].append(steps)

    def _keep(self, batch: Explained, row: tuple[str, str], maps: Tensor) -> None:
        for index, one in zip(batch.index, maps, strict=True):
            if index in self.examples:
                self.maps[index][row].append(for_picture(one, self.examples[index]))

    def metrics(self) -> dict[str, float]:  # noqa: D102
        rows = self.rows()
        return _defined({f"randomization/{r['method']}/{r['layer']}": r["mean"][-1] for r in rows})

    def rows(self) -> list[dict[str, Any]]:
        """Return the curves of saliency.json; null where no correlation is defined."""
        return [
            {
                "method": name,
                "layer": layer,
                "modules": self.steps,
                **_curve([torch.cat(step) for step in zip(*batches, strict=True)]),
            }
            for (name, layer), batches in self._each.items()
        ]

    def arrays(self, order: Sequence[int]) -> dict[str, np.ndarray]:
        """Return ``random_shown`` and ``random/e`` of the examples, in this order."""
        found = {"random_shown": np.array(self.shown)}
        for place, index in enumerate(order):
            rows = [torch.stack(self.maps[index][row]) for row in self._each]
            found[f"random/{place}"] = torch.stack(rows).numpy()
        return found


class Examples:
    """All maps of a few images, for pictures.

    Args:
        pictures: {image: (h, w)}, what the maps are resized to.
        order: the images, in the order of the file.
        outputs: as of `Sensitivity`; empty for no maps of the most and the least probable class.
        layers: at which those are kept.
        called: the name of an output.
    """

    def __init__(
        self,
        pictures: Mapping[int, tuple[int, int]],
        order: Sequence[int],
        outputs: Sequence[int],
        layers: Sequence[str],
        called: Callable[[int], str],
    ) -> None:
        self.pictures, self.order = pictures, list(order)
        self.outputs, self.layers, self.called = list(outputs), list(layers), called
        self.arrays: dict[str, Any] = {}
        self.most = [""] * len(self.order)
        self.least = [""] * len(self.order)

    def update(self, module: NormGrad, batch: Explained) -> None:  # noqa: D102
        maps = module.maps(batch.images, batch.targets, module.names)
        combined = {name: module.combined(own, batch.size) for name, own in maps.items()}
        at_ends = {}
        if self.outputs:
            for end, targets in zip(
                ("most", "least"), module.most_and_least(batch.images, self.outputs), strict=True
            ):
                names = self.most if end == "most" else self.least
                for row, index in enumerate(batch.index):
                    names[self.order.index(index)] = self.called(int(targets[row]))
                at_ends[end] = module.maps(batch.images, targets, module.names)
        for row, index in enumerate(batch.index):
            place, size = self.order.index(index), self.pictures[index]
            self.arrays[f"maps/{place}"] = _table(maps, module.names, module.layers, row, size)
            self.arrays[f"combined/{place}"] = _table(combined, module.names, module.weightings, row, size)
            for end, own in at_ends.items():
                self.arrays[f"{end}/{place}"] = _table(own, module.names, self.layers, row, size)

    def metrics(self) -> dict[str, float]:  # noqa: D102
        return {}


def for_picture(one: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize one map, (h, w), to a picture, float16 (H, W).

    It is multiplied by the power of two that brings its largest value to about one: gradients are often
    smaller than what float16 can hold, and the factor is exact.
    """
    resized = resize(one[None].cpu(), size)[0]
    largest = resized.abs().max().item()
    if 0 < largest < math.inf:
        resized = torch.ldexp(resized, torch.tensor(-math.frexp(largest)[1]))
    return resized.half()


def _table(
    maps: Mapping[str, Mapping[str, Tensor]],
    names: Sequence[str],
    columns: Sequence[str],
    row: int,
    size: tuple[int, int],
) -> np.ndarray:
    """(names, columns, H, W) of one image; NaN where there is no map."""
    nothing = torch.full(size, torch.nan, dtype=torch.float16)
    return np.stack(
        [
            np.stack(
                [
                    (for_picture(maps[name][c][row], size) if c in maps[name] else nothing).numpy()
                    for c in columns
                ]
            )
            for name in names
        ]
    )


def _curve(steps: Sequence[Tensor]) -> dict[str, list[float | None]]:
    """Mean and standard error of the defined correlations of each step."""
    mean: list[float | None] = []
    stderr: list[float | None] = []
    for each in steps:
        defined = each[~each.isnan()]
        mean.append(float(defined.mean()) if len(defined) else None)
        stderr.append(float(defined.std() / len(defined) ** 0.5) if len(defined) > 1 else None)
    return {"mean": mean, "stderr": stderr}


def _defined(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Leave out what is not defined: NaN is no JSON."""
    return {name: float(value) for name, value in scores.items() if value is not None and value == value}


def region(objects: Objects, label: int, size: tuple[int, int]) -> np.ndarray:
    """Return where the objects of a class are in a picture, bool (h, w)."""
    mask = objects.region(label)[None, None].float()
    return (nn.functional.interpolate(mask, size=size, mode="nearest")[0, 0] > 0.5).numpy()
