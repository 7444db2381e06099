"""Name the cluster or class of images with a finished run, or map what a classifier looks at in them."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scarcely.errors import CheckpointError, ConfigError, DataError

USAGE = """\
python scripts/predict.py ckpt=RUN images=FOLDER out=labels.csv [gallery=labels.html]
python scripts/predict.py ckpt=RUN challenge=out.json
python scripts/predict.py ckpt=NORMGRAD_RUN images=FOLDER maps=OUT [class=NAME] [method=NAME] [layer=NAME]

  ckpt      the folder of a finished run, or its weights.pt
  images    a folder; images in folders below it are found too
  out       the CSV file to write: file, cluster (or class), confidence; of a run with several classes an
            image the classes above one half, and the probability of each
            where new classes were discovered beside known ones, these are named and those numbered:
            "new 1" is cluster 0 of the report
  gallery   the HTML page to write beside it: images of each cluster or class, the surest and the least sure
  challenge the JSON file to write, of a run over domains of the Visual Decathlon: image_id and category_id of
            every test image
  maps      of a run of method=normgrad: the folder to write IMAGE.npy to, a map of the image's size (H, W)
            float32, and IMAGE.png, the map over the image; explained.csv says which class each map explains
  class     explain this class; otherwise the one that the model predicts
  method    as in the run, NAME-meta with meta-saliency; and
  layer     a layer, or combined-HOW-WEIGHTS; otherwise the combination that won the run's pointing game
  batch_size=256   images at a time
  on_error=raise   raise | skip: what to do with an image that cannot be read
"""
DEFAULTS = {
    **{"images": "", "out": "", "gallery": "", "challenge": ""},
    **{"batch_size": "256", "on_error": "raise"},
}
OF_MAPS = {"maps": "", "class": "", "method": "", "layer": ""}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``key=value`` arguments, predict, and return the exit code."""
    from scarcely.cli import run_command

    return run_command(USAGE, {"ckpt"}, DEFAULTS | OF_MAPS, _command, argv)


def _command(arguments: dict[str, str]) -> None:
    if arguments["on_error"] not in ("raise", "skip"):
        raise ConfigError(f"on_error={arguments['on_error']}", where="on_error", instead="raise or skip")
    if arguments["maps"]:
        return _maps(arguments)
    if for_maps := [key for key in OF_MAPS if arguments[key]]:
        raise ConfigError(
            f"{for_maps[0]} says what maps explain, and none are asked for",
            where=for_maps[0],
            instead="maps=FOLDER too, with the ckpt of a run of method=normgrad",
        )
    given = [key for key in ("images", "out") if arguments[key]]
    others = [
        *given,
        *(["gallery"] if arguments["gallery"] else []),
        *(["on_error"] if arguments["on_error"] == "skip" else []),
    ]
    if arguments["challenge"] and others:
        raise ConfigError(
            f"challenge takes all images of the release, and {' and '.join(others)} is given too",
            where=f"challenge, {', '.join(others)}",
            instead="challenge=out.json alone",
        )
    if not arguments["challenge"] and len(given) < 2:
        missing = [key for key in ("images", "out") if key not in given]
        raise ConfigError(f"{', '.join(missing)} must be given", instead=USAGE.splitlines()[0])
    if not arguments["batch_size"].isdigit() or int(arguments["batch_size"]) < 1:
        raise ConfigError(
            f"batch_size={arguments['batch_size']}", where="batch_size", instead="a whole number"
        )
    (predict_challenge if arguments["challenge"] else predict)(arguments)


def _maps(arguments: dict[str, str]) -> None:
    from scarcely.explanation.predict import predict_maps

    other = [key for key in ("out", "gallery", "challenge") if arguments[key]]
    if other or not arguments["images"]:
        raise ConfigError(
            f"maps and {other[0]} are two things to write" if other else "images must be given",
            where=other[0] if other else "images",
            instead="ckpt=NORMGRAD_RUN images=FOLDER maps=OUT",
        )
    predict_maps(arguments)


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
    size = method.backbone.num_features
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


def outputs_of(method: Any, content: dict[str, Any], folder: Path) -> tuple[Any, list[str] | None]:
    """Return what a finished run says of features, and what it is called.

    Args:
        method: the trained method.
        content: of its weights file.
        folder: of the run.

    Returns:
        Features (n, D) to scores (n, K), and K names of classes; None for clusters, which have numbers.

    Raises:
        CheckpointError: the method has no clusters or classes, or not the classifier that lies in the folder.
    """
    import torch

    has_centroids = hasattr(method, "centroids")  # k-means, whose scores may be of raw inputs
    if not has_centroids and method.logits(torch.zeros(1, method.backbone.num_features)) is None:
        raise CheckpointError(
            f"a {content['job']['method']['name']} run has no clusters or classes to name", where="ckpt"
        )
    task = content["job"]["method"]["task"]
    if task == "discovery":
        return old_and_new(method, content, folder)
    if task not in ("classification", "domains", "multilabel"):
        return method.logits, None
    # the supervised stage of a discovery has seen the known classes alone
    known = content["job"]["num_known"] if content["job"]["method"].get("role") == "labelled" else None
    return method.logits, list(content["classes"][:known])


