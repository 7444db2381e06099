import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely.data.imagefolder import EXTENSIONS, ImageFolder, list_images, scan
from scarcely.errors import ConfigError, DataError

from .files import GREY, RGB, noise, real, write_image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path_factory.mktemp("cache")))


def fill(root: Path, *files: str) -> Path:
    for number, file in enumerate(files):
        write_image(root / file, seed=number)
    return root


def folder(root, **options) -> ImageFolder:
    module = ImageFolder(augmentation=options.pop("augmentation", RGB), root=str(root), size=8, **options)
    module.check()
    module.prepare_data()
    module.setup()
    return module


# Layouts


def test_class_folders_are_the_train_part_sorted_by_name(tmp_path):
    module = folder(fill(tmp_path, "dog/1.png", "cat/2.png", "cat/1.png", "bird/1.png"))
    assert module.classes == ("bird", "cat", "dog")
    assert set(module.parts) == {"train"}
    train = module.parts["train"]
    assert train.names == ("bird/1.png", "cat/1.png", "cat/2.png", "dog/1.png")
    assert train.labels.tolist() == [0, 1, 1, 2]
    for image, seed in zip(train.inputs, (3, 2, 1, 0), strict=True):
        np.testing.assert_array_equal(image, noise(seed, 8, 8, 3))


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation", "Test"])
def test_train_and_test_folders_share_their_classes(tmp_path, test):
    module = folder(fill(tmp_path, "train/a/1.png", "train/b/1.png", f"{test}/b/2.png"))
    assert module.classes == ("a", "b")
    assert module.parts["train"].labels.tolist() == [0, 1]
    assert module.parts["test"].labels.tolist() == [1]
    assert module.parts["test"].names == (f"{test}/b/2.png",)


def test_val_is_left_alone_beside_test(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "val/a/1.png", "notes/x/1.png")
    parts = folder(tmp_path).parts
    assert {part: samples.names for part, samples in parts.items()} == {
        "train": ("train/a/1.png", "train/b/1.png"),
        "test": ("test/a/1.png",),
    }


@pytest.mark.parametrize("spelling", ["unlabelled", "unlabeled"])
@pytest.mark.parametrize("train", ["train/", ""])
def test_unlabelled_images_are_a_part_and_no_class(tmp_path, spelling, train):
    fill(tmp_path, f"{train}a/1.png", f"{train}b/1.png", f"{spelling}/1.png", f"{spelling}/deep/2.png")
    module = folder(tmp_path)
    assert module.classes == ("a", "b")
    assert module.parts["unlabelled"].labels.tolist() == [-1, -1]
    assert len(module.parts["train"]) == 2


def test_a_flat_folder_has_no_labels(tmp_path):
    module = folder(fill(tmp_path, "b.png", "a.png", "c.png"))
    assert module.classes == ()
    assert module.parts["train"].labels.tolist() == [-1, -1, -1]
    assert module.parts["train"].names == ("a.png", "b.png", "c.png")


def test_unlabelled_training_images_may_have_a_labelled_test_part(tmp_path):
    module = folder(fill(tmp_path, "train/1.png", "train/2.png", "test/a/1.png", "test/b/1.png"))
    assert module.classes == ("a", "b")
    assert module.parts["train"].labels.tolist() == [-1, -1]
    assert module.parts["test"].labels.tolist() == [0, 1]


def test_a_class_may_be_called_train(tmp_path):
    module = folder(fill(tmp_path, "train/1.png", "bus/1.png", "test/1.png"))
    assert module.classes == ("bus", "test", "train")


def test_files_count_at_any_depth_below_their_class(tmp_path):
    classes, listings = scan(fill(tmp_path, "a/x/y/1.png", "a/2.png", "b/x/1.png"))
    assert classes == ("a", "b")
    assert listings["train"].files == ("a/2.png", "a/x/y/1.png", "b/x/1.png")
    assert listings["train"].labels == (0, 0, 1)


