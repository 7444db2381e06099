"""Saliency, literally: a backward pass for each layer and sample, outer products built, and loops.

Networks are ``nn.Sequential`` in double precision; a layer is its index, -1 the image.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def plain(net):
    """A copy in double precision that writes nothing in place."""
    net = copy.deepcopy(net).double().eval()
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return net


def activation_and_gradient(net, image, target, layer):
    """a and g, (C, h, w), of one image: the network is run from the layer on."""
    a = net[: layer + 1](image[None]).detach().requires_grad_()
    net[layer + 1 :](a)[0, target].backward()
    return a.detach()[0], a.grad[0]


AGGREGATES = {
    "sum": lambda z: sum(z),
    "max_abs": lambda z: max(abs(x) for x in z),
    "norm": lambda z: math.sqrt(sum(x * x for x in z)),
    "positive_sum": lambda z: sum(x for x in z if x > 0),
    "positive_norm": lambda z: math.sqrt(sum(x * x for x in z if x > 0)),
}


def over_locations(shape, contribution, aggregate):
    """(h, w) of what each location's entries, a flat list, are aggregated to."""
    h, w = shape
    rows = [[AGGREGATES[aggregate](contribution(y, x)) for x in range(w)] for y in range(h)]
    return torch.tensor(rows, dtype=torch.float64)


def bias(a, g, aggregate):
    return over_locations(g.shape[1:], lambda y, x: g[:, y, x].tolist(), aggregate)


def scaling(a, g, aggregate):
    return over_locations(g.shape[1:], lambda y, x: (g[:, y, x] * a[:, y, x]).tolist(), aggregate)


def padded(a, padding, mode):
    top, left, bottom, right = padding
    return F.pad(a[None], (left, right, top, bottom), mode=mode)[0]


