"""Many domains: what the annotations say, what is scored, what is seen, what is told before training."""

from __future__ import annotations

import json
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scarcely import checkpoints
from scarcely.config.check import check
from scarcely.config.signature import signature_of
from scarcely.data import domain_set
from scarcely.data.annotations import read_annotations
from scarcely.data.augment import ImageAugmentation
from scarcely.data.decathlon import MEAN_STD, Decathlon
from scarcely.data.decode import load_images
from scarcely.data.domain_set import channel_statistics
from scarcely.errors import ConfigError, DataError, UserError
from scarcely.job import Job
from tests.config.composing import composed, sound
from tests.oracles import decathlon as oracle
from tests.runs import data_of, job_of, train_here

from .files import noise, real, write_image

CONF = Path(__file__).resolve().parents[2] / "conf" / "data" / "decathlon.yaml"
PARTS = {"train": 6, "val": 4, "test": 5}
SIDE = 9  # of the decoded images, for a network that sees 8


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_domain(
    base: Path,
    name: str,
    number: int = 1,
    classes: int = 2,
    parts: dict[str, int] | None = None,
    seed: int = 0,
) -> dict[str, dict]:
    """Write images and annotations, all lists in an order of their own; return the annotations."""
    rng = random.Random(seed)
    first = number * 10**7
    categories = [
        {"id": first + 1 + c, "name": f"{name}-{c}", "supercategory": "thing"} for c in range(classes)
    ]
    contents = {}
    for part, count in (parts or PARTS).items():
        ids = rng.sample(range(first, first + 1000), 2 * count)
        images = [
            {"id": image, "width": SIDE, "height": SIDE, "file_name": f"data/{name}/{part}/{i:06}.png"}
            for i, image in enumerate(ids[:count])
        ]
        for image in images:
            write_image(base / image["file_name"], image["id"] % 1000, (SIDE, SIDE, 3))
        annotations = [
            {"id": other, "image_id": image["id"], "category_id": categories[i % classes]["id"]}
            for i, (other, image) in enumerate(zip(ids[count:], images, strict=True))
        ]
        for entries in (images, annotations):
            rng.shuffle(entries)
        shuffled = rng.sample(categories, classes)
        contents[part] = {"images": images, "annotations": annotations, "categories": shuffled}
        write_annotations(base, name, part, contents[part])
    return contents


def write_annotations(base: Path, name: str, part: str, content: object) -> Path:
    path = base / "annotations" / f"{name}_{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def base(tmp_path) -> Path:
    """A release of two domains, one whose images are cropped and one of signs."""
    folder = tmp_path / "decathlon-1.0"
    write_domain(folder, "dtd", 4, classes=3)
    write_domain(folder, "gtsrb", 5)
    return folder


def views(**settings) -> ImageAugmentation:
    return ImageAugmentation(**{"mean": None, "std": None, "flip": True, **settings})


def decathlon_of(root: Path | None, domain: str | None = None, **options) -> Decathlon:
    given = {"augmentation": views(), "root": None if root is None else str(root), "image_size": 8, **options}
    return Decathlon(domain=domain, **given)


def load(root: Path | None, domain: str, **options) -> Decathlon:
    module = decathlon_of(root, domain, **options)
    module.check()
    module.prepare_data()
    module.setup()
    return module


def refused(root: Path | None, domain: str | None = None, **options) -> UserError:
    """Return the error that a look at the data ends with, before any image is opened."""
    with pytest.raises(UserError) as caught:
        decathlon_of(root, domain, **options).check()
    assert caught.value.where
    assert caught.value.instead
    return caught.value


# Annotations


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_joined_by_ids_whatever_the_order(tmp_path, seed):
    contents = write_domain(tmp_path, "dtd", 4, classes=3, seed=seed)
    module = load(tmp_path, "dtd", scored="val")
    assert module.classes == ("dtd-0", "dtd-1", "dtd-2"), "in the order of the category ids"
    for part, content in (("train", contents["train"]), ("test", contents["val"])):
        samples = module.parts[part]
        assert samples.names == tuple(image["file_name"] for image in content["images"])
        assert [module.classes[label] for label in samples.labels] == oracle.category_names(content)
        for pixels, image in zip(samples.inputs, content["images"], strict=True):
            np.testing.assert_array_equal(pixels, noise(image["id"] % 1000, SIDE, SIDE, 3))


