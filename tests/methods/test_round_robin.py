"""End-to-end training: whose turn it is, what a step moves, what becomes of the source, what a kill costs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from scarcely import checkpoints
from scarcely.adapters import AdaptedModel
from scarcely.backbones.resnet26 import ResNet26
from scarcely.callbacks.history import read_rows
from scarcely.data.augment import ImageAugmentation
from scarcely.data.loader import Batch, DeviceLoader
from scarcely.data.samples import Samples
from scarcely.data.together import InTurn, Turn
from scarcely.errors import ConfigError
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.round_robin import RoundRobin, apart, together
from tests.domains.runs import CLASSES, NAMES, TINY, network, pixels, run, write_release
from tests.oracles import round_robin as oracle
from tests.runs import Process, command_line, rows_without_times, wait_until, weights

DECAYS = {"birds": 0.01, "gtsrb": 0.02, "signs": 0.03}


# -- whose turn it is -----------------------------------------------------------------------------


def in_turn(rounds: int | None = None) -> InTurn:
    """Three domains of 12, 20 and 9 images, whose labels are their numbers."""
    augmentation = ImageAugmentation([0.5], [0.5])
    loaders = {}
    for name, count in zip(NAMES, (12, 20, 9), strict=True):
        images = torch.zeros(count, 2, 2, 1, dtype=torch.uint8)
        samples = Samples(images, torch.arange(count))
        loaders[name] = DeviceLoader(samples, augmentation, batch_size=4, seed=1, stage=name)
    return InTurn(loaders, rounds)


@pytest.mark.parametrize(("given", "rounds"), [(None, 2), (1, 1), (7, 7)])
def test_domains_are_visited_in_turn(given, rounds):
    loader = in_turn(given)
    assert len(loader) == 3 * rounds  # by itself as many as the smallest domain has batches
    turns = list(loader)
    assert [turn.domain for turn in turns] == [*NAMES] * rounds
    assert all(len(turn.batch.labels) == 4 for turn in turns)


def test_a_small_domain_begins_again_in_another_order():
    of_signs = [turn.batch.labels.tolist() for turn in in_turn(7) if turn.domain == "signs"]
    passes = [sorted(a + b) for a, b in zip(of_signs[::2], of_signs[1::2])]
    assert all(len(set(labels)) == 8 for labels in passes)  # no image twice before it begins again
    assert of_signs[0] != of_signs[2]


def test_an_epoch_holds_the_same_whatever_was_seen_before():
    loader = in_turn(3)
    loader.set_epoch(1)
    second = [turn.batch.labels.tolist() for turn in loader]
    for epoch in (0, 2, 1):
        loader.set_epoch(epoch)
        seen = [turn.batch.labels.tolist() for turn in loader]
    assert seen == second
    loader.set_epoch(0)
    assert [turn.batch.labels.tolist() for turn in loader] != second


# -- a step ---------------------------------------------------------------------------------------


def round_robin(kind: str = "parallel", with_adapters: bool = False, source: str | None = "birds"):
    torch.manual_seed(0)
    adapters = {"kind": kind, "decay": DECAYS, "norm_decay": 0.04, "head_decay": 0.05}
    adapters |= {"source_with_adapters": with_adapters}
    optimizer = Optimizer(lr=0.1, momentum=0.9, weight_decay=0.06)
    return RoundRobin(ResNet26(3, 2, 1), optimizer, adapters, CLASSES, source)


def turns(count: int) -> list[Turn]:
    generator = torch.Generator().manual_seed(2)
    found = []
    for number in range(count):
        name = NAMES[number % 3]
        images = torch.randn(6, 3, 16, 16, generator=generator)
        labels = torch.randint(0, CLASSES[name], (6,), generator=generator)
        found.append(Turn(name, Batch(torch.arange(6), (images,), labels)))
    return found


def steps(method: RoundRobin, given: list[Turn]) -> None:
    optimizer = method.configure_optimizers()
    for number, turn in enumerate(given):
        optimizer.zero_grad()
        method.training_step(turn, number).backward()
        optimizer.step()


def own(model: AdaptedModel, name: str) -> dict[str, torch.Tensor]:
    """What belongs to a domain, buffers too: of the source without adapters the network's own BatchNorm."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    theirs = f".members.{name}."
    return {k: v for k, v in state.items() if theirs in k or (".original." in k and name == model.source)}


DESIGNS = [("parallel", False), ("series", True), ("series", False), ("bn", False)]