def predict(arguments: dict[str, str]) -> None:
    """Write ``file,cluster,confidence`` (or ``class``) of all images below a folder, and their gallery."""
    from scarcely import checkpoints
    from scarcely.data.imagefolder import list_images

    folder, out = Path(arguments["images"]).expanduser(), Path(arguments["out"]).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", where="images", instead="a folder of images")
    _require_writable(out, "out")
    gallery = Path(arguments["gallery"]).expanduser() if arguments["gallery"] else None
    if gallery is not None:
        _require_writable(gallery, "gallery")
        if gallery.absolute() == out.absolute():
            raise ConfigError(f"out and gallery are both {out}", where="gallery", instead="another file")
    method, content = load_run(arguments["ckpt"])
    shape = content["input_shape"]
    if len(shape) != 3:
        raise DataError(
            "this run was trained on vectors, not on images", where="ckpt", instead="a run on images"
        )
    scores_of, classes = outputs_of(method, content, checkpoints.find(arguments["ckpt"]).parent)
    names = list_images(folder, folder)
    if not names:
        raise DataError(
            f"there is no image in {folder}", where="images", instead="jpg, png, bmp, gif, tif, webp"
        )
    samples = _read(folder, names, content.get("decoded_size") or shape[1], shape[0], arguments["on_error"])
    predictions = _predictions(method, content, samples, int(arguments["batch_size"]), scores_of)
    probabilities = predictions.probabilities
    if content["job"]["method"]["task"] == "multilabel":
        assert classes is not None
        _write_labels(out, samples.names, probabilities, classes)
    else:
        _write_likeliest(out, samples.names, probabilities, classes)
    if gallery is not None:
        _write_gallery(gallery, folder, samples.names, probabilities.numpy(), classes, content)


def _write_likeliest(out: Path, names: Any, probabilities: Any, classes: Sequence[str] | None) -> None:
    """Write ``file,cluster,confidence``, or ``class`` where clusters have names."""
    from scarcely.files import write_atomically

    confidence, predicted = probabilities.max(dim=1)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "class" if classes else "cluster", "confidence"])
    for name, k, p in zip(names, predicted.tolist(), confidence.tolist(), strict=True):
        writer.writerow([name, classes[k] if classes else k, f"{p:.4f}"])
    write_atomically(out, text.getvalue().encode("utf-8", "surrogateescape"))
    what = "classes" if classes else "clusters"
    print(f"{len(names)} images, {len(set(predicted.tolist()))} {what}: {out}", file=sys.stderr)


def _write_labels(out: Path, names: Any, probabilities: Any, classes: Sequence[str]) -> None:
    """Write ``file,classes`` and a column of probabilities a class; several classes are parted by ``;``."""
    from scarcely.files import write_atomically

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "classes", *classes])
    for name, row in zip(names, probabilities.tolist(), strict=True):
        shown = ";".join(c for c, p in zip(classes, row, strict=True) if p > 0.5)
        writer.writerow([name, shown, *(f"{p:.4f}" for p in row)])
    write_atomically(out, text.getvalue().encode("utf-8", "surrogateescape"))
    print(f"{len(names)} images, {len(classes)} classes: {out}", file=sys.stderr)


def _write_gallery(
    page: Path,
    folder: Path,
    names: Sequence[str],
    probabilities: Any,
    classes: Sequence[str] | None,
    content: dict[str, Any],
) -> None:
    """Write the page of images by cluster or class; those on it are read again, one by one."""
    from scarcely.reports.gallery import by_label, by_likeliest, write_gallery

    job = content["job"]
    several = job["method"]["task"] == "multilabel"
    shown = list(classes) if classes else [f"cluster {k}" for k in range(probabilities.shape[1])]
    write_gallery(
        page,
        by_label(probabilities, shown) if several else by_likeliest(probabilities, shown),
        names,
        lambda index, side: _thumbnail(folder / names[index], side),
        title=f"{len(names):,} images, named by a run of {job['method']['name']} on {job['data']['name']}",
        several=several,
    )
    print(f"their gallery: {page}", file=sys.stderr)


