"""The page is one file, safe to open, and says what the run reached."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from scarcely.errors import WriteError
from scarcely.reports import build_figures, write_report
from scarcely.reports.html import CAPTIONS, Caption
from tests.reports.runs import digits_run, discovery_run, random_run, results, scarce_run

VOID = {"meta", "img", "br", "link", "hr", "input"}
LOADS = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """Collect what a browser would see; fail on tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.images, self.loads, self.tags, self.text = [], [], [], set(), ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for key, value in attrs if key in LOADS]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(run, **options):
    return write_report(run, **options).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = digits_run(folder, features=None)
    return folder, report(run), Page((folder / "report.html").read_text())


def test_page_is_whole_and_asks_nobody(page):
    _, source, parsed = page
    assert parsed.loads
    assert all(value.startswith("data:image/png;base64,") for value in parsed.loads)
    assert not {"script", "link", "iframe", "object"} & parsed.tags
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_every_picture_has_words_and_is_the_file_beside(page):
    folder, _, parsed = page
    assert len(parsed.images) == 6
    files = {path.read_bytes() for path in (folder / "figures").glob("*.png")}
    for image in parsed.images:
        assert len(image["alt"]) > 20
        assert base64.b64decode(image["src"].split(",")[1]) in files


def test_page_says_what_was_reached_and_how(page):
    _, _, parsed = page
    for part in (
        *("lsdc on digits, seed 0", "python train.py method=lsdc data=digits seed=0", "93.4 %", "79.1 %"),
        *("Hungarian", "scored on the same samples", "from the cache", "1 min 12 s", "two cores", "k: 20"),
    ):
        assert part in parsed.text, part


def test_captions_are_one_sentence_each():
    for caption in CAPTIONS.values():
        assert re.fullmatch(r"[A-Z][^.]*(0\.9[^.]*)?\.", caption.sentence), caption


def test_the_page_of_a_discovery_tells_the_three_scores_and_both_baselines_apart(tmp_path):
    parsed = Page(report(discovery_run(tmp_path, snapshots=None, old_features=None)))
    for part in (
        *("ACC, each group assigned by itself", "ACC, all classes assigned at once", "nothing assigned"),
        *("test split: old and new classes", "trained on: new classes", "93.6 %"),
        *("k-means on raw inputs: 68.1 %", "k-means on the features before this stage: 65.1 %"),
        "unlabelled classes of the train split",
    ):
        assert part in parsed.text, part
    assert "test/old/acc_joint" not in parsed.text


def test_every_picture_of_a_discovery_has_its_caption(tmp_path):
    run = discovery_run(tmp_path)
    run.results["class_count"] = {"num_new": 5, "candidates": [4, 5], "silhouette": [0.1, 0.2]}
    names = set(build_figures(run))
    assert {"evolution", "old-new", "class-count", "test-confusion"} <= names <= set(CAPTIONS)


def test_the_page_of_few_labels_has_a_caption_for_each_picture_and_says_what_was_hidden(tmp_path):
    run = scarce_run(tmp_path)
    made = build_figures(run)
    assert {"phases", "calibration", "switched"} <= set(made) <= set(CAPTIONS)
    parsed = Page(report(run, figures=made))
    for part in (
        *("90.5 %", "error, test split", "9.5 %", "few samples have a label", "classifier gets wrong"),
        *("Pseudo-labels that switched last", "The two phases", "Calibration", "expected calibration error"),
    ):
        assert part in parsed.text, part
    facts = "".join(parsed.text.split("\n"))
    assert "labels per class5" in facts
    assert "labels hidden100" in facts
    assert "true class unknown" not in facts


def test_names_from_outside_are_text(tmp_path):
    evil = '<b>&"'
    run = random_run(
        *(tmp_path, 30, 2, 2),
        classes=(evil, "</style><script>alert(1)</script>"),
        config={"name": evil, "data": {"root": "</pre><script>"}},
        results=results(method=evil, command=f"python train.py name='{evil}'", protocol=evil, note=evil),
        features=None,
    )
    run.results["metrics"] = {evil: 0.5}
    run.results["environment"] = {evil: evil}
    run.results["stages"] = [{"name": evil, "seconds": 1}]
    source = report(run)
    parsed = Page(source)
    assert not {"b", "script"} & parsed.tags
    assert "&lt;b&gt;&amp;&#34;" in source
    assert parsed.text.count(evil) >= 8


def test_bytes_that_are_no_text_do_not_lose_the_page(tmp_path):
    run = random_run(tmp_path, 30, 2, 2, classes=("\udcff", "\x00"), features=None, config={"root": "\udcff"})
    run.results["command"] = "train.py data.root=\udcff"
    assert "train.py data.root=" in Page(report(run)).text


def test_a_page_that_cannot_be_written_leaves_no_part(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(WriteError, match=r"could not write report\.html"):
        write_report(digits_run(tmp_path), figures={})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_new_page_replaces_the_old_one(tmp_path):
    run = digits_run(tmp_path)
    write_report(run, figures={})
    run.results["method"] = "kmeans"
    assert "kmeans on digits" in report(run, figures={})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_method_can_add_pictures_of_its_own(tmp_path):
    run = digits_run(tmp_path, features=None, images=None, history=[])
    pictures = build_figures(run)
    pictures["saliency"] = pictures.pop("sizes")
    parsed = Page(
        report(run, figures=pictures, captions={"saliency": Caption("Saliency", "Red is looked at.")})
    )
    assert "Red is looked at." in parsed.text
    assert (tmp_path / "figures" / "saliency.png").exists()


def test_pages_of_a_montage_share_one_heading(tmp_path):
    run = random_run(tmp_path, 100, 50, 50)
    pages = {name: figure for name, figure in build_figures(run).items() if name.startswith("montage")}
    parsed = Page(report(run, figures=pages))
    assert (tmp_path / "figures" / "montage-3.png").exists()
    assert parsed.text.count(CAPTIONS["montage"].sentence) == 1


@pytest.mark.parametrize("fast", [True, False])
def test_a_fast_run_is_marked_as_such(tmp_path, fast):
    run = digits_run(tmp_path, config={"fast": fast})
    assert ("mean nothing" in Page(report(run, figures={})).text) == fast


def test_an_empty_run_still_has_a_page(tmp_path):
    run = digits_run(
        *(tmp_path, 0),
        config={},
        results={},
        history=[],
        images=None,
        features=None,
        predicted=None,
        confidence=None,
        labels=None,
    )
    parsed = Page(report(run))
    assert "run on unknown data" in parsed.text
    assert parsed.images == []


def test_unlabelled_samples_are_counted(tmp_path):
    run = random_run(tmp_path, 30, 2, 2, labels=np.full(30, -1), features=None)
    assert "true class unknownof 30" in "".join(Page(report(run, figures={})).text.split("\n"))
