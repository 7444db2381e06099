"""The small networks: five-by-five convolutions for MNIST, an MLP for vectors, a little one for digits."""

from __future__ import annotations

from torch import Tensor, nn

from scarcely.backbones.base import Backbone, he_initialise
from scarcely.spec import PositiveInt


def _conv_block(
    channels_in: int, channels_out: int, kernel: int, pool: bool, stride: int = 1
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    if pool:  # before the ReLU: the same function, since both are monotonic, on a quarter of the numbers
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class MNISTNet(Backbone):
    """The VGG-4-like net of LSD-C for MNIST: 64-M-128-M-256-M-512, 5×5 convolutions, BatchNorm, ReLU.

    Args:
        in_channels: channels of the input images.
        width: channels of the first convolution (64 in the paper).
        stride: of the first convolution (1 in the paper); 2 for images of 128 pixels or so.
    """

    block_names = ("conv1", "conv2", "conv3", "conv4")

    def __init__(
        self, in_channels: PositiveInt = 1, width: PositiveInt = 64, stride: PositiveInt = 1
    ) -> None:
        super().__init__()
        widths = [in_channels, width, 2 * width, 4 * width, 8 * width]
        for i, name in enumerate(self.block_names):
            block = _conv_block(
                widths[i], widths[i + 1], kernel=5, pool=i < 3, stride=stride if i == 0 else 1
            )
            setattr(self, name, block)
        self.num_features = widths[-1]
        he_initialise(self)


class SmallCNN(Backbone):
    """Three conv-BN-ReLU-pool blocks and a fully connected layer, for images of 16 pixels or so.

    Args:
        in_channels: channels of the input images.
        image_size: side of the input images in pixels, at least 8.
        width: channels of the first block; the next have twice and four times as many.
        num_features: size of the fully connected layer.
    """

    block_names = ("conv1", "conv2", "conv3", "fc")

    def __init__(
        self,
        in_channels: PositiveInt = 1,
        image_size: PositiveInt = 16,
        width: PositiveInt = 16,
        num_features: PositiveInt = 256,
    ) -> None:
        super().__init__()
        self.conv1 = _conv_block(in_channels, width, kernel=3, pool=True)
        self.conv2 = _conv_block(width, 2 * width, kernel=3, pool=True)
        self.conv3 = _conv_block(2 * width, 4 * width, kernel=3, pool=True)
        side = image_size // 8
        # without BatchNorm here a few features dominate all distances, and so the pairwise labels
        self.fc = nn.Sequential(
            nn.Flatten(),
            nn.Linear(4 * width * side * side, num_features, bias=False),
            nn.BatchNorm1d(num_features),
            nn.ReLU(inplace=True),
        )
        self.num_features = num_features


class MLP(Backbone):
    """Fully connected layers with ReLU between them; 2000-500-500-2000 for Reuters (DEC, LSD-C).

    The last layer is linear by default, so that a decoder can mirror it; ``last_relu`` adds a ReLU.

    Args:
        in_features: size of the input vectors.
        widths: sizes of the layers.
        last_relu: ReLU after the last layer too.
    """

    image_input = False

    def __init__(
        self,
        in_features: PositiveInt = 2000,
        widths: tuple[PositiveInt, ...] = (500, 500, 2000),
        last_relu: bool = False,
    ) -> None:
        super().__init__()
        sizes = [in_features, *widths]
        self.block_names = tuple(f"fc{i + 1}" for i in range(len(widths)))
        for i, name in enumerate(self.block_names):
            layers: list[nn.Module] = [nn.Linear(sizes[i], sizes[i + 1])]
            if i < len(widths) - 1 or last_relu:
                layers.append(nn.ReLU(inplace=True))
            setattr(self, name, nn.Sequential(*layers))
        self.num_features = sizes[-1]

    def stem(self, x: Tensor) -> Tensor:
        """Flatten whatever comes, ``(N, ...)`` to ``(N, D)``."""
        return x.flatten(1)
