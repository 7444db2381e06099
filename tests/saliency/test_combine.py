"""Maps of several layers in one, and the weights of the layers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scarcely.errors import ConfigError, DataError
from scarcely.saliency import combine, layer_weights, load_weights, save_weights
from tests.oracles import saliency as oracle
from tests.saliency.networks import batch, toy

SIZE = (9, 11)
WEIGHTS = {"a": 0.5, "b": 2.0, "c": 0.0}


def maps(seed=0, n=3):
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(n, *shape, generator=g)
        for name, shape in (("a", (9, 11)), ("b", (4, 3)), ("c", (2, 2)))
    }


@pytest.mark.parametrize("how", ["sum", "product"])
def test_a_combination_equals_the_literal_one(how):
    m = maps()
    found = combine(m, SIZE, WEIGHTS, how)
    for i in range(3):
        expected = oracle.combine({k: v[i].double() for k, v in m.items()}, SIZE, WEIGHTS, how)
        torch.testing.assert_close(found[i].double(), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["sum", "product"]),
    st.lists(
        st.sampled_from(["random", "zero", "one", "tiny", "nan", "inf", "ripple"]), min_size=3, max_size=3
    ),
    st.lists(st.floats(0.01, 10), min_size=3, max_size=3),
    st.integers(0, 99),
)
def test_a_combination_is_between_zero_and_one_whatever_the_maps(how, kinds, weights, seed):
    m = maps(seed)
    for kind, value in zip(kinds, m.values()):
        if kind == "nan":
            value[0, 0, 0] = torch.nan
        elif kind == "inf":
            value[0, 0, 0] = torch.inf
        elif kind == "ripple":  # of rounding
            value[:] = 0.1 + 1e-8 * torch.sign(value)
        elif kind != "random":
            value[:] = {"zero": 0.0, "one": 1.0, "tiny": 1e-30}[kind]
    result = combine(m, SIZE, dict(zip(m, weights)), how)
    assert result.shape == (3, *SIZE)
    assert ((result >= 0) & (result <= 1 + 1e-6)).all()


@pytest.mark.parametrize("value", [0.0, 0.1, torch.nan])
def test_a_map_that_says_nothing_is_zero_in_a_sum_and_left_out_of_a_product(value):
    m = {**maps(), "b": torch.full((3, 4, 3), value)}
    a = combine({"a": m["a"]}, SIZE, {"a": 1.0})
    weights = {"a": 1.0, "b": 3.0, "c": 0.0}
    torch.testing.assert_close(combine(m, SIZE, weights, "sum"), 0.25 * a)
    torch.testing.assert_close(combine(m, SIZE, weights, "product"), a**0.25)


def test_only_shares_of_weights_matter_and_those_of_other_layers_do_not():
    m = maps()
    scaled = {**{k: 7 * v for k, v in WEIGHTS.items()}, "elsewhere": 3.0}
    torch.testing.assert_close(combine(m, SIZE, scaled, "product"), combine(m, SIZE, WEIGHTS, "product"))


@pytest.mark.parametrize(
    ("weights", "how", "message"),
    [
        ({"a": 1.0}, "sum", "no weight for b, c"),
        ({"a": 1.0, "b": -1.0, "c": 1.0}, "sum", "cannot be shares"),
        ({"a": 0.0, "b": 0.0, "c": 0.0}, "product", "cannot be shares"),
        ({"a": math.nan, "b": 1.0, "c": 1.0}, "product", "cannot be shares"),
        ({"a": 1.0, "b": 1.0, "c": math.inf}, "sum", "cannot be shares"),
        (WEIGHTS, "mean", "not combined by 'mean'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, how, message):
    with pytest.raises(ConfigError, match=message):
        combine(maps(), SIZE, weights, how)


def test_there_has_to_be_a_map():
    with pytest.raises(ConfigError, match="no maps"):
        combine({}, SIZE, {})


# Weights of layers

LAYERS = ["input", "2", "5"]


def loader(n=3):
    return [(batch(seed, n), torch.arange(n) % 2) for seed in range(4)]


@pytest.mark.parametrize("center", ["mean", "abs"])
def test_spread_equals_the_literal_one(center):
    model = toy()
    found = layer_weights(model, loader(), LAYERS, "spread", center=center)
    net = oracle.plain(model)
    for layer, weight in found.items():
        depth = -1 if layer == "input" else int(layer)
        means = [
            net[: depth + 1](image[None].double())[0].mean((1, 2)).tolist()
            for x, _ in loader()
            for image in x
        ]
        assert weight == pytest.approx(oracle.spread(means, center), rel=1e-5)
    assert list(found) == LAYERS


def test_linear_weights_grow_with_depth_from_none_at_the_image():
    model = toy()
    assert layer_weights(model, None, ["5", "input", "2", "3"], "linear") == {
        "input": 0.0, "2": 1 / 3, "3": 2 / 3, "5": 1.0,
    }  # fmt: skip
    assert layer_weights(model, None, ["2", "5"], "linear") == {"2": 0.5, "5": 1.0}
    assert layer_weights(model, None, ["2", "5"], "uniform") == {"2": 0.5, "5": 0.5}


def classes_by_brightness(n=60):
    """Images whose class is the sign of their green channel: two are confused at a glance, one is not."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = torch.randn(n, 3, 8, 10, generator=g)
    images[:, 1] += (2 * labels - 1).view(-1, 1, 1)
    return images, labels


