"""The small net for the characters of Omniglot: four blocks, and no pooling at the end."""

from __future__ import annotations

from torch import Tensor, nn

from scarcely.backbones.base import Backbone, he_initialise
from scarcely.errors import ConfigError
from scarcely.spec import PositiveInt

_HALVINGS = 4


class OmniglotNet(Backbone):
    """Four blocks of 3×3 convolution, BatchNorm, ReLU and max-pooling: 64-128-256-256 channels.

    The last map is flattened, since where a stroke lies tells characters apart: 2×2×256 = 1,024
    features of an image of 32 pixels.

    Args:
        in_channels: channels of the input images.
        image_size: side of the input images in pixels, at least 16.
        width: channels of the first block; the next have twice, four times and four times as many.

    Raises:
        ConfigError: images that four poolings leave nothing of.
    """

    block_names = ("conv1", "conv2", "conv3", "conv4")

    def __init__(
        self, in_channels: PositiveInt = 1, image_size: PositiveInt = 32, width: PositiveInt = 64
    ) -> None:
        super().__init__()
        side = image_size >> _HALVINGS
        if not side:
            raise ConfigError(
                f"images of {image_size} pixels are too small for four poolings",
                where="backbone",
                instead="images of at least 16 pixels (data.size), or backbone=small_cnn",
            )
        widths = [in_channels, width, 2 * width, 4 * width, 4 * width]
        for i, name in enumerate(self.block_names):
            block = nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.MaxPool2d(2),  # before the ReLU: the same function on a quarter of the numbers
                nn.ReLU(inplace=True),
            )
            setattr(self, name, block)
        self.num_features = widths[-1] * side * side
        he_initialise(self)

    def pool(self, x: Tensor) -> Tensor:
        """Flatten, ``(N, C, H, W)`` to ``(N, C·H·W)``."""
        return x.flatten(1)
