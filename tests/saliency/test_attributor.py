"""One pass for all layers, and a model that is afterwards as it was before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scarcely.errors import ConfigError
from scarcely.saliency import METHODS, Attributor, ExtractAggregate, attribute
from scarcely.saliency.layers import resolve_layers
from tests.oracles import saliency as oracle
from tests.saliency.networks import CLASSES, batch, toy

TARGETS = torch.tensor([2, 0, 3])


class Counter(nn.Module):
    """Counts the passes through it, in either direction."""

    def __init__(self):
        super().__init__()
        self.forwards, self.backwards, self.samples = 0, 0, 0

    def forward(self, x):
        self.forwards += 1
        self.samples += len(x)
        return Counted.apply(x, self)


class Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counter):
        ctx.counter = counter
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.counter.backwards += 1
        return g, None


def state(model):
    """Everything of a model that anybody may see."""
    return {
        "values": {k: (id(v), v.clone()) for k, v in (*model.named_parameters(), *model.named_buffers())},
        "grad": {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()},
        "flags": {k: p.requires_grad for k, p in model.named_parameters()},
        "modes": {k: m.training for k, m in model.named_modules()},
        "hooks": {k: len(m._forward_hooks) for k, m in model.named_modules()},
        "inside": {k: list(m._parameters) for k, m in model.named_modules()},
    }


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in ("flags", "modes", "hooks", "inside"):
        assert a[key] == b[key]
    for key, (identity, value) in a["values"].items():
        assert b["values"][key][0] == identity
        assert torch.equal(b["values"][key][1], value)
    for key, grad in a["grad"].items():
        assert b["grad"][key] is None if grad is None else torch.equal(b["grad"][key], grad)


def awkward():
    """A model in mixed modes, with some gradients, partly frozen."""
    model = toy().train()
    model[1].eval()
    model(batch()).sum().backward()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = None
    return model


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].single_pass])
def test_all_layers_take_one_forward_and_one_backward(method):
    net = nn.Sequential(*toy()[:9], Counter(), *toy()[9:])
    layers = ["0", "3", "6"] if method == "norm_grad_conv" else ["?"]
    attribute(net, batch(), "predicted", layers, method)
    assert (net[9].forwards, net[9].backwards, net[9].samples) == (1, 1, 3)


def test_the_graph_begins_at_the_first_layer_asked_for():
    net = nn.Sequential(Counter(), *toy())
    attribute(net, batch(), 0, "4")
    assert (net[0].forwards, net[0].backwards) == (1, 0)


@pytest.mark.parametrize("meta_lr", [0.0, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_afterwards_as_it_was(method, meta_lr):
    model = awkward()
    before = state(model)
    images = batch().requires_grad_()
    attribute(model, images, TARGETS, ["0", "6"], method, meta_lr)
    assert_same(before, state(model))
    assert images.grad is None
    assert images.requires_grad


class Failing(nn.Module):
    def __init__(self, where):
        super().__init__()
        self.where = where

    def forward(self, x):
        if self.where == "forward":
            raise KeyError("forward")
        return Broken.apply(x)


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise KeyError("backward")


@pytest.mark.parametrize("meta_lr", [0.0, 0.1])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("method", ["norm_grad", "guided_backprop", "excitation_backprop"])
def test_the_model_is_as_it_was_after_a_failure_too(method, where, meta_lr):
    model = nn.Sequential(*awkward(), Failing(where))
    before = state(model)
    with pytest.raises(KeyError, match=where):
        attribute(model, batch(), TARGETS, ["0", "6"], method, meta_lr)
    assert_same(before, state(model))
    assert torch.relu(torch.tensor(-1.0)) == 0  # and no rule is left in force


def test_an_attributor_serves_many_calls_and_leaves_others_alone():
    model, images = awkward(), batch()
    before = state(model)
    with Attributor(model, ["2", "5"]) as attributor:
        first = attributor(images, TARGETS, "norm_grad")
        logits = model(images)
        with pytest.raises(ConfigError, match="no class 9"):
            attributor(images, 9)
        again = attributor(images, TARGETS, "norm_grad")
        other = attributor(images[:1], "predicted", "gradient", meta_lr=0.1)
    assert_same(before, state(model))
    assert torch.equal(logits, copy.deepcopy(model).eval()(images))
    for layer in ("2", "5"):
        assert torch.equal(first[layer], again[layer])
        assert torch.equal(first[layer], attribute(model, images, TARGETS, layer, "norm_grad")[layer])
        assert len(other[layer]) == 1
    with pytest.raises(RuntimeError, match="with block"):
        attributor(images, TARGETS)


def test_maps_of_a_batch_are_those_of_its_samples():
    model, images = toy(), batch()
    together = attribute(model, images, TARGETS, ["input", "5"])
    for i in range(3):
        alone = attribute(model, images[i : i + 1], TARGETS[i : i + 1], ["input", "5"])
        for layer, m in alone.items():
            torch.testing.assert_close(together[layer][i : i + 1], m)


class Doubling(nn.Module):
    """Overwrites the very tensors that it was given and that it gave, or works on copies of them."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.alias, self.second = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Conv2d(4, 4, 1)
        self.head, self.in_place = nn.Linear(4, CLASSES), in_place

    def forward(self, x):
        image = x.clone()
        x = self.first(image)
        y = self.alias(x)
        if self.in_place:
            image.zero_()
            y = self.second(x.mul_(2))
            return self.head(y.mul_(2).relu_().mean((2, 3)))
        return self.head((self.second(y * 2).relu() * 2).mean((2, 3)))


