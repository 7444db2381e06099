"""Name the cluster or class of images in a folder with a finished run."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scarcely.errors import CheckpointError, ConfigError, DataError

USAGE = """\
python scripts/predict.py ckpt=RUN images=FOLDER out=labels.csv

  ckpt      the folder of a finished run, or its weights.pt
  images    a folder; images in folders below it are found too
  out       the CSV file to write: file, cluster (or class), confidence
            where new classes were discovered beside known ones, these are named and those numbered:
            "new 1" is cluster 0 of the report
  batch_size=256   images at a time
  on_error=raise   raise | skip: what to do with an image that cannot be read
"""
DEFAULTS = {"batch_size": "256", "on_error": "raise"}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``key=value`` arguments, predict, and return the exit code."""
    from scarcely.cli import run_command

    return run_command(USAGE, {"ckpt", "images", "out"}, DEFAULTS, predict, argv)


def load_run(path: str) -> tuple[Any, dict[str, Any]]:
    """Return the trained method of a run in eval mode, and what its weights file says.

    Raises:
        CheckpointError: not the weights of a run of this project.
    """
    from scarcely import checkpoints, stages
    from scarcely.job import Job

    found = checkpoints.find(path)
    content = checkpoints.load(found)
    if not isinstance(content, dict) or content.get("format") != checkpoints.FORMAT or "job" not in content:
        raise CheckpointError(
            f"{found} was not written by a run of this project",
            where="ckpt",
            instead="the folder of a finished run",
        )
    job = Job(**content["job"])
    method = stages.build_method(job, tuple(content["input_shape"]), inherit=False)
    method.load_state_dict(content["state_dict"])
    return method.eval(), content


def old_and_new(method: Any, content: dict[str, Any], folder: Path) -> tuple[Any, list[str]]:
    """Return what tells known and new classes apart, and what its outputs are called.

    That is the method's own joint head, or the linear classifier that its run trained on the features, or
    else the head of the new classes alone.

    Args:
        method: the trained method.
        content: of its weights file.
        folder: of the run.

    Returns:
        Features (n, D) to scores (n, K), and K names.

    Raises:
        CheckpointError: the classifier in the folder is not that of this run.
    """
    import torch

    from scarcely import checkpoints

    num_known, num_new = int(content["job"]["num_known"]), int(content["job"]["num_new"])
    numbered = [f"new {k}" for k in range(1, num_new + 1)]
    names = [*content["classes"][:num_known], *numbered]
    size = method.centroids.shape[1] if hasattr(method, "centroids") else method.backbone.num_features
    if method.joint_logits(torch.zeros(1, size)) is not None:
        return method.joint_logits, names
    if not (folder / "classifier.pt").is_file():
        return method.logits, numbered
    layer = torch.nn.Linear(size, len(names))
    state = checkpoints.tensors_of(checkpoints.load(folder / "classifier.pt"))
    try:
        layer.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / 'classifier.pt'} does not fit {size} features and {len(names)} classes",
            where="ckpt",
            instead="the folder as the run left it",
        ) from error
    return layer.eval(), names


def predict(arguments: dict[str, str]) -> None:
    """Write ``file,cluster,confidence`` (or ``class``) of all images below a folder."""
    import torch
    from hydra.utils import instantiate

    from scarcely import checkpoints
    from scarcely.data.imagefolder import list_images
    from scarcely.data.loader import DeviceLoader
    from scarcely.files import write_atomically

    folder, out = Path(arguments["images"]).expanduser(), Path(arguments["out"]).expanduser()
    if not arguments["batch_size"].isdigit() or int(arguments["batch_size"]) < 1:
        raise ConfigError(
            f"batch_size={arguments['batch_size']}", where="batch_size", instead="a whole number"
        )
    if arguments["on_error"] not in ("raise", "skip"):
        raise ConfigError(f"on_error={arguments['on_error']}", where="on_error", instead="raise or skip")
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", where="images", instead="a folder of images")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out}", where="out", instead="a file in a folder that exists")
    method, content = load_run(arguments["ckpt"])
    shape = content["input_shape"]
    if len(shape) != 3:
        raise DataError(
            "this run was trained on vectors, not on images", where="ckpt", instead="a run on images"
        )
    has_centroids = hasattr(method, "centroids")  # k-means, whose scores may be of raw inputs
    if not has_centroids and method.logits(torch.zeros(1, method.backbone.num_features)) is None:
        raise CheckpointError(
            f"a {content['job']['method']['name']} run has no clusters or classes to name", where="ckpt"
        )
    names = list_images(folder, folder)
    if not names:
        raise DataError(
            f"there is no image in {folder}", where="images", instead="jpg, png, bmp, gif, tif, webp"
        )
    samples = _read(folder, names, content.get("decoded_size") or shape[1], shape[0], arguments["on_error"])
    augmentation = instantiate(content["job"]["data"]["augmentation"], _convert_="all")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = DeviceLoader.evaluation(
        samples, augmentation, batch_size=int(arguments["batch_size"]), device=device
    )
    task, scores_of, classes = content["job"]["method"]["task"], None, None
    if task in ("classification", "domains"):
        classes = content["classes"]
    elif task == "discovery":
        scores_of, classes = old_and_new(method, content, checkpoints.find(arguments["ckpt"]).parent)
        if isinstance(scores_of, torch.nn.Module):
            scores_of.to(device)
    predictions = method.to(device).predict_all(loader, scores_of)
    confidence, predicted = predictions.probabilities.max(dim=1)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "class" if classes else "cluster", "confidence"])
    for name, k, p in zip(samples.names, predicted.tolist(), confidence.tolist(), strict=True):
        writer.writerow([name, classes[k] if classes else k, f"{p:.4f}"])
    write_atomically(out, text.getvalue().encode("utf-8", "surrogateescape"))
    what = "classes" if classes else "clusters"
    print(f"{len(samples)} images, {len(set(predicted.tolist()))} {what}: {out}", file=sys.stderr)


def _read(folder: Path, names: list[str], size: int, channels: Any, on_error: Any) -> Any:
    from scarcely.data.decode import load_images

    labels = [-1] * len(names)
    return load_images(folder, names, labels, size=size, channels=channels, on_error=on_error)[0]
