"""Known classes and classes to be discovered: how they are chosen, numbered and pooled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.config.signature import mismatch, signature_of
from scarcely.data.augment import ImageAugmentation
from scarcely.data.digits import Digits
from scarcely.data.module import DataModule
from scarcely.data.samples import Samples
from scarcely.errors import ConfigError, DataError

GREY = ImageAugmentation([0.5], [0.5])
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def _samples(labels: list[int], first: int = 0) -> Samples:
    """Make images whose grey value is their number, so that one can tell who is where."""
    count = len(labels)
    pixels = torch.arange(first, first + count, dtype=torch.uint8).view(count, 1, 1, 1).expand(count, 2, 2, 1)
    return Samples(pixels.clone(), torch.tensor(labels))


class Toy(DataModule):
    def __init__(self, parts: dict[str, Samples], classes: tuple[str, ...] = NAMES, **options: Any) -> None:
        super().__init__(name="toy", kind="images", augmentation=GREY, **options)
        self._given, self._names = parts, classes

    def read(self) -> dict[str, Samples]:
        self.classes = self._names
        return self._given


TRAIN = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]


def toy(labelled: Any = None, unlabelled: Any = None, extra: bool = True, **options: Any) -> Toy:
    """Return 12 training images (0 to 11), 6 test images (12 to 17) and 3 without a label (18 to 20)."""
    parts = {"train": _samples(TRAIN), "test": _samples([5, 4, 3, 2, 1, 0], 12)}
    if extra:
        parts["unlabelled"] = _samples([-1, -1, -1], 18)
    data = Toy(parts, labelled_classes=labelled, unlabelled_classes=unlabelled, **options)
    data.setup()
    return data


def pixels(data: DataModule, role: Any, protocol: Any = "split") -> list[int]:
    return data.pool(role, protocol).inputs[:, 0, 0, 0].tolist()


# Choosing and numbering


def test_without_a_choice_all_classes_are_known():
    data = toy()
    assert (data.num_classes, data.num_known, data.num_new) == (6, 6, 0)
    assert data.classes == NAMES
    assert data.parts["train"].labels.tolist() == TRAIN


@pytest.mark.parametrize("choice", [[4, 1], ["eel", "bee"], [1, "eel"]])
def test_known_classes_come_first_and_each_group_keeps_its_order(choice):
    data = toy(choice)
    assert data.classes == ("bee", "eel", "ant", "cat", "dog", "fox")
    assert (data.num_classes, data.num_known, data.num_new) == (6, 2, 4)
    assert data.parts["train"].labels.tolist() == [2, 0, 3, 4, 1, 5] * 2
    assert data.parts["test"].labels.tolist() == [5, 1, 4, 3, 0, 2]
    assert data.parts["unlabelled"].labels.tolist() == [-1] * 3


def test_a_number_means_the_first_classes():
    assert toy(2).classes == NAMES
    assert toy(2).num_known == 2
    assert pixels(toy(2), "labelled") == [0, 1, 6, 7]


def test_classes_in_neither_set_leave_all_parts():
    data = toy([2, 0], ["fox"])
    assert data.classes == ("ant", "cat", "fox")
    assert (data.num_known, data.num_new) == (2, 1)
    assert data.parts["train"].inputs[:, 0, 0, 0].tolist() == [0, 2, 5, 6, 8, 11]
    assert data.parts["train"].labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.parts["test"].labels.tolist() == [2, 1, 0]
    assert len(data.parts["unlabelled"]) == 3, "samples without a label stay"


def test_a_number_as_text_is_a_name_and_not_an_index():
    parts = {"train": _samples([0, 1, 2])}
    named = Toy(parts, ("2", "1", "0"), labelled_classes=["0"])
    indexed = Toy(parts, ("2", "1", "0"), labelled_classes=[0])
    named.setup()
    indexed.setup()
    assert named.classes == ("0", "2", "1")
    assert indexed.classes == ("2", "1", "0")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_every_sample_keeps_its_class_whatever_is_chosen(data):
    chosen = data.draw(st.permutations(range(6)))
    cut = data.draw(st.integers(1, 5))
    known, new = (
        chosen[:cut],
        data.draw(st.none() | st.just(chosen[cut : data.draw(st.integers(cut + 1, 6))])),
    )
    labels = data.draw(st.lists(st.integers(-1, 5), min_size=1, max_size=20))
    wanted = set(known) | set(chosen[cut:] if new is None else new)
    if not any(label in wanted or label < 0 for label in labels):
        labels = [known[0], *labels]
    split = Toy({"train": _samples(labels)}, labelled_classes=known, unlabelled_classes=new)
    split.setup()
    assert split.num_known == len(known)
    assert set(split.classes[: len(known)]) == {NAMES[label] for label in known}
    left = [number for number, label in enumerate(labels) if label in wanted or label < 0]
    train = split.parts["train"]
    assert train.inputs[:, 0, 0, 0].tolist() == left
    for number, label in zip(left, train.labels.tolist(), strict=True):
        if labels[number] < 0:
            assert label == -1
        else:
            assert split.classes[label] == NAMES[labels[number]]
            assert (label < split.num_known) == (labels[number] in known)


def test_a_data_set_may_have_such_a_split_itself():
    class Own(Toy):
        def read(self) -> dict[str, Samples]:
            self.num_known = 4
            return super().read()

    data = Own({"train": _samples([0, 1, 2, 3]), "unlabelled": _samples([4, 5], 4)})
    data.setup()
    assert (data.num_known, data.num_new) == (4, 2)
    assert pixels(data, "labelled") == [0, 1, 2, 3]
    assert pixels(data, "unlabelled") == [4, 5]
    assert pixels(data, "mixed") == pixels(data, "pretext") == [0, 1, 2, 3, 4, 5]


# Pools


def test_pools_of_a_split_hold_the_classes_that_their_role_names():
    data = toy([0, 1])
    assert pixels(data, "labelled") == [0, 1, 6, 7]
    assert pixels(data, "unlabelled") == [2, 3, 4, 5, 8, 9, 10, 11]
    assert pixels(data, "mixed") == list(range(12))
    assert pixels(data, "labelled", "all") == [0, 1, 6, 7, 16, 17]
    assert pixels(data, "unlabelled", "all") == [2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15]
    assert pixels(data, "mixed", "all") == list(range(18))
    assert pixels(data, "pretext", "split") == [*range(12), 18, 19, 20]
    assert pixels(data, "test") == list(range(12, 18))


def test_the_unlabelled_part_is_to_be_discovered_where_no_classes_are_chosen():
    data = toy()
    assert pixels(data, "labelled") == list(range(12))
    assert pixels(data, "unlabelled") == pixels(data, "unlabelled", "all") == [18, 19, 20]
    assert pixels(data, "mixed") == [*range(12), 18, 19, 20]
    assert pixels(data, "mixed", "all") == list(range(21))


def test_new_classes_keep_their_true_labels_for_scores():
    data = toy([5])
    assert set(data.pool("unlabelled", "all").labels.tolist()) == {1, 2, 3, 4, 5}
    assert set(data.pool("labelled", "all").labels.tolist()) == {0}


def test_training_images_without_a_label_are_unlabelled():
    data = Toy({"train": _samples([0, -1, 1, -1])}, labelled_classes=[0])
    data.setup()
    assert pixels(data, "labelled") == [0]
    assert pixels(data, "unlabelled") == [1, 2, 3]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(known=st.integers(1, 5), protocol=st.sampled_from(["all", "split"]), extra=st.booleans())
def test_labelled_and_unlabelled_are_discovery_divided(known, protocol, extra):
    data = toy(known, extra=extra)
    both = pixels(data, "labelled", protocol) + pixels(data, "unlabelled", protocol)
    assert sorted(both) == pixels(data, "mixed", protocol)


def test_pools_are_made_and_placed_once():
    data = toy([0, 1])
    for role in ("labelled", "unlabelled", "mixed", "pretext"):
        assert data.pool(role, "all") is data.pool(role, "all")
        first = data.training_loader(role, "all", batch_size=2)
        second = data.evaluation_loader(role, "all", batch_size=3)
        assert first.samples is second.samples
        assert len(second.samples) == len(data.pool(role, "all"))


def test_where_all_training_images_are_labelled_nothing_is_copied():
    data = toy()
    assert data.pool("labelled", "split") is data.parts["train"]
    assert data.pool("unlabelled", "split") is data.parts["unlabelled"]
    sorted_data = Toy({"train": _samples([0, 0, 1, 1, 2, 2])}, labelled_classes=2)
    sorted_data.setup()
    train = sorted_data.parts["train"].inputs
    assert sorted_data.pool("labelled", "split").inputs.data_ptr() == train.data_ptr()
    assert sorted_data.pool("unlabelled", "split").inputs.data_ptr() == train[4:].data_ptr()


def test_a_mapped_set_is_read_ahead_in_every_role():
    parts = {"train": _samples([0, 0, 1, 1])}
    mapped = Samples(parts["train"].inputs, parts["train"].labels, None, "hash")
    data = Toy({"train": mapped}, labelled_classes=1)
    data.setup()
    assert not data.training_loader("labelled", "split", batch_size=2).resident
    assert not data.training_loader("unlabelled", "split", batch_size=2).resident


# Errors


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "message"),
    [
        (0, None, "no class is labelled"),
        ([], None, "no class is labelled"),
        ([0], [], "left to be discovered"),
        (None, [1], "no known ones"),
        ([0, 1, 2], [2, "bee", 5], "both labelled and to be discovered: bee, cat"),
        (3, [1, 4], "both labelled and to be discovered: bee"),
        ([0, "ant"], None, "named twice: ant"),
        ([0], [1, 1], "named twice: bee"),
        ([6], None, "no class 6"),
        ([-1], None, "no class -1"),
        (["cot"], None, "did you mean cat"),
        ([0], ["zebra"], "no class 'zebra'"),
        (["0"], None, "no class '0'"),
        (6, None, "nothing is left"),
        (list(NAMES), None, "nothing is left"),
        (7, None, "only 6 classes"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_in_one_message(labelled, unlabelled, message):
    with pytest.raises(ConfigError, match=message) as error:
        toy(labelled, unlabelled)
    assert error.value.where in ("data.labelled_classes", "data.unlabelled_classes")
    assert error.value.instead


def test_a_class_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ConfigError) as error:
        toy([0], ["zebra"])
    assert error.value.where == "data.unlabelled_classes"
    assert "0 to 5" in str(error.value.instead)
    assert all(name in str(error.value.instead) for name in NAMES)
    many = Toy({"train": _samples([0])}, tuple(map(str, range(100))), labelled_classes=["x"])
    with pytest.raises(ConfigError, match="and 88 more"):
        many.setup()


def test_classes_cannot_be_chosen_where_there_are_no_labels():
    data = Toy({"train": _samples([-1, -1])}, (), labelled_classes=1)
    with pytest.raises(DataError, match="no labels"):
        data.setup()


def test_a_choice_without_training_samples_is_refused():
    data = Toy({"train": _samples([0, 1])}, labelled_classes=[2], unlabelled_classes=[3])
    with pytest.raises(DataError, match="no training sample of the chosen classes"):
        data.setup()


def test_nothing_to_discover_names_the_remedy():
    data = toy(extra=False)
    with pytest.raises(DataError, match="every training sample of toy is labelled") as error:
        data.pool("unlabelled", "all")
    assert "data.labelled_classes=[...]" in str(error.value)
    assert "data.unlabelled=DIR" in str(error.value)


def test_nothing_labelled_names_the_remedy():
    data = Toy({"train": _samples([-1, -1])}, ())
    data.setup()
    with pytest.raises(DataError, match="no training sample of toy is labelled") as error:
        data.pool("labelled", "all")
    assert "data.labelled_classes" in str(error.value)


# The data sets


def test_digits_are_split():
    data = Digits(augmentation=ImageAugmentation([0.3], [0.3]), labelled_classes=["7", 3])
    data.setup()
    assert data.classes == ("3", "7", "0", "1", "2", "4", "5", "6", "8", "9")
    whole = Digits(augmentation=ImageAugmentation([0.3], [0.3]))
    whole.setup()
    threes = whole.parts["train"].labels == 3
    assert torch.equal(data.parts["train"].labels == 0, threes)
    labelled = data.pool("labelled", "split")
    assert torch.equal(labelled.inputs[labelled.labels == 0], whole.parts["train"].inputs[threes])
    assert data.fingerprint() != whole.fingerprint()
    assert data.pool("pretext", "all").fingerprint(labels=False) == whole.pool("pretext", "all").fingerprint(
        labels=False
    )


@pytest.mark.parametrize(
    "target",
    [
        "digits.Digits", "mnist.MNIST", "mnist.FashionMNIST", "mnist.KMNIST", "usps.USPS", "cifar.CIFAR10",
        "cifar.CIFAR100", "cifar.CIFAR100Coarse", "svhn.SVHN", "stl10.STL10", "imagefolder.ImageFolder",
    ],
)  # fmt: skip
def test_the_configuration_knows_what_a_choice_of_classes_may_be(target):
    parameters = signature_of(f"scarcely.data.{target}").parameters
    labelled, unlabelled = parameters["labelled_classes"], parameters["unlabelled_classes"]
    assert not labelled.required
    assert not unlabelled.required
    for good in (None, 5, [0, 3], ["cat", 2]):
        assert not mismatch(good, labelled.annotation)
    for bad in (0, -1, 0.5, "cat", [0.5], [-1], True, {}):
        assert mismatch(bad, labelled.annotation), bad
    for bad in (5, "cat", [None]):
        assert mismatch(bad, unlabelled.annotation)


def test_arguments_of_the_split_are_arguments():
    for key in DataModule.split_keys:
        assert key in signature_of("scarcely.data.module.DataModule").parameters


# Fingerprints


def test_a_fingerprint_of_the_inputs_does_not_see_labels():
    one, other = _samples([0, 1]), _samples([1, 0])
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint(labels=False) == other.fingerprint(labels=False)
    assert one.fingerprint(labels=False) != one.fingerprint()
    assert one.fingerprint(labels=False) != _samples([0, 1], first=1).fingerprint(labels=False)
    mapped = [Samples(s.inputs, s.labels, None, "hash") for s in (one, other)]
    assert mapped[0].fingerprint(labels=False) == mapped[1].fingerprint(labels=False)