def test_only_visible_images_are_listed(tmp_path):
    fill(tmp_path, *(f"a/{ending}.{ending}" for ending in EXTENSIONS), "a/UPPER.PNG")
    for other in ("a/Thumbs.db", "a/._1.png", "a/.hidden.png", "a/notes.txt", "a/noending"):
        (tmp_path / other).write_text("x")
    fill(tmp_path, "a/.git/1.png", "__MACOSX/a/1.png", ".cache/1.png")
    classes, listings = scan(tmp_path)
    assert classes == ("a",)
    assert len(listings["train"].files) == len(EXTENSIONS) + 1


def test_names_may_have_spaces_and_any_letters(tmp_path):
    module = folder(fill(tmp_path, "große Kätzchen/bild 1 = ü.png", "狗/図 (2).png", "it's/a,b.png"))
    assert module.classes == ("große Kätzchen", "it's", "狗")
    np.testing.assert_array_equal(module.parts["train"].inputs[0], noise(0, 8, 8, 3))


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_names_need_not_be_utf8(tmp_path):
    fill(tmp_path, "a/1.png")
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png")).write_bytes(
        (tmp_path / "a/1.png").read_bytes()
    )
    assert len(folder(tmp_path).parts["train"]) == 2


@pytest.mark.parametrize("link", ["a/loop", "a/deep/loop", "a/self"])
def test_links_in_a_circle_end(tmp_path, link):
    fill(tmp_path, "a/1.png", "a/deep/2.png", "b/1.png")
    target = tmp_path / link if link == "a/self" else tmp_path / ("a" if link == "a/loop" else ".")
    (tmp_path / link).symlink_to(target, target_is_directory=True)
    _, listings = scan(tmp_path)
    assert listings["train"].files == ("a/1.png", "a/deep/2.png", "b/1.png")


def test_linked_folders_and_files_are_followed(tmp_path):
    fill(tmp_path / "store", "1.png", "2.png")
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/b").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "set/a/1.png").symlink_to(tmp_path / "store/1.png")
    assert scan(tmp_path / "set")[1]["train"].files == ("a/1.png", "b/1.png", "b/2.png")


def test_the_root_may_be_relative(tmp_path, monkeypatch):
    fill(tmp_path, "a/1.png", "b/deep/1.png")
    monkeypatch.chdir(tmp_path)
    assert scan(Path("."))[1]["train"].files == ("a/1.png", "b/deep/1.png")
    assert len(folder(".").parts["train"]) == 2
    monkeypatch.chdir(tmp_path / "a")
    assert list_images(Path(".."), Path("../b")) == ["b/deep/1.png"]


# Options


def test_grey_images_have_one_channel(tmp_path):
    module = folder(fill(tmp_path, "a/1.png", "b/1.png"), channels=1, augmentation=GREY)
    assert module.input_shape == (1, 8, 8)
    grey = np.asarray(Image.fromarray(noise(0, 8, 8, 3)).convert("L"))
    np.testing.assert_array_equal(module.parts["train"].inputs[0, ..., 0], grey)


def test_a_wrong_number_of_means_is_told_by_setup(tmp_path):
    with pytest.raises(ConfigError, match="1 channels"):
        folder(fill(tmp_path, "a/1.png", "b/1.png"), channels=1)


def test_images_of_any_size_become_squares(tmp_path):
    write_image(tmp_path / "a/1.png", shape=(30, 50, 3))
    write_image(tmp_path / "b/1.png", shape=(4, 3, 3))
    assert folder(tmp_path).parts["train"].inputs.shape == (2, 8, 8, 3)


def test_the_number_of_workers_changes_nothing(tmp_path, monkeypatch):
    fill(tmp_path, *(f"a/{number}.png" for number in range(150)))
    one = folder(tmp_path, workers=1).parts["train"].inputs
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "other"))
    assert torch.equal(one, folder(tmp_path, workers=4).parts["train"].inputs)


def test_skipped_files_are_counted_and_named(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "train/b/2.png", "test/a/1.png")
    (tmp_path / "train/b/1.png").write_text("not an image")
    with pytest.warns(UserWarning, match=r"1 of 3 images.*train/b/1\.png \(not an image\)"):
        module = folder(tmp_path, on_error="skip")
    assert module.skipped == ("train/b/1.png",)
    assert module.parts["train"].names == ("train/a/1.png", "train/b/2.png")
    assert module.parts["train"].labels.tolist() == [0, 1]
    assert len(module.parts["test"]) == 1