@pytest.mark.parametrize(("kind", "with_adapters"), DESIGNS)
def test_rounds_are_separate_steps_on_each_domain(kind, with_adapters):
    method = round_robin(kind, with_adapters)
    expected = copy.deepcopy(method.backbone)
    decays = {"adapters": DECAYS, "norms": dict.fromkeys(NAMES, 0.04), "heads": dict.fromkeys(NAMES, 0.05)}
    method.train()
    expected.train()
    steps(method, turns(7))
    oracle.train(expected, [(t.domain, t.batch.views[0], t.batch.labels) for t in turns(7)], decays, 0.06)
    torch.testing.assert_close(dict(method.backbone.state_dict()), dict(expected.state_dict()))


@pytest.mark.parametrize(("kind", "with_adapters"), DESIGNS)
def test_a_step_moves_one_domain_and_leaves_the_others_bit_for_bit(kind, with_adapters):
    method = round_robin(kind, with_adapters).train()
    optimizer = method.configure_optimizers()
    for number, turn in enumerate(turns(6)):  # in the second round all have momentum
        before = {name: own(method.backbone, name) for name in NAMES}
        shared = [p.clone() for p in method.backbone.shared_parameters() if p.requires_grad]
        optimizer.zero_grad()
        method.training_step(turn, number).backward()
        optimizer.step()
        for name in NAMES:
            after = own(method.backbone, name)
            assert after
            assert after.keys() == before[name].keys()
            same = [torch.equal(after[key], before[name][key]) for key in after]
            assert not any(same) if name == turn.domain else all(same), name
        moved = [p for p in method.backbone.shared_parameters() if p.requires_grad]
        assert all(not torch.equal(a, b) for a, b in zip(moved, shared, strict=True))


def test_the_record_has_the_loss_of_each_domain():
    method = round_robin().train()
    given = turns(6)
    losses = [method.training_step(turn, i).item() for i, turn in enumerate(given)]
    summary = method.epoch_summary()
    assert summary["loss"] == pytest.approx(sum(losses) / 6)
    for i, name in enumerate(NAMES):
        assert summary[f"domain/{name}/loss"] == pytest.approx((losses[i] + losses[i + 3]) / 2)


@pytest.mark.parametrize(("kind", "with_adapters"), DESIGNS)
def test_taken_apart_and_put_together_it_is_the_same_network(kind, with_adapters):
    method = round_robin(kind, with_adapters)
    steps(method, turns(3))
    state = method.state_dict()
    parts = {name: apart(state, name, "birds") for name in NAMES[1:]}
    again = together(parts, "birds")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


# -- whole runs -----------------------------------------------------------------------------------

SHORT = ("method.reference=none", "stages.round_robin.epochs=2", "stages.round_robin.rounds=2")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def images(cache, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(cache / "images"))