def test_names_that_repeat_have_what_is_above_them(tmp_path):
    contents = write_domain(tmp_path, "omniglot", 7, classes=5)
    for content in contents.values():
        for category in content["categories"]:
            c = category["id"] % 10
            if c in (1, 2):
                category |= {"name": "A", "supercategory": "Latin" if c == 1 else "Greek"}
            elif c in (4, 5):
                category["name"] = "crane"
    for part, content in contents.items():
        write_annotations(tmp_path, "omniglot", part, content)
    expected = ("Latin/A", "Greek/A", "omniglot-2", "thing/crane (70000004)", "thing/crane (70000005)")
    assert load(tmp_path, "omniglot").classes == expected


def change(content, key, position, **fields):
    content[key][position] |= fields


def remove(content, key, position, field):
    del content[key][position][field]


BROKEN = {
    "an image file that is missing": (
        lambda c: change(c, "images", 3, file_name="data/dtd/train/none.png"),
        lambda c: (f"image {c['images'][3]['id']} of", "data/dtd/train/none.png"),
    ),
    "a folder that is missing": (
        lambda c: change(c, "images", 0, file_name="elsewhere/none.png"),
        lambda c: (f"image {c['images'][0]['id']} of", "elsewhere/none.png"),
    ),
    "a category that does not exist": (
        lambda c: change(c, "annotations", 2, category_id=77),
        lambda c: (f"annotation {c['annotations'][2]['id']} is of category 77",),
    ),
    "an image that does not exist": (
        lambda c: change(c, "annotations", 2, image_id=77),
        lambda c: (f"annotation {c['annotations'][2]['id']} is of image 77",),
    ),
    "two annotations of an image": (
        lambda c: change(c, "annotations", 1, image_id=c["annotations"][0]["image_id"]),
        lambda c: (f"image {c['annotations'][0]['image_id']} has two", str(c["annotations"][1]["id"])),
    ),
    "no annotation of an image": (
        lambda c: c["annotations"].pop(0),
        lambda c: ("has no annotation", "data/dtd/train/"),
    ),
    "an image id twice": (
        lambda c: change(c, "images", 4, id=c["images"][0]["id"]),
        lambda c: (f"the id {c['images'][0]['id']} occurs twice in images", "images[4]"),
    ),
    "an annotation id twice": (
        lambda c: change(c, "annotations", 5, id=c["annotations"][2]["id"]),
        lambda c: (f"the id {c['annotations'][2]['id']} occurs twice in annotations", "annotations[5]"),
    ),
    "a category id twice": (
        lambda c: change(c, "categories", 1, id=c["categories"][0]["id"]),
        lambda c: (f"the id {c['categories'][0]['id']} occurs twice in categories", "categories[1]"),
    ),
    "an image without a file": (
        lambda c: remove(c, "images", 1, "file_name"),
        lambda c: ("images[1] has no file_name",),
    ),
    "an id that is text": (
        lambda c: change(c, "images", 1, id="17"),
        lambda c: ("images[1] has no id that is a whole number",),
    ),
    "an entry that is none": (lambda c: c["images"].insert(0, 3), lambda c: ("images[0]",)),
    "no categories": (lambda c: c.pop("categories"), lambda c: ("no list 'categories'",)),
    "no images": (lambda c: c["images"].clear(), lambda c: ("no images",)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_annotation_is_named_with_its_file_before_any_image_is_opened(tmp_path, case):
    content = write_domain(tmp_path, "dtd", 4, classes=3)["train"]
    spoil, named = BROKEN[case]
    spoil(content)
    path = write_annotations(tmp_path, "dtd", "train", content)
    error = refused(tmp_path)
    assert isinstance(error, DataError)
    for text in (str(path), *named(content)):
        assert text in error.what


@pytest.mark.parametrize("part", ["val", "test"])
def test_every_part_is_looked_at(tmp_path, part):
    content = write_domain(tmp_path, "dtd", 4)[part]
    change(content, "annotations", 0, category_id=77)
    path = write_annotations(tmp_path, "dtd", part, content)
    assert f"{path} is no annotation file of the decathlon: annotation" in refused(tmp_path).what


def test_other_categories_in_another_part_are_told(tmp_path):
    content = write_domain(tmp_path, "dtd", 4)["val"]
    content["categories"].sort(key=lambda category: category["id"])
    change(content, "categories", 1, name="striped")
    path = write_annotations(tmp_path, "dtd", "val", content)
    error = refused(tmp_path)
    assert "category 40000002 is 'striped'" in error.what
    assert str(path) in error.what


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"images":\n [1, }', "line 2, column 6"),
        ("[]", "no keys"),
        ("", "line 1"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_file_that_is_no_json_is_named(base, text, reason):
    path = write_annotations(base, "dtd", "val", text)
    error = refused(base)
    assert str(path) in error.what
    assert reason in error.what


def test_bytes_that_are_no_text_and_a_file_that_is_missing_are_named(base):
    path = base / "annotations/dtd_val.json"
    path.write_bytes(b'{"images": "\xff\xfe"}')
    assert f"{path} is no annotation file" in refused(base).what
    path.unlink()
    assert f"cannot read {path}" in refused(base).what


def test_how_many_images_are_missing_is_told(base):
    for path in sorted((base / "data/gtsrb/train").iterdir())[:3]:
        path.unlink()
    assert "and 2 more are missing" in refused(base).what


# What is scored


def test_the_test_part_is_scored_where_its_labels_are_known(base):
    for scored in ("auto", "test"):
        module = load(base, "dtd", scored=scored)
        assert {part: len(samples) for part, samples in module.parts.items()} == {"train": 10, "test": 5}
        assert module.parts["train"].names[6].startswith("data/dtd/val/")
        assert module.parts["test"].names[0].startswith("data/dtd/test/")
        assert module.scored_part("dtd") == "test"


def test_else_validation_is_scored_and_never_trained_on(base):
    stripped = json.loads((base / "annotations/dtd_test.json").read_text()) | {"annotations": []}
    (base / "annotations/dtd_test.json").unlink()
    for _ in range(2):  # without any test annotations, and with those of the challenge
        module = load(base, "dtd")
        assert {part: len(samples) for part, samples in module.parts.items()} == {"train": 6, "test": 4}
        assert all(name.startswith("data/dtd/val/") for name in module.parts["test"].names)
        assert module.scored_part("dtd") == "val"
        error = refused(base, "dtd", scored="test")
        assert error.where == "data.scored"
        assert "dtd_test.json" in error.instead
        write_annotations(base, "dtd", "test_stripped", stripped)
    assert load(base, "gtsrb").scored_part("gtsrb") == "test", "each domain for itself"


def test_validation_may_be_scored_beside_a_test_part(base):
    module = load(base, "dtd", scored="val")
    assert {part: len(samples) for part, samples in module.parts.items()} == {"train": 6, "test": 4}
    assert not any("/test/" in name for samples in module.parts.values() for name in samples.names)


def test_train_and_validation_images_are_decoded_once_into_one_file(base):
    module = load(base, "dtd", scored="val")
    both = module.pool("train", "all")
    assert len(both) == 10
    assert both.inputs.data_ptr() == module.parts["train"].inputs.data_ptr(), "no copy"
    assert torch.equal(both.inputs, load(base, "dtd", scored="test").parts["train"].inputs)


def test_a_bad_image_may_be_left_out_and_the_parts_stay_apart(base):
    bad = base / json.loads((base / "annotations/dtd_train.json").read_text())["images"][2]["file_name"]
    bad.write_text("no image")
    with pytest.raises(DataError, match=bad.name):
        load(base, "dtd")
    with pytest.warns(UserWarning, match="1 of 10"):
        module = load(base, "dtd", scored="val", on_error="skip")
    assert module.skipped == (bad.relative_to(base).as_posix(),)
    assert [len(module.parts[part]) for part in ("train", "test")] == [5, 4]
    assert all("/val/" in name for name in module.parts["test"].names)


# The test images of the challenge


@pytest.mark.parametrize("labelled", [True, False])
def test_the_images_of_the_challenge_have_their_ids(base, labelled):
    content = json.loads((base / "annotations/dtd_test.json").read_text())
    if not labelled:
        (base / "annotations/dtd_test.json").unlink()
        write_annotations(base, "dtd", "test_stripped", {"images": content["images"]})
    module = load(base, "dtd")
    images = module.test_images()
    assert images.ids == tuple(image["id"] for image in content["images"])
    assert images.files == tuple(image["file_name"] for image in content["images"])
    assert images.category_ids == (40000001, 40000002, 40000003)
    assert len(images.category_ids) == module.num_classes
    samples, _ = load_images(images.root, images.files, [-1] * len(images.ids), size=module.size)
    assert samples.inputs.shape == (5, SIDE, SIDE, 3)
    if labelled:
        assert torch.equal(samples.inputs, module.parts["test"].inputs)


def test_without_test_annotations_there_is_nothing_to_predict(base):
    (base / "annotations/dtd_test.json").unlink()
    with pytest.raises(DataError, match="no test images with ids"):
        decathlon_of(base, "dtd").test_images()
    with pytest.raises(ConfigError, match="none is chosen"):
        decathlon_of(base).test_images()


# What the network sees


@pytest.mark.parametrize(
    ("options", "decoded", "seen"),
    [
        ({"image_size": 64}, 72, 64),
        ({"image_size": 32}, 36, 32),
        ({"image_size": 32, "size": 40}, 40, 32),
        ({"image_size": 224}, 252, 224),
        ({"image_size": 8, "size": 8}, 8, 8),
    ],
)
def test_images_are_cropped_and_signs_are_whole(base, options, decoded, seen):
    for domain, side in (("dtd", seen), ("gtsrb", decoded)):
        module = load(base, domain, **options)
        assert module.parts["train"].inputs.shape == (10, decoded, decoded, 3)
        assert module.input_shape == (3, side, side)
        (batch,) = module.training_loader("train", "split", batch_size=10)
        assert batch.views[0].shape == (10, 3, side, side)
        (clean,) = module.evaluation_loader("test", "split", batch_size=10)
        assert clean.views[0].shape == (5, 3, side, side)


def seen_in_epochs(module: Decathlon, epochs: int = 40) -> set[tuple[int, ...]]:
    """Every picture that training sees of the first image, as bytes."""
    loader = module.training_loader("train", "split", batch_size=10)
    seen = set()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            row = batch.index.tolist().index(0)
            pixels = module.augmentation.invert(batch.views[0][row : row + 1])
            seen.add(tuple(pixels.flatten().tolist()))
    return seen


def test_training_sees_crops_and_mirror_images_and_never_those_of_signs(base):
    image = load(base, "dtd").parts["train"].inputs[0]
    crops = [image[top : top + 8, left : left + 8] for top in range(2) for left in range(2)]
    expected = {tuple(view.flatten().tolist()) for crop in crops for view in (crop, crop.flip(1))}
    assert seen_in_epochs(load(base, "dtd")) == expected  # all 8 of them, in 40 draws

    sign = load(base, "gtsrb")
    assert seen_in_epochs(sign, 10) == {tuple(sign.parts["train"].inputs[0].flatten().tolist())}
    chosen = load(base, "dtd", signs=["dtd"])
    assert (chosen.augmentation.crop, chosen.augmentation.flip) == (None, False)
    assert chosen.input_shape == (3, SIDE, SIDE)


def test_evaluation_sees_the_centre(base):
    module = load(base, "dtd", image_size=5)
    (batch,) = module.evaluation_loader("test", "split", batch_size=5)
    mean, std = (torch.tensor(values)[:, None, None] for values in MEAN_STD["dtd"])
    centre = load(base, "dtd", image_size=5).parts["test"].inputs[:, 0:5, 0:5].movedim(-1, 1) / 255
    assert module.size == 6  # nine eighths of 5, and half a pixel is rounded down
    torch.testing.assert_close(batch.views[0], (centre - mean) / std)


def test_grey_images_and_long_ones_become_square_and_rgb(base):
    content = json.loads((base / "annotations/dtd_train.json").read_text())
    grey, long = (base / image["file_name"] for image in content["images"][:2])
    pixels = write_image(grey, 1, (SIDE, SIDE))
    wide = write_image(long, 2, (SIDE, 3 * SIDE, 3))
    inputs = load(base, "dtd").parts["train"].inputs
    np.testing.assert_array_equal(inputs[0], np.repeat(pixels[..., None], 3, axis=2))
    np.testing.assert_array_equal(inputs[1], wide[:, SIDE : 2 * SIDE])


def test_images_smaller_than_the_crop_are_refused():
    with pytest.raises(ConfigError) as caught:
        Decathlon(augmentation=views(), image_size=64, size=60)
    assert caught.value.where == "data.size, data.image_size"


# Normalisation


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_the_statistics_equal_the_literal_ones(count, side, channels, seed):
    images = torch.from_numpy(noise(seed, count, side, side + 1, channels))
    (mean, std), (true_mean, true_std) = channel_statistics(images), oracle.statistics(images)
    assert mean == pytest.approx(true_mean, rel=1e-12)
    assert std == pytest.approx([max(value, 1 / 255) for value in true_std], rel=1e-12)


def test_the_statistics_of_many_images_are_those_of_all_together(monkeypatch):
    images = torch.from_numpy(noise(0, 10, 4, 4, 3))
    whole = channel_statistics(images)
    monkeypatch.setattr(domain_set, "_CHUNK", 3)
    assert channel_statistics(images) == whole


def test_images_without_any_variation_can_be_divided_by():
    mean, std = channel_statistics(torch.full((2, 3, 3, 1), 51, dtype=torch.uint8))
    assert mean == pytest.approx([0.2])
    assert std == [1 / 255]


def test_statistics_are_those_beside_the_annotations_or_published_or_computed(base, tmp_path):
    assert load(base, "dtd").augmentation.mean == tuple(MEAN_STD["dtd"][0])
    write_domain(base, "own", 11)
    own = load(base, "own")
    mean, std = oracle.statistics(own.parts["train"].inputs)
    assert own.augmentation.mean == pytest.approx(mean)
    assert own.augmentation.std == pytest.approx(std)

    (base / "decathlon_mean_std.json").write_text(
        json.dumps({"dtdmean": [0.1, 0.2, 0.3], "dtdstd": [0.4, 0.5, 0.6]})
    )
    beside = load(base, "dtd").augmentation
    assert (beside.mean, beside.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load(base, "gtsrb").augmentation.mean == tuple(MEAN_STD["gtsrb"][0]), (
        "which the file does not have"
    )

    given_ = views(mean=[0.5] * 3, std=[0.25] * 3)
    assert load(base, "dtd", augmentation=given_).augmentation.mean == (0.5, 0.5, 0.5)
    # images in class folders are not those of the release, whatever they are called
    elsewhere = load(base, "dtd", domains={"dtd": str(class_folders(tmp_path / "textures"))})
    assert elsewhere.augmentation.mean == pytest.approx(oracle.statistics(elsewhere.parts["train"].inputs)[0])


@pytest.mark.parametrize(
    "content",
    [
        {"dtdmean": [0.1, 0.2], "dtdstd": [0.4, 0.5]},
        {"dtdmean": [0.1, 0.2, 0.3]},
        {"dtdmean": [0.1, 0.2, 0.3], "dtdstd": [0.4, 0.0, 0.6]},
        {"dtdmean": [0.1, float("nan"), 0.3], "dtdstd": [0.4, 0.5, 0.6]},
        {"dtdmean": 0.1, "dtdstd": 0.4},
        {"dtdmean": ["a"] * 3, "dtdstd": [0.4, 0.5, 0.6]},
        3,
        "[",
    ],
)
def test_statistics_that_are_no_numbers_are_told_before_anything_is_read(base, content):
    path = base / "decathlon_mean_std.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert refused(base).what == f"{path} has no usable statistics of dtd"


def test_a_stage_that_is_given_what_was_found_finds_the_same(base):
    for domain in ("dtd", "gtsrb"):
        found = load(base, domain).augmentation_settings()
        (base / "decathlon_mean_std.json").write_text(
            json.dumps({f"{domain}mean": [0.1] * 3, f"{domain}std": [0.1] * 3})
        )
        again = load(base, domain, augmentation=views(**found))
        assert again.augmentation_settings() == found
        assert json.loads(json.dumps(found)) == found, "plain values, for a file"


# The set of domains


def test_the_domains_are_those_of_the_release_or_those_named(base):
    assert decathlon_of(base.parent).domain_names == ("dtd", "gtsrb"), "the folder above will do"
    assert decathlon_of(base).domain_names == ("dtd", "gtsrb")
    assert decathlon_of(base, domains=["gtsrb", "dtd"]).domain_names == ("gtsrb", "dtd")
    assert decathlon_of(base, domains=["gtsrb"]).domain_names == ("gtsrb",)
    assert decathlon_of(base, domains={"gtsrb": None}).domain_names == ("gtsrb",)


@pytest.mark.parametrize(
    ("options", "what", "where"),
    [
        ({"domains": ["dtd", "gtsrb", "dtd"]}, "'dtd' is given twice", "data.domains"),
        ({"domains": ["dtd", "gtrsb"]}, "no domain 'gtrsb'; did you mean gtsrb?", "data.domains"),
        ({"domains": {"birds": None}}, "no domain 'birds'", "data.domains"),
        ({"domains": []}, "no domains", "data.domains, data.root"),
        ({"domain": "gtrsb"}, "'gtrsb' is none of the domains; did you mean gtsrb?", "data.domain"),
        ({"domain": "dtd", "domains": ["gtsrb"]}, "'dtd' is none of the domains", "data.domain"),
        ({"source": "imagenet12"}, "'imagenet12' is none of the domains", "data.source"),
    ],
)
def test_a_domain_twice_or_unknown_is_told(base, options, what, where):
    error = refused(base, **options)
    assert what in error.what
    assert error.where == where
    if where != "data.domains, data.root":
        assert "gtsrb" in error.instead or "once" in error.instead


def test_a_folder_without_a_release_is_told(tmp_path):
    for root in (tmp_path, tmp_path / "none", None):
        error = refused(root)
        assert error.where == "data.root"
        assert "annotations/NAME_train.json" in error.instead
    (tmp_path / "annotations").mkdir()
    assert "has no domains" in refused(tmp_path).what


def test_without_a_domain_all_are_looked_at_and_none_is_read(base):
    module = decathlon_of(base)
    module.check()
    with pytest.raises(ConfigError) as caught:
        module.setup()
    assert caught.value.where == "data.domain"
    assert caught.value.instead == "data.domain=NAME, one of dtd, gtsrb"
    write_annotations(base, "gtsrb", "train", "{")
    assert "gtsrb_train.json" in refused(base).what
    decathlon_of(base, "dtd").check()  # a domain is trained whatever is wrong with another


def test_the_source_is_imagenet_or_the_largest_or_as_said(base):
    write_domain(base, "aircraft", 1, parts={"train": 8, "val": 1, "test": 1})
    assert decathlon_of(base).source == "aircraft"
    assert decathlon_of(base, domains=["gtsrb", "dtd"]).source == "gtsrb", "the first of the same size"
    assert decathlon_of(base, source="dtd").source == "dtd"
    assert decathlon_of(base, source=None).source is None
    decathlon_of(base, source=None).check()
    write_domain(base, "imagenet12", 6, parts={"train": 2, "val": 1, "test": 1})
    assert decathlon_of(base).source == "imagenet12"


# Class folders


def class_folders(root: Path, per_class: int = 10, train: str = "", test: int = 0) -> Path:
    for c, name in enumerate(("robin", "wren")):
        for i in range(per_class):
            write_image(root / train / name / f"{i:02}.png", 100 * c + i, (SIDE, SIDE, 3))
        for i in range(test):
            write_image(root / "test" / name / f"{i:02}.png", 100 * c + 50 + i, (SIDE, SIDE, 3))
    return root


def numbers(names: tuple[str, ...]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name in names:
        found.setdefault(Path(name).parent.name, []).append(int(Path(name).stem))
    return found


def test_of_each_class_a_fifth_is_tested_and_a_fifth_validates(tmp_path):
    domains = {"birds": str(class_folders(tmp_path))}
    module = load(None, "birds", domains=domains, scored="val")
    train = {name: [0, 1, 2, 5, 6, 7] for name in ("robin", "wren")}
    assert numbers(module.parts["train"].names) == train
    assert numbers(module.parts["test"].names) == {name: [4, 9] for name in train}
    assert module.classes == ("robin", "wren")
    module = load(None, "birds", domains=domains)
    assert module.scored_part("birds") == "test"
    assert numbers(module.parts["train"].names) == {name: [*rows, 4, 9] for name, rows in train.items()}
    assert numbers(module.parts["test"].names) == {name: [3, 8] for name in train}
    for samples in module.parts.values():
        assert [module.classes[label] for label in samples.labels] == [
            Path(name).parent.name for name in samples.names
        ]


def test_a_test_folder_is_the_test_part(tmp_path):
    domains = {"birds": str(class_folders(tmp_path, train="train", test=3))}
    module = load(None, "birds", domains=domains)
    assert (len(module.parts["train"]), len(module.parts["test"])) == (20, 6)
    assert all(name.startswith("test/") for name in module.parts["test"].names)
    module = load(None, "birds", domains=domains, scored="val")
    assert numbers(module.parts["test"].names) == {"robin": [4, 9], "wren": [4, 9]}
    assert len(module.parts["train"]) == 16


def test_folders_and_the_release_go_together(base, tmp_path):
    domains = {"birds": str(class_folders(tmp_path / "birds")), "gtsrb": None}
    module = decathlon_of(base, domains=domains)
    module.check()
    assert module.domain_names == ("birds", "gtsrb")
    assert module.source == "birds"
    assert len(load(base, "birds", domains=domains).parts["test"]) == 4
    assert len(load(base, "gtsrb", domains=domains).parts["test"]) == 5
    with pytest.raises(DataError, match="no test images with ids"):
        decathlon_of(base, "birds", domains=domains).test_images()


def test_a_folder_that_is_no_domain_is_told_by_its_name(tmp_path):
    loose = tmp_path / "loose"
    write_image(loose / "1.png")
    write_image(loose / "2.png")
    for folder in (tmp_path / "none", loose):
        error = refused(None, domains={"birds": str(folder)})
        assert error.where == "data.domains.birds"
        assert str(folder) in error.what
    (class_folders(tmp_path / "birds") / "empty").mkdir()
    error = refused(None, domains={"birds": str(tmp_path / "birds")})
    assert (error.where, "empty" in error.what) == ("data.domains.birds", True)
    few = class_folders(tmp_path / "few", per_class=3)
    error = refused(None, domains={"birds": str(few)})
    assert "too few images to hold out" in error.what
    error = refused(None, domains={"birds": str(few)}, scored="test")
    assert error.where == "data.scored"


# A stage and its hash


def key_of(base: Path, *overrides: str) -> str:
    given_ = ("data=decathlon", "method=supervised", "protocol=split", "pretext=none", "data.image_size=8")
    config = composed(*given_, f"data.root={base}", *overrides)
    check(config)
    data = instantiate(config["data"], _convert_="all")
    data.setup()
    job = Job(
        "supervised", config["method"], config["backbone"], config["data"], config["trainer"],
        seed=0, protocol="split", num_clusters=1, num_classes=data.num_classes,
    )  # fmt: skip
    return job.key(data.pool("train", "split").fingerprint(), "", "cpu", data.split_keys)


def test_a_stage_depends_on_its_domain_and_not_on_the_others(base, tmp_path):
    key = key_of(base, "data.domain=gtsrb")
    assert key == key_of(base, "data.domain=gtsrb", "data.domains=[gtsrb]")
    assert key == key_of(
        base, "data.domain=gtsrb", "data.domains={gtsrb: null, dtd: null}", "data.source=dtd"
    )
    assert key == key_of(base, "data.domain=gtsrb", "data.source=null", "data.scored=test")
    assert key == key_of(shutil.copytree(base, tmp_path / "moved"), "data.domain=gtsrb")
    assert key != key_of(base, "data.domain=gtsrb", "data.scored=val"), "fewer images are trained on"
    assert key != key_of(base, "data.domain=dtd")
    assert key != key_of(base, "data.domain=gtsrb", "data.image_size=10")


def test_few_labels_of_each_class_may_be_seen(base):
    module = load(base, "gtsrb", labels_per_class=2, labels_seed=0)
    labels = module.parts["train"].labels
    assert [(labels == label).sum().item() for label in (-1, 0, 1)] == [6, 2, 2]


def test_a_method_trains_on_one_domain(base, tmp_path):
    config = sound(
        "data=decathlon", f"data.root={base}", "data.domain=dtd", "data.image_size=16", "method=supervised",
        "protocol=split", "pretext=none", "backbone=small_cnn", "backbone.width=4", "batch_size=4",
        "trainer=cpu", "fast=true",
    )  # fmt: skip
    data = data_of(config)
    content = checkpoints.load(train_here(job_of(config, data), tmp_path / "run", data) / "weights.pt")
    assert content["classes"] == ["dtd-0", "dtd-1", "dtd-2"]
    assert content["input_shape"] == [3, 16, 16]


# The configuration


def test_every_argument_has_a_key_and_every_key_its_reason():
    text = CONF.read_text(encoding="utf-8")
    config = OmegaConf.load(CONF)
    assert set(config) == set(signature_of(config["_target_"]).parameters) | {"_target_", "defaults"}
    for line in text.partition("_target_:")[2].splitlines()[1:]:
        assert not line or line == "augmentation:" or "_target_" in line or "  # " in line, line
    known = signature_of(config.augmentation["_target_"]).parameters
    assert set(config.augmentation) == set(known) - {"crop"} | {"_target_"}, "image_size sets the crop"


def test_the_configuration_has_the_values_of_the_paper():
    data = sound("data=decathlon", "method=supervised")["data"]
    module = instantiate(data, _convert_="all")
    assert (module.size, module.image_size, module.augmentation.flip) == (72, 64, True)
    assert set(module.signs) >= {"gtsrb", "omniglot", "svhn"}
    assert module.augmentation.mean == ()


@pytest.mark.parametrize(
    "override",
    [
        "data.domains=3", "data.domains=[3]", "data.domains={birds: 3}", "data.scored=train",
        "data.image_size=0", "data.size=0", "data.domain=3", "data.signs=gtsrb", "data.source=3",
        "data.augmentation.mean=0.5",
    ],
)  # fmt: skip
def test_values_of_the_wrong_type_are_told_before_torch_is_needed(override):
    with pytest.raises(ConfigError) as caught:
        sound("data=decathlon", "method=supervised", override)
    assert caught.value.where == override.partition("=")[0]


# The real small decathlon

MINI = {  # classes, images to train on and to test, as its notes say
    "caltech101": (101, 606, 202, 202), "cifar10": (10, 1200, 400, 400), "flowers17": (17, 408, 136, 136),
    "gtsrb": (43, 1222, 421, 391), "omniglot": (100, 1200, 400, 400), "sketch": (7, 168, 56, 56),
    "tinyimagenet": (60, 1800, 600, 600), "usps": (10, 900, 300, 300),
}  # fmt: skip


def test_the_small_decathlon_is_as_its_notes_say(tmp_path):
    with tarfile.open(real("mini_decathlon.tar.xz"), "r|*") as archive:
        for member in archive:  # all annotations, and the images of two domains
            if "/data/" not in member.name or "/omniglot/" in member.name or "/sketch/" in member.name:
                archive.extract(member, tmp_path, filter="data")
    assert decathlon_of(tmp_path).domain_names == tuple(MINI)
    assert decathlon_of(tmp_path, domains=["omniglot", "sketch"]).source == "omniglot"
    assert "is missing: there is no file" in refused(tmp_path).what
    release = tmp_path / "decathlon-1.0"
    for name, (classes, *counts) in MINI.items():
        found = [
            read_annotations(release / f"annotations/{name}_{part}.json") for part in ("train", "val", "test")
        ]
        assert [len(part.ids) for part in found] == counts
        assert all(len(set(part.categories.values())) == classes for part in found)

    module = load(tmp_path, "omniglot", image_size=64, scored="val")
    assert module.input_shape == (3, 72, 72)
    content = json.loads((release / "annotations/omniglot_val.json").read_text())
    assert [module.classes[label] for label in module.parts["test"].labels] == oracle.category_names(content)
    # squares of that size already: the pixels of the notes
    mean, std = channel_statistics(module.parts["train"].inputs)
    assert module.augmentation.mean == pytest.approx(mean, abs=1e-6)
    assert module.augmentation.std == pytest.approx(std, abs=1e-6)


def test_a_share_of_each_class_is_used_and_a_larger_one_holds_it(tmp_path):
    write_domain(tmp_path / "decathlon-1.0", "birds", 1, 3, {"train": 20, "val": 10, "test": 9})
    write_domain(tmp_path / "decathlon-1.0", "signs", 2, 3, {"train": 20, "val": 10, "test": 9})
    few, more, whole = (
        load(tmp_path, "signs", source="birds", train_share=share) for share in (0.1, 0.5, 1.0)
    )
    parts = [module.parts["train"] for module in (few, more, whole)]
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[1, 1, 1], [6, 5, 4], [11, 10, 9]]
    named = [set(part.names) for part in parts]
    assert named[0] < named[1] < named[2]
    assert len(few.parts["test"]) == len(whole.parts["test"]) == 9
    source = load(tmp_path, "birds", source="birds", train_share=0.1)
    assert len(source.parts["train"]) == 30


def test_the_source_may_have_fewer_classes_and_no_other_domain(tmp_path):
    for number, name in enumerate(("birds", "signs"), start=1):
        write_domain(tmp_path / "decathlon-1.0", name, number, 3, {"train": 6, "val": 3, "test": 6})
    source, other = (load(tmp_path, name, source="birds", source_classes=2) for name in ("birds", "signs"))
    assert source.classes == ("birds-0", "birds-1")
    assert {int(label) for part in source.parts.values() for label in part.labels} == {0, 1}
    assert (other.num_classes, len(other.parts["train"])) == (3, 9)
    assert refused(tmp_path, "birds", source="birds", source_classes=4).where == "data.source_classes"
