"""The classes of PASCAL VOC in an ImageNet classifier."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

MAP = json.loads(files("scarcely.data").joinpath("class_maps/voc_imagenet.json").read_text())
NAMES = {
    "aeroplane": "airliner, warplane",
    "bicycle": "bicycle-built-for-two, mountain bike",
    "boat": "canoe, catamaran, container ship, fireboat, gondola, lifeboat, liner, pirate, schooner,"
    " speedboat, trimaran, yawl",
    "bottle": "beer bottle, pill bottle, pop bottle, water bottle, water jug, whiskey jug, wine bottle",
    "bus": "minibus, school bus, trolleybus",
    "car": "beach wagon, cab, convertible, jeep, limousine, minivan, Model T, racer, sports car",
    "cat": "tabby, tiger cat, Persian cat, Siamese cat, Egyptian cat",
    "chair": "barber chair, folding chair, rocking chair, throne",
    "cow": "ox",
    "diningtable": "dining table",
    "horse": "sorrel",
    "motorbike": "moped, motor scooter",
    "pottedplant": "pot",
    "sheep": "ram, bighorn",
    "sofa": "studio couch",
    "train": "bullet train, electric locomotive, freight car, passenger car, steam locomotive",
    "tvmonitor": "monitor, screen, television",
}
# Runs of ImageNet's order, in which an animal stands beside its kind.
SPANS = {
    "bird": [
        ("cock", "great grey owl", 18),
        ("black grouse", "black swan", 21),
        ("white stork", "albatross", 20),
    ],
    "dog": [("Chihuahua", "Mexican hairless", 118)],
}


@pytest.fixture(scope="module")
def imagenet():
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return _IMAGENET_CATEGORIES


@pytest.mark.parametrize("name", NAMES)
def test_the_indices_of_a_class_have_its_names(imagenet, name):
    assert MAP[name] == [imagenet.index(one) for one in NAMES[name].split(", ")]


@pytest.mark.parametrize("name", SPANS)
def test_animals_are_whole_runs_of_their_kind(imagenet, name):
    indices = []
    for first, last, count in SPANS[name]:
        run = range(imagenet.index(first), imagenet.index(last) + 1)
        assert len(run) == count
        indices += run
    assert MAP[name] == indices


def test_classes_of_voc_without_a_counterpart_are_left_out_and_no_output_serves_two():
    assert MAP.keys() == NAMES.keys() | SPANS.keys()
    assert "person" not in MAP
    indices = [index for group in MAP.values() for index in group]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(1000))
