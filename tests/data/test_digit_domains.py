"""Domains made of digits: what each shows, literally; and that none trains on what another is tested on."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from scarcely.config.signature import signature_of
from scarcely.data import digit_domains
from scarcely.data.augment import ImageAugmentation
from scarcely.data.digit_domains import DOMAINS, DigitDomains
from scarcely.data.digits import read_digits
from scarcely.errors import UserError
from tests.config.composing import sound

CONF = Path(__file__).resolve().parents[2] / "conf" / "data" / "digit_domains.yaml"
CLASSES = {"sums": 19, "groups": 4}
TARGETS = load_digits().target
SIDE = 16


def of(domain: str, **options) -> DigitDomains:
    module = DigitDomains(domain=domain, augmentation=ImageAugmentation(None, None), **options)
    module.setup()
    return module


@pytest.fixture(scope="module")
def domains() -> dict[str, DigitDomains]:
    return {name: of(name) for name in DOMAINS}


def pixels(data: DigitDomains, part: str = "test") -> np.ndarray:
    """Return the images of a part between 0 and 1."""
    return data.parts[part].inputs.numpy() / 255


@pytest.fixture(scope="module")
def ink() -> np.ndarray:
    """The grey digits that are tested, between 0 and 1."""
    return read_digits(SIDE)[0].inputs.numpy()[4::5, :, :, 0] / 255


# What is in a part


@pytest.mark.parametrize("name", DOMAINS)
def test_parts_and_classes_are_as_said(domains, name):
    data, copies = domains[name], 4 if name == "sums" else 1
    assert data.num_classes == CLASSES.get(name, 10)
    for part, digits in (("train", 1438), ("test", 359)):
        samples = data.parts[part]
        assert samples.inputs.shape == (copies * digits, SIDE, SIDE, 3)
        assert samples.labels.unique().tolist() == list(range(data.num_classes))
    validated = of(name, scored="val").parts
    assert [len(validated[part]) for part in ("train", "test")] == [copies * 1079, copies * 359]


@pytest.mark.parametrize("scored", ["test", "val"])
def test_no_domain_trains_on_a_digit_that_another_is_scored_on(monkeypatch, scored):
    """Other digits in one part of scikit-learn's set, and everywhere the other part is what it was."""
    digits, names = read_digits(SIDE)
    fifths = torch.arange(len(digits)) % 5
    held = {"test": [4], "val": [3]}[scored]
    trained = [0, 1, 2, 3] if scored == "test" else [0, 1, 2]
    before = {name: of(name, scored=scored).parts for name in DOMAINS}
    for changed, same in ((held, "train"), (trained, "test")):
        rows = torch.isin(fifths, torch.tensor(changed))
        other = replace(
            digits,
            inputs=torch.where(rows[:, None, None, None], 255 - digits.inputs, digits.inputs),
            labels=torch.where(rows, 9 - digits.labels, digits.labels),
        )
        monkeypatch.setattr(digit_domains, "read_digits", lambda size, other=other: (other, names))
        for name, parts in before.items():
            after = of(name, scored=scored).parts
            moved = "test" if same == "train" else "train"
            assert torch.equal(after[same].inputs, parts[same].inputs), name
            assert torch.equal(after[same].labels, parts[same].labels), name
            assert not torch.equal(after[moved].inputs, parts[moved].inputs), name


def test_a_domain_depends_on_its_name_alone(domains):
    torch.manual_seed(1)
    for name in ("inverted", "sums"):
        torch.rand(3)
        assert of(name, domains=[name], source=None).fingerprint() == domains[name].fingerprint()
    assert len({data.fingerprint() for data in domains.values()}) == len(DOMAINS)


# What each shows


def test_digits_and_groups_show_the_same_and_ask_for_something_else(domains, ink):
    for name in ("digits", "groups"):
        np.testing.assert_array_equal(pixels(domains[name]), np.repeat(ink[..., None], 3, axis=3))
    for label, target in zip(domains["groups"].parts["test"].labels, TARGETS[4::5], strict=True):
        half = "below 5" if target < 5 else "from 5"
        assert domains["groups"].classes[label] == f"{'odd' if target % 2 else 'even'}, {half}"


def test_turned_is_a_quarter_to_the_left(domains, ink):
    found = pixels(domains["turned"])
    for y, x in product(range(SIDE), repeat=2):  # what was at the right is at the top
        np.testing.assert_array_equal(found[:, SIDE - 1 - x, y, 0], ink[:, y, x])


