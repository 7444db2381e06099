"""Meta-saliency: the map of the network that has just learned the target class on this very image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from scarcely.saliency.target import Loss, Target, loss


def sgd_step(
    model: nn.Module, image: Tensor, target: Target, lr: float, kind: Loss = "cross_entropy"
) -> dict[str, Tensor]:
    """Take one SGD step on the loss of the target class, over all parameters (section 4.4).

    Args:
        model: in evaluation mode; its own parameters stay as they are.
        image: (1, C, H, W).
        target: of this image.
        lr: 2ε of the paper; negative for ascent.
        kind: of the loss.

    Returns:
        θ′ = θ − lr ∇ℓ(θ) by name, for ``functional_call``.
    """
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    with torch.enable_grad():
        objective = loss(functional_call(model, parameters, (image,)), target, len(image), kind)
    gradients = torch.autograd.grad(objective, list(parameters.values()), allow_unused=True)
    return {
        name: p.detach() if g is None else p.detach() - lr * g
        for (name, p), g in zip(parameters.items(), gradients)
    }
