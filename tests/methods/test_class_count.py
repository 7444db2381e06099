"""The stage that counts new classes: what it keeps, and what comes back."""

import torch
from torch import nn

from scarcely.backbones.base import Backbone
from scarcely.data.loader import Batch
from scarcely.functional.class_count import estimate_num_new
from scarcely.methods.class_count import CountClasses, read_estimate
from scarcely.seeds import derive_seed


class Same(Backbone):
    """Features are the inputs."""

    image_input = False

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 2
        self.layer = nn.Identity()


def blobs(known=4, new=3, size=12):
    """Tight clusters on a circle; those from ``known`` on are to be discovered, half without a label."""
    g = torch.Generator().manual_seed(0)
    turns = torch.arange(known + new) * 2 * torch.pi / (known + new)
    centres = 10 * torch.stack([turns.cos(), turns.sin()], dim=1)
    labels = torch.arange(known + new).repeat_interleave(size)
    x = centres[labels] + 0.1 * torch.randn(len(labels), 2, generator=g)
    labels[labels >= known] = torch.where(torch.arange(new * size) % 2 == 0, labels[labels >= known], -1)
    return x, labels


def test_the_stage_estimates_on_the_features_and_keeps_what_it_saw():
    x, labels = blobs()
    method = CountClasses(Same(), num_known=4, highest=6)
    method.prepare([Batch(torch.arange(len(x)), (x,), labels)])
    known = (labels >= 0) & (labels < 4)
    seed = derive_seed(0, "train", "count")
    expected = estimate_num_new(x[known], labels[known], x[~known], range(1, 7), seed=seed)
    found = read_estimate(method.state_dict())
    assert found["num_new"] == expected.num_new == 3
    assert found["candidates"] == [1, 2, 3, 4, 5, 6]
    assert found["plausible"] == list(expected.plausible)
    assert found["anchor_accuracy"] == list(expected.anchor_accuracy)
    assert method.final_metrics([]) == {"num_new": 3.0}


def test_a_finished_count_is_loaded_into_a_new_network():
    x, labels = blobs()
    method = CountClasses(Same(), num_known=4, highest=6)
    method.prepare([Batch(torch.arange(len(x)), (x,), labels)])
    other = CountClasses(Same(), num_known=4)
    other.load_state_dict(method.state_dict())
    assert read_estimate(other.state_dict()) == read_estimate(method.state_dict())
    assert read_estimate(method.state_dict())["candidates"] == [1, 2, 3, 4, 5, 6]


def test_no_more_classes_are_tried_than_there_are_samples():
    x, labels = blobs(size=2)
    keep = torch.cat([torch.arange(8), torch.tensor([8, 10, 12])])
    method = CountClasses(Same(), num_known=4)
    method.prepare([Batch(torch.arange(11), (x[keep],), labels[keep])])
    assert read_estimate(method.state_dict())["candidates"] == [1, 2, 3]