def conv(a, g, aggregate, kernel=1):
    """A virtual identity: the matrix g patchᵀ of each location, the patch around it."""
    around = padded(a, [kernel // 2] * 4, "constant")

    def contribution(y, x):
        patch = around[:, y : y + kernel, x : x + kernel].flatten()
        return torch.outer(g[:, y, x], patch).flatten().tolist()

    return over_locations(g.shape[1:], contribution, aggregate)


def real_conv(module, entry, g, aggregate):
    """What each location adds to the gradient of the convolution's weights, entry by entry."""
    (sy, sx), (dy, dx) = module.stride, module.dilation
    c_out, c_in, kh, kw = module.weight.shape
    if module.padding == "same":
        py, px = dy * (kh - 1), dx * (kw - 1)
        padding = (py // 2, px // 2, py - py // 2, px - px // 2)
    else:
        padding = (0, 0, 0, 0) if module.padding == "valid" else (*module.padding, *module.padding)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around, signals = padded(entry, padding, mode).tolist(), g.tolist()

    def contribution(y, x):
        entries = []
        for o in range(c_out):
            first = o // (c_out // module.groups) * c_in
            for i in range(c_in):
                for ky in range(kh):
                    for kx in range(kw):
                        value = around[first + i][y * sy + ky * dy][x * sx + kx * dx]
                        entries.append(signals[o][y][x] * value)
        return entries

    return over_locations(g.shape[1:], contribution, aggregate)


def grad_cam(a, g):
    weights = g.mean(dim=(1, 2))
    return sum(w * channel for w, channel in zip(weights, a)).clamp(min=0)


def weighted_by_sum_of_gradient(a, g):
    return sum(channel_g.sum() * channel for channel_g, channel in zip(g, a))


def signal(net, image, target, layer, relu):
    """Backward layer after layer from the output; ``relu(x, p)`` is what a ReLU does to the signal p."""
    inputs = [image[None]]
    for module in net:
        inputs.append(module(inputs[-1]).detach())
    p = torch.zeros_like(inputs[-1])
    p[0, target] = 1
    for i in range(len(net) - 1, layer, -1):
        x = inputs[i].clone().requires_grad_()
        if isinstance(net[i], nn.ReLU):
            p = relu(x.detach(), p)
        else:
            (p,) = torch.autograd.grad(net[i](x), x, p)
    return p[0]


def guided(x, p):
    return torch.where((x > 0) & (p > 0), p, 0)


def deconv(x, p):
    return torch.where(p > 0, p, 0)


def excitation(net, image, target, layer, contrastive=False):
    """Marginal winning probabilities (Zhang et al., eq. 3), unit after unit, (C, h, w) at a layer."""
    inputs = [image[None]]
    for module in net:
        inputs.append(module(inputs[-1]).detach())
    p = torch.zeros_like(inputs[-1])
    p[0, target] = 1
    for i in range(len(net) - 1, layer, -1):
        module, x = net[i], inputs[i]
        if contrastive and i == len(net) - 1:
            p = share(module, x, p, 1) - share(module, x, p, -1)
        elif isinstance(module, nn.Conv2d | nn.Linear | nn.AdaptiveAvgPool2d):
            p = share(module, x, p, 1)
        elif isinstance(module, nn.Flatten):
            p = p.reshape(x.shape)
        elif isinstance(module, nn.MaxPool2d):
            p = to_the_winner(module, x, p)
        elif isinstance(module, Sum):
            p = through_sum(module, x, p)
        # a ReLU or a batch norm has one unit below
    return p[0]


def share(module, x, p, sign):
    """Each unit above shares its probability by a_j w⁺_ij; the linear map is read off column by column."""
    x = x.clamp(min=0)
    matrix = []
    for j in range(x.numel()):
        unit = torch.zeros(x.numel(), dtype=x.dtype)
        unit[j] = 1
        unit = unit.view_as(x)
        if isinstance(module, nn.Conv2d):
            w = (sign * module.weight.detach()).clamp(min=0)
            column = F.conv2d(unit, w, None, module.stride, module.padding, module.dilation, module.groups)
        elif isinstance(module, nn.Linear):
            column = unit @ (sign * module.weight.detach()).clamp(min=0).T
        else:
            column = module(unit)
        matrix.append(column.flatten())
    matrix, units = torch.stack(matrix, dim=1), x.flatten()
    below = torch.zeros_like(units)
    for row, p_i in zip(matrix, p.flatten()):
        parts = units * row
        if parts.sum() > 0:
            below += p_i * parts / parts.sum()
    return below.view_as(x)


def to_the_winner(module, x, p):
    _, where = F.max_pool2d(x, module.kernel_size, module.stride, module.padding, return_indices=True)
    below = torch.zeros_like(x)
    for c in range(x.shape[1]):
        for place, value in zip(where[0, c].flatten().tolist(), p[0, c].flatten().tolist()):
            below[0, c].view(-1)[place] += value
    return below


class Sum(nn.Module):
    """relu(x + body(x)), in place: a residual block."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        out = self.body(x)
        out += x
        return F.relu(out, inplace=True)


def through_sum(module, x, p):
    branch = module.body(x).clamp(min=0)
    total = branch + x.clamp(min=0)
    ratio = torch.where(total > 0, p / total, 0)
    return x.clamp(min=0) * ratio + share(module.body, x, branch * ratio, 1)


def integrated_gradients(net, image, target, layer, steps):
    """Trapezoids along the line from black, (h, w): Σ_k ∫ g_k da_k."""
    points = [activation_and_gradient(net, image * s / steps, target, layer) for s in range(steps + 1)]
    total = 0
    for (a0, g0), (a1, g1) in pairwise(points):
        total = total + ((g0 + g1) / 2 * (a1 - a0)).sum(dim=0)
    return total


def after_sgd_step(net, image, target, lr, loss="cross_entropy"):
    """A copy that has taken one step on the image's cross-entropy: of the class among all, or of it alone."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=abs(lr), maximize=lr < 0)
    optimizer.zero_grad()
    z = net(image[None])[0]
    shares = z.exp() / z.exp().sum() if loss == "cross_entropy" else 1 / (1 + (-z).exp())
    (-shares[target].log()).backward()
    optimizer.step()
    return net


def unit_range(m):
    low, high = min(m.flatten().tolist()), max(m.flatten().tolist())
    return (m - low) / (high - low)


def combine(maps, size, weights, how):
    """Of one sample, maps {layer: (h, w)} that are not constant."""
    total = sum(weights.values())
    result = torch.full(size, 0.0 if how == "sum" else 1.0, dtype=torch.float64)
    for layer, m in maps.items():
        m = F.interpolate(m[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        share = weights[layer] / total
        result = result + share * unit_range(m) if how == "sum" else result * unit_range(m) ** share
    return result


def spread(means, center):
    """means: M lists of C spatial means."""
    m, c = len(means), len(means[0])
    middle = [sum(abs(row[k]) if center == "abs" else row[k] for row in means) / m for k in range(c)]
    return sum(abs(row[k] - middle[k]) for row in means for k in range(c)) / (m * c)


def near(region, point, tolerance):
    """Whether a pixel is in the region or strictly closer to one of its pixels than the tolerance."""
    closest = math.inf
    for y in range(region.shape[0]):
        for x in range(region.shape[1]):
            if region[y, x]:
                closest = min(closest, math.hypot(y - point[0], x - point[1]))
    return closest == 0 or closest < tolerance
