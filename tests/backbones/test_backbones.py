"""The networks of the papers: shapes, sizes, skips, freezing, and that every method can train them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from scarcely.backbones.conv10 import Conv10
from scarcely.backbones.resnet import BasicBlock, ResNet18
from scarcely.backbones.revnet import RevNet18
from scarcely.backbones.small import MLP, MNISTNet, SmallCNN
from scarcely.data.loader import Batch
from scarcely.errors import ConfigError
from scarcely.functional.pairwise import cosine_adjacency
from scarcely.methods.denoising import Denoising
from scarcely.methods.kmeans import KMeans
from scarcely.methods.lsdc import LSDC
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.rotnet import RotNet
from scarcely.methods.supervised import Supervised
from tests.oracles.backbones import pooled_skip


def count(net):
    return sum(p.numel() for p in net.parameters())


def batchnorms(net):
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


# The CIFAR ResNet-18


def test_resnet18_has_the_parameters_counted_by_hand():
    stem = 3 * 64 * 9
    layer1 = 4 * 64 * 64 * 9
    layer2 = 64 * 128 * 9 + 3 * 128 * 128 * 9
    layer3 = 128 * 256 * 9 + 3 * 256 * 256 * 9
    layer4 = 256 * 512 * 9 + 3 * 512 * 512 * 9
    scale_and_shift = 2 * (64 + 4 * 64 + 4 * 128 + 4 * 256 + 4 * 512)
    assert stem + layer1 + layer2 + layer3 + layer4 + scale_and_shift == 10_995_008
    assert count(ResNet18()) == 10_995_008  # no 1×1 convolution in a skip, no bias, no head


@pytest.mark.parametrize("size", [32, 96])
def test_resnet18_gives_512_features_and_halves_three_times(size):
    net, sides = ResNet18().eval(), {}
    for name in net.block_names:
        getattr(net, name).register_forward_hook(
            lambda m, i, out, name=name: sides.update({name: tuple(out.shape[1:])})
        )
    with torch.no_grad():
        features = net(torch.zeros(1, 3, size, size))
    assert features.shape == (1, 512)
    assert net.num_features == 512
    assert sides == {
        f"layer{i + 1}": (64 * 2**i, size // 2**i, size // 2**i) for i in range(4)
    }  # stem of stride 1 and no max-pool: layer1 sees every pixel


def test_the_skip_at_a_transition_is_average_pooling_and_channels_of_zeros():
    block = BasicBlock(3, 6, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # leaves the skip alone
    x = torch.rand(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), pooled_skip(x, 6))


def test_a_block_is_post_activation():
    torch.manual_seed(0)
    block = BasicBlock(4, 4, stride=1).eval()
    x = torch.randn(2, 4, 5, 5)
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(inner + x))


def test_odd_sides_go_through():
    assert ResNet18(width=2).eval()(torch.zeros(1, 3, 15, 15)).shape == (1, 16)


@pytest.mark.parametrize("net", [ResNet18, MNISTNet, SmallCNN], ids=lambda n: n.__name__)
def test_no_convolution_has_a_bias(net):
    convolutions = [m for m in net(width=4).modules() if isinstance(m, nn.Conv2d)]
    assert convolutions
    assert all(m.bias is None for m in convolutions)


# The others


def test_mnist_net_is_four_five_by_five_convolutions_with_three_poolings():
    net = MNISTNet()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        (1, 64), (64, 128), (128, 256), (256, 512),
    ]  # fmt: skip
    assert all(m.kernel_size == (5, 5) and m.padding == (2, 2) for m in convolutions)
    assert len(batchnorms(net)) == 4
    assert sum(isinstance(m, nn.MaxPool2d) for m in net.modules()) == 3
    assert count(net) == 25 * (64 + 64 * 128 + 128 * 256 + 256 * 512) + 2 * (64 + 128 + 256 + 512)
    x = torch.zeros(2, 1, 28, 28)
    shapes = []
    for name in net.block_names:
        x = getattr(net, name)(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 14, 14), (128, 7, 7), (256, 3, 3), (512, 3, 3)]
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 512)


def test_pooling_before_the_relu_is_the_same_function():
    torch.manual_seed(0)
    block = MNISTNet(width=3).eval().conv1
    x = torch.randn(2, 1, 8, 8)
    conv, norm, pool, relu = block
    torch.testing.assert_close(block(x), pool(relu(norm(conv(x)))))


def test_mlp_has_the_layers_of_reuters_and_linear_features():
    net = MLP(2000)
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(2000, 500), (500, 500), (500, 2000)]
    assert net.num_features == 2000
    assert count(net) == 2001 * 500 + 501 * 500 + 501 * 2000
    features = net(torch.randn(4, 2000, generator=torch.Generator().manual_seed(0)))
    assert features.min() < 0
    assert MLP(5, (4, 3), last_relu=True)(torch.randn(9, 5)).min() >= 0
    assert MLP(12, (4,))(torch.randn(9, 3, 2, 2)).shape == (9, 4)


@pytest.mark.parametrize("size", [8, 12, 16, 20, 28, 32])
def test_small_cnn_takes_images_of_any_size_from_eight(size):
    net = SmallCNN(in_channels=3, image_size=size, width=2, num_features=5)
    assert net(torch.randn(4, 3, size, size)).shape == (4, 5)


# Freezing

NETS = {"resnet18": partial(ResNet18, width=2), "mnist_net": partial(MNISTNet, width=2)}
NETS |= {"small_cnn": partial(SmallCNN, width=2), "mlp": partial(MLP, 2000, (4, 4, 3))}
NETS |= {"conv10": partial(Conv10, width=2), "revnet18": partial(RevNet18, width=2)}


@pytest.mark.parametrize("name", NETS)
def test_freezing_by_number_and_by_name_are_the_same(name):
    for i, block in enumerate(NETS[name]().block_names):
        trained = []
        for until in (i + 1, block):
            net = NETS[name]()
            net.freeze(until)
            trained.append({n for n, p in net.named_parameters() if p.requires_grad})
            blocks = {n.split(".")[0] for n in trained[-1]}
            assert blocks == set(net.block_names[i + 1 :])  # the stem is frozen with the first block
        assert trained[0] == trained[1]


@pytest.mark.parametrize("name", NETS)
def test_freezing_can_be_taken_back(name):
    net = NETS[name]()
    net.freeze(2, "eval")
    net.freeze(0)
    assert all(p.requires_grad for p in net.parameters())
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("until", [5, -1, "layer5", "conv1"])
def test_a_block_that_does_not_exist_is_named_with_those_that_do(until):
    with pytest.raises(ConfigError, match="layer4"):
        ResNet18(width=2).freeze(until)


# Every method trains every backbone on images of the real size

OPTIMIZER = Optimizer(lr=0.01)
METHODS = {
    "rotnet": lambda net, shape: RotNet(net, OPTIMIZER),
    "denoising": lambda net, shape: Denoising(net, OPTIMIZER, shape),
    "supervised": lambda net, shape: Supervised(net, 2, OPTIMIZER),
    "lsdc": lambda net, shape: LSDC(
        net, 2, 2, OPTIMIZER, partial(cosine_adjacency, threshold=0.9), composition="mixup", freeze=0
    ),
    "lsdc frozen": lambda net, shape: LSDC(
        net, 2, 2, OPTIMIZER, partial(cosine_adjacency, threshold=0.9), composition="mixup", freeze=2
    ),
    "kmeans": lambda net, shape: KMeans(net, 2, shape, space="features"),
}
INPUTS = {
    "resnet18 at 32": (ResNet18, (3, 32, 32), 3),
    "resnet18 at 96": (ResNet18, (3, 96, 96), 2),
    "mnist_net": (MNISTNet, (1, 28, 28), 4),
    "small_cnn": (SmallCNN, (1, 16, 16), 4),
    "mlp": (partial(MLP, 2000), (2000,), 4),
    "conv10": (partial(Conv10, width=32), (3, 32, 32), 4),
    "revnet18": (partial(RevNet18, width=16), (3, 32, 32), 4),
}


@pytest.mark.parametrize(
    ("inputs", "method"),
    # vectors cannot be rotated; the configuration refuses it
    [(i, m) for i in INPUTS for m in METHODS if (i, m) != ("mlp", "rotnet")],
)
def test_every_method_takes_a_step_with_every_backbone(inputs, method):
    make, shape, n = INPUTS[inputs]
    torch.manual_seed(0)
    module = METHODS[method](make(), shape)
    views = tuple(torch.randn(n, *shape) for _ in range(module.views))
    if len(shape) == 3:
        module.backbone.to(memory_format=torch.channels_last)
        views = tuple(v.contiguous(memory_format=torch.channels_last) for v in views)
    batch = Batch(torch.arange(n), views, torch.arange(n) % 2)
    if method == "kmeans":
        module.prepare([batch])
    else:
        before = {k: v.clone() for k, v in module.state_dict().items()}
        optimizer = module.configure_optimizers()
        module.training_step(batch, 0).backward()
        optimizer.step()
        trained = {n for n, p in module.named_parameters() if p.requires_grad}
        unmoved = {n for n in trained if torch.equal(before[n], module.state_dict()[n])}
        assert not {n for n in unmoved if n.startswith("backbone") and n.endswith("weight")}
    predictions = module.predict_all([batch])
    assert predictions.features.shape == (n, module.backbone.num_features)
    assert predictions.features.isfinite().all()
