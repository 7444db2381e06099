"""The CIFAR ResNet-18 of the papers: pooled, zero-padded skips instead of 1×1 convolutions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.backbones.base import Backbone, he_initialise
from scarcely.spec import PositiveInt


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, post-activation; the skip halves by average pooling and appends zero channels."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, channels_out - channels_in
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, channels_out, H / stride, W / stride)``, sizes rounded up."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            # ceil_mode: an odd side must meet the convolution's rounding up
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        if self.extra:
            x = F.pad(x, (0, 0, 0, 0, 0, self.extra))
        return F.relu(y + x, inplace=True)


class ResNet18(Backbone):
    """ResNet-18 for small images: 3×3 stem of stride 1, no max-pool, widths 64-128-256-512.

    Global average pooling gives 512 features at width 64, for any image size from 8 pixels on.

    Args:
        in_channels: channels of the input images.
        width: channels of the first block.
    """

    block_names = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, in_channels: PositiveInt = 3, width: PositiveInt = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for i, name in enumerate(self.block_names):
            first = BasicBlock(widths[i], widths[i + 1], stride=1 if i == 0 else 2)
            setattr(self, name, nn.Sequential(first, BasicBlock(widths[i + 1], widths[i + 1], stride=1)))
        self.num_features = widths[-1]
        he_initialise(self)

    def stem(self, x: Tensor) -> Tensor:
        """Convolution, BatchNorm, ReLU."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)
