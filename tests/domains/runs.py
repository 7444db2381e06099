"""Small runs over several domains, for the tests of this and other folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely.config.check import check
from scarcely.config.compose import compose_run
from scarcely.domains import run as run_module
from scarcely.domains.chain import load
from scarcely.methods.domains import DomainMethod
from scarcely.run import execute
from scarcely.stages import Trained
from tests.data.test_decathlon import write_domain

CLASSES = {"birds": 3, "gtsrb": 2, "signs": 4}
NAMES = tuple(CLASSES)
ADAPTERS = ("series_adapters", "parallel_adapters", "svd_adapters", "bn_adapters", "feature_extractor")
METHODS = (*ADAPTERS, "finetune", "lwf", "supervised")
TINY = (
    "data=decathlon",
    "data.source=birds",
    "data.image_size=8",
    "backbone.width=4",
    "backbone.blocks=1",
    "batch_size=16",
    "epochs=2",
    "trainer=cpu",
)


def write_release(folder: Path) -> Path:
    """Write a release of three domains with images of noise: of 3, 2 and 4 classes."""
    parts = {"train": 18, "val": 8, "test": 12}
    for number, (name, classes) in enumerate(CLASSES.items(), start=1):
        write_domain(folder / "decathlon-1.0", name, number, classes, parts, seed=number)
    return folder


def write_colours(folder: Path, classes: int, images: int, seed: int = 0, called: int = 0) -> Path:
    """Write class folders of noise around a colour for each class, which a small network learns at once.

    Args:
        folder: of the class folders.
        classes: number of them.
        images: of each class.
        seed: of the noise.
        called: how many classes further on images are put: with 1 all are in a wrong folder.
    """
    rng = np.random.default_rng(seed)
    colours = 255 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    for label in range(classes):
        place = folder / f"{(label + called) % classes}"
        place.mkdir(parents=True, exist_ok=True)
        for number in range(images):
            pixels = colours[label] // 2 + rng.integers(0, 64, (9, 9, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{seed}-{number:02}.png")
    return folder


def run(folder: Path, root: Path, cache: Path, method: str, *overrides: str) -> dict:
    """Run a method over the domains, without pictures; the stages of all tests share a cache."""
    given = [f"method={method}", *TINY, f"data.root={root}", f"cache_dir={cache}", f"run_dir={folder}"]
    own = [f"++{o}" if o.startswith("stages.") else o for o in overrides]
    before = next((o for o in overrides if o.startswith("method.before=")), "source")
    if (
        "source" in before
        and "ckpt" not in "".join(overrides)
        and method not in ("supervised", "round_robin")
    ):
        own = ["++stages.source.epochs=2", "++stages.source.batch_size=16", *own]
    if method == "svd_adapters":
        own = ["++stages.parallel_adapters.epochs=2", "++stages.parallel_adapters.batch_size=16", *own]
    config = compose_run([*given, *own])
    check(config)
    config["command"] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", lambda evidence: None)  # tested with the other reports
        return execute(config, "run")


def network(folder: Path, name: str) -> DomainMethod:
    """Return the network of a domain of a run."""
    return load(Trained(name, folder / "domains" / name / "weights.pt", "", 0, 0.0, False))


def pixels() -> torch.Tensor:
    """Return five random images as the small networks see them."""
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
