"""Training in turn, literally: one domain after the other, every parameter by its own equation."""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax

LR, MOMENTUM = 0.1, 0.9


def train(model, batches, decays, shared_decay):
    """Train an adapted network by SGD: v ← 0.9 v + g + λ θ, θ ← θ − 0.1 v, of what the domain has alone."""
    velocity = {}
    for name, images, labels in batches:
        model.set_domain(name)
        log_probabilities = log_softmax(model(images), dim=1)
        loss = -sum(log_probabilities[i, labels[i]] for i in range(len(labels))) / len(labels)
        for kind, parameters in model.parameter_groups().items():
            decay = shared_decay if kind == "shared" else decays[kind][name]
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    change = gradient + decay * parameter
                    before = velocity.get(parameter)
                    velocity[parameter] = change if before is None else MOMENTUM * before + change
        with torch.no_grad():
            for parameters in model.parameter_groups().values():
                for parameter in parameters:
                    parameter -= LR * velocity[parameter]