def _thumbnail(path: Path, side: int) -> Any:
    """Return the square of an image that the network was shown, (s, s, 3) uint8: s is `side`, or less.

    Raises:
        DataError: the file is gone or changed since it was predicted.
    """
    from scarcely.data.decode import decode_image
    from scarcely.data.whole import upright_size

    size = upright_size(path) or (side, side)
    try:
        return decode_image(path, min(side, *size))
    except Exception as error:  # decoders raise whatever their parsers raise
        raise DataError(
            f"cannot read the image {path} again: {error}", where="images", instead="the folder as it was"
        ) from error


def predict_challenge(arguments: dict[str, str]) -> None:
    """Write the class of every test image of the Visual Decathlon, as the challenge asks for it.

    The file is one list over all domains of the run, ``[{"image_id": 1, "category_id": 10000001}, ...]``,
    with the ids of the annotation files. That this is what the server takes is an assumption: the results of
    COCO's layout, of which the annotations are, without scores.

    Domains without numbered test images, such as class folders, are left out, and named.

    Raises:
        CheckpointError: no finished run over several domains.
        DataError: none of its domains has such images, or the classes are no longer those of the run.
    """
    from scarcely.files import write_atomically

    run, out = Path(arguments["ckpt"]).expanduser(), Path(arguments["challenge"]).expanduser()
    _require_writable(out, "challenge")
    names = sorted(path.parent.name for path in run.glob("domains/*/weights.pt"))
    if not names or not (run / "results.json").is_file():
        raise CheckpointError(
            f"{run} is no finished run over several domains",
            where="ckpt",
            instead="the folder of one (resume=true finishes it)",
        )
    images = {name: _challenge_images(run / "domains" / name) for name in names}
    left_out = [name for name in names if images[name] is None]
    if len(left_out) == len(names):
        raise DataError(
            f"no domain of this run has test images with ids: {', '.join(names)}",
            where="ckpt",
            instead="a run over domains of a release with NAME_test_stripped.json or NAME_test.json",
        )
    entries = []
    for name in (name for name in names if images[name] is not None):
        entries += _challenge_entries(run / "domains" / name, images[name], int(arguments["batch_size"]))
    write_atomically(out, json.dumps(entries))
    without = f" (without test images, and left out: {', '.join(left_out)})" if left_out else ""
    print(f"{len(entries)} images of {len(names) - len(left_out)} domains: {out}{without}", file=sys.stderr)


def _challenge_images(folder: Path) -> Any:
    """Return the test images of a domain, by the data that its network was trained on; None without any."""
    from hydra.utils import instantiate

    from scarcely import checkpoints

    data = instantiate(checkpoints.load(folder / "weights.pt")["job"]["data"], _convert_="all")
    data.check()
    try:
        return data.test_images()
    except DataError:
        return None


def _challenge_entries(folder: Path, images: Any, batch_size: int) -> list[dict[str, int]]:
    import torch

    method, content = load_run(str(folder))
    if len(images.category_ids) != len(content["classes"]):
        raise DataError(
            f"the annotations of {folder.name} have {len(images.category_ids)} categories, the run had"
            f" {len(content['classes'])} classes",
            where="data.root",
            instead="the annotations that the run was trained with",
        )
    samples = _read(images.root, images.files, content["decoded_size"], 3, "raise")
    predictions = _predictions(method, content, samples, batch_size)
    predicted = torch.tensor(images.category_ids)[predictions.probabilities.argmax(dim=1)]
    return [
        {"image_id": image, "category_id": category}
        for image, category in zip(images.ids, predicted.tolist(), strict=True)
    ]


def _require_writable(out: Path, where: str) -> None:
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out}", where=where, instead="a file in a folder that exists")


def _predictions(
    method: Any, content: dict[str, Any], samples: Any, batch_size: int, scores_of: Any = None
) -> Any:
    """Return what a method says of samples, seen as its run has seen those that it was scored on."""
    import torch
    from hydra.utils import instantiate

    from scarcely.data.loader import DeviceLoader

    augmentation = instantiate(content["job"]["data"]["augmentation"], _convert_="all")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(scores_of, torch.nn.Module):
        scores_of.to(device)
    loader = DeviceLoader.evaluation(samples, augmentation, batch_size=batch_size, device=device)
    return method.to(device).predict_all(loader, scores_of)


def _read(folder: Path, names: list[str], size: int, channels: Any, on_error: Any) -> Any:
    from scarcely.data.decode import load_images

    labels = [-1] * len(names)
    return load_images(folder, names, labels, size=size, channels=channels, on_error=on_error)[0]