@pytest.fixture(scope="module")
def plain(root, cache, tmp_path_factory) -> tuple[Path, dict]:
    """A run with adapters without any round robin."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCARCELY_CACHE", str(cache / "images"))
        return folder, run(folder, root, cache, "parallel_adapters", "method.reference=none")


@pytest.mark.parametrize("method", ["parallel_adapters", "series_adapters"])
def test_the_source_moves_and_the_final_pass_moves_it_no_further(root, cache, tmp_path, method):
    results = run(tmp_path / "run", root, cache, method, "method.before=[source,round_robin]", *SHORT)
    stages = [stage["name"] for stage in results["stages"]]
    assert stages[1:] == ["round_robin", f"gtsrb {method} final pass", f"signs {method} final pass"]
    metrics = results["metrics"]
    assert metrics["round_robin/source_accuracy"] == metrics["domain/birds/accuracy"]
    source = network(tmp_path / "run", "birds")(pixels())
    for name in NAMES[1:]:
        assert torch.equal(network(tmp_path / "run", name).source_logits(pixels()), source)
        assert metrics[f"domain/{name}/source_accuracy"] == pytest.approx(metrics["domain/birds/accuracy"])
    rows = [row for row in read_rows(tmp_path / "run/metrics.csv") if row["stage"] == "round_robin"]
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        losses = [row[f"domain/{name}/loss"] for name in NAMES]
        assert row["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_it_goes_on_from_the_trained_adapters_of_every_domain(root, cache, plain, tmp_path):
    before = "method.before=[source,parallel_adapters,round_robin]"
    results = run(tmp_path / "run", root, cache, "parallel_adapters", before, *SHORT)
    cached = {stage["name"]: stage["cached"] for stage in results["stages"]}
    alone = {f"{name} parallel_adapters": True for name in NAMES[1:]}  # with the settings of the last stage
    again = {f"{name} parallel_adapters final pass": False for name in NAMES[1:]}
    assert cached == {"birds supervised": True, **alone, "round_robin": False, **again}
    states = {name: network(plain[0], name).state_dict() for name in NAMES[1:]}
    assert any(same(file, together(states, "birds")) for file in (cache / "joined").glob("*/round_robin.pt"))

    was = results["metrics"]["round_robin/source_accuracy_before"]
    assert was == pytest.approx(plain[1]["metrics"]["domain/birds/accuracy"])
    assert results["metrics"]["parameters/ratio"] == plain[1]["metrics"]["parameters/ratio"]
    moved, unmoved = (network(folder, "birds")(pixels()) for folder in (tmp_path / "run", plain[0]))
    assert not torch.allclose(moved, unmoved)


def same(file: Path, state: dict[str, torch.Tensor]) -> bool:
    found = checkpoints.load(file)["state_dict"]
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def test_a_checkpoint_takes_the_place_of_the_source(root, cache, plain, tmp_path):
    given = (f"ckpt={plain[0] / 'domains/birds'}", "method.before=[source,round_robin]", *SHORT)
    results = run(tmp_path / "run", root, cache, "bn_adapters", *given)
    assert results["stages"][0]["name"] == "round_robin"
    after = results["metrics"]["round_robin/source_accuracy"]
    for metric in ("domain/birds/accuracy", "domain/gtsrb/source_accuracy"):
        assert results["metrics"][metric] == pytest.approx(after)
    again = run(tmp_path / "again", root, cache, "bn_adapters", *given)
    assert all(stage["cached"] for stage in again["stages"])
    assert again["metrics"] == results["metrics"]


def test_without_a_source_all_domains_begin_together(root, cache, tmp_path):
    given = ("method.before=[round_robin]", "data.source=null", *SHORT)
    results = run(tmp_path / "run", root, cache, "bn_adapters", *given)
    assert [row["name"] for row in results["domains"]] == list(NAMES)
    states = [network(tmp_path / "run", name).backbone.network.conv1.weight for name in NAMES]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("method", "overrides", "what"),
    [
        ("finetune", ["method.before=[source,round_robin]"], "none with adapters"),
        ("parallel_adapters", ["method.before=[source,bn_adapters,round_robin]"], "are others"),
        ("parallel_adapters", ["method.before=[source,round_robin]", "method.shared=true"], "not frozen"),
        (
            "parallel_adapters",
            ["method.before=[source,round_robin]", "method.decay=validation"],
            "weight decay",
        ),
        ("parallel_adapters", ["method.before=[source,round_robin]", "trainer.devices=2"], "one device"),
        ("parallel_adapters", ["method.before=[round_robin]"], "starts from the network of birds"),
    ],
)
def test_what_cannot_be_trained_together_is_told_before_any_training(root, tmp_path, method, overrides, what):
    with pytest.raises(ConfigError, match=what):
        run(tmp_path / "run", root, tmp_path / "none", method, *overrides, "method.reference=none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow  # half a minute; test_resume kills every kind of stage
def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(root, tmp_path):
    given = ["method=bn_adapters", *TINY, f"data.root={root}", "data.domains=[birds,signs]", "epochs=1"]
    given += ["method.reference=none", "method.before=[source,round_robin]", "stages.source.epochs=1"]
    given += ["stages.round_robin.epochs=20", "stages.round_robin.rounds=4", "seed=7"]

    def start(folder: Path, *more: str) -> Process:
        where = [f"cache_dir={folder / 'cache'}", f"run_dir={folder / 'run'}"]
        return Process(command_line, [*given, *where, *more], log=folder / "log")

    def rows(folder: Path) -> list[dict]:
        files = folder.glob("cache/stages/*/metrics.csv")
        return [row for file in files for row in read_rows(file) if row["stage"] == "round_robin"]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    process = start(whole)
    assert process.wait() == 0, process.output
    process = start(killed)
    wait_until(lambda: len(rows(killed)) > 2, process)
    process.send(9)
    assert process.wait() == -9
    assert 2 < len(rows(killed)) < 20
    assert list(killed.glob("cache/stages/*/last.ckpt"))
    process = start(killed, "resume=true")
    assert process.wait() == 0, process.output
    assert rows_without_times(whole / "run") == rows_without_times(killed / "run")
    for name in ("birds", "signs"):
        states = [weights(folder / "run" / "domains" / name) for folder in (whole, killed)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
