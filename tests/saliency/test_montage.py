"""Maps of predicted clusters, for the montages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scarcely.backbones.conv10 import Conv10
from scarcely.backbones.omniglot import OmniglotNet
from scarcely.backbones.resnet import ResNet18
from scarcely.backbones.resnet26 import ResNet26
from scarcely.backbones.revnet import RevNet18
from scarcely.backbones.small import MLP, MNISTNet, SmallCNN
from scarcely.evaluation import EXPLAINED, montage_arrays, most_confident
from scarcely.reports.figures import montages
from scarcely.saliency import attribute, combine
from scarcely.saliency.montage import cluster_maps
from scarcely.stages import build_method
from tests.runs import compose, data_of, job_of

IMAGES = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
CLUSTERS = torch.tensor([1, 0, 2])
SHAPED = [
    ResNet18(in_channels=1, width=4),
    ResNet26(in_channels=1, width=4),
    RevNet18(in_channels=1, width=4),
    Conv10(in_channels=1, width=4),
    MNISTNet(in_channels=1, width=4),
    SmallCNN(in_channels=1, width=4, num_features=8),
    OmniglotNet(in_channels=1, image_size=16, width=4),
]


def classifier(backbone):
    torch.manual_seed(1)
    net = nn.Sequential(backbone, nn.Linear(backbone.num_features, 3))
    return net.eval()


@pytest.mark.parametrize("backbone", SHAPED, ids=lambda b: type(b).__name__)
def test_every_backbone_has_maps_of_its_clusters(backbone):
    maps = cluster_maps(classifier(backbone), backbone, IMAGES, CLUSTERS, (16, 16))
    assert maps.shape == (3, 16, 16)
    assert maps.min() >= 0
    assert (maps.amax((1, 2)) > 0).all()


def test_maps_combine_the_last_two_blocks_evenly_frozen_or_not():
    backbone = ResNet18(in_channels=1, width=4)
    net = classifier(backbone)
    deep = attribute(net, IMAGES, CLUSTERS, ["0.layer3", "0.layer4"], "selective_norm_grad")
    expected = combine(deep, (10, 12), {"0.layer3": 1, "0.layer4": 1})
    backbone.freeze(4)
    torch.testing.assert_close(cluster_maps(net, backbone, IMAGES, CLUSTERS, (10, 12)), expected)
    assert backbone.num_frozen == 4


def test_a_network_without_positions_has_no_maps():
    backbone = MLP(in_features=256, widths=(8, 8))
    assert cluster_maps(classifier(backbone), backbone, IMAGES, CLUSTERS, (16, 16)) is None


def test_the_most_confident_of_each_cluster_are_those_of_the_montage():
    rng = np.random.default_rng(0)
    predicted, confidence = rng.integers(0, 4, 60), rng.random(60).round(1)  # with equal values
    predicted[predicted == 3] = 5
    chosen = most_confident(predicted, confidence)
    groups = montages.group_predictions(predicted, None, 0, 6, None)
    for cluster in (0, 1, 2, 5):
        row = montages._montage_row(predicted, confidence, groups, cluster, ())
        assert chosen[predicted[chosen] == cluster].tolist() == row.most.tolist()
    assert len(chosen) == 4 * EXPLAINED


def test_a_run_explains_the_clusters_of_whole_images_where_it_looks_at_their_centre():
    config = compose("method=lsdc", "pretext=none", "data.size=16", "+data.augmentation.crop=12")
    data = data_of(config)
    method = build_method(job_of(config, data), (1, 12, 12))
    predicted = np.arange(len(data.pool("train", "all"))) % 10
    arrays = {"predicted": predicted, "confidence": np.linspace(0, 1, len(predicted))}
    found = montage_arrays(method, data, "train", {"protocol": "all"}, arrays, torch.device("cpu"))
    index, maps = found["montage_index"], found["montage_maps"].astype(np.float32)
    assert len(index) == 10 * EXPLAINED
    assert maps.shape == (len(index), 16, 16)
    assert maps[:, :2].max() == maps[:, :, -2:].max() == 0
    row = int(index[17])
    image = data.augmentation.clean(data.pool("train", "all").inputs[row][None])
    seen = cluster_maps(method.eval(), method.backbone, image, torch.tensor([predicted[row]]), (12, 12))
    # float16
    np.testing.assert_allclose(maps[17, 2:14, 2:14], seen[0].numpy(), atol=1e-3)


def test_vectors_have_no_montage():
    config = compose("data=two_moons", "method=kmeans", base=["trainer=cpu"])
    data = data_of(config)
    arrays = {"predicted": np.zeros(1), "confidence": np.zeros(1)}
    assert montage_arrays(None, data, "train", {"protocol": "all"}, arrays, torch.device("cpu")) == {}
