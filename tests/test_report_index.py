"""`scripts/report.py`: one page over many runs, and the page of one run again."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scarcely.errors import DataError
from scarcely.reports import index, write_report
from scarcely.reports.html import CAPTIONS
from tests.browser import Browser, find_browser
from tests.reports.runs import digits_run, results
from tests.reports.test_html import Page

EVIL = "a <b>&\"' #1?ü%41"


def begin(folder, *, method="lsdc", data="digits", seed=0, **config):
    """Write what a run has written before it is finished."""
    folder.mkdir(parents=True)
    config = {"method": {"name": method}, "data": {"name": data}, "seed": seed, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def finish(folder, acc=0.5, *, metrics=None, when=None, **changes):
    """Write a finished run with a report and two pictures."""
    begin(folder, **{key: changes[key] for key in ("method", "data", "seed") if key in changes})
    (folder / "figures").mkdir()
    for name in ("sizes", "confusion"):
        Image.new("RGB", (900, 300), "red" if name == "confusion" else "blue").save(
            folder / "figures" / f"{name}.png"
        )
    (folder / "report.html").write_text("<title>report</title>")
    content = results(metrics={"acc": acc} if metrics is None else metrics, **changes)
    (folder / "results.json").write_text(json.dumps(content))
    if when:
        os.utime(folder / "results.json", (when, when))
    return folder


class Index(Page):
    """The page as rows: heading → what a cell shows and is sorted by."""

    def __init__(self, path):
        self.heads, self.rows, self._cell = [], [], None
        self.source = path.read_text(encoding="utf-8")
        super().__init__(self.source)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        attrs = dict(attrs)
        if attrs.get("role") == "columnheader":
            self.heads.append({"name": "", **attrs})
            self._cell = self.heads[-1]
        elif attrs.get("role") == "row":
            self.rows.append([])
        elif attrs.get("role") in ("cell", "rowheader"):
            self.rows[-1].append({"name": "", **attrs})
            self._cell = self.rows[-1][-1]
        elif tag == "a" and self._cell is not None:
            self._cell["link"] = attrs["href"]

    def handle_data(self, data):
        super().handle_data(data)
        if self._cell is not None:
            self._cell["name"] += data.strip("\n")

    def handle_endtag(self, tag):
        super().handle_endtag(tag)
        if tag in ("td", "th"):
            self._cell = None

    def column(self, name):
        place = [head["name"] for head in self.heads].index(name) + 1
        return [row[place] for row in self.rows[1:]]


def page_of(*folders, out, metrics=()):
    _, notes = index.write_index([str(folder) for folder in folders], out, metrics)
    return Index(out), notes


@pytest.fixture
def runs(tmp_path):
    """Two sweeps, newest first as the page shows them."""
    root = tmp_path / "runs"
    finish(root / "sweep" / "c", 0.934, seed=2, when=3e9)
    finish(root / "sweep" / "b", 0.5, seed=10, when=2e9)
    finish(root / "sweep" / "a", metrics={"test/accuracy": 0.25}, method="supervised", when=1e9)
    return root


def test_a_row_tells_what_was_run_and_what_came_of_it(runs):
    page, notes = page_of(runs, out=runs / "index.html")
    assert notes == []
    assert [cell["name"] for cell in page.column("run")] == ["sweep/c", "sweep/b", "sweep/a"]
    assert [cell["name"] for cell in page.column("method")] == ["lsdc", "lsdc", "supervised"]
    assert [cell["name"] for cell in page.column("seed")] == ["2", "10", "0"]
    assert [cell["name"] for cell in page.column("ACC")] == ["93.4 %", "50.0 %", ""]
    assert [cell["name"] for cell in page.column("accuracy, test split")] == ["", "", "25.0 %"]
    assert {cell["name"] for cell in page.column("time")} == {"1 min 20 s"}
    assert {cell["name"] for cell in page.column("device")} == {"two cores"}
    assert [cell["name"][:4] for cell in page.column("last change")] == ["2065", "2033", "2001"]
    assert {cell["name"] for cell in page.column("state")} == {"finished"}


def test_cells_are_sorted_by_numbers_not_by_what_they_show(runs):
    page, _ = page_of(runs, out=runs / "index.html")
    assert [cell["data-sort"] for cell in page.column("ACC")] == ["0.934", "0.5", ""]
    assert {cell["data-sort"] for cell in page.column("time")} == {repr(8.31 + 71.9)}
    kinds = {head["name"]: (head["data-kind"], head["data-first"]) for head in page.heads}
    assert kinds["ACC"] == ("number", "descending")
    assert kinds["time"] == ("number", "ascending")
    assert [head["name"] for head in page.heads if "aria-sort" in head] == ["last change"]


def test_less_is_better_of_errors_and_comes_first(tmp_path):
    finish(tmp_path / "a", metrics={"test/ece": 0.2})
    page, _ = page_of(tmp_path, out=tmp_path / "index.html", metrics=["test/ece"])
    assert next(head for head in page.heads if head["name"] == "test/ece")["data-first"] == "ascending"


def test_every_picture_has_words_and_is_the_main_one_made_small(runs):
    page, _ = page_of(runs, out=runs / "index.html")
    assert [image["alt"] for image in page.images] == [
        "Confusion matrix: lsdc on digits, seed 2",
        "Confusion matrix: lsdc on digits, seed 10",
        "Confusion matrix: supervised on digits, seed 0",
    ]
    for image in page.images:
        picture = Image.open(io.BytesIO(b64decode(image["src"].partition("base64,")[2])))
        assert picture.size == (240, 80)
        assert (int(image["width"]), int(image["height"])) == (120, 40)
        red, _, blue = np.asarray(picture)[40, 120]
        assert red > 200 > 50 > blue


def test_nothing_is_asked_of_anywhere_and_one_script_may_run(runs):
    page, _ = page_of(runs, out=runs / "index.html")
    assert not re.search(r"(https?:)?//", re.sub(r"//[^\n]*|base64,[^\"]*", "", page.source))
    assert all(value.startswith(("data:image/jpeg;base64,", "./")) for value in page.loads)
    policy = re.search(r'Security-Policy" content="([^"]+)"', page.source)[1]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='$", policy)


def test_links_are_relative_to_the_page_and_name_any_folder(tmp_path):
    runs, elsewhere = tmp_path / EVIL, tmp_path / "pages"
    finish(runs / "run 1")
    elsewhere.mkdir()
    for out in (tmp_path / "index.html", runs / "index.html", elsewhere / "index.html"):
        page, _ = page_of(runs, out=out)
        (cell,) = page.column("run")
        address = urlsplit(cell["link"])
        assert (address.scheme, address.netloc, address.query, address.fragment) == ("", "", "", "")
        assert (out.parent / unquote(address.path)).resolve() == (runs / "run 1" / "report.html").resolve()


def test_names_from_outside_are_text(tmp_path):
    evil = '</script><img src=x onerror="alert(1)">&{{ 7 * 7 }}'
    finish(tmp_path / "x", method=evil, data=evil, environment={"device": evil})
    page, _ = page_of(tmp_path, out=tmp_path / "index.html")
    assert "onerror" not in {key for image in page.images for key in image}
    for name in ("method", "data", "device"):
        assert [cell["name"] for cell in page.column(name)] == [evil]
    assert page.source.count("</script>") == 1


def test_runs_that_are_not_finished_have_their_state(tmp_path):
    root = tmp_path / "runs"
    for name in ("failed", "killed", "running", "young"):
        begin(root / name, seed=3)
    for name in ("killed", "running"):
        text = "stage,epoch,loss\npretext,0,1.0\npretext,1,0.5\npretext,2,"
        (root / name / "metrics.csv").write_text(text)
    (root / "failed" / index.FAILED).write_text("the disk is full\n  instead: free some space\n")
    with open(root / "running" / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        page, notes = page_of(root, out=tmp_path / "index.html")
    told = {run["name"]: cell["name"] for run, cell in zip(page.column("run"), page.column("state"))}
    assert told == {
        "runs/failed": "failed: the disk is full instead: free some space",
        "runs/killed": "interrupted after epoch 3 of pretext",
        "runs/running": "running after epoch 3 of pretext",
        "runs/young": "interrupted",
    }
    assert notes == []
    assert {cell["name"] for cell in page.column("seed")} == {"3"}
    assert page.images == []
    assert all("link" not in cell for cell in page.column("run"))


def test_a_fast_run_is_marked(tmp_path):
    folder = finish(tmp_path / "a")
    (folder / "config.yaml").write_text("fast: true\n")
    page, _ = page_of(tmp_path, out=tmp_path / "index.html")
    assert [cell["name"] for cell in page.column("state")] == ["fast run"]


@pytest.mark.parametrize(
    "damage",
    [
        ("results.json", '{"method": "lsdc", "met'),
        ("results.json", "[1, 2]"),
        ("results.json", '{"metrics": [1]}'),
        ("results.json", '{"stages": [1]}'),
        ("results.json", b"\xff\xfe\x00"),
        ("config.yaml", "a: [1"),
    ],
)
def test_a_corrupt_folder_is_named_and_skipped(runs, damage):
    name, content = damage
    path = runs / "sweep" / "b" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    page, (note,) = page_of(runs, out=runs / "index.html")
    assert str(path.parent) in note
    assert "cannot be read" in note
    assert [cell["name"] for cell in page.column("run")] == ["sweep/c", "sweep/a"]
    assert note in page.text, "a reader of the page sees it too"


def test_a_picture_that_is_none_costs_the_picture_alone(runs):
    (runs / "sweep" / "b" / "figures" / "confusion.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    page, _ = page_of(runs, out=runs / "index.html")
    assert len(page.rows) == 4
    assert len(page.images) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
KEYS = ("method", "data", "seed", "protocol", "environment", "domains", "expected", "samples")


@given(
    known=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
    metrics=st.dictionaries(st.sampled_from(("acc", "test/ece", "pointing/norm_grad/a/all", "?")), JSON),
    stages=st.lists(st.dictionaries(st.sampled_from(("seconds", "name")), JSON, max_size=2), max_size=2),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_results_break_the_page(tmp_path, known, metrics, stages):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    content = {**known, "metrics": metrics, "stages": stages}
    (folder / "results.json").write_text(json.dumps(content))
    page, _ = page_of(tmp_path / "runs", out=tmp_path / "index.html")
    assert len(page.rows) == 2


def test_settings_are_those_in_which_runs_of_one_method_and_data_differ(tmp_path):
    for name, k in (("a", 10), ("b", 20)):
        begin(tmp_path / "r" / name, seed=k, labeler={"k": k, "same": 1})
    begin(tmp_path / "r" / "other", method="kmeans")
    page, _ = page_of(tmp_path / "r", out=tmp_path / "index.html")
    found = {run["name"]: cell["name"] for run, cell in zip(page.column("run"), page.column("settings"))}
    assert found == {"r/a": "labeler.k = 10", "r/b": "labeler.k = 20", "r/other": ""}


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(DataError, match="there is no run in"):
        index.write_index([str(tmp_path)], tmp_path / "index.html")


# -- the command, and one run again --------------------------------------------------------------


def test_the_command_writes_beside_the_runs_and_names_what_it_left_out(runs, capsys):
    (runs / "sweep" / "b" / "results.json").write_text("{")
    assert index.main([str(runs)]) == 0
    assert "2 runs" in Index(runs / "index.html").text
    assert str(runs / "sweep" / "b") in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["out=there.txt"], ["out=none/index.html"], ["metrics=nix"], ["oout=x"]]
)
def test_wrong_settings_are_told(runs, arguments, capsys):
    assert index.main([str(runs), *arguments]) == 2
    assert arguments[0].partition("=")[0] in capsys.readouterr().err
    assert not (runs / "index.html").exists()


def keep(run):
    """Write what a run keeps of itself, its report included."""
    run.save()
    (run.run_dir / "results.json").write_text(json.dumps(run.results))
    write_report(run)


def test_one_run_is_drawn_again_with_the_pictures_of_images_that_it_no_longer_has(tmp_path, capsys):
    keep(digits_run(tmp_path, 20, features=None, confidence=None, history=[]))
    before = Page((tmp_path / "report.html").read_text())
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    (tmp_path / "report.html").unlink()
    assert index.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    after = Page((tmp_path / "report.html").read_text())
    assert [image["alt"] for image in after.images] == [image["alt"] for image in before.images]
    assert after.text.count(CAPTIONS["montage"].sentence) == 1
    assert (tmp_path / "figures" / "montage.png").read_bytes() == pictures["montage.png"]


def test_a_run_that_is_not_finished_has_no_page_of_its_own(tmp_path, capsys):
    begin(tmp_path / "a")
    assert index.main([str(tmp_path / "a")]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_neither_page_needs_torch(tmp_path):
    keep(digits_run(tmp_path / "a", 20, features=None, confidence=None, history=[], images=None))
    code = (
        "import sys; from scarcely.reports.index import main;"
        f"codes = main([{str(tmp_path)!r}]), main([{str(tmp_path / 'a')!r}]);"
        "sys.exit(f'{codes}, torch: {\"torch\" in sys.modules}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "(0, 0), torch: False"


# -- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no browser: SCARCELY_BROWSER, chromium on the PATH, or playwright's")
    with Browser(path) as opened:
        yield opened


WIDE = "document.documentElement.scrollWidth"
SHOWN = '[...document.querySelectorAll("tbody tr:not([hidden]) th")].map(e => e.textContent)'
SORTED = '[...document.querySelectorAll("[aria-sort]")].map(e => e.textContent + " " + e.ariaSort)'


def open_quietly(browser, path, width=1200, **options):
    browser.open(path, width, **options)
    assert browser.problems == []
    assert {urlsplit(address).scheme for address in browser.requests} == {"file"}
    assert len(browser.requests) == 1, "the page itself"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_the_index_fits_any_width_and_asks_nobody(browser, runs, width):
    folder = finish(runs / ("long" * 30) / "b", method="method_of_a_long_name" * 4, metrics={"x/" * 40: 1.0})
    begin(folder.with_name("killed"))
    for i in range(30):
        finish(runs / f"more{i}")
    index.write_index([str(runs)], runs / "index.html", ["acc", "x/*"])
    for dark in (False, True):
        open_quietly(browser, runs / "index.html", width, dark=dark)
        assert browser.run(WIDE) == width


@pytest.mark.slow
def test_rows_are_sorted_by_mouse_and_by_keyboard(browser, runs):
    index.write_index([str(runs)], runs / "index.html")
    open_quietly(browser, runs / "index.html")
    assert browser.run(SORTED) == ["last change descending"]
    numbers = [head["name"] for head in Index(runs / "index.html").heads]
    seed = f"thead th:nth-of-type({numbers.index('seed') + 1}) button"
    browser.click(seed)
    assert (browser.run(SHOWN), browser.run(SORTED)) == (
        ["sweep/a", "sweep/c", "sweep/b"],
        ["seed ascending"],
    )
    browser.click(seed)
    assert (browser.run(SHOWN), browser.run(SORTED)) == (
        ["sweep/b", "sweep/c", "sweep/a"],
        ["seed descending"],
    )
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == numbers[numbers.index("seed") + 1] == "ACC"
    browser.press("Enter")
    best_first = ["sweep/c", "sweep/b", "sweep/a"]
    assert (browser.run(SHOWN), browser.run(SORTED)) == (best_first, ["ACC descending"])
    browser.press("Space")
    assert browser.run(SHOWN) == ["sweep/b", "sweep/c", "sweep/a"], "what has no score stays last"


@pytest.mark.slow
def test_words_that_are_typed_keep_the_rows_that_have_them_all(browser, runs):
    index.write_index([str(runs)], runs / "index.html")
    open_quietly(browser, runs / "index.html")
    browser.click("#filter")
    browser.press(*"LSDC", "Space", *"93")
    assert browser.run(SHOWN) == ["sweep/c"]
    assert browser.run('document.querySelector("[role=status]").textContent') == "1 of 3 runs"
    browser.press(*["Backspace"] * 7)
    assert len(browser.run(SHOWN)) == 3


@pytest.mark.slow
def test_a_link_leads_to_the_report(browser, tmp_path):
    finish(tmp_path / EVIL)
    index.write_index([str(tmp_path)], tmp_path / "index.html")
    open_quietly(browser, tmp_path / "index.html")
    assert browser.run('document.querySelectorAll("tbody a").length') == 2
    browser.click("tbody th a")
    assert browser.run("new Promise(done => setTimeout(() => done(document.title), 500))") == "report"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_a_report_fits_any_width_and_asks_nobody(browser, tmp_path, width):
    long = "of_a_long_name_" * 12
    run = digits_run(
        tmp_path, 40, features=None, results=results(method=long, command=f"train.py data.root=/{long}")
    )
    run.results["metrics"] |= {f"test/{long}": 0.5}
    write_report(run)
    for dark in (False, True):
        open_quietly(browser, tmp_path / "report.html", width, dark=dark)
        assert browser.run(WIDE) == width
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth && i.alt)")
