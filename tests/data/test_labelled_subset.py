"""Few labels of each class: which samples keep theirs, and that nobody sees the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcely.data.augment import ImageAugmentation
from scarcely.data.digits import Digits
from scarcely.data.imagefolder import ImageFolder
from scarcely.data.split import choose_labelled
from scarcely.errors import ConfigError, DataError
from tests.data.files import write_image

CLASSES = ("a", "b", "c")
AUGMENTATION = ImageAugmentation([0.3], [0.3])


def digits(**split: Any) -> Digits:
    data = Digits(augmentation=AUGMENTATION, **split)
    data.setup()
    return data


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 8), min_size=3, max_size=3),
    per_class=st.integers(1, 5),
    seed=st.integers(0, 3),
    unknown=st.integers(0, 3),
)
def test_each_class_keeps_equally_many(sizes, per_class, seed, unknown):
    labels = torch.tensor([c for c, n in enumerate(sizes) for _ in range(n)] + [-1] * unknown).long()
    if min(sizes) < per_class:
        least = CLASSES[sizes.index(min(sizes))]
        with pytest.raises(DataError, match=f"class '{least}' has") as error:
            choose_labelled(labels, CLASSES, per_class, seed)
        assert error.value.where == "data.labels_per_class"
        return
    chosen = choose_labelled(labels, CLASSES, per_class, seed)
    assert torch.bincount(labels[chosen], minlength=3).tolist() == [per_class] * 3
    if per_class > 1:  # fewer labels are a part of more
        fewer = choose_labelled(labels, CLASSES, per_class - 1, seed)
        assert not (fewer & ~chosen).any()


def test_the_seed_chooses():
    labels = torch.arange(300) % 3
    choices = [tuple(choose_labelled(labels, CLASSES, 4, seed).tolist()) for seed in (0, 0, 1)]
    assert choices[0] == choices[1] != choices[2]


def test_all_other_labels_are_hidden_and_the_pools_divided():
    data, whole = digits(labels_per_class=3), digits()
    train = data.pool("train", "split")
    assert torch.bincount(train.labels[train.labels >= 0]).tolist() == [3] * 10
    assert int((train.labels < 0).sum()) == len(train) - 30
    labelled, unlabelled = data.pool("labelled", "split"), data.pool("unlabelled", "split")
    assert len(labelled) == 30
    assert len(labelled) + len(unlabelled) == len(data.pool("mixed", "split")) == len(train)
    assert labelled.labels.min() >= 0
    assert (unlabelled.labels == -1).all()
    assert (data.pool("test", "split").labels >= 0).all()
    assert data.num_known == data.num_classes == 10
    true = data.pool("unlabelled", "split", true_labels=True)
    assert torch.equal(true.inputs, unlabelled.inputs)
    assert torch.equal(true.labels, whole.pool("train", "split").labels[train.labels < 0])
    batches = list(data.evaluation_loader("unlabelled", "split", batch_size=100, true_labels=True))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), true.labels)
    assert {
        int(batch.labels.max()) for batch in data.evaluation_loader("unlabelled", "split", batch_size=100)
    } == {-1}


def test_a_pretext_is_the_same_whatever_is_labelled():
    prints = {
        digits(**s).pool("pretext", "split").fingerprint(labels=False) for s in ({}, {"labels_per_class": 2})
    }
    assert len(prints) == 1


def test_a_choice_is_a_file_that_another_run_takes(tmp_path):
    data = digits(labels_per_class=2, labels_seed=7)
    data.write_labelled(tmp_path / "labelled.csv")
    again = digits(labels_file=str(tmp_path / "labelled.csv"))
    assert torch.equal(again.pool("train", "split").labels, data.pool("train", "split").labels)
    assert (tmp_path / "labelled.csv").read_text().startswith("index,class\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("index,class\n", "names no sample"),
        ("index;class\n1;2\n", "no columns index and class"),
        ("index,class\nx,2\n", "no columns index and class"),
        ("index,class\n0,9\n", "other data: training sample 0 is not of class '9'"),
        ("index,class\n99999,9\n", "other data: training sample 99999"),
        ("index,class\n-1,9\n", "other data: training sample -1"),
    ],
)
def test_a_file_that_does_not_fit_is_told(tmp_path, content, message):
    path = tmp_path / "labelled.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        digits(labels_file=str(path))
    assert error.value.where == "data.labels_file"


def test_more_labels_than_images_and_labels_of_the_test_part_are_refused():
    with pytest.raises(DataError, match=r"only \d+ training samples, and 1000 labels of each class") as error:
        digits(labels_per_class=1000)
    assert "at most 1" in str(error.value)
    with pytest.raises(ConfigError, match="protocol=all trains on the test part too") as wrong:
        digits(labels_per_class=1).pool("labelled", "all")
    assert wrong.value.instead == "protocol=split"
    with pytest.raises(DataError, match="every training sample of digits is labelled"):
        digits().pool("unlabelled", "split")


@pytest.mark.parametrize(
    "split",
    [
        {"labels_per_class": 1, "labels_file": "x.csv"},
        {"labels_per_class": 1, "labelled_classes": 5},
    ],
)
def test_choices_that_exclude_each_other_are_refused(split):
    with pytest.raises(ConfigError) as error:
        Digits(augmentation=AUGMENTATION, **split)
    assert "data.labels_per_class" in str(error.value.where)


def test_two_folders_are_labelled_and_unlabelled_images(tmp_path: Path):
    for name in ("cat", "dog"):
        for i in range(2):
            write_image(tmp_path / "few" / name / f"{i}.png", seed=len(name + str(i)) * 10 + i + ord(name[0]))
    for i in range(5):
        write_image(tmp_path / "more" / f"{i}.png", seed=1000 + i)
    data = ImageFolder(
        augmentation=ImageAugmentation([0.5] * 3, [0.5] * 3),
        size=8,
        labelled=str(tmp_path / "few"),
        unlabelled=str(tmp_path / "more"),
    )
    data.setup()
    assert len(data.pool("labelled", "split")) == 4
    assert len(data.pool("unlabelled", "split")) == 5
    assert len(data.pool("mixed", "split")) == 9
