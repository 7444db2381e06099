"""The ten-layer network of temporal ensembling: nine convolutions in three blocks, and the head."""

from __future__ import annotations

from torch import nn

from scarcely.backbones.base import Backbone, he_initialise
from scarcely.errors import ConfigError
from scarcely.spec import Annotated, PositiveInt, Range

_SMALLEST = 12  # pixels: two poolings leave the 3 that a convolution without padding needs


def _conv(channels_in: int, channels_out: int, kernel: int, padding: int, pool: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, padding=padding, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    if (
        pool
    ):  # before the leaky ReLU: the same function, since both are monotonic, on a quarter of the numbers
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.LeakyReLU(0.1, inplace=True))
    return layers


class Conv10(Backbone):
    """The convolutional network of temporal ensembling (Laine & Aila, 2017, table 5), also Mean Teacher's.

    Blocks 1 and 2 are three 3×3 convolutions of 128 and 256 channels, 2×2 max-pooling and dropout;
    block 3 is a 3×3 convolution without padding to 512 channels and 1×1 convolutions to 256 and
    128. Leaky ReLU of slope 0.1 everywhere; global average pooling gives 128 features. With the
    linear head these are the ten layers. Plain BatchNorm stands for the paper's weight
    normalisation with mean-only BatchNorm, and its Gaussian noise on the input is left to the
    augmentation.

    Args:
        in_channels: channels of the input images.
        image_size: side of the input images in pixels, at least 12.
        width: channels of the first block and number of features (128 in the paper).
        dropout: share of the activations dropped after each max-pooling.

    Raises:
        ConfigError: images that two poolings leave less than 3 pixels of.
    """

    block_names = ("block1", "block2", "block3")

    def __init__(
        self,
        in_channels: PositiveInt = 3,
        image_size: PositiveInt = 32,
        width: PositiveInt = 128,
        dropout: Annotated[float, Range(low=0, below=1)] = 0.5,
    ) -> None:
        super().__init__()
        if image_size < _SMALLEST:
            raise ConfigError(
                f"images of {image_size} pixels are too small for two poolings and a 3×3 convolution",
                where="backbone",
                instead=f"images of at least {_SMALLEST} pixels (data.size), or backbone=small_cnn",
            )
        widths = [in_channels, width, 2 * width]
        for i, name in enumerate(self.block_names[:2]):
            layers: list[nn.Module] = []
            for j in range(3):
                layers += _conv(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 3, 1, pool=j == 2)
            setattr(self, name, nn.Sequential(*layers, nn.Dropout(dropout)))
        self.block3 = nn.Sequential(
            *_conv(2 * width, 4 * width, kernel=3, padding=0, pool=False),
            *_conv(4 * width, 2 * width, kernel=1, padding=0, pool=False),
            *_conv(2 * width, width, kernel=1, padding=0, pool=False),
        )
        self.num_features = width
        he_initialise(self)