@pytest.mark.parametrize("method", ["linear_approximation", "norm_grad", "norm_grad_conv"])
def test_what_is_overwritten_later_is_mapped_as_it_was(method):
    layers = ["first", "second"]
    expected = attribute(Doubling(False), batch(), TARGETS, layers, method)
    found = attribute(Doubling(True), batch(), TARGETS, layers, method)
    for layer in layers:
        torch.testing.assert_close(found[layer], expected[layer])


def test_a_layer_that_returns_its_input_keeps_what_it_returned():
    with Attributor(Doubling(True), ["alias"]) as attributor:
        found = attributor.activations(batch())["alias"]
    torch.testing.assert_close(found, Doubling(True).first(batch()).detach())


@pytest.mark.parametrize(
    "method", ["selective_norm_grad", "norm_grad_conv", "excitation_backprop", "deconvnet"]
)
def test_mixed_precision_gives_float32_maps_near_the_others(method):
    model, images = toy(), batch()
    exact = attribute(model, images, TARGETS, ["3", "6"], method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = attribute(model, images, TARGETS, ["3", "6"], method)
    for layer, m in exact.items():
        assert mixed[layer].dtype == torch.float32
        assert (mixed[layer] - m).abs().max() < 0.1 * m.abs().max()
        assert not torch.equal(mixed[layer], m)


@pytest.mark.parametrize(
    "method", ["selective_norm_grad", "norm_grad_conv", "excitation_backprop", "deconvnet"]
)
def test_memory_format_changes_nothing(method):
    model, images = toy(), batch()
    exact = attribute(model, images, TARGETS, ["3", "6"], method)
    model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    for layer, m in attribute(model, images, TARGETS, ["3", "6"], method).items():
        torch.testing.assert_close(m, exact[layer], rtol=1e-4, atol=1e-5)


def test_the_callers_no_grad_and_inference_tensors_do_not_matter():
    with torch.inference_mode():
        images = batch()
    expected = attribute(toy(), batch(), TARGETS, ["input", "3"])
    with torch.no_grad():
        found = attribute(toy(), images, TARGETS, ["input", "3"])
    for layer, m in expected.items():
        assert torch.equal(found[layer], m)
        assert not m.requires_grad


# Targets


def test_a_target_is_an_index_indices_the_prediction_or_a_function():
    model, images = toy().eval(), batch()
    predicted = model(images).argmax(1)
    maps = {
        "indices": attribute(model, images, predicted, "3")["3"],
        "predicted": attribute(model, images, "predicted", "3")["3"],
        "int32": attribute(model, images, predicted.int(), "3")["3"],
        "function": attribute(model, images, lambda logits: logits.amax(1), "3")["3"],
    }
    assert all(torch.equal(m, maps["indices"]) for m in maps.values())
    assert torch.equal(
        attribute(model, images, 1, "3")["3"], attribute(model, images, torch.tensor([1, 1, 1]), "3")["3"]
    )


class Captioner(nn.Module):
    """Image in, logits (N, T, V) of a sequence out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.words = nn.Linear(6, 4 * 5)

    def forward(self, x):
        return self.words(self.conv(x).relu().mean((2, 3))).view(-1, 4, 5)


CAPTIONS = torch.tensor([[0, 3, 2, 1], [4, 4, 0, 1], [1, 2, 3, 4]])


def caption_log_probability(logits):
    """log p(w_1 … w_T | image), of each image's own caption."""
    words = logits.log_softmax(dim=2).gather(2, CAPTIONS[:, :, None])
    return words.sum(dim=(1, 2))


@pytest.mark.parametrize("meta_lr", [0.0, 0.05])
def test_the_log_probability_of_a_sequence_is_a_target(meta_lr):
    model, images = Captioner(), batch()
    maps = attribute(model, images, caption_log_probability, "conv", "linear_approximation", meta_lr)
    for i in range(3):
        net = copy.deepcopy(model)

        def log_probability(net, i=i):
            a = net.conv(images[i : i + 1])
            words = net.words(a.relu().mean((2, 3))).view(4, 5).log_softmax(1)
            return a, sum(words[t, word] for t, word in enumerate(CAPTIONS[i]))

        gradients = torch.autograd.grad(log_probability(net)[1], list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradients):
                p += meta_lr * g
        a, value = log_probability(net)
        (g,) = torch.autograd.grad(value, a)
        torch.testing.assert_close(maps["conv"][i], (a * g).sum(1)[0].detach())


@pytest.mark.parametrize("target", [4, -1, torch.tensor([0, 1, 4]), torch.tensor([0, -2, 1])])
def test_a_class_that_does_not_exist_is_refused(target):
    with pytest.raises(ConfigError, match="no class") as error:
        attribute(toy(), batch(), target, "3")
    assert error.value.instead == "0 to 3"


@pytest.mark.parametrize(
    "target", [torch.tensor([0, 1]), torch.zeros(3, 1, dtype=torch.long), torch.zeros(3), "likely"]
)
def test_targets_of_another_kind_are_refused(target):
    with pytest.raises(ConfigError, match="target") as error:
        attribute(toy(), batch(), target, "3")
    assert error.value.where == "target"


def test_a_target_function_gives_one_scalar_an_image():
    with pytest.raises(ConfigError, match="gave \\(3, 4\\) for 3 images"):
        attribute(toy(), batch(), lambda logits: logits, "3")


@pytest.mark.parametrize("end", [nn.Unflatten(1, (2, 2)), nn.Flatten(0)])
def test_a_model_that_is_no_classifier_is_refused(end):
    with pytest.raises(ConfigError, match=r"not \(N, C\)"):
        attribute(nn.Sequential(*toy(), end), batch(), 0, "3")


# Layers


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.unused = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("layer*", ["layer1", "layer2"]),
        (["layer2", "layer1", "layer?", "input"], ["input", "layer1", "layer2"]),
        ("*.0", ["layer1.0", "layer2.0"]),
        ("layer[2-9].*", ["layer2.0", "layer2.1"]),
        (("fc",), ["fc"]),
    ],
)
def test_globs_stay_on_their_level(layers, expected):
    assert resolve_layers(Stages(), layers) == expected


