"""Every picture can be made of every run, and shows what it says."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scarcely.reports import build_figures, figures
from scarcely.reports.evidence import confusion_counts
from scarcely.reports.figures import style
from tests.reports.runs import cycles, digits_run, discovery_run, history, random_run, scarce_run


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(figures.to_png(figure))).convert("RGB"))


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


# --- Matching


@pytest.mark.parametrize(("classes", "clusters"), [(1, 1), (4, 4), (3, 5), (5, 3), (1, 4), (4, 1)])
def test_the_diagonal_holds_as_many_samples_as_the_best_of_all_assignments(classes, clusters):
    rng = np.random.default_rng(classes * 10 + clusters)
    for _ in range(20):
        counts = rng.integers(0, 9, (classes, clusters))
        pairs = min(classes, clusters)
        best = max(
            sum(counts[row, column] for row, column in zip(rows, columns))
            for rows in itertools.combinations(range(classes), pairs)
            for columns in itertools.permutations(range(clusters), pairs)
        )
        matching = figures.match_clusters(counts)
        ordered = counts[np.ix_(matching.rows, matching.columns)]
        assert np.trace(ordered) == matching.right(counts) == best
        assert sorted(matching.rows) == list(range(classes))
        assert sorted(matching.columns) == list(range(clusters))


def test_left_over_clusters_come_last_the_largest_first():
    counts = np.array([[9, 1, 4, 0], [0, 2, 1, 8]])
    matching = figures.match_clusters(counts)
    assert matching.columns.tolist() == [0, 3, 2, 1]
    assert matching.class_of.tolist() == [0, -1, -1, 1]


def test_classes_without_a_cluster_come_last():
    matching = figures.match_clusters(np.array([[1, 0], [0, 0], [0, 5]]))
    assert matching.rows.tolist() == [0, 2, 1]


def test_a_classifier_is_not_matched():
    counts = np.array([[0, 9], [9, 0]])
    assert figures.match_clusters(counts, identity=True).right(counts) == 0
    assert figures.match_clusters(counts).right(counts) == 18


# --- Every figure of every run

RUNS = {
    "digits": lambda path: digits_run(path),
    "one class": lambda path: random_run(path, 40, 1, 3),
    "two clusters": lambda path: random_run(path, 40, 2, 2),
    "more clusters than classes": lambda path: random_run(path, 60, 3, 30),
    "fewer clusters than classes": lambda path: random_run(path, 60, 30, 3),
    "a hundred": lambda path: random_run(path, 300, 100, 100),
    "unlabelled": lambda path: random_run(path, 60, 3, 3, labels=None, classes=()),
    "labels all unknown": lambda path: random_run(path, 60, 3, 3, labels=np.full(60, -1)),
    "half unlabelled": lambda path: random_run(path, 60, 3, 3, labels=np.arange(60) % 4 - 1),
    "an empty cluster": lambda path: random_run(path, 60, 3, 3, num_clusters=5),
    "one sample": lambda path: random_run(path, 1, 1, 1),
    "one sample of ten clusters": lambda path: random_run(path, 1, 10, 1, num_clusters=10),
    "no sample": lambda path: random_run(path, 0, 2, 2),
    "no confidence": lambda path: random_run(path, 60, 3, 3, confidence=None),
    "confidence not finite": lambda path: random_run(path, 60, 3, 3, confidence=np.full(60, np.nan)),
    "grey images": lambda path: random_run(path, 60, 3, 3, images=np.zeros((60, 9, 5, 1), np.uint8)),
    "large images": lambda path: random_run(path, 6, 2, 2, images=np.zeros((6, 300, 100, 3), np.uint8)),
    "no image": lambda path: random_run(path, 60, 3, 3, images=None),
    "classifier": lambda path: random_run(path, 60, 3, 3, kind="classification"),
    "unlabelled classifier": lambda path: random_run(path, 60, 3, 3, kind="classification", labels=None),
    "history not finite": lambda path: random_run(
        *(path, 60, 3, 3),
        history=[*history(), {"stage": "clustering", "epoch": 6, "loss": float("nan"), "acc": np.inf}],
    ),
    "one epoch": lambda path: random_run(path, 60, 3, 3, history=history(1)[2:]),
    "odd names": lambda path: random_run(
        path, 60, 3, 3, classes=("$\\frac$ and much more of it", "_hidden", "\udcff\n漢")
    ),
    "test split": lambda path: random_run(path, 60, 3, 3, test={"counts": np.eye(3, dtype=int) * 7}),
    "discovery": lambda path: discovery_run(path),
    "discovery without hidden classes": lambda path: discovery_run(
        *(path,), labels=np.full(120, -1), classes=(), test=None
    ),
    "discovery of too few clusters": lambda path: discovery_run(
        path, predicted=np.arange(120) % 2, num_clusters=2, test={"counts": np.ones((10, 7), int)}
    ),
    "discovery with two features": lambda path: discovery_run(
        *(path,),
        features=np.arange(240.0).reshape(120, 2),
        old_features=np.arange(240.0).reshape(120, 2),
        snapshots={"epochs": np.array([0, 1]), "features": np.zeros((2, 4, 2)), "index": np.arange(4)},
    ),
    "estimated number": lambda path: discovery_run(
        path, results={"class_count": {"num_new": 2, "candidates": [1, 2], "silhouette": [None, 0.5]}}
    ),
    "few labels": lambda path: scarce_run(path),
    "few labels, one cycle": lambda path: scarce_run(
        path, history=cycles(1), switched_in=np.zeros(100, int), test_confidence=np.ones(200)
    ),
    "few labels, many cycles": lambda path: scarce_run(path, history=cycles(40), labels=np.full(100, -1)),
    "few labels, nothing known": lambda path: scarce_run(
        *(path,),
        history=[{"stage": "alternating", "epoch": e, "cycle": e, "pseudo/switched": 0.0} for e in (0, 1)],
        labels=None,
        confidence=None,
        test_confidence=np.full(200, np.nan),
    ),
    "few labels, one switch and a large image": lambda path: random_run(
        *(path, 6, 2, 2),
        kind="classification",
        images=np.zeros((6, 300, 100, 3), np.uint8),
        switched_in=np.arange(6) // 5,
        classes=("$a much too long name of a class$", "_b"),
    ),
    "empty test split": lambda path: random_run(path, 60, 3, 3, test={"counts": np.zeros((3, 3), int)}),
}


@pytest.mark.filterwarnings("error", "ignore:Glyph")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "a hundred")) for name in RUNS]
)
def test_no_run_is_too_odd_for_its_figures(name, tmp_path, caplog):
    made = build_figures(RUNS[name](tmp_path))
    assert not caplog.records, "a figure was replaced by a note"
    for figure in made.values():
        assert pixels(figure).std() > 1, "an empty sheet"
        box, dpi = figure.get_tightbbox(figure.canvas.get_renderer()), figure.dpi
        assert min(box.x0, box.y0) * dpi > -2, "cut off on the left or below"
        assert box.x1 * dpi < figure.bbox.x1 + 2, "cut off on the right"
        assert box.y1 * dpi < figure.bbox.y1 + 2, "cut off above"


def test_a_full_run_shows_every_figure_in_order_of_interest(tmp_path):
    run = digits_run(tmp_path, test={"counts": np.eye(10, dtype=int)})
    assert list(build_figures(run)) == [
        *("confusion", "confident", "test-confusion", "sizes", "montage", "embedding", "pairs", "curves")
    ]


def test_no_title_lies_over_its_figure_or_leaves_the_sheet(tmp_path):
    made = build_figures(digits_run(tmp_path)) | {
        "page": figures.montage(np.zeros((9, 40, 40)), np.arange(9))[0]
    }
    for name, figure in made.items():
        figures.to_png(figure)
        box = figure._suptitle.get_window_extent()
        assert box.y1 <= figure.bbox.y1, name
        assert box.x0 >= 0, name
        for axes in figure.axes:
            assert axes.get_tightbbox().y1 <= box.y0 + 1, name


def test_a_pretext_shows_its_curves_alone(tmp_path):
    pretext = digits_run(tmp_path, kind="pretext", predicted=None, confidence=None, labels=None, images=None)
    pretext.features = None
    pretext.history = history()[:3]
    assert list(build_figures(pretext)) == ["curves"]


def test_a_figure_that_fails_is_replaced_by_its_reason(tmp_path, caplog):
    run = digits_run(tmp_path, images=np.array(["no image"] * 100), features=None)
    made = build_figures(run)
    assert "could not be drawn" in " ".join(texts(made["montage"]))
    assert "montage" in caplog.text
    assert {"confusion", "curves"} <= set(made)


# --- What they show


def test_confusion_writes_the_matched_counts_on_the_diagonal():
    figure = figures.confusion(np.array([[1, 40], [30, 2]]), ("cat", "dog"))
    cells = {t.get_position(): t.get_text() for t in figure.axes[0].texts}
    assert cells == {(0, 0): "40", (1, 0): "1", (0, 1): "2", (1, 1): "30"}
    assert "95.9 % of 73" in figures.headline(figure)


def test_cells_have_numbers_up_to_twenty_classes_only():
    rng = np.random.default_rng(0)
    for number, written in ((10, 100), (20, 400), (21, 0), (100, 0)):
        figure = figures.confusion(rng.integers(1, 9, (number, number)))
        assert len(figure.axes[0].texts) == written


def test_nothing_counted_is_no_confusion():
    assert figures.confusion(np.zeros((3, 3), int)) is None
    assert figures.confusion(np.zeros((0, 3), int)) is None


def test_confident_title_tells_share_and_accuracy_under_the_matching_of_all():
    # Cluster 1 is class 0 for all samples together, though the confident ones alone would say otherwise.
    labels = np.array([0] * 8 + [1] * 2)
    predicted = np.array([1] * 8 + [1, 0])
    confidence = np.array([0.5] * 7 + [0.95] + [0.95, 0.95])
    figure = figures.confident_confusion(predicted, confidence, labels, ("a", "b"), 2)
    assert "30.0 % of the samples" in figures.headline(figure)
    assert "66.7 % of these right" in figures.headline(figure)


def test_no_confident_sample_is_said():
    figure = figures.confident_confusion(np.zeros(3, int), np.full(3, 0.4), np.zeros(3, int))
    assert any("No labelled sample" in text and "0.40" in text for text in texts(figure))


@pytest.mark.parametrize("classes", [3, 30])
def test_bars_add_up_to_the_cluster_sizes(classes):
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 4, 200), rng.integers(-1, classes, 200)
    axes = figures.cluster_sizes(predicted, labels, (), 5).axes[0]
    heights = np.zeros(5)
    for bar in axes.patches:
        heights[round(bar.get_x() + bar.get_width() / 2)] += bar.get_height()
    order = figures.match_clusters(confusion_counts(labels, predicted, 0, 5)).columns
    np.testing.assert_array_equal(heights, np.bincount(predicted, minlength=5)[order])
    assert sum(text.get_text() == "empty" for text in axes.texts) == 1


def test_plane_features_are_drawn_where_they_are():
    points = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    axes = figures.embedding(points, np.zeros(50, int)).axes[0]
    np.testing.assert_allclose(np.sort(axes.collections[0].get_offsets(), axis=0), np.sort(points, axis=0))


def test_embedding_is_the_same_for_the_same_seed():
    features = np.random.default_rng(0).normal(size=(40, 6))
    options = {"limit": 30, "iterations": 250}
    first, again, other = (
        figures.embedding(features, seed=seed, **options).axes[0].collections[0].get_offsets()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert len(first) == 30
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("kind", ["constant", "random", "one column", "huge", "twins"])
def test_embedding_of_few_or_dull_features_is_finite(number, kind):
    random = np.random.default_rng(0).normal(size=(number, 5))
    features = {
        "constant": np.full((number, 5), 3.0),
        "random": random,
        "one column": random[:, :1],
        "huge": random * 1e30,
        "twins": np.repeat(random[:1], number, axis=0) + (np.arange(number) > 2)[:, None],
    }[kind]
    figure = figures.embedding(features, iterations=250)
    assert np.isfinite(figure.axes[0].collections[0].get_offsets()).all()


def test_features_that_are_not_finite_are_left_out():
    features = np.ones((4, 2))
    features[1] = np.nan
    assert len(figures.embedding(features).axes[0].collections[0].get_offsets()) == 3
    assert figures.embedding(np.full((4, 2), np.inf)) is None
    assert figures.embedding(np.zeros((0, 4))) is None


class Watched:
    """Images that remember which of them were read; a pixel holds the index."""

    def __init__(self, number):
        self.number, self.read = number, []

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        self.read.append(index)
        return np.full((50, 50, 3), index, dtype=np.uint8)


def test_montage_reads_the_shown_images_alone_and_in_file_order():
    images = Watched(200)
    figures.montage(images, np.arange(200) % 2, np.linspace(0, 1, 200), 2)
    assert images.read == sorted(set(images.read))
    assert len(images.read) == 2 * (9 + 5)


def test_montage_rows_go_from_the_most_to_the_least_confident():
    (figure,) = figures.montage(Watched(100), np.zeros(100, int), np.linspace(0, 1, 100), 1)
    row = pixels(figure)[54 + 28, 150:, 0]
    shown = [value for value, run in itertools.groupby(row.tolist()) if value != 255 and len(list(run)) == 50]
    assert shown == [99, 98, 97, 96, 95, 94, 93, 92, 91, 0, 1, 2, 3, 4]


def test_montage_frames_the_errors_in_red():
    images = np.zeros((20, 50, 50, 1), np.uint8)
    labels = np.array([0] * 19 + [1])
    red = (np.array([0xBD, 0x1F, 0x01]),)
    for truth, framed in ((labels, True), (np.zeros(20, int), False), (None, False)):
        (page,) = figures.montage(images, np.zeros(20, int), np.linspace(1, 0, 20), 1, truth, ("a", "b"))
        assert (pixels(page) == red).all(axis=-1).any() == framed


def test_montage_is_split_in_pages():
    predicted = np.arange(200) % 100
    images = np.zeros((200, 4, 4, 3), np.uint8)
    pages = figures.montage(images, predicted, None, 100, rows_per_page=30)
    assert len(pages) == 4
    assert "page 4 of 4" in figures.headline(pages[3])
    assert len(figures.montage(images, predicted, None, 500, most_rows=40)) == 2


def test_connections_count_each_pair_once_and_no_self_pair():
    adjacency = np.eye(4, dtype=bool)
    adjacency[0, 1] = adjacency[1, 0] = adjacency[2, 3] = adjacency[3, 0] = True
    points = np.random.default_rng(0).normal(size=(4, 2))
    figure = figures.connections(points, {"kNN": adjacency}, np.array([0, 0, 1, 1]))
    assert "kNN: 3 edges, 66.7 % right" in [axes.get_title(loc="left") for axes in figure.axes]
    assert "kNN: 3 edges" in [
        axes.get_title(loc="left") for axes in figures.connections(points, {"kNN": adjacency}).axes
    ]
    assert "no points" in " ".join(texts(figures.connections(np.zeros((0, 2)), {})))


def test_every_stage_has_its_own_line_and_its_own_epochs():
    loss = figures.curves(history()).axes[0]
    lines = [line for line in loss.lines if line.get_color() == style.TEN[0] and line.get_linewidth() > 1]
    assert [len(line.get_xdata()) for line in lines] == [3, 6]
    assert lines[0].get_xdata()[-1] < lines[1].get_xdata()[0]
    labels = [label.get_text() for label in loss.get_xticklabels()]
    assert labels.count("0") == 2
    assert {"epoch of rotnet", "epoch of clustering"} <= set(texts(loss.figure))


def test_an_epoch_that_was_run_again_counts_once():
    rows = [*history(), {"stage": "clustering", "epoch": 5, "loss": 123.0}]
    loss = figures.curves(rows).axes[0]
    drawn = np.concatenate([line.get_ydata() for line in loss.lines if line.get_color() == style.TEN[0]])
    assert 123.0 in drawn
    assert len(drawn) == len(history())


def test_values_that_are_not_finite_are_marked_and_told():
    rows = history()
    rows[4]["loss"] = float("nan")
    figure = figures.curves(rows)
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert len(crosses) == 1
    assert "1 value not finite" in figures.headline(figure)


def test_nothing_measured_is_no_curve():
    for rows in ([], [{"stage": "a", "epoch": 0}], [{"stage": "a", "epoch": 0, "loss": float("nan")}]):
        assert figures.curves(rows) is None
        assert figures.pseudo_labels(rows) is None


def test_pseudo_labels_leave_out_stages_without_pairs():
    figure = figures.pseudo_labels(history())
    assert "epoch of rotnet" not in texts(figure)
    assert "positive 10.0 %, precision 90.0 % at the end" in figures.headline(figure)


@pytest.mark.parametrize("size", [1, 2, 10, 11, 20, 100])
def test_colours_are_different_and_darker_than_paper(size):
    colors = figures.palette(size)
    assert colors.shape == (size, 3)
    assert ((colors >= 0) & (colors <= 1)).all()
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + np.eye(size)
    assert apart.min() > 0.02
    assert (colors.mean(axis=1) < 0.9).all()


# --- Nothing shared


def test_figures_drawn_in_threads_equal_those_drawn_alone(tmp_path):
    rows = [row | {"loss/tiny": 1e-6} for row in history()]  # a logarithmic axis too
    run = digits_run(tmp_path, features=None, images=None, labels=None, history=rows)

    def draw():
        return {name: figures.to_png(figure) for name, figure in build_figures(run).items()}

    alone = draw()
    with ThreadPoolExecutor(2) as pool:
        assert all(job.result() == alone for job in [pool.submit(draw) for _ in range(2)])


def test_the_package_loads_nothing_heavy_and_never_pyplot(tmp_path):
    code = """
import sys
import scarcely.reports
heavy = {"matplotlib", "sklearn", "scipy", "PIL", "jinja2", "rich", "torch", "omegaconf"} & set(sys.modules)
assert not heavy, heavy
from pathlib import Path
from tests.reports.runs import digits_run
scarcely.reports.write_report(digits_run(Path(sys.argv[1]), 30))
assert not {"matplotlib.pyplot", "torch"} & set(sys.modules)
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