# What the user can mend


def test_a_root_must_be_given():
    with pytest.raises(DataError, match="needs the folder") as error:
        ImageFolder(augmentation=RGB).check()
    assert error.value.where == "data.root"


def test_a_missing_root_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*gone"):
        ImageFolder(augmentation=RGB, root=str(tmp_path / "gone")).check()


@pytest.mark.parametrize(("count", "found"), [(0, "no image"), (1, "only one image")])
@pytest.mark.parametrize("where", ["", "a/", "train/a/"])
def test_at_least_two_images_are_needed(tmp_path, count, found, where):
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    fill(tmp_path, *[f"{where}1.png"] * count)
    with pytest.raises(DataError, match=f"{found}; at least 2") as error:
        folder(tmp_path)
    assert "ROOT/CLASS" in str(error.value)


def test_two_images_of_which_one_is_bad_are_too_few(tmp_path):
    fill(tmp_path, "a/1.png", "a/2.png")
    (tmp_path / "a/2.png").write_text("x")
    with (
        pytest.warns(UserWarning, match="1 of 2 images"),
        pytest.raises(DataError, match=r"only one image \(1 could not"),
    ):
        folder(tmp_path, on_error="skip")


@pytest.mark.parametrize("base", ["", "train/"])
def test_images_beside_class_folders_are_refused(tmp_path, base):
    fill(tmp_path, f"{base}a/1.png", f"{base}b/1.png", f"{base}loose.png")
    with pytest.raises(DataError, match=r"loose\.png.*class folders \(such as a\)") as error:
        folder(tmp_path)
    assert "ROOT/CLASS/*.jpg" in error.value.instead


def test_an_empty_folder_beside_images_is_no_class(tmp_path):
    fill(tmp_path, "1.png", "2.png")
    (tmp_path / "empty").mkdir()
    assert folder(tmp_path).classes == ()


def test_an_empty_class_folder_is_named_or_allowed(tmp_path):
    fill(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match="hollow holds no image") as error:
        folder(tmp_path)
    assert "allow_empty=true" in error.value.instead
    assert folder(tmp_path, allow_empty=True).classes == ("a", "b")


def test_a_test_class_without_training_images_is_refused(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/c/1.png")
    with pytest.raises(DataError, match="test/c has no counterpart"):
        folder(tmp_path)


def test_a_test_folder_without_a_train_folder_is_refused(tmp_path):
    fill(tmp_path, "test/a/1.png", "test/b/1.png", "val/a/1.png")
    with pytest.raises(DataError, match="no folder train"):
        folder(tmp_path)


def test_two_spellings_of_one_part_are_refused(tmp_path):
    fill(tmp_path, "train/a/1.png", "Train/a/1.png")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes both for one")
    with pytest.raises(DataError, match="holds both Train and train"):
        folder(tmp_path)


@pytest.mark.parametrize(("name", "reason"), [("text.png", "not an image"), ("cut.jpg", "truncated")])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, name, reason):
    fill(tmp_path, "a/1.png", "b/1.png")
    if name == "text.png":
        (tmp_path / "b" / name).write_text("hello")
    else:
        write_image(tmp_path / "b" / name, shape=(64, 64, 3))
        data = (tmp_path / "b" / name).read_bytes()
        (tmp_path / "b" / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=f"b/{name}: .*{reason}") as error:
        folder(tmp_path)
    assert "on_error=skip" in error.value.instead


# Real images


def test_real_photographs_of_any_shape_are_read():
    photographs = real("VOCdevkit/VOC2012/JPEGImages")
    module = ImageFolder(augmentation=RGB, root=str(photographs), size=32)
    module.setup()
    assert len(module.parts["train"]) == len(list(photographs.iterdir()))
    assert module.parts["train"].inputs.float().std() > 30  # a grey area would be 0


# Two folders