@pytest.mark.parametrize(
    ("layer", "near"), [("layr1", "layer1"), ("Layer2", "layer2"), ("layer9*", "layer1")]
)
def test_a_layer_that_does_not_exist_names_the_nearest(layer, near):
    with pytest.raises(ConfigError, match="no layer is called") as error:
        attribute(Stages(), batch(), 0, layer)
    assert near in error.value.instead


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("fc", r"'fc' has no spatial positions: its output is \(3, 4\)"),
        ("unused", "does not reach 'unused'"),
        ([], "no layer was named"),
        ("qqqq", "no layer is called"),
    ],
)
def test_layers_without_a_map_are_refused(layers, message):
    model = Stages()
    before = state(model)
    with pytest.raises(ConfigError, match=message):
        attribute(model, batch(), 0, layers)
    assert_same(before, state(model))


class Frozen(Stages):
    def forward(self, x):
        with torch.no_grad():
            x = self.layer1(x)
        return self.fc(self.layer2(x).mean((2, 3)))


def test_a_layer_that_no_gradient_reaches_is_refused():
    assert attribute(Frozen(), batch(), 0, ["layer2"])
    for layers in (["layer1"], ["layer1", "layer2"]):
        with pytest.raises(ConfigError, match="no gradient of the target reaches layer 'layer1'"):
            attribute(Frozen(), batch(), 0, layers)


