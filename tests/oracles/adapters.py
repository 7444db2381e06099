"""Adapted convolutions, BatchNorm of several domains and low-rank factors, one number after the other."""

from __future__ import annotations

import torch


def convolve(x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """Each output is a sum over the channels of its group and the taps inside of the image."""
    samples, _, height, width = x.shape
    channels_out, per_group, *kernel = weight.shape
    out_h = (height + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    values = []
    for n in range(samples):
        for o in range(channels_out):
            first = o // (channels_out // groups) * per_group
            for i in range(out_h):
                for j in range(out_w):
                    value = torch.zeros((), dtype=x.dtype) if bias is None else bias[o]
                    for a in range(kernel[0]):
                        for b in range(kernel[1]):
                            row = i * stride[0] - padding[0] + a * dilation[0]
                            column = j * stride[1] - padding[1] + b * dilation[1]
                            if 0 <= row < height and 0 <= column < width:
                                pixel = x[n, first : first + per_group, row, column]
                                value = value + (weight[o, :, a, b] * pixel).sum()
                    values.append(value)
    return torch.stack(values).view(samples, channels_out, out_h, out_w)


def centre_tap(x, alpha, kernel, stride, padding, dilation, groups):
    """diag_L(α) * x: a kernel of zeros with α in its centre (chapter 4, section 3.1)."""
    diagonal = torch.zeros(*alpha.shape, *kernel, dtype=x.dtype)
    diagonal[:, :, (kernel[0] - 1) // 2, (kernel[1] - 1) // 2] = alpha
    return convolve(x, diagonal, None, stride, padding, dilation, groups)


def pointwise(h, alpha, groups):
    return convolve(h, alpha[:, :, None, None], groups=groups)


def normalise(h, mean, var, weight, bias, eps=1e-5):
    channels = [(h[:, c] - mean[c]) / (var[c] + eps) ** 0.5 * weight[c] + bias[c] for c in range(h.shape[1])]
    return torch.stack(channels, dim=1)


def batch_statistics(h):
    """Mean and biased variance of each channel."""
    mean = [h[:, c].sum() / h[:, c].numel() for c in range(h.shape[1])]
    var = [((h[:, c] - mean[c]) ** 2).sum() / h[:, c].numel() for c in range(h.shape[1])]
    return mean, var


def principal_factors(matrices, rank, iterations=300):
    """The best approximations of a rank, one direction after the other, each by power iteration."""
    rest = torch.cat(matrices, dim=1).double().clone()
    approximation = torch.zeros_like(rest)
    for k in range(rank):
        u = torch.ones(len(rest), dtype=torch.float64) + 0.1 * torch.arange(len(rest)) * (k + 1)
        for _ in range(iterations):
            u = rest @ (rest.T @ u)
            u = u / u.norm()
        part = torch.outer(u, rest.T @ u)
        approximation, rest = approximation + part, rest - part
    return list(approximation.split([m.shape[1] for m in matrices], dim=1))


def squared_distance(matrices, others):
    total = 0.0
    for a, b in zip(matrices, others):
        for i in range(a.shape[0]):
            for j in range(a.shape[1]):
                total += (a[i, j].item() - b[i, j].item()) ** 2
    return total
