"""torchvision's networks as backbones: the same features, torchvision's names, weights from a file."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from scarcely.backbones.torchvision_networks import TorchvisionNetwork
from scarcely.errors import CheckpointError


@pytest.fixture
def published(tmp_path):
    torch.manual_seed(3)
    net = models.resnet18().eval()
    path = tmp_path / "resnet18.pth"
    torch.save(net.state_dict(), path)
    return net, str(path)


def test_features_are_those_before_the_classifier(published):
    net, path = published
    backbone = TorchvisionNetwork(weights=path).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone(images)
        assert features.shape == (2, 512)
        torch.testing.assert_close(net.fc(features), net(images))


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_names_and_sizes_are_torchvisions(name, features):
    backbone = TorchvisionNetwork(name=name)
    wanted = {key for key in models.get_model(name).state_dict() if not key.startswith("fc.")}
    assert set(backbone.state_dict()) == wanted
    assert backbone.num_features == features
    assert backbone.block_names == ("layer1", "layer2", "layer3", "layer4")


def test_wrapped_weights_are_found(published, tmp_path):
    net, _ = published
    path = tmp_path / "wrapped.ckpt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, path)
    assert torch.equal(TorchvisionNetwork(weights=str(path)).conv1.weight, net.conv1.weight)


def test_weights_that_do_not_fit_are_refused(published, tmp_path):
    _, path = published
    with pytest.raises(CheckpointError, match="another network") as error:
        TorchvisionNetwork(name="resnet34", weights=path)
    assert error.value.where == "backbone.weights"
    with pytest.raises(CheckpointError, match="another network"):
        TorchvisionNetwork(in_channels=1, weights=path)
    with pytest.raises(CheckpointError, match="no checkpoint") as error:
        TorchvisionNetwork(weights=str(tmp_path / "gone.pth"))
    assert error.value.where == "backbone.weights"


def test_grey_images_get_their_own_stem():
    backbone = TorchvisionNetwork(in_channels=1)
    assert backbone(torch.zeros(2, 1, 32, 32)).shape == (2, 512)


def test_the_stem_is_frozen_with_the_first_block():
    backbone = TorchvisionNetwork()
    backbone.freeze("layer3")
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer4"}


# -- VGG16 ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg():
    """torchvision's VGG16 and our backbone with the same tensors, made only once: half a gigabyte."""
    torch.manual_seed(4)
    net = models.vgg16(init_weights=False).eval()
    with torch.device("meta"):
        backbone = TorchvisionNetwork(name="vgg16").eval()
    backbone.load_state_dict(
        {k: v for k, v in net.state_dict().items() if k in backbone.state_dict()}, assign=True
    )
    return net, backbone


def test_features_of_vgg_are_those_before_its_last_layer(vgg):
    net, backbone = vgg
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone(images)
        assert features.shape == (1, backbone.num_features) == (1, 4096)
        torch.testing.assert_close(net.classifier[-1](features), net(images))


def test_vgg_lacks_only_the_last_layer_of_torchvisions(vgg):
    net, backbone = vgg
    assert set(net.state_dict()) - set(backbone.state_dict()) == {"classifier.6.weight", "classifier.6.bias"}
    assert set(backbone.state_dict()) < set(net.state_dict())
    for layer in (3, 8, 15, 22, 29):  # those of the paper: what its five stages give
        assert isinstance(backbone.get_submodule(f"features.{layer}"), torch.nn.ReLU)


def test_the_fully_connected_layers_of_vgg_train_on_frozen_convolutions(vgg):
    _, backbone = vgg
    backbone.freeze("features")
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {f"classifier.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")}
    assert all(not p.requires_grad for p in backbone.features.parameters())
    backbone.freeze(0)


def test_vgg_of_grey_images_has_its_own_first_convolution():
    with torch.device("meta"):
        backbone = TorchvisionNetwork(in_channels=1, name="vgg16")
        assert backbone(torch.zeros(2, 1, 32, 32)).shape == (2, 4096)
