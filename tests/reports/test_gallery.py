"""The gallery of predictions is one small page, safe to open, that counts every image."""

from __future__ import annotations

import base64
import io
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from scarcely.errors import WriteError
from scarcely.reports.gallery import SIDE, Group, by_label, by_likeliest, choose, percent, write_gallery
from tests.reports.test_html import Page

NAMES = [f"class {k}" for k in range(4)]


def noise(index, side):
    """Return the picture that compresses worst."""
    return np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)


def probabilities(images, classes, seed=0):
    rows = np.random.default_rng(seed).gamma(1.0, size=(images, classes))
    return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)


def page_of(folder, p, names=NAMES, files=None, picture=noise, groups=by_likeliest, **options):
    files = files or [f"{k}.png" for k in range(len(p))]
    path = write_gallery(folder / "g.html", groups(p, names), files, picture, title="images", **options)
    return path.read_text(encoding="utf-8")


@given(arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 5)), elements=st.floats(0, 1)))
def test_every_image_is_in_the_one_group_that_is_likeliest(p):
    groups = by_likeliest(p, [str(k) for k in range(p.shape[1])])
    assert sorted(np.concatenate([group.members for group in groups]).tolist()) == list(range(len(p)))
    for k, group in enumerate(groups):
        assert group.name == str(k)
        for image, confidence in zip(group.members, group.confidence, strict=True):
            assert k == list(p[image]).index(max(p[image]))
            assert confidence == max(p[image])


@given(arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 5)), elements=st.floats(0, 1)))
def test_an_image_is_in_every_group_above_one_half_or_in_the_last(p):
    *groups, without = by_label(p, [str(k) for k in range(p.shape[1])])
    for k, group in enumerate(groups):
        assert group.members.tolist() == [i for i in range(len(p)) if p[i, k] > 0.5]
        assert group.confidence.tolist() == [p[i, k] for i in group.members]
    assert without.members.tolist() == [i for i in range(len(p)) if max(p[i]) <= 0.5]
    assert without.confidence.tolist() == [1 - max(p[i]) for i in without.members]


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)), st.integers(1, 12))
def test_the_surest_and_the_least_sure_are_shown_and_none_twice(confidence, each):
    most, least = choose(confidence, each)
    shown = [*most.tolist(), *least.tolist()]
    assert len(set(shown)) == len(shown) == min(2 * each, len(confidence))
    descending = sorted(confidence, reverse=True)
    assert confidence[most].tolist() == descending[:each]
    assert confidence[least].tolist() == sorted(descending[each:])[:each]


def test_the_page_is_whole_asks_nobody_and_gives_every_picture_words(tmp_path):
    p = probabilities(100, 4)
    source = page_of(tmp_path, p)
    page = Page(source)
    assert len(page.images) == sum(min(24, count) for count in np.bincount(p.argmax(axis=1)))
    assert all(re.fullmatch(r"\d+\.png: class \d, [\d.]+ %", image["alt"]) for image in page.images)
    assert all(load.startswith(("data:image/", "#group-")) for load in page.loads)
    assert not {"script", "link", "iframe", "object"} & page.tags
    assert "url(" not in source
    assert "prefers-color-scheme: dark" in source
    targets = set(re.findall(r'<h2 id="([^"]+)"', source))
    assert {load[1:] for load in page.loads if load.startswith("#")} == targets


def test_the_numbers_count_all_images_and_the_page_says_how_many_are_shown(tmp_path):
    p = probabilities(1000, 4)
    p[:, 3] = 0  # nothing is of the last class
    text = " ".join(Page(page_of(tmp_path, p)).text.split())
    for k, count in enumerate(np.bincount(p.argmax(axis=1), minlength=4)[:3]):
        mean = p.max(axis=1)[p.argmax(axis=1) == k].mean()
        assert f"class {k}{count}{percent(count / 1000)}{percent(mean)}" in text
    assert "at most 12 of the surest and 12 of the least sure images of each" in text
    assert "Without any image: class 3." in text


@pytest.mark.parametrize(
    "name", ['a"onerror="alert(1).png', "<b>&amp;'.png", "été/日本.png", "a\udcff\n.png"]
)
def test_names_of_files_and_classes_are_text_whatever_they_hold(tmp_path, name):
    source = page_of(tmp_path, np.ones((1, 1)), names=[name], files=[name])
    page = Page(source)
    (image,) = page.images
    printable = name.replace("\udcff", "\ufffd").replace("\n", "\ufffd")
    assert set(image) == {"width", "height", "alt", "src"}
    assert image["alt"] == f"{printable}: {printable}, 100.0 %"
    assert page.text.count(printable) == 3  # in the table, above the images, below the image
    assert "<b>&" not in source


def test_a_hundred_thousand_images_of_noise_are_a_page_of_some_megabytes_and_few_are_read(tmp_path):
    rng = np.random.default_rng(0)
    predicted, confidence = rng.integers(0, 1000, 100_000), rng.random(100_000)
    groups = [
        Group(f"class {k}", i, confidence[i]) for k in range(1000) for i in [np.flatnonzero(predicted == k)]
    ]
    read = []

    def picture(index, side):
        read.append(index)
        return noise(index, side)

    files = [f"{k}.png" for k in range(100_000)]
    tracemalloc.start()
    try:
        page = write_gallery(tmp_path / "g.html", groups, files, picture, title="images")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    source = page.read_text(encoding="utf-8")
    assert len(source) < 8e6
    assert peak < 64e6  # all pictures would be 1.9 GB
    assert len(read) == len(set(read)) == 800
    assert "of the 400 largest of 1000 clusters or classes" in source
    assert source.count('scope="row"') == 1000


@pytest.mark.parametrize(("side", "kind"), [(8, "png"), (SIDE, "jpeg")])
def test_pictures_are_those_that_were_given(tmp_path, side, kind):
    pixels = np.full((side, side, 3), (200, 30, 90), dtype=np.uint8)
    (image,) = Page(page_of(tmp_path, np.ones((1, 1)), names=["x"], picture=lambda *_: pixels)).images
    assert image["src"].startswith(f"data:image/{kind};base64,")
    assert (image.get("class") == "sharp") == (side == 8)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))))
    assert shown.shape == pixels.shape
    assert abs(shown.astype(int) - pixels).max() <= (0 if kind == "png" else 4)


def test_a_share_is_all_or_nothing_only_if_it_is():
    assert [percent(x) for x in (0, 0.0004, 0.5, 0.9996, 1)] == [
        *("0.0 %", "< 0.1 %", "50.0 %", "> 99.9 %", "100.0 %")
    ]


def test_an_older_page_survives_one_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        page_of(tmp_path / "file", np.ones((1, 1)), names=["x"])
