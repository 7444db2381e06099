"""Alternating optimisation: what flows between the phases, and that nothing else does."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from scarcely import checkpoints, stages
from scarcely.callbacks.history import read_rows
from scarcely.errors import CheckpointError, ConfigError
from scarcely.job import Job
from scarcely.methods.alternating_ssl import AlternatingSSL
from scarcely.run import execute
from tests.runs import (
    TINY,
    compose,
    data_of,
    job_of,
    rows_without_times,
    same_weights,
    start_ranks,
    train_here,
)

CYCLES, LENGTH = 3, 2
BASE = (
    *(o for o in TINY if not o.startswith("batch_size")),
    "method=alternating_ssl",
    "data.labels_per_class=3",
    "pretext=none",
    "batch_size=128",
    f"epochs={CYCLES * LENGTH}",
    f"method.cycles={CYCLES}",
    "method.final_cycles=1",
    "method.classifier_epochs=5",
    "method.final_classifier=false",
)


@pytest.fixture(scope="module")
def data():
    return data_of(compose(base=BASE))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A stage that was not interrupted, and what it did."""
    watch = Watch()
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        watch.over(patch)
        train_here(job(), folder, data)
    return folder, watch


def job(*overrides: str, data=None):
    config = compose(*overrides, base=BASE)
    return job_of(config, data or data_of(config))


class Watch:
    """Keeps the weights around each part of a cycle."""

    def __init__(self) -> None:
        self.prepared: dict[str, torch.Tensor] = {}
        self.around_classifier: list[tuple[dict, dict]] = []
        self.restarted: list[dict] = []
        self.optimizer_states: list[int] = []
        self.steps: list[
            tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]
        ] = []  # epoch, index, p, previous

    def over(self, patch) -> None:
        fit, start, step = (
            AlternatingSSL.fit_classifier,
            AlternatingSSL.on_train_epoch_start,
            AlternatingSSL.training_step,
        )
        ready = AlternatingSSL.ready

        def copied(method):
            return {name: tensor.clone() for name, tensor in method.state_dict().items()}

        def get_ready(method):
            ready(method)
            self.prepared = copied(method)

        def fit_classifier(method, cycle, *arguments):
            before = copied(method)
            found = fit(method, cycle, *arguments)
            self.around_classifier.append((before, copied(method)))
            return found

        def epoch_start(method):
            start(method)
            if method.current_epoch % LENGTH == 0:
                self.restarted.append(copied(method))
                self.optimizer_states.append(sum(len(o.state) for o in method.trainer.optimizers))

        def training_step(method, batch, batch_idx):
            previous = method._bank["previous"][batch.index].clone()
            hooked = []
            handle = method.head.register_forward_hook(lambda m, i, output: hooked.append(output))
            loss = step(method, batch, batch_idx)
            handle.remove()
            p = hooked[0].detach().float().softmax(dim=1)
            self.steps.append((method.current_epoch, batch.index.clone(), p, previous))
            return loss

        patch.setattr(AlternatingSSL, "ready", get_ready)
        patch.setattr(AlternatingSSL, "fit_classifier", fit_classifier)
        patch.setattr(AlternatingSSL, "on_train_epoch_start", epoch_start)
        patch.setattr(AlternatingSSL, "training_step", training_step)


def equal(a: dict, b: dict) -> set[str]:
    """Names of the tensors that are the same bits."""
    return {name for name in a if torch.equal(a[name], b[name])}


def test_phase_one_changes_nothing_but_the_classifier(whole):
    _, watch = whole
    assert len(watch.around_classifier) == CYCLES
    for before, after in watch.around_classifier:
        assert set(before) - equal(before, after) == {"head.weight", "head.bias"}


def test_each_cycle_starts_again_from_the_prepared_weights_bit_for_bit(whole):
    folder, watch = whole
    assert len(watch.restarted) == CYCLES
    for state in watch.restarted:
        assert equal(state, watch.prepared) == set(watch.prepared), "buffers and classifier too"
    assert watch.optimizer_states == [0] * CYCLES
    end = checkpoints.load(folder / "weights.pt")["state_dict"]
    assert "backbone.block1.1.running_mean" in end or any("running_mean" in name for name in end)
    assert len(equal(end, watch.prepared)) < len(end) / 2


