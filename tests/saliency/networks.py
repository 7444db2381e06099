"""Small classifiers with everything that may go wrong in a backward pass."""

from __future__ import annotations

import torch
from torch import nn

from tests.oracles.saliency import Sum

CLASSES = 4


def toy(seed=0):
    """Stride, padding, dilation, groups, biases, a residual sum, odd kernels, in-place ReLUs."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),  # 0
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3),  # 3
        nn.ReLU(inplace=True),
        Sum(nn.Conv2d(6, 6, 1, bias=False)),  # 5
        nn.Conv2d(6, 8, (3, 2), stride=(1, 2), padding=(1, 0)),  # 6
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, stride=1),  # 8
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
        net[1].bias.normal_()
        net[3].bias.add_(0.3)  # of a dead channel there is nothing to see
    return net


def batch(seed=0, n=3):
    return torch.randn(n, 3, 8, 10, generator=torch.Generator().manual_seed(seed))
