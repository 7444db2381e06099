"""The ResNets of torchvision by name, without their classifier: for photographs of 100 pixels or more."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from scarcely.backbones.base import Backbone
from scarcely.errors import CheckpointError
from scarcely.spec import Literal, PositiveInt


class TorchvisionResNet(Backbone):
    """ResNet with a 7×7 stem of stride 2 and a max-pool (He et al., 2016), as torchvision has it.

    Blocks and tensors have torchvision's names, so that published weights fit; a classifier among
    them is left out. Global average pooling gives 512 features, 2,048 for ResNet-50.

    Args:
        in_channels: channels of the input images.
        name: which of them.
        weights: file of a state dict to begin with; None for random weights.

    Raises:
        CheckpointError: no such file, or not the weights of this network.
    """

    block_names = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        in_channels: PositiveInt = 3,
        name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        from torchvision import models

        net = models.get_model(name, weights=None)
        self.conv1 = net.conv1
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = net.bn1
        for block in self.block_names:
            setattr(self, block, getattr(net, block))
        self.num_features = net.fc.in_features
        if weights is not None:
            self._load(weights)

    def stem(self, x: Tensor) -> Tensor:
        """Convolution, BatchNorm, ReLU, max-pooling: a quarter of each side."""
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