def two(base: Path, **options) -> ImageFolder:
    folders = {"labelled": str(base / "known"), "unlabelled": str(base / "new")}
    module = ImageFolder(augmentation=RGB, size=8, **(folders | options))
    module.check()
    module.prepare_data()
    module.setup()
    return module


def test_one_folder_is_labelled_and_one_is_not(tmp_path):
    fill(tmp_path, "known/b/1.png", "known/a/1.png", "known/a/2.png", "new/1.png", "new/deep/a/1.png")
    module = two(tmp_path)
    assert module.classes == ("a", "b")
    assert (module.num_known, module.num_new) == (2, 0)
    assert {part: samples.names for part, samples in module.parts.items()} == {
        "train": ("known/a/1.png", "known/a/2.png", "known/b/1.png"),
        "unlabelled": ("new/1.png", "new/deep/a/1.png"),
    }
    assert module.parts["unlabelled"].labels.tolist() == [-1, -1]
    np.testing.assert_array_equal(module.parts["unlabelled"].inputs[1], noise(4, 8, 8, 3))
    assert module.pool("labelled", "all").names == module.parts["train"].names
    assert module.pool("unlabelled", "all") is module.parts["unlabelled"]
    assert len(module.pool("mixed", "all")) == 5


def test_the_labelled_folder_may_have_a_test_part(tmp_path):
    fill(tmp_path, "known/train/a/1.png", "known/train/b/1.png", "known/test/b/1.png", "new/1.png")
    module = two(tmp_path)
    assert module.parts["test"].names == ("known/test/b/1.png",)
    assert module.parts["test"].labels.tolist() == [1]
    assert len(module.pool("labelled", "split")) == 2


def test_two_folders_far_apart_and_relative_ones(tmp_path, monkeypatch):
    fill(tmp_path, "x/known/a/1.png", "x/known/b/1.png", "y/z/new/1.png")
    module = two(tmp_path, labelled=str(tmp_path / "x/known"), unlabelled=str(tmp_path / "y/z/new"))
    assert module.parts["train"].names == ("x/known/a/1.png", "x/known/b/1.png")
    assert module.parts["unlabelled"].names == ("y/z/new/1.png",)
    monkeypatch.chdir(tmp_path / "x")
    same = two(tmp_path, labelled="known", unlabelled="../y/z/new")
    assert same.parts["unlabelled"].names == ("y/z/new/1.png",)
    assert same.fingerprint() == module.fingerprint()


def test_two_folders_are_decoded_once(tmp_path, monkeypatch):
    fill(tmp_path, "known/a/1.png", "known/b/1.png", "new/1.png")
    first = two(tmp_path)
    monkeypatch.setattr("scarcely.data.decode.decode_image", None)
    assert two(tmp_path).fingerprint() == first.fingerprint()


@pytest.mark.parametrize(
    ("options", "message", "where"),
    [
        ({"labelled": None}, "without data.labelled", "data.labelled"),
        ({"unlabelled": None}, "without data.unlabelled", "data.unlabelled"),
        ({"root": "."}, "data.root is given beside", "data.root"),
        ({"labelled_classes": 1}, "are the known ones", "data.labelled_classes"),
    ],
)
def test_what_does_not_go_with_two_folders_is_refused(tmp_path, options, message, where):
    fill(tmp_path, "known/a/1.png", "known/b/1.png", "new/1.png")
    with pytest.raises(ConfigError, match=message) as error:
        two(tmp_path, **options)
    assert error.value.where == where


@pytest.mark.parametrize("key", ["labelled", "unlabelled"])
def test_each_missing_folder_is_told_by_its_key_before_anything_is_read(tmp_path, key):
    fill(tmp_path, "known/a/1.png", "known/b/1.png", "new/1.png")
    folders = {"labelled": str(tmp_path / "known"), "unlabelled": str(tmp_path / "new")}
    module = ImageFolder(augmentation=RGB, **(folders | {key: str(tmp_path / "gone")}))
    with pytest.raises(DataError, match=r"no folder .*gone") as error:
        module.check()
    assert error.value.where == f"data.{key}"