def test_without_restart_weights_go_on(data, tmp_path):
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        watch.over(patch)
        train_here(job("method.restart=false"), tmp_path, data)
    for (_, after), state in zip(watch.around_classifier, watch.restarted, strict=True):
        assert equal(after, state) == set(after)
    assert watch.optimizer_states == [0] * CYCLES


def test_two_thirds_of_the_samples_are_used_others_each_cycle_and_all_in_the_last(whole, data):
    _, watch = whole
    count = len(data.pool("unlabelled", "split"))
    used = [set(), set(), set()]
    by_epoch = {}
    for epoch, index, _, _ in watch.steps:
        used[epoch // LENGTH].update(index.tolist())
        by_epoch.setdefault(epoch, []).extend(index.tolist())
    part = round(count * 2 / 3)
    for cycle, expected in enumerate((part, part, count)):
        assert len(used[cycle]) <= expected
        assert len(by_epoch[cycle * LENGTH]) == expected // 128 * 128, "the last, short batch is left out"
    assert len(used[0] ^ used[1]) > part / 4
    assert len(used[2]) > part


def test_consistency_reads_only_the_previous_epoch(whole, data):
    _, watch = whole
    said: dict[int, dict[int, torch.Tensor]] = {}
    for epoch, index, p, previous in watch.steps:
        for row, now, before in zip(index.tolist(), p, previous, strict=True):
            said.setdefault(epoch, {})[row] = now
            first = epoch % LENGTH == 0
            expected = torch.zeros_like(now) if first else said[epoch - 1].get(row, torch.zeros_like(now))
            assert torch.equal(before, expected)


def test_switches_of_the_ablation(data, tmp_path):
    train_here(job("method.split=1", "method.temporal=false", "epochs=3"), tmp_path / "a", data)
    rows = read_rows(tmp_path / "a" / "metrics.csv")
    count = len(data.pool("unlabelled", "split"))
    assert [row["step"] for row in rows] == [count // 128 * (i + 1) for i in range(3)]
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        watch.over(patch)
        train_here(job("method.temporal=false"), tmp_path / "b", data)
    assert all((previous == 0).all() for *_, previous in watch.steps)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_labels_are_what_the_classifier_says(data, tmp_path, labels):
    seen = []
    assign = AlternatingSSL.assign_labels

    def watched(method, cycle):
        with torch.no_grad():
            x = data.augmentation.clean(data.pool("unlabelled", "split").inputs)
            p = copy.deepcopy(method.backbone).eval()(x)
            p = method.head(p).softmax(dim=1)
        found = assign(method, cycle)
        seen.append((p, method._bank["targets"].clone(), found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlternatingSSL, "assign_labels", watched)
        train_here(job(f"method.labels={labels}"), tmp_path, data)
    truth = data.pool("unlabelled", "split", true_labels=True).labels
    for p, targets, found in seen:
        expected = p if labels == "soft" else F.one_hot(p.argmax(dim=1), 10).float()
        torch.testing.assert_close(targets, expected, rtol=1e-4, atol=1e-5)
        assert found["pseudo/labels_accuracy"] == pytest.approx(
            (p.argmax(1) == truth).float().mean().item(), abs=1e-6
        )
    assert "pseudo/switched" not in seen[0][2]
    switched = [(a[0].argmax(1) != b[0].argmax(1)) for a, b in pairwise(seen)]
    assert [found["pseudo/switched"] for *_, found in seen[1:]] == pytest.approx(
        [s.float().mean().item() for s in switched]
    )
    kept = checkpoints.load(tmp_path / "weights.pt")["arrays"]["switched_in"]
    expected = torch.zeros(len(truth), dtype=torch.int64)
    for cycle, changed in enumerate(switched, start=1):
        expected[changed] = cycle
    assert torch.equal(kept, expected)


@pytest.mark.parametrize(
    "moment", [(0, "fit"), (0, 1), (1, 0), (2, "fit"), (2, "label"), (2, 0), (3, 2), (4, "fit"), (5, 3)]
)
def test_an_interrupted_stage_ends_alike(whole, data, tmp_path, moment):
    """At every boundary between phases, and inside of each."""
    epoch, where = moment
    names = {"fit": "fit_classifier", "label": "assign_labels"}
    name = names.get(where, "training_step")
    original = getattr(AlternatingSSL, name)

    def interrupted(method, *arguments):
        if method.current_epoch == epoch and (where in names or arguments[1] == where):
            if where == "fit":  # in the middle of it: the classifier is half trained
                torch.nn.init.normal_(method.head.weight)
            raise KeyboardInterrupt
        return original(method, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlternatingSSL, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_here(job(), tmp_path, data)
    train_here(job(), tmp_path, data)
    assert same_weights(tmp_path, whole[0])
    assert rows_without_times(tmp_path) == rows_without_times(whole[0])
    kept = [checkpoints.load(f / "weights.pt")["arrays"]["switched_in"] for f in (tmp_path, whole[0])]
    assert torch.equal(*kept)


def test_the_classifier_may_be_trained_once_more_at_the_end(whole, data, tmp_path):
    train_here(job("method.final_classifier=true"), tmp_path, data)
    end, other = (checkpoints.load(f / "weights.pt")["state_dict"] for f in (tmp_path, whole[0]))
    assert set(end) - equal(end, other) == {"head.weight", "head.bias"}


def test_hidden_labels_shape_nothing_but_scores(whole, tmp_path):
    other = data_of(compose(base=BASE))
    hidden = other.parts["train"].labels < 0
    true = other._true["train"].labels
    true[hidden] = (true[hidden] + 3) % 10
    train_here(job(), tmp_path, other)
    assert same_weights(tmp_path, whole[0])
    first, second = (read_rows(f / "metrics.csv")[0] for f in (tmp_path, whole[0]))
    assert first["pseudo/labels_accuracy"] != second["pseudo/labels_accuracy"]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(data, tmp_path):
    """Frozen in eval mode: BatchNorm's statistics are otherwise those of a rank's own samples."""
    one = job(data=data)
    method = {**one.method, "freeze": 4, "frozen_bn": "eval"}
    one = Job(**{**vars(one), "method": method})
    two = Job(**{**vars(one), "trainer": {**one.trainer, "devices": 2}})
    train_here(one, tmp_path / "one", data)
    for process in start_ranks(two, tmp_path / "two"):
        assert process.wait() == 0, process.output
    for a, b in zip(*(rows_without_times(tmp_path / n) for n in ("one", "two")), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            same = a[key] if isinstance(a[key], str) else pytest.approx(a[key], rel=1e-3, abs=2e-3)
            assert b[key] == same, key


@pytest.mark.gpu
def test_the_bank_lives_on_the_device(tmp_path):
    config = compose("trainer.accelerator=gpu", base=BASE)
    data = data_of(config)
    places = set()
    step = AlternatingSSL.training_step

    def watched(method, batch, batch_idx):
        places.update(tensor.device.type for tensor in method._bank.values())
        return step(method, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlternatingSSL, "training_step", watched)
        stages.train(job_of(config, data), tmp_path, data, "cuda")
    assert places == {"cuda"}


def run(folder, *overrides: str) -> dict:
    config = compose(*overrides, f"run_dir={folder}", f"cache_dir={folder.parent / 'cache'}", base=BASE)
    return execute({**config, "command": ""}, folder.name)


def test_a_run_and_its_refinement(tmp_path, monkeypatch):
    import scarcely.reports.html

    monkeypatch.setattr(scarcely.reports.html, "write_report", lambda evidence: None)
    results = run(tmp_path / "first")
    assert {"train/accuracy", "pseudo/accuracy", "test/accuracy", "test/ece"} <= set(results["metrics"])
    lines = (tmp_path / "first" / "labelled.csv").read_text().splitlines()
    assert len(lines) == 31
    rows = read_rows(tmp_path / "first" / "metrics.csv")
    for cycle in range(CYCLES):
        first, last = rows[cycle * LENGTH], rows[cycle * LENGTH + LENGTH - 1]
        assert {"phase_one/accuracy", "phase_one/labelled_accuracy", "pseudo/labels_accuracy"} <= set(first)
        assert "phase_two/accuracy" in last
        assert first["cycle"] == cycle
    assert rows[-1]["phase_two/accuracy"] == pytest.approx(results["metrics"]["test/accuracy"])
    # refined: from these weights but for the classifier, soft labels, no split, nothing before it
    refined = run(tmp_path / "second", f"refine={tmp_path / 'first'}")
    assert [s["name"] for s in refined["stages"]] == ["alternating"]
    config = compose(f"refine={tmp_path / 'first'}", base=BASE)
    assert config["method"]["labels"] == "soft"
    assert config["method"]["split"] == 1
    data = data_of(config)
    method = stages.build_method(job_of(config, data, inherited=config["ckpt"]), data.input_shape)
    given = checkpoints.load(tmp_path / "first" / "weights.pt")["state_dict"]
    assert set(given) - equal(method.state_dict(), given) == {"head.weight", "head.bias"}
    assert not checkpoints.load(tmp_path / "second" / "weights.pt")["job"]["whole"]
    # another library's names
    torch.save({f"net.enc.{n}": t for n, t in given.items()}, tmp_path / "foreign.pt")
    torch.save(
        {n.replace("backbone.", "trunk_").replace("head.", "fc-"): t for n, t in given.items()},
        tmp_path / "other.pt",
    )
    mapped = job_of(
        config,
        data,
        inherited=str(tmp_path / "other.pt"),
        whole=True,
        key_map={"trunk_": "backbone.", "fc-": "head."},
    )
    method = stages.build_method(mapped, data.input_shape)
    assert equal(method.state_dict(), given) == set(given)
    with pytest.raises(CheckpointError, match=r"no weight of .* begins with model"):
        stages.build_method(Job(**{**vars(mapped), "key_map": {"model": ""}}), data.input_shape)
    with pytest.raises(CheckpointError, match="another network"):
        run(tmp_path / "third", f"refine={tmp_path / 'first'}", "backbone.num_features=8", "backbone.width=6")


@pytest.mark.parametrize(
    ("overrides", "where", "message"),
    [
        (("method.split=0",), "method.split", "is not possible"),
        (("method.split=1.1",), "method.split", "is not possible"),
        (
            ("method.cycles=2", "method.final_cycles=3"),
            "method.final_cycles",
            "3 final cycles on all samples, of 2",
        ),
        (("epochs=7",), "epochs", "7 epochs are not the same number in each of 3 cycles"),
        (("data.labels_per_class=0",), "data.labels_per_class", "is not possible"),
        (("method.labels=vague",), "method.labels", "is not possible"),
    ],
)
def test_settings_that_are_refused(overrides, where, message):
    with pytest.raises(ConfigError, match=message) as error:
        compose(*overrides, base=BASE)
    assert where in str(error.value)


def test_settings_without_effect_are_refused(tmp_path):
    torch.save({}, tmp_path / "x.pt")
    base = [o for o in BASE if not o.startswith("pretext")]
    with pytest.raises(ConfigError, match="has no effect with refine="):
        compose(f"refine={tmp_path / 'x.pt'}", "pretext=rotnet", base=base)
    with pytest.raises(ConfigError, match="there is none"):
        compose("key_map={a: b}", base=BASE)
    with pytest.raises(ConfigError, match="no epoch would train anything"):
        compose(base=[*(o for o in BASE if not o.startswith("epochs")), "epochs=0"])


def test_refine_is_for_methods_that_refine(tmp_path):
    torch.save({}, tmp_path / "x.pt")
    base = [o for o in TINY]
    with pytest.raises(ConfigError, match="method=lsdc refines nothing"):
        compose(f"refine={tmp_path / 'x.pt'}", base=base)
    with pytest.raises(ConfigError, match="both name what to start from"):
        compose(f"refine={tmp_path / 'x.pt'}", f"ckpt={tmp_path / 'x.pt'}", base=BASE)


def test_more_labels_than_images_are_told_before_training(tmp_path):
    from scarcely.errors import DataError

    with pytest.raises(DataError, match="labels of each class were asked for"):
        run(tmp_path / "run", "data.labels_per_class=500")
    with pytest.raises(DataError, match="every training sample of digits is labelled"):
        run(tmp_path / "run", "data.labels_per_class=null")
    assert not (tmp_path / "run").exists()