def test_accuracy_is_that_of_a_probe_on_images_it_has_not_seen():
    images, labels = classes_by_brightness()
    dark = nn.Sequential(nn.Conv2d(3, 200, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(200, 2))
    with torch.no_grad():
        dark[0].weight[:, 1] = 0  # more channels than images, and none sees green
    told = list(zip(images.split(16), labels.split(16)))
    found = layer_weights(dark, told, ["input", "0"], "accuracy")
    assert found["input"] > 0.9
    assert found["0"] < 0.75
    assert layer_weights(dark, told, ["input"], "accuracy", folds=0)["input"] > 0.9


def test_unknown_labels_and_classes_of_one_image_do_not_count_for_accuracy(recwarn):
    images, labels = classes_by_brightness()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    plain = layer_weights(model, [(images, labels)], ["input"], "accuracy")
    more = torch.cat([images, batch(n=3)]), torch.cat([labels, torch.tensor([-1, -1, 7])])
    assert layer_weights(model, [more], ["input"], "accuracy") == plain
    assert not recwarn.list


def test_layer_weights_leave_the_model_alone_and_read_batches_of_images_too():
    model = toy().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = layer_weights(model, [images for images, _ in loader()], LAYERS, "spread")
    assert found == layer_weights(model, loader(), LAYERS, "spread")
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("batches", "how", "message"),
    [
        ([], "spread", "no images"),
        (None, "accuracy", "no images"),
        ([batch()], "accuracy", "no labels"),
        ([(batch(), torch.tensor([0, 0, 0]))], "accuracy", "cannot be trained"),
        ([(batch(), torch.zeros(3, 4))], "accuracy", "cannot be trained"),
    ],
)
def test_images_that_cannot_weigh_layers_are_refused(batches, how, message):
    with pytest.raises(DataError, match=message):
        layer_weights(toy(), batches, LAYERS, how)


@pytest.mark.parametrize(("how", "center"), [("depth", "mean"), ("spread", "median")])
def test_weightings_that_do_not_exist_are_refused(how, center):
    with pytest.raises(ConfigError, match="not weighted by"):
        layer_weights(toy(), loader(), LAYERS, how, center=center)


def test_weights_are_saved_and_read_again(tmp_path):
    weights = layer_weights(toy(), loader(), LAYERS, "spread")
    assert load_weights(save_weights(tmp_path / "weights.json", weights)) == weights


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", '{"a": "x"}', json.dumps({"a": -1.0}), '{"a": NaN}'])
def test_a_file_without_weights_is_refused(tmp_path, content):
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(DataError, match="no layer weights"):
        load_weights(tmp_path / "w.json")
    with pytest.raises(DataError, match="no such file"):
        load_weights(tmp_path / "other.json")
