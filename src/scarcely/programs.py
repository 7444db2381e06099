"""A trained network as programs that run without this project: torch.export and ONNX."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scarcely import __version__, checkpoints
from scarcely.adapters import AdaptedModel
from scarcely.adapters.layers import AdaptedConv, DomainHead, DomainNorm, Site
from scarcely.data.augment import ImageAugmentation, VectorAugmentation
from scarcely.errors import CheckpointError, ConfigError, UserError
from scarcely.export import NEEDED
from scarcely.files import write_atomically, write_json
from scarcely.methods.base import Method
from scarcely.predict import load_run, outputs_of

FILES = {"torch": "model.pt2", "onnx": "model.onnx"}
SUMMARY = "model.json"
INPUT, OUTPUTS = "inputs", ("logits", "probabilities")
# One rounding of float32 is 6e-8; a deep network makes some hundred in a row, and sums cancel. Another
# convolution, or a normalisation that is not the run's, is further off by orders of magnitude.
TOLERANCE = 1e-4
BATCH_SIZES = (1, 3, 8)

Run = Callable[[Tensor], Sequence[Tensor]]


class ExportError(UserError):
    """A program does not do what the network does that it was made of."""


def export(
    ckpt: str | Path, folder: Path, *, formats: Sequence[str] = ("torch", "onnx"), head: str = ""
) -> dict[str, Any]:
    """Write a trained network as programs, and run each from its file to compare it with the network.

    A program takes images (N, C, S, S) uint8 of any N, as they are decoded, and does itself what the run did
    to them, cut and normalise; or vectors (N, D) float32. It gives logits and probabilities, (N, K) float32
    each. Adapters are merged into the convolutions, and what prediction does not use is left out.

    Args:
        ckpt: the folder of a finished run, or its weights file.
        folder: of the files; it is made.
        formats: ``torch``, ``onnx``.
        head: of a run that discovered classes ``all``, ``old`` or ``new``; empty for what prediction names.

    Returns:
        What was written as ``model.json``.

    Raises:
        CheckpointError: no finished run, one without classes or clusters, or one that cannot be exported.
        ConfigError: the run has no such head.
        ExportError: a program is further from the network than rounding; its file is there.
        WriteError: a file cannot be written.
    """
    from hydra.utils import instantiate

    weights = checkpoints.find(ckpt)
    method, content = load_run(str(weights))
    scores_of, names = _head(method, content, weights.parent, head)
    augmentation = instantiate(content["job"]["data"]["augmentation"], _convert_="all")
    shape = list(content["input_shape"])
    if len(shape) == 3:
        shape[1:] = [content.get("decoded_size") or shape[1]] * 2
    inputs = example_inputs(shape)
    expected = predicted(method, scores_of, augmentation, inputs)
    program = traced(Network(method, scores_of, augmentation, shape), inputs)
    runs = {name: _WRITERS[name](program, folder / FILES[name]) for name in formats}
    told = {
        "method": content["job"]["method"]["name"],
        "data": content["job"]["data"]["name"],
        "domain": content["job"]["data"].get("domain"),
        "seed": content["job"]["seed"],
        "run": str(weights.parent.resolve()),
        "weights": checkpoints.content_key(str(weights)),
        "head": head or None,
        "kind": "classes" if names else "clusters",
        "names": names or [str(k) for k in range(expected[0].shape[1])],
        "input": _describe_input(shape),
        "outputs": _describe_outputs(content),
        "files": {name: FILES[name] for name in formats},
        "check": {
            "batch_sizes": BATCH_SIZES,
            "tolerance": TOLERANCE,
            "differences": {name: differences(name, run, inputs, expected) for name, run in runs.items()},
        },
        "versions": _versions(formats),
    }
    write_json(folder / SUMMARY, told)
    return told


def _head(method: Any, content: dict[str, Any], folder: Path, head: str) -> tuple[Any, list[str] | None]:
    """Return features (n, D) to scores (n, K), and the K names of classes; None for clusters."""
    scores_of, names = outputs_of(method, content, folder)
    if not head:
        return scores_of, names
    job = content["job"]
    if job["method"]["task"] != "discovery" or names is None:
        raise ConfigError(
            f"a {job['method']['name']} run has one head", where="head", instead="the same without head"
        )
    known, new = int(job["num_known"]), int(job["num_new"])
    if head == "new":
        return method.logits, names[-new:]
    if len(names) == new:
        raise CheckpointError(
            "nothing in the checkpoint tells known classes apart",
            where="head",
            instead="the folder of the run, with its classifier.pt, or head=new",
        )
    return (_First(scores_of, known), names[:known]) if head == "old" else (scores_of, names)


class _First(nn.Module):
    """The first of some scores."""

    def __init__(self, scores_of: Callable[[Tensor], Tensor], count: int) -> None:
        super().__init__()
        self.scores_of, self.count = scores_of, count

    def forward(self, features: Tensor) -> Tensor:
        return self.scores_of(features)[:, : self.count]


class Network(nn.Module):
    """Inputs as they come to logits and probabilities, with nothing but plain layers.

    Args:
        method: the trained method, in eval mode; its adapters are merged in place.
        scores_of: features (N, D) to scores (N, K).
        augmentation: of the run.
        shape: of an input, (C, S, S) or (D,).

    Raises:
        CheckpointError: it cannot be said what the augmentation leaves when nothing is random.
        ConfigError: the adapters cannot be merged.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        method: Method,
        scores_of: Callable[[Tensor], Tensor],
        augmentation: Any,
        shape: Sequence[int],
    ) -> None:
        super().__init__()
        if isinstance(method.backbone, AdaptedModel):
            merge(method.backbone)
        self.method, self.scores_of = method, scores_of
        self.window: tuple[slice, slice] | None = None
        if type(augmentation) is ImageAugmentation:
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (augmentation.mean, augmentation.std))
            self.register_buffer("scale", 1 / (255 * std))
            self.register_buffer("shift", -mean / std)
            size = augmentation.crop or shape[1]
            start = (shape[1] - size) // 2
            self.window = (slice(start, start + size), slice(start, start + size))
        elif type(augmentation) is not VectorAugmentation:
            raise CheckpointError(
                f"inputs of this run were prepared by {type(augmentation).__name__}, which no program does",
                where="ckpt",
                instead="a run with scarcely.data.augment.ImageAugmentation",
            )

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities, (N, K) float32 each."""
        x = inputs
        if self.window is not None:
            rows, columns = self.window
            x = x[:, :, rows, columns].float() * self.scale + self.shift
        with _PlainDistances():
            logits = self.scores_of(self.method.features(x)).float()
        return logits, self.method.probabilities(logits)


class _PlainDistances(TorchFunctionMode):
    """Writes `torch.cdist` out: it chooses its way by the size of the batch, and ONNX does not know it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.cdist:
            a, b = args[:2]
            return (a[:, None] - b[None]).square().sum(dim=2).sqrt()
        return func(*args, **(kwargs or {}))


