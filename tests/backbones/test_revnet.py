"""RevNet-18: its blocks can be undone, and its sparing backward pass is that of plain autograd."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from scarcely.backbones.resnet import ResNet18
from scarcely.backbones.revnet import Residual, ReversibleBlock, ReversibleChain, RevNet18, TransitionBlock
from scarcely.errors import ConfigError
from tests.oracles.backbones import pooled_skip


def pair(make):
    """The same network twice: sparing, and plain."""
    torch.manual_seed(0)
    sparing = make()
    plain = deepcopy(sparing)
    for module in plain.modules():
        if isinstance(module, ReversibleChain):
            module.save_memory = False
    return sparing, plain


def chain(blocks=3, channels=8):
    half = channels // 2
    return ReversibleChain(
        *(ReversibleBlock(Residual(half, half), Residual(half, half)) for _ in range(blocks))
    )


def livened(module):
    """Scales, shifts and running statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor in (m.weight, m.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (m.bias, m.running_mean):
                tensor.data.normal_(generator=generator)
    return module


def images(*shape, dtype=torch.float64, seed=2):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def step(net, x, *, needs_input_grad=True):
    """Gradients of a scalar that weighs all outputs, with respect to the input and each parameter."""
    x = x.clone().requires_grad_(needs_input_grad)
    y = net(x)
    (y * images(*y.shape, dtype=y.dtype, seed=3)).sum().backward()
    return {"x": x.grad} | {name: p.grad for name, p in net.named_parameters()}


def assert_same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    assert {n for n, g in found.items() if g is None} == {n for n, g in wanted.items() if g is None}
    for name, gradient in wanted.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


# float64 has 16 digits; recovering an input and some ten layers lose a few
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


# The network


@pytest.mark.parametrize("size", [32, 96])
def test_its_blocks_have_the_shapes_of_resnet18(size):
    sides = []
    for net in (RevNet18().eval(), ResNet18().eval()):
        x = torch.zeros(1, 3, size, size)
        with torch.no_grad():
            assert net(x).shape == (1, 512)
            x = net.stem(x)
            sides.append([tuple((x := getattr(net, name)(x)).shape[1:]) for name in net.block_names])
        assert net.num_features == 512
    assert sides[0] == sides[1] == [(64 * 2**i, size // 2**i, size // 2**i) for i in range(4)]


def test_it_has_the_parameters_counted_by_hand():
    reversible = [4 * 9 * half * half for half in (32, 64, 128, 256)]
    stem = 3 * 64 * 9
    layer1 = 2 * reversible[0]
    layer2 = 9 * (64 * 128 + 128 * 128) + reversible[1]
    layer3 = 9 * (128 * 256 + 256 * 256) + reversible[2]
    layer4 = 9 * (256 * 512 + 512 * 512) + reversible[3]
    # two BatchNorms of half the channels in F and in G, two in a transition, one at the end
    channels = 2 * 4 * 32 + (4 * 64 + 64 + 128) + (4 * 128 + 128 + 256) + (4 * 256 + 256 + 512) + 512
    assert stem + layer1 + layer2 + layer3 + layer4 + 2 * channels == 7_824_704
    net = RevNet18()
    assert sum(p.numel() for p in net.parameters()) == 7_824_704
    assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv2d))


def test_every_block_that_keeps_its_shape_is_reversible():
    net = RevNet18(width=4)
    kinds = {
        name: [
            type(m) for m in getattr(net, name).modules() if isinstance(m, ReversibleBlock | TransitionBlock)
        ]
        for name in net.block_names
    }
    other = [TransitionBlock, ReversibleBlock]
    assert kinds == {"layer1": [ReversibleBlock] * 2, "layer2": other, "layer3": other, "layer4": other}


def test_a_transition_skips_by_pooling_and_channels_of_zeros():
    block = TransitionBlock(3, 6, stride=2).eval()
    nn.init.zeros_(block.residual.conv2.weight)  # leaves the skip alone
    x = images(2, 3, 6, 4, dtype=torch.float32)
    torch.testing.assert_close(block(x), pooled_skip(x, 6))


def test_a_residual_function_is_pre_activation():
    f = livened(Residual(3, 3)).eval()
    x = images(2, 3, 5, 5, dtype=torch.float32)
    wanted = f.conv2(torch.relu(f.bn2(f.conv1(torch.relu(f.bn1(x))))))
    torch.testing.assert_close(f(x), wanted)


@pytest.mark.parametrize("size", [8, 15])
def test_small_and_odd_sides_go_through(size):
    features = RevNet18(width=2).eval()(torch.zeros(1, 3, size, size))
    assert features.shape == (1, 16)
    assert features.min() >= 0, "ranking statistics take values after a ReLU as magnitudes"


def test_an_odd_width_is_refused():
    with pytest.raises(ConfigError, match="7 channels") as error:
        RevNet18(width=7)
    assert error.value.where == "backbone.width"


# What can be undone


@pytest.mark.parametrize("training", [True, False])
def test_the_inverse_recovers_the_input(training):
    torch.manual_seed(0)
    net = livened(chain()).double().train(training)
    block, x = net.blocks[0], images(4, 8, 5, 5)
    with torch.no_grad():
        y = net(x)
        assert not torch.allclose(y, x, atol=0.1)
        before = deepcopy(net.state_dict())
        torch.testing.assert_close(net.inverse(y), x, **TIGHT)
        for found, half in zip(block.inverse(*block(*x.chunk(2, 1))), x.chunk(2, 1)):
            torch.testing.assert_close(found, half, **TIGHT)
        net.load_state_dict(before)
        net.inverse(y)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_block_is_the_two_equations():
    block = ReversibleBlock(nn.Tanh(), nn.Sigmoid())
    x1, x2 = images(2, 3, 4, 4).chunk(2, 2)
    y1, y2 = block(x1, x2)
    torch.testing.assert_close(y1, x1 + torch.tanh(x2))
    torch.testing.assert_close(y2, x2 + torch.sigmoid(y1))


# The sparing backward pass


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("blocks", [1, 4])
def test_a_chain_has_the_gradients_of_plain_autograd(blocks, training):
    sparing, plain = pair(lambda: livened(chain(blocks)).double().train(training))
    x = images(4, 8, 6, 6)
    torch.testing.assert_close(sparing(x), plain(x), rtol=0, atol=0)
    assert_same(step(sparing, x), step(plain, x), **TIGHT)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_has_the_gradients_of_plain_autograd(training):
    sparing, plain = pair(lambda: livened(RevNet18(width=4)).double().train(training))
    x = images(4, 3, 16, 16)
    assert_same(step(sparing, x), step(plain, x), **TIGHT)


def test_numerical_gradients_agree():
    net = (
        livened(chain(blocks=2, channels=4)).double().eval()
    )  # eval: BatchNorm of so few numbers is too curved
    x = images(1, 4, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(net, (x,))


def test_running_statistics_move_once():
    sparing, plain = pair(lambda: livened(RevNet18(width=4)).double())
    before = deepcopy(sparing.state_dict())
    x = images(4, 3, 16, 16)
    for net in (sparing, plain):
        step(net, x)
    moved = [name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    for name in moved:
        assert torch.equal(sparing.state_dict()[name], plain.state_dict()[name]), name
        assert not torch.equal(sparing.state_dict()[name], before[name]), name
    assert all(m.track_running_stats for m in sparing.modules() if isinstance(m, nn.BatchNorm2d))


def test_two_passes_before_one_backward_pass_are_two_gradients():
    sparing, plain = pair(lambda: chain().double())
    for net in (sparing, plain):
        (net(images(4, 8, 5, 5)).square().sum() + net(images(3, 8, 4, 4, seed=5)).cos().sum()).backward()
    assert_same(*({n: p.grad for n, p in net.named_parameters()} for net in (sparing, plain)), **TIGHT)


def test_the_backward_pass_is_of_the_mode_of_the_forward_pass():
    sparing, plain = pair(lambda: livened(chain()).double())
    x = images(4, 8, 5, 5)
    for net in (sparing, plain):
        y = net(x).square().sum()
        net.eval()
        y.backward()
        assert not any(m.training for m in net.modules())
    assert_same(*({n: p.grad for n, p in net.named_parameters()} for net in (sparing, plain)), **TIGHT)


@pytest.mark.parametrize("bn", ["train", "eval"])
@pytest.mark.parametrize("until", [1, 2, 3])
def test_frozen_blocks_get_nothing_and_the_others_the_same(until, bn):
    sparing, plain = pair(lambda: livened(RevNet18(width=4)).double())
    x = images(4, 3, 16, 16)
    gradients = []
    for net in (sparing, plain):
        net.freeze(until, bn)
        gradients.append(step(net, x, needs_input_grad=False))
        named = {name.split(".")[0] for name, g in gradients[-1].items() if g is not None}
        assert named == set(net.block_names[until:])
    assert_same(*gradients, **TIGHT)
    for name, value in sparing.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


@pytest.mark.parametrize("needs_input_grad", [True, False])
@pytest.mark.parametrize("trained", ["bn", "1.", "0.f.conv1", "nothing"])
def test_parameters_without_gradient_inside_a_chain(trained, needs_input_grad):
    sparing, plain = pair(lambda: chain().double())
    gradients = []
    for net in (sparing, plain):
        for name, p in net.named_parameters():
            p.requires_grad_(trained in name)
        x = images(4, 8, 5, 5)
        if trained == "nothing" and not needs_input_grad:
            assert not net(x).requires_grad
        else:
            gradients.append(step(net, x, needs_input_grad=needs_input_grad))
    if gradients:
        assert_same(*gradients, **TIGHT)


def test_without_gradients_and_in_inference_mode_it_is_the_same_function():
    net = RevNet18(width=4).eval()
    x = images(2, 3, 16, 16, dtype=torch.float32)
    wanted = net(x)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            features = net(x)
        assert not features.requires_grad
        assert torch.equal(features, wanted)


def test_train_and_eval_mode_differ():
    net = livened(RevNet18(width=4))
    x = images(4, 3, 16, 16, dtype=torch.float32)
    assert not torch.allclose(net.train()(x), net.eval()(x), atol=1e-3)


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_autocast_holds_for_what_is_computed_again(inside):
    sparing, plain = pair(lambda: livened(RevNet18(width=8)))
    x = images(8, 3, 16, 16, dtype=torch.float32)
    seen = set()

    def gradient(net, autocast=True):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            with torch.no_grad():
                net(x)  # as a teacher does: casts without a graph are no use to the student
            loss = net(x).float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        assert all(p.grad.dtype == torch.float32 for p in net.parameters())
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    exact = gradient(plain, autocast=False)
    for m in sparing.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda m, inputs, out: seen.add(out.dtype))
    found, wanted = gradient(sparing), gradient(plain)
    assert seen == {torch.bfloat16}
    # recovered inputs are rounded; what that adds is less than what bfloat16 costs anyway
    assert torch.dist(found, wanted) < 0.5 * torch.dist(wanted, exact)
    assert torch.dist(wanted, exact) < 0.5 * exact.norm()


def saved_by(net, x):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = net(x)
    del y
    return saved


def test_what_autograd_keeps_does_not_grow_with_the_chain():
    x = images(2, 8, 5, 5)
    for blocks in (1, 6):
        (kept,) = saved_by(chain(blocks).double(), x)
        assert kept.shape == x.shape  # the output
    plain = []
    for blocks in (1, 6):
        net = chain(blocks).double()
        net.save_memory = False
        plain.append(len(saved_by(net, x)))
    assert plain[1] > 5 * plain[0] > 5


def test_hooks_of_autograd_see_each_gradient_once():
    """DDP and accumulation hang on these."""
    net = chain().double()
    counts = {}
    for name, p in net.named_parameters():
        for kind in (p.register_hook, p.register_post_accumulate_grad_hook):
            key = name, kind.__name__
            kind(lambda _, key=key: counts.update({key: counts.get(key, 0) + 1}))
    step(net, images(4, 8, 5, 5))
    assert set(counts.values()) == {1}
    assert len(counts) == 2 * len(list(net.parameters()))


def test_a_copy_is_on_its_own():
    net = RevNet18(width=4).double()
    x = images(4, 3, 16, 16)
    net(x)
    copy = deepcopy(net)
    wanted = step(net, x)
    assert all(p.grad is None for p in copy.parameters())
    assert_same(step(copy, x), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("changed", ["parameter", "statistics"])
def test_what_changed_since_the_forward_pass_is_told(changed):
    net = chain().double().eval()
    loss = net(images(4, 8, 5, 5)).sum()
    with torch.no_grad():
        (net[0].f.conv1.weight if changed == "parameter" else net[0].f.bn1.running_mean).add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_it_keeps_channels_last():
    net = RevNet18(width=4).to(memory_format=torch.channels_last)
    x = images(2, 3, 16, 16, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    maps = net.layer1(net.stem(x))
    assert maps.is_contiguous(memory_format=torch.channels_last)


def test_compiled_it_has_the_same_gradients():
    sparing, plain = pair(lambda: livened(RevNet18(width=4)).double())
    x = images(4, 3, 16, 16)
    wanted = step(plain, x)
    sparing.compile(backend="eager")  # what is compiled is the same for every backend
    assert_same(step(sparing, x), wanted, **TIGHT)
    assert set(sparing.state_dict()) == set(plain.state_dict())
    torch._dynamo.reset()
