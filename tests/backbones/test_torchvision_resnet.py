"""torchvision's ResNets as backbones: the same features, torchvision's names, weights from a file."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from scarcely.backbones.torchvision_resnet import TorchvisionResNet
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
    backbone = TorchvisionResNet(weights=path).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone(images)
        assert features.shape == (2, 512)
        torch.testing.assert_close(net.fc(features), net(images))


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_names_and_sizes_are_torchvisions(name, features):
    backbone = TorchvisionResNet(name=name)
    wanted = {key for key in models.get_model(name).state_dict() if not key.startswith("fc.")}
    assert set(backbone.state_dict()) == wanted
    assert backbone.num_features == features
    assert backbone.block_names == ("layer1", "layer2", "layer3", "layer4")


def test_wrapped_weights_are_found(published, tmp_path):
    net, _ = published
    path = tmp_path / "wrapped.ckpt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, path)
    assert torch.equal(TorchvisionResNet(weights=str(path)).conv1.weight, net.conv1.weight)


def test_weights_that_do_not_fit_are_refused(published, tmp_path):
    _, path = published
    with pytest.raises(CheckpointError, match="another network") as error:
        TorchvisionResNet(name="resnet34", weights=path)
    assert error.value.where == "backbone.weights"
    with pytest.raises(CheckpointError, match="another network"):
        TorchvisionResNet(in_channels=1, weights=path)
    with pytest.raises(CheckpointError, match="no checkpoint") as error:
        TorchvisionResNet(weights=str(tmp_path / "gone.pth"))
    assert error.value.where == "backbone.weights"


def test_grey_images_get_their_own_stem():
    backbone = TorchvisionResNet(in_channels=1)
    assert backbone(torch.zeros(2, 1, 32, 32)).shape == (2, 512)


def test_the_stem_is_frozen_with_the_first_block():
    backbone = TorchvisionResNet()
    backbone.freeze("layer3")
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer4"}
