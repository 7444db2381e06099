"""Small networks, and how far two results are apart."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from scarcely.adapters import attach
from scarcely.backbones.resnet26 import ResNet26

DOMAINS = {"birds": 5, "signs": 3, "digits": 10}


def lively(model):
    """Statistics and affine parameters as after training: a fresh BatchNorm is nearly the identity."""
    g = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            shape = module.running_mean.shape
            with torch.no_grad():
                module.running_mean.copy_(0.3 * torch.randn(shape, generator=g))
                module.running_var.copy_(torch.rand(shape, generator=g) + 0.5)
                module.weight.copy_(torch.rand(shape, generator=g) + 0.5)
                module.bias.copy_(0.3 * torch.randn(shape, generator=g))
    return model


def resnet26(width=8, blocks=2):
    torch.manual_seed(0)
    return lively(ResNet26(width=width, blocks=blocks))


def adapted(kind="parallel", domains=DOMAINS, **options):
    """A small ResNet-26 whose domains differ in everything that is theirs."""
    return lively(attach(resnet26(), kind, domains, **options)).eval()


def images(count=6, size=16, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def error(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def grouped():
    """Stride 2 and groups, biases, and a BatchNorm that is no neighbour in the order of registration."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, 1, 1)
            self.conv2 = nn.Conv2d(8, 12, 5, 2, 2, groups=4)
            self.depthwise = nn.Conv2d(12, 12, 3, 2, 2, dilation=2, groups=12, bias=False)
            self.after_conv2, self.after_conv1 = nn.BatchNorm2d(12), nn.BatchNorm2d(8)
            self.fc = nn.Linear(12, 4)

        def forward(self, x):
            x = torch.relu(self.after_conv1(self.conv1(x)))
            x = torch.relu(self.after_conv2(self.conv2(x)))
            return self.fc(self.depthwise(x).mean((2, 3)))

    return lively(Net())


def torchvision_resnet18():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return lively(resnet18(num_classes=4))


def vgg(batch_norm):
    """The VGG of torchvision with few channels and a small classifier."""
    from torchvision.models.vgg import VGG, make_layers

    torch.manual_seed(0)
    with torch.device("meta"):  # its classifier has a hundred million weights
        net = VGG(make_layers([8, "M", 12, 12, "M"], batch_norm), init_weights=False)
    net.classifier = nn.Sequential(nn.Linear(12 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))
    net.features.to_empty(device="cpu")
    for module in net.features:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return lively(net)


def densenet():
    """Convolutions after BatchNorm, and inputs that are concatenated."""
    from torchvision.models import DenseNet

    torch.manual_seed(0)
    return lively(DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=4))


NETWORKS = {
    "resnet26": resnet26,
    "torchvision_resnet18": torchvision_resnet18,
    "grouped": grouped,
    "vgg_bn": lambda: vgg(True),
    "vgg": lambda: vgg(False),
    "densenet": densenet,
}
