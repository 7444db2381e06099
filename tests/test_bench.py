"""The benchmark: complete tables, and two sides of each ratio that compute the same. No time is asserted."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from rich.console import Console

from scarcely.bench.command import bench, circumstances, main
from scarcely.bench.epochs import operations_of
from scarcely.bench.input import Inputs, views_apart
from scarcely.bench.methods import METHODS, Calls, PlainSteps, stage_of
from scarcely.bench.pairs import (
    PairInputs,
    gradients_apart,
    labelers_of,
    largest_allocation,
    loss_of_enumeration,
    loss_of_matrix,
    loss_of_rows,
    pairs_as_rows,
)
from scarcely.bench.rows import Settings, Spread, print_table, processor_time, take_turns
from scarcely.bench.step import OurStep, PlainStep, build_lsdc, losses_apart
from scarcely.bench.turns import WARM_UP, Turns
from scarcely.data.loader import Batch

TINY = Settings(
    only=("pairs", "input", "step", "overhead", "framework", "phases", "adapters", "saliency", "growth"),
    repeats=1,
    turn=0.0,
    samples=24,
    features=16,
    clusters=3,
    images=32,
    loaded=16,
    batch=8,
    width=4,
    k=4,
    explained=2,
    pixels=64,
    epochs=3,
    steps=2,
    few_steps=1,
    overrides=("backbone.width=4",),
)


def test_every_measure_gives_complete_rows_in_table_and_json():
    rows = bench(TINY)
    counts = {name: sum(row.measure == name for row in rows) for name in TINY.only}
    expected = {"pairs": 7, "input": 1, "step": 1, "overhead": 1, "framework": 1, "phases": 1, "adapters": 4}
    assert counts == expected | {"saliency": 5 if find_spec("captum") else 3, "growth": 3}
    for row in rows:
        assert row.ratio > 0, row.name
        assert 0 < row.ours.low <= row.ours.median <= row.ours.high, row.name
        assert 0 < row.plain.low <= row.plain.median <= row.plain.high, row.name
        assert (row.target is None) == (row.met is None), row.name
        # an allocation has no result, phases and sizes have different ones; all others were compared
        alike = row.unit != "bytes" and row.measure not in ("phases", "growth")
        assert (row.difference is not None) == alike, row.name
    content = circumstances(TINY, "bench") | {"rows": [dataclasses.asdict(row) for row in rows]}
    assert json.loads(json.dumps(content))["rows"] == content["rows"]
    assert content["processor"]
    assert content["usable_cores"] >= 1
    printed = io.StringIO()
    print_table(content, Console(file=printed, width=500))
    for row in rows:
        assert row.name in printed.getvalue()


@pytest.mark.parametrize("name", ["l2", "cosine", "sne", "knn"])
def test_enumerated_labels_are_those_of_the_labeler(name):
    inputs = PairInputs.make(24, 16, 3, "cpu")
    labeler, enumeration = labelers_of(24, k=4)[name]
    labels = labeler(inputs.features)
    assert torch.equal(labels, torch.tensor(enumeration(inputs.features)))
    others = ~torch.eye(24, dtype=torch.bool)
    assert 0 < labels[others].float().mean() < 1  # neither all nor none: the comparison says something


def test_enumerated_loss_has_the_value_and_gradient_of_the_matrix():
    inputs = PairInputs.make(12, 8, 3, "cpu")
    # float32: sums of 144 terms in another order
    assert gradients_apart(inputs, lambda: loss_of_matrix(inputs), lambda: loss_of_enumeration(inputs)) < 1e-5

    def loss_of_all_rows():
        loss = loss_of_rows(*inputs.probabilities(), inputs.target)
        loss.backward()
        return loss.detach()

    assert gradients_apart(inputs, lambda: loss_of_matrix(inputs), loss_of_all_rows) < 1e-5


def test_row_of_pairs_holds_the_samples_of_its_pair():
    a, b = torch.arange(6.0).view(3, 2), -torch.arange(6.0).view(3, 2)
    first, second = pairs_as_rows(a, b)
    for i in range(3):
        for j in range(3):
            assert torch.equal(first[3 * i + j], a[i])
            assert torch.equal(second[3 * i + j], b[j])


def test_largest_allocation_sees_what_is_freed_inside():
    def program():
        torch.empty(5000, dtype=torch.float32).add_(1)
        return torch.ones(10)

    assert largest_allocation(program, "cpu") == 20_000


def test_pil_views_are_among_those_of_the_project_and_others_are_not():
    inputs = Inputs.make(4, 4, "cpu")
    # a float32 division by 255 in one, a multiplication in the other
    assert views_apart(inputs, images=4) < 1e-5
    inputs.images = inputs.images.flip(0)
    assert views_apart(inputs, images=4) > 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_plain_step_has_the_loss_of_the_real_step(seed):
    method = build_lsdc(width=4, k=4, device="cpu")
    ours, plain = OurStep(method), PlainStep(method)
    generator = torch.Generator().manual_seed(seed)
    views = tuple(torch.randn(10, 3, 32, 32, generator=generator) for _ in range(3))
    batch = Batch(torch.arange(10), views, torch.zeros(10, dtype=torch.int64))
    # float32, in two memory formats
    assert losses_apart(ours, plain, batch) < 1e-4


def test_plain_step_trains_as_the_real_step():
    method = build_lsdc(width=4, k=4, device="cpu")
    ours, plain = OurStep(method), PlainStep(method)
    generator = torch.Generator().manual_seed(3)
    before = method.head.weight.detach().clone()
    for step in range(2):
        views = tuple(torch.randn(10, 3, 32, 32, generator=generator) for _ in range(3))
        ours(Batch(torch.arange(10), views, torch.zeros(10, dtype=torch.int64)), step)
        plain(views, step)
    assert not torch.allclose(method.head.weight, before)
    # two steps of float32 rounding, with a learning rate of 0.1
    torch.testing.assert_close(plain.head.weight, method.head.weight, rtol=1e-3, atol=1e-4)
    assert method.backbone.num_frozen == 3
    frozen = zip(plain.backbone.layer1.parameters(), method.backbone.layer1.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in frozen)


def test_programs_take_turns():
    calls = []
    settings = dataclasses.replace(TINY, repeats=3)
    ours, plain = take_turns(lambda: calls.append("ours"), lambda: calls.append("plain"), settings)
    assert calls == ["ours", "plain"] * 3
    assert isinstance(ours, Spread)
    assert isinstance(plain, Spread)


def test_processor_time_counts_work_of_children_and_no_sleep():
    before = processor_time()
    time.sleep(0.5)
    slept = processor_time() - before
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert slept < 0.4
    assert processor_time() - before >= 0.5


def test_spread_turns_seconds_into_rates():
    assert Spread.of([4.0, 1.0, 2.0]).per_second(8) == Spread(median=4.0, low=2.0, high=8.0)


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("repeats=0", "repeats"),
        ("threads=some", "threads"),
        ("device=tpu", "device"),
        ("clock=sun", "clock"),
        ("only=pairs,speed", "speed"),
        ("batch=20", "batch"),
        ("out=nowhere/at/all.json", "nowhere"),
        ("repeat=3", "repeats"),
        ("pairs", "key=value"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_measured(argument, named, capsys):
    assert main([argument]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert named in said.err
    assert said.out == ""


@pytest.mark.parametrize(("command", "setting"), [("command", "only="), ("profile", "stage=")])
def test_help_imports_no_torch(command, setting):
    program = (
        f"import sys; from scarcely.bench.{command} import main; code = main(['--help']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert setting in done.stdout


def test_command_writes_the_same_numbers_that_it_prints(tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert main([f"out={out}", "only=input", "repeats=1", "threads=1", "device=cpu"]) == 0
    content = json.loads(out.read_text())
    assert content["command"].endswith(f"only=input out={out}")
    assert [row["measure"] for row in content["rows"]] == ["input"]
    printed = io.StringIO()
    print_table(content, Console(file=printed))
    assert printed.getvalue() == capsys.readouterr().out


def test_a_step_is_taken_whole_bare_and_with_plain_ingredients(tmp_path):
    job, data = stage_of("lsdc", TINY, tmp_path, steps=5, overrides=["backbone.width=4"])
    calls, plain = Calls(), PlainSteps(data, job)
    turns = Turns([calls.passes, plain.steps], TINY, turn=2)
    spreads = turns.train(job, data, [calls])
    assert all(spread.median > 0 for spread in spreads)
    assert [len(seconds) for seconds in turns.seconds] == [2, 2, 2]
    networks = [(type(call.network).__name__, call.recorded) for call in calls.calls]
    assert networks == [("ResNet18", True), ("Linear", True)] * 3, "three views"
    assert plain.difference < 1e-3
    assert len(turns.losses[0]) == len(turns.losses[2]) == WARM_UP
    assert turns.losses[1] == [], "bare passes have no loss"


def test_operations_of_a_step_are_those_of_its_layers(tmp_path):
    job, data = stage_of("supervised", TINY, tmp_path, steps=2, overrides=["backbone.width=4"])
    wide, _ = stage_of("supervised", TINY, tmp_path, steps=2, overrides=["backbone.width=8"])
    found = operations_of(job, data, "cpu")
    # forward, and twice that backward, but for the gradient of the images
    sides = {
        4: (32, 4),
        8: (16, 3),
        16: (8, 3),
        32: (4, 3),
    }  # channels: side, 3x3 convolutions within a width
    within = sum(2 * side**2 * 9 * width**2 * count for width, (side, count) in sides.items())
    between = sum(2 * side**2 * 9 * width * width // 2 for width, (side, _) in sides.items() if width > 4)
    first, head = 2 * 32**2 * 9 * 3 * 4, 2 * 32 * 10
    assert found == TINY.batch * (3 * (within + between + head) + 2 * first)
    assert operations_of(wide, data, "cpu") > 3.5 * found


@pytest.mark.slow
def test_measures_that_train_give_complete_rows():
    settings = dataclasses.replace(
        TINY, only=("methods", "epochs", "workers", "processes"), threads=(2,), few_steps=2
    )
    rows = bench(settings)
    counts = {name: sum(row.measure == name for row in rows) for name in settings.only}
    assert counts == {"methods": 2 * len(METHODS), "epochs": 3, "workers": 1, "processes": 1}
    for row in rows:
        assert 0 < row.ours.low <= row.ours.median <= row.ours.high, row.name
        assert 0 < row.plain.low <= row.plain.median <= row.plain.high, row.name
        assert row.measure != "epochs" or row.ratio < 1, "no training is faster than its matrix products"


@pytest.mark.slow
def test_default_run_reaches_its_first_step():
    rows = bench(dataclasses.replace(TINY, only=("startup",)))
    assert [row.measure for row in rows] == ["startup", "startup"]
    assert all(row.ratio > 0 for row in rows)