def test_inference_mode_is_refused():
    model = toy()
    with torch.inference_mode(), pytest.raises(ConfigError, match="inference mode"):
        attribute(model, batch(), 0, "3")
    with (
        Attributor(model, "3") as attributor,
        torch.inference_mode(),
        pytest.raises(ConfigError, match="inference mode"),
    ):
        attributor(batch(), 0)
    with torch.inference_mode():
        made = toy()
    with pytest.raises(ConfigError, match="the model was made in it"):
        attribute(made, batch(), 0, "3")


def test_the_last_call_of_a_shared_module_counts():
    torch.manual_seed(0)
    relu = nn.ReLU(inplace=True)
    one, two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES)
    shared = attribute(nn.Sequential(one, relu, two, relu, *end), batch(), TARGETS, "1")["1"]
    single = attribute(nn.Sequential(one, nn.ReLU(), two, nn.ReLU(), *end), batch(), TARGETS, "3")["3"]
    torch.testing.assert_close(shared, single)


# Meta-saliency


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_meta_saliency_equals_the_map_of_a_copy_after_one_step(loss):
    net, images = toy(), batch()
    copies = oracle.plain(net)
    for lr in (0.05, -0.05):
        maps = attribute(net, images, TARGETS, ["0", "5"], "selective_norm_grad", lr, loss)
        for i, (image, target) in enumerate(zip(images.double(), TARGETS.tolist())):
            stepped = oracle.after_sgd_step(copies, image, target, lr, loss)
            for layer in (0, 5):
                a, g = oracle.activation_and_gradient(stepped, image, target, layer)
                expected = oracle.scaling(a, g, "positive_norm")
                error = (maps[str(layer)][i].double() - expected).abs().max()
                assert error <= 1e-5 * expected.abs().max()


def test_another_loss_of_the_step_is_refused():
    with pytest.raises(ConfigError, match="no loss 'softmax'") as error:
        attribute(toy(), batch(), TARGETS, "5", meta_lr=0.1, meta_loss="softmax")
    assert (error.value.where, error.value.instead) == ("meta_loss", "cross_entropy or binary_cross_entropy")


def test_a_vanishing_step_gives_the_plain_map_and_none_exactly_that():
    net, images = toy(), batch()
    for method in ("norm_grad", "norm_grad_conv", "excitation_backprop"):
        plain = attribute(net, images, TARGETS, ["3"], method)["3"]
        assert torch.equal(attribute(net, images, TARGETS, ["3"], method, meta_lr=0.0)["3"], plain)
        torch.testing.assert_close(attribute(net, images, TARGETS, ["3"], method, meta_lr=1e-9)["3"], plain)
        assert not torch.allclose(attribute(net, images, TARGETS, ["3"], method, meta_lr=0.1)["3"], plain)


def test_meta_saliency_steps_frozen_parameters_too():
    net, images = toy(), batch()
    free = attribute(net, images, TARGETS, "5", meta_lr=0.1)["5"]
    assert torch.equal(attribute(net.requires_grad_(False), images, TARGETS, "5", meta_lr=0.1)["5"], free)


def test_meta_saliency_of_the_prediction_steps_towards_it():
    net, images = toy().eval(), batch()
    found = attribute(net, images, "predicted", "5", "norm_grad", 0.1)["5"]
    assert torch.equal(found, attribute(net, images, net(images).argmax(1), "5", "norm_grad", 0.1)["5"])


def test_any_extract_and_aggregate_has_its_meta_form():
    net = toy()
    for method in (ExtractAggregate("conv", "max_abs", kernel_size=3), ExtractAggregate("bias", "norm")):
        assert attribute(net, batch(), 0, "3", method, 0.01)["3"].shape == (3, 4, 5)
