"""Networks of torchvision by name, without their last layer: for photographs of 100 pixels or more."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.errors import CheckpointError
from scarcely.spec import Literal, PositiveInt


class TorchvisionNetwork(Backbone):
    """A ResNet with 7×7 stem and max-pool (He et al., 2016) or VGG16 (Simonyan and Zisserman, 2015).

    Tensors have torchvision's names, so that published weights fit, with or without the last layer, which
    is left out. Blocks are the stages of a ResNet, ``layer1`` to ``layer4``, averaged at the end: 512
    features, 2,048 of ResNet-50. Those of VGG16 are its convolutions, ``features``, the pooling to 7×7 and
    two fully connected layers, ``classifier``: 4,096 features.

    Args:
        in_channels: channels of the input images.
        name: which of them.
        weights: file of a state dict to begin with; None for random weights.

    Raises:
        CheckpointError: no such file, or not the weights of this network.
    """

    def __init__(
        self,
        in_channels: PositiveInt = 3,
        name: Literal["resnet18", "resnet34", "resnet50", "vgg16"] = "resnet18",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        from torchvision import models

        net = models.get_model(name, weights=None)
        if name == "vgg16":
            self._take_vgg(net, in_channels)
        else:
            self._take_resnet(net, in_channels)
        if weights is not None:
            self._load(weights)

    def _take_resnet(self, net: Any, in_channels: int) -> None:
        self.block_names = ("layer1", "layer2", "layer3", "layer4")
        self.conv1 = net.conv1 if in_channels == 3 else _he(nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False))
        self.bn1 = net.bn1
        for block in self.block_names:
            setattr(self, block, getattr(net, block))
        self.num_features = net.fc.in_features

    def _take_vgg(self, net: Any, in_channels: int) -> None:
        self.block_names = ("features", "avgpool", "classifier")
        if in_channels != 3:
            net.features[0] = _he(nn.Conv2d(in_channels, 64, 3, padding=1))
        self.features = net.features
        self.avgpool = nn.Sequential(net.avgpool, nn.Flatten())
        self.classifier = net.classifier[:-1]
        self.num_features = net.classifier[-1].in_features

    def stem(self, x: Tensor) -> Tensor:
        """Convolution, BatchNorm, ReLU, max-pooling: a quarter of each side; VGG16 begins with its block."""
        if "features" in self.block_names:
            return x
        return F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)

    def _load(self, weights: str) -> None:
        from scarcely import checkpoints

        where = "backbone.weights"
        try:
            tensors = checkpoints.tensors_of(checkpoints.load(weights))
        except CheckpointError as error:
            raise CheckpointError(
                error.what, where=where, instead="a file of torchvision's weights"
            ) from error
        checkpoints.fill(self, tensors, source=weights, least=1.0, where=where)


def _he(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
