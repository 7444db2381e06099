"""A saliency run reads its scores right, shows every map where it belongs, and hides none that is missing."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from rich.console import Console

from scarcely.reports import Evidence, build_figures, figures, print_results, results_table, write_report
from scarcely.reports.compare import main
from scarcely.reports.figures import saliency, style
from scarcely.reports.html import CAPTIONS
from scarcely.reports.runs import find_runs
from scarcely.reports.saliency_compare import collect, draw, grids, notes
from scarcely.reports.saliency_scores import by_layer, center, identities, judged, pointing_rows
from scarcely.reports.saliency_table import detail_grids, pointing_grid
from scarcely.reports.wording import describe_metric, describe_protocol, format_metric, is_fraction
from tests.reports import saliency_runs as made
from tests.reports.runs import digits_run
from tests.reports.saliency_runs import LAYERS, METHODS, WEIGHTINGS, findings, pictures, saliency_run, scores
from tests.reports.test_figures import pixels, texts
from tests.reports.test_html import Page

ALL = [
    *("pointing", "maps", "maps-2", "combined", "layer-weights", "sensitivity", "contrast", "randomization"),
    *("randomization-maps", "meta-epochs"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    maps = pictures()
    for key in ("combined/1", "most/1", "least/1", "random/1"):
        del maps[key]  # a second page of one kind is enough
    return saliency_run(tmp_path_factory.mktemp("run"), maps=maps)


@pytest.fixture(scope="module")
def drawn(run):
    return build_figures(run)


# --- Scores


def test_every_figure_of_the_metrics_is_found_again():
    metrics = scores()
    found = {}
    for row in pointing_rows(metrics):
        places = [("", row.layers), ("combined-", row.combined)]
        for prefix, score in ((p + s.where, s) for p, kind in places for s in kind.values()):
            for subset in ("all", "difficult", "all_stderr", "difficult_stderr"):
                found[f"pointing/{row.method}/{prefix}/{subset}"] = getattr(score, subset)
    for word in ("sensitivity", "meta", "randomization"):
        for method, values in by_layer(metrics, word).items():
            found |= {f"{word}/{method}/{layer}": value for layer, value in values.items()}
    for layer, (rank, gain) in identities(metrics).items():
        found |= {f"identity/{layer}": rank, f"identity/{layer}/pointing": gain}
    found |= {f"pointing/center/{s}": getattr(center(metrics), s) for s in ("all", "difficult")}
    counts = {"pointing/skipped", "pointing/left_out", "pointing/pairs", "pointing/pairs_difficult"}
    assert found == {k: v for k, v in metrics.items() if k not in counts and not k.endswith("/undefined")}


def test_the_best_layer_and_the_best_weighting_are_those_with_the_most_hits_on_all_pairs():
    metrics = made.pointing("pointing/cam/a", 0.5) | made.pointing("pointing/cam/b", 0.7)
    metrics |= {"pointing/cam/a/difficult": 0.9, "pointing/cam/c/all": float("nan")}
    metrics |= made.pointing("pointing/cam/combined-sum-linear", 0.6)
    (row,) = pointing_rows(metrics)
    assert (row.best_layer.where, row.best_combined.where) == ("b", "sum-linear")
    assert set(row.layers) == {"a", "b"}


def test_of_a_classifier_that_the_run_trained_score_and_training_are_told(capsys):
    stages = [{"name": "multilabel", "seconds": 200.0, "epochs": 40}, {"name": "saliency", "seconds": 9.0}]
    print_results(made.results(scores() | {"test/map": 0.93}, stages=stages))
    told = " ".join(capsys.readouterr().out.split())
    assert "mean average precision, test split 93.0 %" in told
    assert "of a classifier that was trained first, on the train part" in told
    assert "Nothing was trained" in describe_protocol(made.results())


def test_runs_are_judged_by_the_centre_and_by_what_is_best_on_their_mean():
    first = made.pointing("pointing/cam/a", 0.9) | made.pointing("pointing/cam/b", 0.6)
    second = made.pointing("pointing/cam/a", 0.2) | made.pointing("pointing/cam/b", 0.6)
    first |= {"pointing/center/all": 0.3, "test/map": 0.9, "sensitivity/cam/a": 0.1}
    second |= made.pointing("pointing/gradient/combined-sum-linear", 0.4)
    best = ["pointing/cam/b/all", "pointing/gradient/combined-sum-linear/all"]
    assert judged([first, second]) == ["pointing/center/all", *best], "a is better in the first run alone"
    assert judged([{"acc": 0.5}]) == []
    runs = [{"method": "normgrad", "seed": s, "metrics": m} for s, m in enumerate((first, second))]
    head = results_table(runs).splitlines()[0].split(" | ")
    assert [name for name in head if "/" in name] == ["test/map", "pointing/center/all", *best]


def test_every_metric_of_a_saliency_run_is_explained_and_shares_are_percent():
    assert [key for key in scores() if not describe_metric(key)] == []
    assert describe_metric("pointing/center/all") != describe_metric("pointing/cam/layer4/all")
    assert describe_metric("sensitivity/cam/layer4") != describe_metric("sensitivity/cam/layer4/undefined")
    for key in ("pointing/cam/layer4/all_stderr", "identity/layer2/pointing"):
        assert is_fraction(key), key
    assert not is_fraction("sensitivity/cam/layer4")
    assert "Nothing was trained" in describe_protocol(made.results())


def test_metrics_of_domains_in_turn_and_of_predicted_domains_are_explained():
    before, after = "round_robin/source_accuracy_before", "round_robin/source_accuracy"
    keys = [before, after, "domain_prediction/accuracy", "domain/birds/predicted_accuracy"]
    keys += ["mean/predicted_accuracy", "decathlon/score_predicted", "test/map", "test/ap/dog", "train/map"]
    told = [describe_metric(key) for key in keys]
    assert all(told)
    assert len(set(told[:7])) == 7
    for key in (before, after, "domain/birds/predicted_accuracy", "test/map", "test/ap/dog"):
        assert format_metric(key, 0.5) == "50.0 %", key
    assert format_metric("decathlon/score_predicted", 2500.0) == "2,500.0"


# --- Tables


def printed(run, width=80):
    stream = io.StringIO()
    print_results(run, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_terminal_names_best_layer_and_weighting_the_centre_and_no_loose_metric(run):
    text = printed(run)
    lines = [line.split() for line in text.splitlines()]
    at = next(i for i, line in enumerate(lines) if line[:2] == ["guided_backprop", "layer4"])
    assert lines[at][2:] == ["84.0", "±", "1.2", "74.0", "±", "2.1"]
    assert lines[at + 1] == ["product,", "uniform", "91.0", "±", "1.2", "81.0", "±", "2.1"]
    assert ["pointing", "at", "the", "centre", "45.0", "21.0"] in lines
    assert "412 of an image and a class, 300 of them difficult; 2 skipped" in " ".join(text.split())
    assert "meta-saliency for 5 of 5 methods" in " ".join(text.split())
    assert "to 0.80 (guided_backprop)" in " ".join(text.split())
    assert not re.search(r"(pointing|sensitivity|meta|randomization|identity)/", text)
    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert len(lines) < 45


def test_the_centre_has_its_row_where_it_is_not_known(tmp_path):
    metrics = made.pointing("pointing/cam/layer4", 0.5)
    assert "pointing at the centre" in printed(made.results(metrics))
    assert pointing_grid(metrics).rows[-1][2].text == "–"


def test_the_page_s_table_has_every_weighting_and_the_best_one_bold():
    grid = pointing_grid(scores())
    assert grid.head[3:] == [name.replace("-", ", ") for name in WEIGHTINGS]
    row = next(row for row in grid.rows if row[0].text == "linear_approximation")
    assert [cell.text for cell in row[1:3]] == ["layer4", "81.0 ± 1.2"]
    assert [cell.bold for cell in row[3:]] == [False] * 7 + [True]
    assert row[-1].below == "78.0 ± 2.1"
    assert all(len(cells) == len(g.head) for g in (grid, *detail_grids(scores())) for cells in g.rows)


def test_the_page_shows_tables_summaries_and_a_caption_for_every_picture(run, drawn):
    assert list(drawn) == ALL
    stems = {re.sub(r"-\d$", "", name) for name in drawn}
    assert stems <= set(CAPTIONS)
    page = Page(write_report(run, figures=drawn).read_text(encoding="utf-8"))
    for part in (
        *("Pointing game", "91.0 ± 1.2", "pointing at the centre: 45.0 %", "Nothing was trained", "+0.97"),
        *(
            "guided_backprop, product, uniform; of difficult pairs: 81.0 %",
            "Virtual identity",
            "412 of an image",
        ),
    ):
        assert part in page.text, part
    assert "sensitivity/gradient/layer1" not in page.text
    assert len(page.images) == len(drawn)
    for stem in stems:
        assert page.text.count(CAPTIONS[stem].sentence) == 1, stem


def test_large_pictures_are_embedded_small_and_kept_whole_beside_the_page(run, drawn):
    page = Page(write_report(run, figures={"maps": drawn["maps"]}).read_text(encoding="utf-8"))
    kept = (run.run_dir / "figures" / "maps.png").read_bytes()
    (image,) = page.images
    assert image["src"].startswith("data:image/jpeg;base64,")
    assert len(image["src"]) < len(kept)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(kept)).convert("RGB")), pixels(drawn["maps"]))


# --- What a run left behind


def test_a_saliency_run_reads_its_files_when_they_are_asked_for(run):
    again = Evidence.load(run.run_dir, results=run.results)
    assert again.kind == "saliency"
    assert "maps" not in vars(again)
    assert again.saliency["layers"] == list(LAYERS)
    assert again.maps["maps/0"].shape == (len(METHODS), len(LAYERS), 96, 128)
    assert "maps/2" not in again.maps


@pytest.mark.parametrize("name", ["saliency.json", "maps.npz"])
def test_a_file_that_cannot_be_read_leaves_out_its_figures_alone(tmp_path, caplog, name):
    run = saliency_run(tmp_path, maps=pictures(examples=1, size=(8, 8)))
    (tmp_path / name).write_bytes(b"{")
    names = set(build_figures(Evidence.load(tmp_path)))
    assert f"{name} cannot be read" in caplog.text
    assert {"pointing", "sensitivity"} <= names
    assert not names & {"maps", "combined", "contrast", "randomization-maps"}
    assert run.run_dir == tmp_path


def test_an_evaluation_that_was_switched_off_has_no_figure(tmp_path):
    metrics = {k: v for k, v in scores().items() if k.startswith("pointing/")}
    found = {k: v for k, v in findings().items() if k not in ("randomization", "epochs", "layer_weights")}
    maps = {
        k: v
        for k, v in pictures(examples=1, size=(8, 8)).items()
        if not k.startswith(("random", "most/", "least/"))
    }
    run = saliency_run(tmp_path, metrics=metrics, found=found, maps=maps)
    assert list(build_figures(run)) == ["pointing", "maps", "combined"]
    assert "class sensitivity" not in printed(run)


# --- Overlays


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(-1e3, 1e3, width=32)), st.integers(0, 2**32 - 1))
def test_an_overlay_is_a_grey_image_under_evenly_rising_colours(map_, seed):
    from matplotlib import colormaps

    image = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    got = saliency.overlay(image, map_)
    low, high = float(map_.min()), float(np.quantile(map_, 0.995))
    for y in range(3):
        for x in range(4):
            red, green, blue = map(float, image[y, x])
            grey = 0.299 * red + 0.587 * green + 0.114 * blue
            expected = np.array([grey] * 3)
            if map_.max() > low:
                high = high if high > low else float(map_.max())
                share = min(1.0, max(0.0, (float(map_[y, x]) - low) / (high - low)))
                color = 255 * np.array(colormaps["inferno"](share)[:3])
                # a value between two of the 256 colours may be rounded to either
                near = [
                    255 * np.array(colormaps["inferno"](min(255, max(0, int(share * 256) + d)))[:3])
                    for d in (-1, 0, 1)
                ]
                low_color, high_color = np.min([color, *near], axis=0), np.max([color, *near], axis=0)
                assert (got[y, x] >= 0.38 * grey + 0.62 * low_color - 1).all()
                assert (got[y, x] <= 0.38 * grey + 0.62 * high_color + 1).all()
            else:
                np.testing.assert_allclose(got[y, x], expected, atol=1)


def test_an_overlay_keeps_size_and_input_and_refuses_another_size():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    before, map_ = image.copy(), np.arange(600.0).reshape(20, 30)
    shown = saliency.overlay(image, map_)
    assert (shown.shape, shown.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(image, before)
    with pytest.raises(ValueError, match="30"):
        saliency.overlay(image, map_.T)


@pytest.mark.parametrize("value", [0.0, -3.0, np.nan, np.inf])
def test_a_map_that_says_nothing_lays_no_colour_over_the_image(value):
    shown = saliency.overlay(np.full((4, 4, 3), (200, 100, 0), np.uint8), np.full((4, 4), value))
    assert (shown == shown[0, 0, 0]).all()


def test_single_values_that_are_not_finite_do_not_decide_the_scale():
    map_ = np.linspace(0, 1, 400).reshape(20, 20)
    expected = saliency.scale(map_)
    map_[3, 3], map_[5, 5] = np.inf, np.nan
    got = saliency.scale(map_)
    assert (got[3, 3], got[5, 5]) == (1, 0)
    np.testing.assert_allclose(np.delete(got, [63, 105]), np.delete(expected, [63, 105]), atol=0.01)


def test_one_pixel_far_above_all_others_does_not_hide_them():
    map_ = np.linspace(0, 1, 400).reshape(20, 20)
    map_[0, 0] = 1e6
    assert saliency.scale(map_)[10, 10] > 0.4
    lone = np.zeros((20, 20))
    lone[0, 0] = 1
    assert saliency.scale(lone)[0, 0] == 1


# --- Sheets


def test_a_tile_shows_its_map_and_a_ring_at_the_brightest_point(tmp_path):
    size = (50, 50)
    maps = {"image/0": np.full((*size, 3), 100, np.uint8), "target": np.array(["disc"])}
    found = np.zeros((1, 2, *size))
    found[0, 0, :, 25:] = 1.0
    found[0, 0, 10, 40] = 2.0
    found[0, 1] = 1.0
    (page,) = figures.map_sheets(maps | {"maps/0": found}, ["cam"], ["a", "b"])
    sheet = pixels(page).astype(int)
    tops = np.flatnonzero((sheet[:, 156 + 2] != 255).any(axis=1))
    first = sheet[tops[-1] - 129 : tops[-1] + 1, 156 : 156 + 130]
    assert first[100, 20].sum() < first[100, 100].sum()  # dark on the left, bright on the right
    ring = np.argwhere((first == 255).all(axis=2))
    np.testing.assert_allclose(ring.mean(axis=0), [10.5 * 130 / 50, 40.5 * 130 / 50], atol=1.5)
    assert "constant" in texts(page)


def test_maps_that_are_none_are_said_to_be_none(run, drawn):
    found = [text for text in texts(drawn["maps"]) if text in ("none", "constant")]
    assert found == ["none", "constant"]  # Grad-CAM of the image; guided backprop of the last layer
    assert "guided_backprop" in texts(drawn["maps"])
    assert set(LAYERS) <= set(texts(drawn["maps"]))


def test_the_outline_lies_around_the_objects_and_not_on_them():
    region = np.zeros((30, 40), bool)
    region[8:20, 10:25] = True
    picture = np.full((60, 80, 3), 77, np.uint8)
    shown = saliency._outlined(picture, region)
    inside = np.repeat(np.repeat(region, 2, axis=0), 2, axis=1)
    white = (shown == 255).all(axis=2)
    assert white.any()
    assert not (white & inside).any()
    ys, xs = np.nonzero(white)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (14, 41, 18, 51)
    np.testing.assert_array_equal(saliency._outlined(picture, None), picture)


def test_each_method_shows_the_layer_it_points_best_with_if_its_correlation_is_defined():
    def entry(method, layer, value):
        return {"method": method, "layer": layer, "modules": ["", "fc"], "mean": [value, value]}

    entries = [entry("cam", "a", 1.0), entry("cam", "b", 0.5), entry("gradient", "a", 0.5)]
    entries.append(entry("gradient", "b", None))
    assert saliency._one_a_method(entries, {"cam": "a"}) == [0, 2]
    assert saliency._one_a_method(entries, {"gradient": "b"}) == [1, 2]


def test_correlations_stand_below_the_maps_of_their_step(drawn):
    told = texts(drawn["randomization-maps"])
    assert {"trained", "fc", "layer4.0.conv1", "conv1"} <= set(told)
    assert [t for t in told if t in ("1.00", "0.97", "0.91", "0.85")][-4:] == ["1.00", "0.97", "0.91", "0.85"]


@pytest.mark.filterwarnings("error", "ignore:Glyph")
@pytest.mark.parametrize("size", [(9, 60), (70, 9)])
def test_no_run_is_too_odd_for_its_sheets(tmp_path, caplog, size):
    methods = ("grad_cam", "guided_backprop", "a_method_with_a_name_that_is_much_too_long_for_any_column")
    layers = ("input", "backbone.layer1.0.$conv$.of a very long name")
    found = findings(methods, layers)
    found["randomization"][0]["mean"] = [None] * 6
    found["randomization"][0]["stderr"] = [None] * 6
    maps = pictures(methods, layers, 1, size)
    maps["target"] = np.array(["$\\frac$\udcff_"])
    run = saliency_run(tmp_path, metrics=scores(methods, layers), found=found, maps=maps)
    sheets = build_figures(run)
    assert not caplog.records, "a figure was replaced by a note"
    for name, figure in sheets.items():
        box, dpi = figure.get_tightbbox(figure.canvas.get_renderer()), figure.dpi
        assert pixels(figure).std() > 1, name
        assert min(box.x0, box.y0) * dpi > -2, name
        assert box.x1 * dpi < figure.bbox.x1 + 2, name
        assert figure._suptitle.get_window_extent().y1 <= figure.bbox.y1, name


# --- Charts


def test_bars_of_the_pointing_game_are_the_scores_and_lines_the_centre(drawn):
    axes = next(a for a in drawn["pointing"].axes if a.get_title(loc="left") == "linear_approximation")
    heights = [bar.get_height() for bar in axes.patches]
    expected = [0.41 + 0.1 * j for j in range(5)] + [0.88]
    np.testing.assert_allclose(heights, expected + [value - 0.1 for value in expected])
    lines = [
        line.get_ydata()[0]
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_linestyle() == "--"
    ]
    assert lines == [0.45, 0.21]
    assert "guided_backprop, product, uniform: 91.0 %, the centre 45.0 %" in figures.headline(
        drawn["pointing"]
    )


def test_bars_of_class_sensitivity_are_absolute_and_negative_ones_are_marked():
    metrics = {"sensitivity/cam/a": -0.6, "sensitivity/cam-meta/a": 0.2, "sensitivity/cam/b": 0.5}
    figure = figures.sensitivity_bars(metrics)
    first, second = figure.axes[:2]
    assert [bar.get_width() for bar in first.patches] == [0.6, 0.2]
    assert [text.get_text() for text in first.texts] == ["−"]
    assert [bar.get_width() for bar in second.patches] == [0.5]
    assert "lowers it for 1 of 1" in figures.headline(figure)
    assert figures.sensitivity_bars({}) is None


def test_weights_are_drawn_by_depth_and_sum_to_one(drawn):
    lines = drawn["layer-weights"].axes[0].lines
    assert len(lines) == 4
    for line in lines:
        assert line.get_ydata().sum() == pytest.approx(1)
    assert lines[2].get_ydata()[0] == 0  # linear: nothing for the image
    assert figures.weight_curves({}) is None


def test_lines_of_the_randomisation_are_the_means_and_the_undefined_break_off():
    modules = ["", "fc", "conv"]
    rows = [
        {"method": "cam", "layer": "a", "modules": modules, "mean": [1.0, None, 0.2], "stderr": [None] * 3}
    ]
    rows.append({"method": "cam-meta", "layer": "a", "modules": modules, "mean": [1.0, 0.8, 0.6]})
    axes = figures.randomization_curves(rows).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1.0, np.nan, 0.2])
    np.testing.assert_array_equal(axes.lines[0].get_color(), axes.lines[1].get_color())
    assert (axes.lines[0].get_linestyle(), axes.lines[1].get_linestyle()) == ("-", "--")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "fc", "conv"]


def test_training_and_test_images_have_a_line_each_over_the_epochs(drawn):
    train, test = drawn["meta-epochs"].axes[0].lines[:2]
    assert (train.get_xdata().tolist(), test.get_ydata().tolist()) == ([10, 20, 30], [0.88, 0.9, 0.91])
    assert figures.epoch_curves([]) is None


# --- Several runs


@pytest.fixture
def two(tmp_path):
    for name, better in (("resnet50", 0.05), ("vgg16", -0.08)):
        folder = saliency_run(tmp_path / name, metrics=scores(better=better), maps={}).run_dir
        (folder / "config.yaml").write_text(f"seed: 0\nbackbone: {{name: {name}}}\n")
    return tmp_path


def test_runs_stand_side_by_side_with_the_best_of_each_in_bold(two, capsys):
    out = two / "both.png"
    assert main(["saliency", str(two), f"out={out}", "--markdown"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert "| backbone.name = resnet50, best single layer |" in lines[2]
    gradient = next(line for line in lines if line.startswith("| gradient |"))
    assert gradient.count("(layer4)") == 2
    assert "85.0 ± 1.2 (layer4) | 92.0 ± 1.2 (product, uniform) | 72.0 ± 1.2" in gradient
    best = next(line for line in lines if line.startswith("| guided_backprop |"))
    assert best.count("**") == 8
    assert lines[11] == "| pointing at the centre | 45.0 | 45.0 | 45.0 | 45.0 |"
    assert captured.err.splitlines()[-1] == f"2 runs: {out}"
    assert Image.open(out).size[0] > 900


def test_bars_of_several_runs_are_their_best_scores(two):
    columns = collect(find_runs([str(two)]))
    single, weighted, *_ = draw(columns).axes
    assert max(bar.get_width() for bar in single.patches) == pytest.approx(0.89)
    assert max(bar.get_width() for bar in weighted.patches) == pytest.approx(0.96)
    assert len({bar.get_facecolor() for bar in single.patches}) == 2
    (title, head, rows), (hard, *_) = grids(columns)
    assert ("all pairs" in title, "difficult pairs" in hard) == (True, True)
    assert {len(row) for row in rows} == {len(head)}


def test_runs_that_are_not_alike_are_told_and_others_left_out(two, capsys):
    other = two / "other"
    changed = made.results(scores() | {"pointing/pairs": 7}, data="voc")
    other.mkdir()
    (other / "results.json").write_text(json.dumps(changed))
    plain = two / "plain"
    plain.mkdir()
    (plain / "results.json").write_text(json.dumps(made.results({"acc": 0.5})))
    runs = find_runs([str(two)])
    told = " ".join(notes(runs, collect(runs)))
    for part in ("1 of 4 runs", "different data sets", "different numbers of pairs"):
        assert part in told, part
    assert main(["saliency", str(plain)]) == 2
    assert "no run has a pointing game" in capsys.readouterr().err


# --- Maps in the montage of clusters


def test_below_an_image_of_a_cluster_stands_its_map_where_there_is_one():
    images = np.full((4, 50, 50, 3), 90, np.uint8)
    maps = {1: np.tile(np.linspace(0, 1, 32), (32, 1))}
    predicted, confidence = np.zeros(4, int), np.array([0.9, 0.8, 0.7, 0.6])
    (plain,) = figures.montage(images, predicted, confidence, 1)
    (page,) = figures.montage(images, predicted, confidence, 1, maps=maps)
    before, after = pixels(plain).astype(int), pixels(page).astype(int)
    assert after.shape[0] == before.shape[0] + 56
    rows = after[54 + 56 + 28, 150:]
    colored = np.flatnonzero(np.ptp(rows, axis=1) > 30)
    assert 58 + 3 <= colored.min() < colored.max() <= 58 + 53  # below the second image alone
    np.testing.assert_array_equal(after[54 : 54 + 56], before[54 : 54 + 56])


def test_maps_of_a_montage_are_kept_and_drawn_and_runs_without_them_are_as_before(tmp_path):
    def of(folder, **changes):
        folder.mkdir()
        run = digits_run(folder, features=None, history=[], labels=None, **changes)
        (folder / "results.json").write_text(json.dumps(run.results))
        run.save()
        return run, Evidence.load(folder, images=run.images)

    seen = np.random.default_rng(0).random((30, 8, 8)).astype(np.float16)
    run, back = of(tmp_path / "with", montage_index=np.arange(30), montage_maps=seen)
    np.testing.assert_array_equal(back.montage_maps, seen)
    _, old = of(tmp_path / "without")
    assert old.montage_maps is None
    heights = [build_figures(one)["montage"].get_figheight() * style.DPI for one in (back, old)]
    assert heights[0] > 1.5 * heights[1]
    with pytest.raises(ValueError, match="1 maps of samples, 2 indices"):
        digits_run(tmp_path, montage_index=np.arange(2), montage_maps=seen[:1])
    assert run.num_clusters == 10


def test_no_curve_leaves_its_panel():
    entries = [
        {"method": "norm_grad", "layer": layer, "epoch": [1, 2], "train": [0.9, low], "test": [0.9, low]}
        for layer, low in (("input", -0.4), ("layer4", 0.85))
    ]
    cascade = [
        {"method": "norm_grad", "layer": entry["layer"], "modules": ["", "fc"], "mean": entry["train"]}
        for entry in entries
    ]
    for figure in (figures.epoch_curves(entries), figures.randomization_curves(cascade)):
        for axes in figure.axes:
            drawn = [value for line in axes.lines for value in line.get_ydata()]
            assert axes.get_ylim()[0] < min(drawn)