def test_outlined_is_what_the_ink_gains_by_a_pixel_all_around(domains, ink):
    wide = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    grown = np.max([wide[:, y : y + SIDE, x : x + SIDE] for y, x in product(range(3), repeat=2)], axis=0)
    np.testing.assert_allclose(pixels(domains["outlined"])[..., 0], grown - ink, atol=0.5 / 255 + 1e-6)


def test_inverted_is_black_on_light_noise(domains, ink):
    found = pixels(domains["inverted"])[..., 0]
    assert (found <= 1 - ink + 1 / 255).all()
    assert (found >= 0.3 * (1 - ink) - 1 / 255).all()
    assert found[ink == 0].std() > 0.15


def test_occluded_hides_a_square_of_six_pixels(domains, ink):
    differs = np.abs(pixels(domains["occluded"])[..., 0] - ink) > 0.5 / 255
    for image in differs:
        rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        assert rows[-1] - rows[0] < 6
        assert columns[-1] - columns[0] < 6
        assert image.sum() > 25  # noise is hardly ever what it hides


def test_the_ink_of_coloured_is_seen_in_every_channel(domains, ink):
    found = pixels(domains["coloured"])
    for image, digit in zip(found, ink, strict=True):
        written, ground = image[digit > 0.9 * digit.max()], image[digit < 0.05]
        assert (np.abs(written.mean(axis=0) - ground.mean(axis=0)) > 0.15).all()
    assert found.std(axis=3).mean() > 0.1


def test_sums_are_of_two_digits_of_the_part_side_by_side(domains, ink):
    data = domains["sums"]
    seen = [0] * 359
    for image, label in zip(pixels(data)[..., 0], data.parts["test"].labels, strict=True):
        both = [_nearest(half, ink) for half in (image[:, :8], image[:, 8:])]
        assert sum(TARGETS[4::5][i] for i in both) == int(data.classes[label])
        seen[both[0]] += 1
    assert len(np.unique(_halved(ink), axis=0)) == 359, "else a digit could not be told from another"
    assert set(seen) == {4}


def _halved(ink: np.ndarray) -> np.ndarray:
    return (ink[..., 0::2] + ink[..., 1::2]) / 2


def _nearest(half: np.ndarray, ink: np.ndarray) -> int:
    distances = np.abs(_halved(ink) - half).max(axis=(1, 2))
    assert distances.min() <= 0.5 / 255 + 1e-6
    return int(distances.argmin())


# The set


def test_the_source_is_that_of_the_most_classes_or_as_said():
    def source(**options) -> str | None:
        return DigitDomains(augmentation=ImageAugmentation(None, None), **options).source

    assert source() == "sums"
    assert source(domains=["groups", "turned", "digits"]) == "turned"
    assert source(source="digits") == "digits"
    assert source(source=None) is None


def test_a_share_of_each_class_is_used_of_all_but_the_source():
    shared = of("turned", train_share=0.1).parts["train"]
    assert 140 <= len(shared) <= 148
    assert (torch.bincount(shared.labels) >= 13).all()
    assert len(of("sums", train_share=0.1).parts["train"]) == 5752


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"domains": ["digits", "digits"]}, "given twice"),
        ({"domains": ["digit"]}, "did you mean digits"),
        ({"domains": []}, "has no domains"),
        ({"domain": "sum"}, "did you mean sums"),
        ({"source": "photos"}, "none of the domains"),
        ({"source_classes": 20}, "has 19 classes, not 20"),
    ],
)
def test_what_there_is_not_is_told(options, told):
    with pytest.raises(UserError, match=told) as caught:
        DigitDomains(augmentation=ImageAugmentation(None, None), **options).check()
    assert caught.value.where.startswith("data.")
    assert caught.value.instead


def test_every_argument_has_a_key_and_every_key_its_reason():
    config = OmegaConf.load(CONF)
    assert set(config) == set(signature_of(config["_target_"]).parameters) | {"_target_", "defaults"}
    for line in CONF.read_text(encoding="utf-8").partition("_target_:")[2].splitlines()[1:]:
        assert not line or line == "augmentation:" or "_target_" in line or "  # " in line, line
    assert not sound("data=digit_domains", "method=finetune")["data"]["augmentation"]["flip"]
