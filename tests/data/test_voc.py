"""PASCAL VOC: its lists, its boxes, and what is wrong with a copy of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely.data.voc import CLASSES, VOC, read_xml
from scarcely.errors import DataError

from .files import RGB, noise, real, write_image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path_factory.mktemp("cache")))


def xml(*objects: tuple, size: tuple[int, int] = (20, 30)) -> str:
    """Return an annotation: objects are (name, xmin, ymin, xmax, ymax) and perhaps whether difficult."""
    text = f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>"
    for name, *box, difficult in (one if len(one) == 6 else (*one, 0) for one in objects):
        corners = "".join(
            f"<{key}>{value}</{key}>"
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        text += f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox>"
        text += "<part><name>head</name></part></object>"
    return text + "</annotation>"


DOG = ("dog", 1, 1, 10, 20)


def release(base: Path, lists: dict[str, str], **annotations: str) -> Path:
    """Write lists and annotations with an image of 20 x 30 pixels each; return the folder of the year."""
    folder = base / "VOC2007"
    for below in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    for name, names in lists.items():
        (folder / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(names.split()) + "\n")
    everything = sorted({name for names in lists.values() for name in names.split()})
    for seed, name in enumerate(everything):
        write_image(folder / "JPEGImages" / f"{name}.jpg", seed, (20, 30, 3))
        (folder / "Annotations" / f"{name}.xml").write_text(annotations.get(name, xml(DOG)))
    return folder


def voc(root: Path, **options) -> VOC:
    module = VOC(augmentation=RGB, root=str(root), image_size=8, **options)
    module.check()
    module.setup()
    return module


def names(module: VOC) -> dict[str, list[str]]:
    return {part: [Path(name).stem for name in samples.names] for part, samples in module.parts.items()}


def wrong(root: Path, **options) -> DataError:
    with pytest.raises(DataError) as error:
        voc(root, **options)
    assert error.value.where
    assert error.value.instead
    return error.value


# -- which images a part has ---------------------------------------------------------------------


@pytest.mark.parametrize("root", ["a", "a/VOCdevkit", "a/VOCdevkit/VOC2007"])
def test_the_root_may_be_the_folder_of_the_year_or_hold_it(tmp_path, root):
    release(tmp_path / "a/VOCdevkit", {"trainval": "x y", "test": "z"})
    assert names(voc(tmp_path / root)) == {"train": ["x", "y"], "test": ["z"]}


@pytest.mark.parametrize(
    ("lists", "parts"),
    [
        ({"trainval": "x y", "train": "x", "val": "y", "test": "z"}, {"train": "x y", "test": "z"}),
        ({"train": "x", "val": "y", "test": "z"}, {"train": "x y", "test": "z"}),
        ({"trainval": "x y", "train": "x", "val": "y"}, {"train": "x", "test": "y"}),
        ({"val": "x y"}, {"train": "x y"}),
        ({"test": "x y"}, {"train": "x y"}),
    ],
)
def test_the_lists_that_are_there_say_the_parts(tmp_path, lists, parts):
    assert names(voc(release(tmp_path, lists))) == {part: found.split() for part, found in parts.items()}


def test_a_test_list_without_annotations_is_none(tmp_path):
    folder = release(tmp_path, {"train": "x", "val": "y", "test": "z"})
    (folder / "Annotations" / "z.xml").unlink()
    assert names(voc(folder)) == {"train": ["x"], "test": ["y"]}


def test_other_lists_are_chosen_by_name(tmp_path):
    folder = release(tmp_path, {"train": "x", "val": "y", "test": "z", "few": "w"})
    assert names(voc(folder, train_list="few")) == {"train": ["w"]}
    assert names(voc(folder, train_list="test", test_list="few")) == {"train": ["z"], "test": ["w"]}
    assert wrong(folder, test_list="few").where == "data.train_list"
    assert "fewer.txt" in wrong(folder, train_list="fewer").what


def test_one_of_two_years_is_asked_for(tmp_path):
    release(tmp_path, {"val": "x y"})
    release(tmp_path / "other", {"val": "z w"}).rename(tmp_path / "VOC2012")
    assert wrong(tmp_path).instead == "data.year=2007 or data.year=2012"
    assert names(voc(tmp_path, year=2012)) == {"train": ["z", "w"]}


# -- what an annotation says ---------------------------------------------------------------------


def test_boxes_end_where_their_last_pixel_does(tmp_path):
    written = xml(("cat", 3, 5, 10, 20), ("dog", 1, 1, 1, 1), ("dog", "2.5", 1, 30, "20.4", 1))
    module = voc(release(tmp_path, {"val": "x y"}, x=written))
    first = module.annotated("train", "all")[0]
    assert first.size == (20, 30)
    assert first.boxes.tolist() == [[2, 4, 10, 20], [0, 0, 1, 1], pytest.approx([1.5, 0, 30, 20.4])]
    assert [module.classes[label] for label in first.labels] == ["cat", "dog", "dog"]
    assert first.difficult.tolist() == [False, False, True]
    region = module.objects("train", "all")[0].region(CLASSES.index("cat"))
    assert int(region.sum()) == 8 * 16  # pixels 3 to 10 and 5 to 20, both ends counted


def test_labels_are_those_of_the_largest_and_of_all_objects(tmp_path):
    written = {
        "x": xml(("cat", 1, 1, 5, 5), ("bus", 1, 1, 30, 20, 1), ("dog", 1, 1, 9, 9)),
        "y": xml(("bus", 1, 1, 5, 5, 1)),
        "z": xml(),
    }
    module = voc(release(tmp_path, {"val": "x y z"}, **written))
    assert module.parts["train"].labels.tolist() == [CLASSES.index("dog"), -1, -1]
    targets = module.targets("train", "all")
    assert targets.shape == (3, 20)
    shown = [
        {CLASSES[label]: int(row[label]) for label in row.nonzero().flatten().tolist()} for row in targets
    ]
    assert shown == [{"bus": -1, "cat": 1, "dog": 1}, {"bus": -1}, {}]


def test_an_image_is_given_whole_and_a_sample_is_its_central_square(tmp_path):
    folder = release(tmp_path, {"val": "x y"})
    module = VOC(augmentation=RGB, root=str(folder), image_size=20)
    module.setup()
    with Image.open(folder / "JPEGImages" / "y.jpg") as image:
        pixels = np.array(image)
    whole = module.original("train", "all", 1)
    np.testing.assert_array_equal(whole, pixels)
    np.testing.assert_array_equal(module.parts["train"].inputs[1], pixels[:, 5:25])
    assert module.original("train", "all", 1, shorter=10).shape == (10, 15, 3)


def test_annotations_are_part_of_the_fingerprint(tmp_path):
    before = voc(release(tmp_path, {"val": "x y"})).fingerprint()
    after = voc(release(tmp_path, {"val": "x y"}, x=xml(("dog", 1, 1, 11, 20)))).fingerprint()
    assert before != after


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (xml(("unicorn", 1, 1, 5, 5)), "'unicorn'"),
        (xml(("dog", 10, 1, 9, 5)), r"from \(9, 0\) to \(9, 5\) is empty or outside"),
        (xml(("dog", 10, 1, 32, 5)), r"to \(32, 5\) is empty or outside of its image of 30 x 20"),
        (xml(("dog", -1, 1, 9, 5)), r"from \(-2, 0\)"),
        (xml(("dog", 1, 1, "nan", 5)), "xmax is 'nan'"),
        (xml(("dog", 1, 1, "", 5)), "xmax is ''"),
        (xml(DOG).replace("bndbox", "box"), "there is no xmin"),
        (xml(DOG).replace("<name>dog</name>", ""), "no name"),
        (xml(DOG).replace("size", "sizes"), "there is no height"),
        (xml(DOG, size=(0, 0)), "0 x 0"),
        (xml(DOG, size=(40, 60)), "30 x 20 pixels, its annotation says 60 x 40"),
        ("<annotation><size>", "broken XML"),
    ],
)
def test_a_wrong_annotation_is_named(tmp_path, written, reason):
    error = wrong(release(tmp_path, {"val": "w x"}, x=written))
    assert re.search(reason, error.what), error.what
    assert "x.xml" in error.where


def test_a_box_may_overshoot_by_a_pixel(tmp_path):
    module = voc(release(tmp_path, {"val": "x y"}, x=xml(("dog", 0, 0, 31, 21))))
    assert module.objects("train", "all")[0].region(CLASSES.index("dog")).all()


def test_files_that_are_missing_are_named(tmp_path):
    folder = release(tmp_path, {"val": "x y z"})
    (folder / "JPEGImages" / "y.jpg").unlink()
    error = wrong(folder)
    assert "1 of 3 annotated images" in error.what
    assert "y.jpg" in error.what
    (folder / "Annotations" / "z.xml").unlink()
    assert "the image z has no annotation" in wrong(folder).what
    (folder / "JPEGImages").rename(folder / "images")
    assert "JPEGImages" in wrong(folder).what
    assert "holds no PASCAL VOC" in wrong(tmp_path / "VOC2007" / "images").what


@pytest.mark.parametrize(
    ("text", "reason"), [("x\ny\nx\n", "lines 1 and 3"), ("x 1\n", "of one class"), ("\n", "names no image")]
)
def test_a_list_that_cannot_be_meant_is_refused(tmp_path, text, reason):
    folder = release(tmp_path, {"val": "x y"})
    (folder / "ImageSets/Main/val.txt").write_text(text)
    error = wrong(folder)
    assert reason in error.what
    assert error.where.endswith("val.txt")


def test_an_image_is_in_one_part_alone(tmp_path):
    assert "x.jpg is annotated twice" in wrong(release(tmp_path, {"trainval": "x y", "test": "x"})).what


@pytest.mark.parametrize("annotated", [(20, 30), (30, 20)])
def test_an_image_that_its_exif_turns_fits_an_annotation_of_it_upright(tmp_path, annotated):
    folder = release(tmp_path, {"val": "x y"}, x=xml(("dog", 1, 1, 10, 10), size=annotated))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(0, 20, 30, 3)).save(folder / "JPEGImages" / "x.jpg", exif=exif)
    if annotated == (30, 20):
        assert voc(folder).original("train", "all", 0).shape == (30, 20, 3)
    else:
        error = wrong(folder)
        assert "20 x 30 pixels as it is to be seen, its annotation says 30 x 20" in error.what
        assert "x.jpg" in error.where


def test_a_damaged_image_is_named_or_left_out(tmp_path):
    folder = release(tmp_path, {"val": "x y z"}, z=xml(("cat", 1, 1, 10, 20)))
    (folder / "JPEGImages" / "y.jpg").write_bytes(b"no image")
    assert "y.jpg" in wrong(folder).what
    with pytest.warns(UserWarning, match="1 of 3 images"):
        module = voc(folder, on_error="skip")
    assert module.skipped == ("JPEGImages/y.jpg",)
    assert [one.name for one in module.annotated("train", "all")] == ["JPEGImages/x.jpg", "JPEGImages/z.jpg"]
    assert module.parts["train"].labels.tolist() == [CLASSES.index("dog"), CLASSES.index("cat")]


def test_an_image_that_changed_since_is_not_scored_with_the_old_boxes(tmp_path):
    folder = release(tmp_path, {"val": "x y"})
    module = voc(folder)
    write_image(folder / "JPEGImages" / "x.jpg", 0, (40, 60, 3))
    with pytest.raises(DataError, match="60 x 40 pixels, its annotation says 30 x 20"):
        module.original("train", "all", 0)


def test_real_images_have_all_their_objects_inside():
    root = real("VOCdevkit")
    module = voc(root)
    assert len(module.parts["train"]) == 100
    for index, image in enumerate(module.objects("train", "all")):
        assert tuple(module.original("train", "all", index).shape[:2]) == image.size
        assert all(image.region(label).any() for label in image.classes())
    assert torch.equal((module.targets("train", "all") == 1).any(dim=1), module.parts["train"].labels >= 0)


def test_an_annotation_can_be_read_alone(tmp_path):
    (tmp_path / "a.xml").write_text(xml(DOG))
    read = read_xml(tmp_path / "a.xml", tmp_path / "a.jpg")
    assert (read.size, list(read.names), list(read.boxes)) == ((20, 30), ["dog"], [(0, 0, 10, 20)])
