"""Saliency maps at several layers, against a plain forward and backward pass and against captum."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from scarcely.bench.rows import Row, Settings, Spread, apart, require_agreement, take_turns, wait_for
from scarcely.saliency import Attributor

LAYERS = ("layer1", "layer2", "layer3", "layer4")
MOST_TIME, MOST_MEMORY = 1.3, 1.2
METHOD = "linear_approximation"

Maps = Callable[[], dict[str, Tensor]]


def measure(settings: Settings, threads: int) -> list[Row]:
    """Compare maps of the predicted class at four layers of torchvision's ResNet-18."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18().to(settings.device).eval().requires_grad_(False)
    images = torch.randn(settings.explained, 3, settings.pixels, settings.pixels, device=settings.device)
    if settings.device == "cuda":
        network = network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    target = network(images).argmax(dim=1)
    shared: dict[str, Any] = {"measure": "saliency", "threads": threads, "device": settings.device}

    def time(name: str, ours: Maps, plain: Maps, of: str, **rest: Any) -> Row:
        a, b = ours(), plain()  # to warm up
        difference = require_agreement(max(apart(a[layer], b[layer]) for layer in b), 1e-3, name)
        return Row.of_times(
            *take_turns(ours, plain, settings),
            name=f"{name}, ResNet-18, batch {settings.explained}; plain: {of}",
            difference=difference,
            **(shared | rest),
        )

    with ExitStack() as stack:
        four, first, all_blocks = (
            stack.enter_context(Attributor(network, layers)) for layers in (LAYERS, "layer1.0", "layer?.?")
        )
        ours, plain = partial(four, images, target, METHOD), partial(plain_maps, network, images, target)
        return [
            time(
                "maps at four layers",
                ours,
                plain,
                "forward and backward",
                least=1 / MOST_TIME,
                note=f"at most {MOST_TIME:g} times as long",
            ),
            _memory(ours, partial(plain_passes, network, images, target), shared),
            time(
                f"maps at {len(all_blocks.layers)} blocks",
                partial(all_blocks, images, target, METHOD),
                partial(first, images, target, METHOD),
                "at the first alone",
                note="growth with the number of layers",
            ),
            *(
                time(
                    f"{method} at four layers",
                    partial(four, images, target, method),
                    partial(theirs, network, images, target),
                    "captum",
                )
                for method, theirs in _captum().items()
            ),
        ]


def plain_passes(network: nn.Module, images: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return activation and gradient of each stage, by a forward and a backward pass down to the first.

    As little as it can be: neither the gradients of the weights nor those below the first stage.
    """
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))  # type: ignore[operator]
    reached: list[Tensor] = []
    for name in LAYERS:
        x = network.get_submodule(name)(x)
        reached.append(x if reached else x.requires_grad_())
    logits = network.fc(network.avgpool(x).flatten(1))  # type: ignore[operator]
    gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), reached)
    return [(a.detach(), g) for a, g in zip(reached, gradients)]


def plain_maps(network: nn.Module, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the linear approximation of each stage."""
    passes = plain_passes(network, images, target)
    return {name: (a * g).sum(dim=1) for name, (a, g) in zip(LAYERS, passes, strict=True)}


def captum_grad_cam(network: nn.Module, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Grad-CAM of captum, which knows one layer at a time."""
    from captum.attr import LayerGradCam

    return {
        name: LayerGradCam(network, network.get_submodule(name)).attribute(
            images, target, relu_attributions=True
        )[:, 0]
        for name in LAYERS
    }


def captum_gradient_x_activation(network: nn.Module, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The linear approximation by captum, which takes a list of layers here."""
    from captum.attr import LayerGradientXActivation

    layers = [network.get_submodule(name) for name in LAYERS]
    parts = LayerGradientXActivation(network, layers).attribute(images, target)
    return {name: part.sum(dim=1) for name, part in zip(LAYERS, parts, strict=True)}


def peak_allocation(program: Callable[[], Any], device: str) -> int:
    """Return the most bytes that a program holds at once of torch's allocator, beyond what is held before."""
    if device == "cuda":
        wait_for(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        program()
        wait_for(device)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        program()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    steps = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = most = 0
    for _, change in steps:
        held += change
        most = max(most, held)
    return most


def _memory(ours: Maps, plain: Callable[[], list[tuple[Tensor, Tensor]]], shared: dict[str, Any]) -> Row:
    most = peak_allocation(ours, shared["device"])
    kept = sum(t.numel() * t.element_size() for pair in plain() for t in pair)
    allowed = peak_allocation(plain, shared["device"]) + kept
    return Row(
        name="peak memory of maps at four layers; plain: forward, backward and what is mapped",
        unit="bytes",
        ours=Spread(most, most, most),
        plain=Spread(allowed, allowed, allowed),
        ratio=allowed / most,
        target=f"at least {1 / MOST_MEMORY:.3g}",
        met=most <= MOST_MEMORY * allowed,
        note=f"at most {MOST_MEMORY:g} times",
        **shared,
    )


def _captum() -> dict[str, Callable[..., dict[str, Tensor]]]:
    if find_spec("captum") is None:
        print("captum is not installed: nothing to compare with", file=sys.stderr)
        return {}
    return {"grad_cam": captum_grad_cam, METHOD: captum_gradient_x_activation}