def merge(model: AdaptedModel) -> None:
    """Put plain layers in the place of those that know domains, for the current domain and for good.

    Args:
        model: in eval mode; afterwards its network holds convolutions with their adapters merged, BatchNorm
            where none was folded, and a linear classifier.

    Raises:
        ConfigError: its adapters cannot be merged.
    """
    model.merge()
    for path, site in list(model.network.named_modules()):
        if isinstance(site, Site):
            parent, _, name = path.rpartition(".")
            setattr(model.network.get_submodule(parent), name, _plain(site, model.current))
    if model.head is not None:
        model.head = _plain(model.head, model.current)  # type: ignore[assignment]


def _plain(site: Site, domain: str) -> nn.Module:
    if isinstance(site, DomainHead):
        return site.members[domain]
    if isinstance(site, DomainNorm):
        return nn.Identity() if site.folded else site.of(domain)
    assert isinstance(site, AdaptedConv)
    if site.fused_weight is None:
        return site.conv
    conv = copy.copy(site.conv)
    conv._parameters = {
        "weight": nn.Parameter(site.fused_weight),
        "bias": None if site.fused_bias is None else nn.Parameter(site.fused_bias),
    }
    return conv


def example_inputs(shape: Sequence[int]) -> Tensor:
    """Return inputs that a program is compared on.

    Args:
        shape: (C, S, S) or (D,).

    Returns:
        Images uint8: noise, black, white, and coarse patches whose values are near each other, as in
        photographs; or vectors of normal noise.
    """
    generator, count = torch.Generator().manual_seed(0), max(BATCH_SIZES)
    if len(shape) == 1:
        return torch.randn(count, *shape, generator=generator)
    noise = torch.rand(3, *shape, generator=generator)
    coarse = torch.rand(count - 5, shape[0], 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=tuple(shape[1:]), mode="bilinear")
    images = [noise, torch.zeros(1, *shape), torch.ones(1, *shape), smooth]
    return torch.cat(images).mul(255).round().to(torch.uint8)


