"""What a classifier looks at in a folder of images, by the settings of a finished saliency run."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from scarcely.config.schema import METHOD_KEYS
from scarcely.data.imagefolder import list_images
from scarcely.data.whole import decode_whole
from scarcely.errors import CheckpointError, ConfigError, DataError
from scarcely.explanation.classifier import fit_classes, load_classifier
from scarcely.explanation.evaluations import lightning
from scarcely.files import write_atomically
from scarcely.functional.views import normalize
from scarcely.methods.normgrad import COMBINED, META, Explained, NormGrad
from scarcely.metrics.sensitivity import resize
from scarcely.reports.figures.saliency import overlay
from scarcely.saliency import METHODS
from scarcely.stages import quiet


@dataclass
class SaliencyRun:
    """A finished saliency run that is used again.

    Attributes:
        module: the classifier, methods and layers; it predicts the chosen maps.
        outputs: {name of a class: column of the classifier's output}.
        shorter: pixels of the shorter side of an image in the network; None for images as they are.
        mean: of each channel.
        std: likewise.
        device: where the classifier is.
    """

    module: NormGrad
    outputs: dict[str, int]
    shorter: int | None
    mean: list[float]
    std: list[float]
    device: torch.device

    @classmethod
    def load(cls, folder: Path, method: str, layer: str) -> SaliencyRun:
        """Load the model and the settings of a run.

        Args:
            folder: of the run.
            method: of the maps; empty for the one that won the run's pointing game.
            layer: or combination of layers; empty for the combination that won.

        Raises:
            CheckpointError: no such run, or its model is gone.
            ConfigError: no such method or layer.
        """
        try:
            results, about = (json.loads((folder / f"{n}.json").read_text()) for n in ("results", "saliency"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder} is no finished run of method=normgrad",
                where="ckpt",
                instead="the folder of one; for other runs out=labels.csv instead of maps",
            ) from error
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        model, settings = results["model"], config["method"]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        own = folder / "weights.pt"  # of a classifier that this run trained
        classifier = load_classifier(config | {"ckpt": str(own) if own.is_file() else model["ckpt"]}, device)
        side = model["shorter"] or 224  # of a picture to count the outputs with
        blank = torch.zeros(1, len(model["mean"]), side, side, device=device)
        columns = fit_classes(classifier, about["classes"], settings["class_map"], blank)
        arguments = {k: v for k, v in settings.items() if k not in METHOD_KEYS} | {"layers": about["layers"]}
        module: NormGrad = get_class(settings["_target_"])(model=classifier.model, **arguments)
        module.layer_weights = about["layer_weights"]
        module.shown = _chosen(results["metrics"], module, method, layer)
        outputs = {about["classes"][label]: column for label, column in columns.items()}
        return cls(module, outputs, model["shorter"], model["mean"], model["std"], device)

    def network_input(self, image: np.ndarray) -> Tensor:
        """Return an image (H, W, 3) uint8 as the network sees it, (1, C, h, w)."""
        pixels = torch.from_numpy(image).to(self.device)
        if len(self.mean) == 1:
            pixels = pixels.float().mean(dim=2, keepdim=True).round().byte()
        if self.shorter is not None and self.shorter != min(image.shape[:2]):
            size = [round(side * self.shorter / min(image.shape[:2])) for side in image.shape[:2]]
            planes = pixels.permute(2, 0, 1)[None].float()
            resized = interpolate(planes, size=size, mode="bilinear", antialias=True)[0]
            pixels = resized.round().clamp(0, 255).byte().permute(1, 2, 0)
        return normalize(pixels[None], self.mean, self.std)


def predict_maps(arguments: Mapping[str, str]) -> None:
    """Write the map of each image below a folder, as .npy and as .png over the image.

    Args:
        arguments: ``ckpt`` of a saliency run, ``images``, ``maps``, ``class``, ``method``, ``layer``,
            ``on_error``.

    Raises:
        UserError: no such run, images, class, method or layer, or an image that cannot be read.
    """
    folder, out = (Path(arguments[key]).expanduser() for key in ("images", "maps"))
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", where="images", instead="a folder of images")
    obstacle = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not obstacle.is_dir():
        raise ConfigError(f"cannot write to {out}: {obstacle} is a file", where="maps", instead="a folder")
    names = list_images(folder, folder)
    if not names:
        raise DataError(
            f"there is no image in {folder}", where="images", instead="jpg, png, bmp, gif, tif, webp"
        )
    run = SaliencyRun.load(Path(arguments["ckpt"]).expanduser(), arguments["method"], arguments["layer"])
    wanted = arguments["class"]
    if wanted and wanted not in run.outputs:
        raise ConfigError(
            f"the model knows no class {wanted!r}", where="class", instead=", ".join(run.outputs)
        )
    quiet()
    images = _Images(run, folder, names, wanted, arguments["on_error"])
    writer = _Writer(images, out)
    trainer = lightning(run.device.type, callbacks=[writer])
    trainer.predict(run.module, images, return_predictions=False)
    text = io.StringIO()
    csv.writer(text).writerows([["file", "class"], *writer.rows])
    write_atomically(out / "explained.csv", text.getvalue().encode("utf-8", "surrogateescape"))
    method, layer = run.module.shown
    print(f"{len(writer.rows)} images, {method} at {layer}: {out}", file=sys.stderr)


def _chosen(metrics: Mapping[str, float], module: NormGrad, method: str, layer: str) -> tuple[str, str]:
    """Return the method and the layer or combination of the maps: what is not given is the best."""
    if method and method.removesuffix(META) not in METHODS:
        raise ConfigError(
            f"there is no saliency method {method!r}",
            where="method",
            instead=f"{', '.join(METHODS)}; or NAME{META}",
        )
    combinations = [COMBINED + weighting for weighting in module.weightings]
    names = [method] if method else list(module.names)
    layers = [layer] if layer else combinations or list(module.layers)
    found = [(n, at) for n in names for at in layers if at in (*module.layers_of(n), *combinations)]
    if not found:
        raise ConfigError(
            f"there are no maps{f' of {method}' if method else ''} at {layer!r}",
            where="layer",
            instead=", ".join([*(module.layers_of(method) if method else module.layers), *combinations]),
        )
    return max(found, key=lambda key: metrics.get(f"pointing/{key[0]}/{key[1]}/all", -1.0))


class _Images:
    """Images one by one, each in its own size."""

    def __init__(self, run: SaliencyRun, folder: Path, names: list[str], wanted: str, on_error: str) -> None:
        self.run, self.folder, self.names = run, folder, names
        self.wanted, self.on_error = wanted, on_error
        self.pixels: dict[int, np.ndarray] = {}  # until they are written

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Explained]:
        for index, name in enumerate(self.names):
            try:
                self.pixels[index] = decode_whole(self.folder / name)
            except Exception as error:  # decoders raise whatever their parsers raise
                if self.on_error == "raise":
                    raise DataError(
                        f"cannot read the image {self.folder / name}: {error}",
                        where="images",
                        instead="replace or remove the file; on_error=skip leaves it out",
                    ) from error
                warnings.warn(f"cannot read {self.folder / name}; it is left out", stacklevel=2)
                continue
            images = self.run.network_input(self.pixels[index])
            if self.wanted:
                target = torch.tensor([self.run.outputs[self.wanted]], device=images.device)
            else:
                target, _ = self.run.module.most_and_least(images, list(self.run.outputs.values()))
            yield Explained(images, target, index=[index])


class _Writer(pl.Callback):
    """Writes each map as it is made."""

    def __init__(self, images: _Images, out: Path) -> None:
        self.images, self.out = images, out
        self.called = {column: name for name, column in images.run.outputs.items()}
        self.rows: list[list[str]] = []

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write the map of an image, and the map over it."""
        (index,) = batch.index
        name, image = self.images.names[index], self.images.pixels.pop(index)
        saliency = resize(outputs, image.shape[:2])[0].cpu().numpy()
        picture = Image.fromarray(overlay(image, saliency))
        # The whole name, since a.jpg and a.png may lie side by side.
        write_atomically(self.out / f"{name}.npy", lambda file: np.save(file, saliency))
        write_atomically(self.out / f"{name}.png", lambda file: picture.save(file, "PNG"))
        self.rows.append([name, self.called[int(batch.targets[0])]])
