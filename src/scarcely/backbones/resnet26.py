"""The ResNet-26 of residual adapters, for images of 64 pixels or so."""

from __future__ import annotations

from torch import Tensor, nn

from scarcely.backbones.base import Backbone, he_initialise
from scarcely.backbones.resnet import BasicBlock
from scarcely.spec import Annotated, PositiveInt, Range


class ResNet26(Backbone):
    """Three stages of basic blocks, each of which begins by halving the image (chapters 3 and 4).

    The 3×3 stem has half the channels of the first stage and no ReLU; BatchNorm and ReLU end the
    last stage. Global average pooling gives 256 features at width 64. The text of chapter 3 calls
    the network ResNet-28.

    Args:
        in_channels: channels of the input images.
        width: channels of the first stage; the next have twice and four times as many.
        blocks: residual blocks of a stage; 2 for the network that predicts an image's domain.
    """

    block_names = ("layer1", "layer2", "layer3")

    def __init__(
        self,
        in_channels: PositiveInt = 3,
        width: Annotated[int, Range(low=2)] = 64,
        blocks: PositiveInt = 4,
    ) -> None:
        super().__init__()
        widths = [width // 2, width, 2 * width, 4 * width]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for i, name in enumerate(self.block_names):
            layers: list[nn.Module] = [BasicBlock(widths[i], widths[i + 1], stride=2)]
            layers += [BasicBlock(widths[i + 1], widths[i + 1], stride=1) for _ in range(blocks - 1)]
            if name == self.block_names[-1]:  # not in pool(), which freezes with the stem
                layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)]
            setattr(self, name, nn.Sequential(*layers))
        self.num_features = widths[-1]
        he_initialise(self)

    def stem(self, x: Tensor) -> Tensor:
        """Convolution and BatchNorm, without a ReLU."""
        return self.bn1(self.conv1(x))