@pytest.mark.parametrize(
    ("known", "new", "message"),
    [
        ("known", "known", "the same folder"),
        ("known", "link", "the same folder"),
        ("known", "known/a", "one inside of the other"),
        ("known/a", "known", "one inside of the other"),
    ],
)
def test_folders_that_hold_each_other_are_refused_before_anything_is_read(tmp_path, known, new, message):
    fill(tmp_path, "known/a/b/1.png", "known/a/c/2.png")
    (tmp_path / "link").symlink_to(tmp_path / "known", target_is_directory=True)
    module = ImageFolder(augmentation=RGB, labelled=str(tmp_path / known), unlabelled=str(tmp_path / new))
    with pytest.raises(DataError, match=message) as error:
        module.check()
    assert "FOLDER/unlabelled" in str(error.value)


@pytest.mark.parametrize("linked", [False, True])
def test_a_labelled_image_among_the_unlabelled_ones_is_named(tmp_path, linked):
    fill(tmp_path, "known/a/1.png", "known/b/2.png", "new/1.png", "new/x/y.png")
    if linked:
        (tmp_path / "new/x/copy.png").symlink_to(tmp_path / "known/b/2.png")
    else:
        (tmp_path / "new/x/copy.png").write_bytes((tmp_path / "known/b/2.png").read_bytes())
    with pytest.raises(
        DataError, match=r"new/x/copy\.png is a copy of the labelled known/b/2\.png\n"
    ) as error:
        two(tmp_path)
    assert error.value.where == "data.unlabelled"
    (tmp_path / "new/z.png").write_bytes((tmp_path / "known/a/1.png").read_bytes())
    with pytest.raises(DataError, match="and 1 more"):
        two(tmp_path)


def test_files_of_one_size_and_one_end_are_no_copies(tmp_path):
    fill(tmp_path, "known/a/1.bmp", "known/b/1.bmp", "new/1.bmp")
    large = noise(7, 100, 100, 3)  # a BMP begins with its last row
    for file, value in (("known/a/2.bmp", 0), ("new/2.bmp", 255)):
        large[-1] = value
        Image.fromarray(large).save(tmp_path / file)
    tails = {(tmp_path / file).read_bytes()[-4096:] for file in ("known/a/2.bmp", "new/2.bmp")}
    assert len(tails) == 1
    assert len(two(tmp_path).parts["unlabelled"]) == 2


def test_a_labelled_folder_needs_class_folders(tmp_path):
    fill(tmp_path, "known/1.png", "known/2.png", "new/1.png")
    with pytest.raises(DataError, match="no class folders") as error:
        two(tmp_path)
    assert error.value.where == "data.labelled"
    fill(tmp_path, "known/train/1.png", "known/train/2.png", "known/test/a/1.png")
    for file in ("known/1.png", "known/2.png"):
        (tmp_path / file).unlink()
    with pytest.raises(DataError, match="no class folders"):
        two(tmp_path)


def test_a_labelled_folder_has_no_unlabelled_images_itself(tmp_path):
    fill(tmp_path, "known/a/1.png", "known/b/1.png", "known/unlabelled/1.png", "new/1.png")
    with pytest.raises(DataError, match=r"holds unlabelled images itself: unlabelled/1\.png"):
        two(tmp_path)


def test_an_unlabelled_folder_without_images_is_refused(tmp_path):
    fill(tmp_path, "known/a/1.png", "known/b/1.png")
    (tmp_path / "new").mkdir()
    with pytest.raises(DataError, match="holds no image") as error:
        two(tmp_path)
    assert error.value.where == "data.unlabelled"
    (tmp_path / "new/1.png").write_text("x")
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(DataError, match=r"\(1 could not"):
        two(tmp_path, on_error="skip")


@pytest.mark.parametrize(("file", "key"), [("known/b/1.png", "labelled"), ("new/1.png", "unlabelled")])
def test_a_bad_file_is_told_by_the_folder_it_lies_in(tmp_path, file, key):
    fill(tmp_path, "known/a/1.png", "known/b/2.png", "new/2.png")
    (tmp_path / file).write_text("hello")
    with pytest.raises(DataError, match=f"{file}: not an image") as error:
        two(tmp_path)
    assert error.value.where == f"data.{key}"
