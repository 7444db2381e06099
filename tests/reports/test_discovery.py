"""New classes beside known ones: what the pictures say of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scarcely.reports import Evidence, build_figures, figures
from scarcely.reports.figures import discovery
from tests.reports.runs import discovery_run
from tests.reports.test_evidence import finish
from tests.reports.test_figures import texts


def offsets(axes):
    return np.concatenate([c.get_offsets() for c in axes.collections])


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return build_figures(discovery_run(tmp_path_factory.mktemp("run")))


def test_a_discovery_run_has_pictures_of_its_own(made):
    assert list(made) == [
        *("confusion", "confident", "test-confusion", "sizes", "montage", "embedding"),
        *("evolution", "old-new", "pairs", "curves"),
    ]


def test_arrays_of_a_discovery_come_back_the_same(tmp_path):
    run = discovery_run(tmp_path)
    finish(tmp_path)
    run.save()
    np.savez(tmp_path / "snapshots.npz", **run.snapshots)
    back = Evidence.load(tmp_path)
    assert back.old_classes == run.old_classes
    assert back.test["classes"] == run.test["classes"]
    for key in ("old_features", "old_labels"):
        np.testing.assert_array_equal(getattr(back, key), getattr(run, key))
    for key, array in run.snapshots.items():
        np.testing.assert_array_equal(back.snapshots[key], array)


def test_snapshots_that_cannot_be_read_cost_their_picture_alone(tmp_path, caplog):
    finish(tmp_path)
    (tmp_path / "snapshots.npz").write_bytes(b"PK\x03\x04 cut off")
    assert Evidence.load(tmp_path).snapshots is None
    assert "snapshots.npz" in caplog.text


def test_known_features_need_as_many_labels(tmp_path):
    with pytest.raises(ValueError, match="features of known classes"):
        discovery_run(tmp_path, old_labels=np.zeros(3, int))


# --- Test split: old classes by name, new ones by their clusters


@pytest.mark.parametrize(("known", "classes", "columns"), [(2, 5, 5), (2, 5, 4), (1, 4, 7), (3, 3, 5)])
def test_known_classes_stay_and_new_ones_get_their_best_clusters(known, classes, columns):
    rng = np.random.default_rng(known)
    counts = rng.integers(0, 9, (classes, columns))
    matching = figures.match_old_new(counts, known)
    assert matching.rows[:known].tolist() == matching.columns[:known].tolist() == list(range(known))
    assert sorted(matching.rows) == list(range(classes))
    assert sorted(matching.columns) == list(range(columns))
    new = counts[known:, known:]
    pairs = min(new.shape)
    best = max(
        sum(new[row, column] for row, column in zip(rows, cols))
        for rows in itertools.combinations(range(new.shape[0]), pairs)
        for cols in itertools.permutations(range(new.shape[1]), pairs)
    )
    assert matching.right(counts) == np.trace(counts[:known, :known]) + best
    assert np.trace(counts[np.ix_(matching.rows, matching.columns)]) == matching.right(counts)


def test_the_test_split_shows_old_classes_first_and_by_name(made):
    axes = made["test-confusion"].axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert [row.split()[0] for row in rows[:5]] == columns[:5] == ["zero", "two", "four", "six", "eight"]
    assert [row.split()[0] for row in rows[5:]] == ["one", "three", "five", "seven", "nine"]
    assert sorted(columns[5:]) == [f"cluster {k}" for k in range(5)]
    assert "on the diagonal" in figures.headline(made["test-confusion"])


def test_an_old_class_that_is_called_by_another_name_is_off_the_diagonal():
    counts = np.array([[0, 9, 0], [9, 0, 0], [0, 0, 9]])
    both = figures.match_old_new(counts, 2)
    assert "33.3 % of 27" in figures.headline(figures.confusion(counts, "abc", matching=both))


def test_the_other_pictures_speak_of_the_new_classes_alone(made):
    rows = [label.get_text().split()[0] for label in made["confusion"].axes[0].get_yticklabels()]
    assert rows == ["one", "three", "five", "seven", "nine"]
    assert "new classes" in figures.headline(made["confusion"])
    names = set(texts(made["montage"]))
    assert {"one", "three", "five", "seven", "nine"} <= names
    assert "zero" not in names


# --- Evolution


def test_every_epoch_has_a_panel_of_the_same_samples_and_the_classes_come_apart(made, tmp_path):
    figure = made["evolution"]
    panels = titles(figure)
    assert [t.split(":")[0] for t in panels] == ["before the first epoch", "after 3 epochs", "after 6 epochs"]
    silhouettes = [float(t.split()[-1]) for t in panels]
    assert silhouettes == sorted(silhouettes)
    assert silhouettes[0] < silhouettes[-1]
    told = f"from {silhouettes[0]:.2f} to {silhouettes[-1]:.2f}"
    assert told in figures.headline(figure)
    assert {len(offsets(axes)) for axes in figure.axes} == {60}
    assert {"one", "three", "five", "seven", "nine"} <= set(texts(figure))


def test_silhouette_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    features, groups = rng.normal(size=(30, 4)), np.arange(30) % 3
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    scores = []
    for i, group in enumerate(groups):
        own = (groups == group) & (np.arange(30) != i)
        within = distances[i, own].mean()
        other = min(distances[i, groups == g].mean() for g in range(3) if g != group)
        scores.append((other - within) / max(other, within))
    unlabelled = np.concatenate([groups, [-1]])
    more = np.concatenate([features, np.full((1, 4), 99.0)])
    assert discovery._silhouette(more, unlabelled) == pytest.approx(np.mean(scores))


def test_each_panel_is_turned_to_fit_the_next(made):
    from scipy.linalg import orthogonal_procrustes

    panels = [offsets(axes) for axes in made["evolution"].axes]
    for panel, following in itertools.pairwise(panels):
        turn, _ = orthogonal_procrustes(panel, following)
        np.testing.assert_allclose(turn, np.eye(2), atol=1e-3)


def test_without_labels_the_clusters_give_the_colours(tmp_path):
    run = discovery_run(tmp_path)
    features, epochs = run.snapshots["features"], run.snapshots["epochs"]
    figure = figures.evolution(features, epochs, np.full(60, -1), run.predicted[:60])
    assert "clusters" in figures.headline(figure)
    assert "cluster 0" in texts(figure)


def test_one_moment_is_no_evolution():
    assert figures.evolution(np.zeros((1, 5, 3)), [0]) is None
    assert figures.evolution(np.full((2, 5, 3), np.nan), [0, 1]) is None
    assert figures.evolution(np.zeros((2, 0, 3)), [0, 1]) is None


# --- Old and new classes together


def two_kinds(overlap):
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 50, 3))
    far = new if overlap else new + 100
    return figures.OldNew(
        old, np.arange(50) % 2, far, np.arange(50) % 3, ("cat", "dog"), ("ant", "bee", "eel")
    )


def test_overlap_is_told_and_circles_and_triangles_are_equally_many():
    figure = figures.old_and_new({"": two_kinds(overlap=False)}, iterations=250)
    assert "0.0 % of nearest neighbours" in figures.headline(figure)
    circles, triangles = figure.axes[0].collections
    assert len(circles.get_offsets()) == len(triangles.get_offsets()) == 50
    assert len(circles.get_paths()[0].vertices) > len(triangles.get_paths()[0].vertices)
    assert {"cat", "dog", "ant", "bee", "eel"} <= set(texts(figure))
    both = figures.old_and_new({"": two_kinds(overlap=True)}, iterations=250)
    share = float(figures.headline(both).split(": ")[1].split()[0])
    assert 25 < share < 75


def test_runs_stand_side_by_side_under_their_names():
    runs = {"incremental = false": two_kinds(overlap=True), "incremental = true": two_kinds(overlap=False)}
    figure = figures.old_and_new(runs, iterations=250)
    assert [t.split(":")[0] for t in titles(figure)] == list(runs)
    assert titles(figure)[1].endswith(": 0.0 %")
    assert "against 0.0 %" in figures.headline(figure)


def test_neighbours_alike_equals_looking_at_each_pair():
    rng = np.random.default_rng(1)
    features, groups = rng.normal(size=(40, 5)) + 1000, rng.integers(-1, 3, 40)
    known = np.flatnonzero(groups >= 0)
    hits = 0
    for i in known:
        others = [j for j in known if j != i]
        nearest = min(others, key=lambda j: ((features[i] - features[j]) ** 2).sum())
        hits += groups[nearest] == groups[i]
    assert discovery.neighbours_alike(features, groups) == pytest.approx(hits / len(known))
    assert np.isnan(discovery.neighbours_alike(features[:1], np.zeros(1, int)))


def test_one_kind_alone_is_no_picture(tmp_path):
    kinds = two_kinds(overlap=True)
    assert (
        figures.old_and_new({"": kinds._replace(new=np.zeros((0, 3)), new_labels=np.zeros(0, int))}) is None
    )
    assert figures.old_new_of(discovery_run(tmp_path, old_features=None, old_labels=None)) is None


# --- Number of new classes

ESTIMATE = {
    "num_new": 3,
    "candidates": [1, 2, 3, 4],
    "anchor_accuracy": [0.5, 0.8, 0.9, 0.7],
    "silhouette": [float("nan"), 0.1, 0.3, 0.2],
}


def test_both_curves_are_drawn_with_the_choice_marked():
    figure = figures.class_count(ESTIMATE, 5)
    assert figures.headline(figure) == "3 new classes estimated; there are 5"
    for axes, key in zip(figure.axes, ("anchor_accuracy", "silhouette"), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), ESTIMATE["candidates"])
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), ESTIMATE[key])
        assert list(axes.lines[1].get_xdata()) == [3, 3]
        assert axes.lines[2].get_ydata()[0] == ESTIMATE[key][2]
    assert figures.class_count({"num_new": 1, "candidates": []}) is None


def test_a_run_with_an_estimate_shows_it(tmp_path):
    run = discovery_run(tmp_path, results={"class_count": ESTIMATE}, snapshots=None, old_features=None)
    assert "class-count" in build_figures(run)