@torch.no_grad()
def predicted(
    method: Method, scores_of: Callable[[Tensor], Tensor], augmentation: Any, inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits and probabilities (N, K) as the run itself predicts.

    Args:
        method: the trained method, in eval mode.
        scores_of: features (N, D) to scores (N, K).
        augmentation: of the run.
        inputs: images (N, C, S, S) uint8, or vectors (N, D).
    """
    decoded = inputs.permute(0, 2, 3, 1).contiguous() if inputs.dim() == 4 else inputs
    logits = scores_of(method.features(augmentation.clean(decoded)))
    return logits.float(), method.probabilities(logits)


@torch.no_grad()
def traced(network: Network, inputs: Tensor) -> torch.export.ExportedProgram:
    """Return the program of a network for batches of any size, with no weights but those it uses.

    Args:
        network: in eval mode; weights that it does not use are taken from it.
        inputs: an example, at least two samples.

    Raises:
        CheckpointError: torch.export cannot trace it.
    """
    network.requires_grad_(False).eval()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.contiguous()  # of channels_last the writer of the file warns
    _drop_unread(network, inputs)
    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(network, (inputs,), dynamic_shapes={INPUT: {0: batch}}, strict=False)
    except Exception as error:  # whatever the code of a network raises when its input is symbolic
        raise _refused(
            "torch.export", error, "ckpt", "a network whose operations do not depend on its inputs"
        ) from error


class _Reading(TorchDispatchMode):
    """Notes the memory that operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.read.add(value.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


def _drop_unread(network: nn.Module, inputs: Tensor) -> None:
    """Take away what a program would carry for nothing: other heads, teachers, counters of batches."""
    with _Reading() as reading:
        network(inputs)
    for module in network.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None and tensor.untyped_storage().data_ptr() not in reading.read:
                    own[name] = None


def _refused(what: str, error: Exception, where: str, instead: str) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if "Error" in line or "No ONNX" in line), "")
    reason = reason or next(filter(None, lines), type(error).__name__)
    return CheckpointError(f"{what} cannot write this network: {reason[:300]}", where=where, instead=instead)


def _write_torch(program: torch.export.ExportedProgram, path: Path) -> Run:
    write_atomically(path, lambda file: torch.export.save(program, file))
    return torch.export.load(path).module()


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> Run:
    import onnxruntime

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own code
            written: Any = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={INPUT: {0: "batch"}},
                external_data=False,
                verbose=False,
            )
        content = written.model_proto.SerializeToString()
    except Exception as error:  # operators that ONNX lacks are told in many ways
        raise _refused("ONNX", error, "formats", "formats=torch") from error
    write_atomically(path, content)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: [torch.from_numpy(found) for found in session.run(None, {INPUT: inputs.numpy()})]


_WRITERS: Mapping[str, Callable[[torch.export.ExportedProgram, Path], Run]] = {
    "torch": _write_torch,
    "onnx": _write_onnx,
}


def differences(name: str, run: Run, inputs: Tensor, expected: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Run a program on batches of several sizes and return how far it is from the network.

    Args:
        name: of the format, for the message.
        run: inputs to logits and probabilities.
        inputs: (N, C, S, S) uint8 or (N, D) float32, N at least the largest of `BATCH_SIZES`.
        expected: logits and probabilities (N, K) of the network.

    Returns:
        The largest difference of probabilities, and that of logits in units of the largest logit, or of 1.

    Raises:
        ExportError: it is more than `TOLERANCE`, or outputs have another shape.
    """
    largest = dict.fromkeys(OUTPUTS, 0.0)
    units = {"logits": max(1.0, float(expected[0].abs().max())), "probabilities": 1.0}
    for size in BATCH_SIZES:
        for output, found, wanted in zip(OUTPUTS, run(inputs[:size]), expected, strict=True):
            fits = found.shape == wanted[:size].shape
            apart = float((found - wanted[:size]).abs().max()) / units[output] if fits else float("nan")
            if not apart <= TOLERANCE:  # NaN is not either
                raise ExportError(
                    f"the {name} program is not the network: its {output} are {apart:.2g} apart from it in a "
                    f"batch of {size}, and {TOLERANCE:g} is what rounding allows",
                    where="formats",
                    instead="another format, or other versions of torch, onnxscript and onnxruntime",
                )
            largest[output] = max(largest[output], apart)
    return largest


def _describe_input(shape: Sequence[int]) -> dict[str, Any]:
    if len(shape) == 1:
        return {"name": INPUT, "type": "float32", "shape": ["batch", *shape], "range": None}
    return {
        "name": INPUT,
        "type": "uint8",
        "shape": ["batch", *shape],
        "layout": "NCHW",
        "range": [0, 255],
        "channels": "RGB" if shape[0] == 3 else "grey",
        "prepare": f"cut the central square, resize it to {shape[1]} pixels (bilinear, antialiased); "
        "do not normalise: the program does",
    }


def _describe_outputs(content: dict[str, Any]) -> dict[str, str]:
    several = content["job"]["method"]["task"] == "multilabel"
    return {
        "logits": "float32 (batch, names)",
        "probabilities": "float32 (batch, names): "
        + (
            "sigmoid, an image may be of several classes"
            if several
            else "softmax, an image is of one of them"
        ),
    }


def _versions(formats: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import version

    others = [package for name in formats for package in NEEDED[name]]
    return {"scarcely": __version__, "torch": torch.__version__} | {name: version(name) for name in others}
