"""Several labels an image: loss, scores, and where the targets come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scarcely import stages
from scarcely.backbones.small import MLP
from scarcely.callbacks.history import read_rows
from scarcely.cli import main
from scarcely.data.loader import Batch
from scarcely.methods.multilabel import Multilabel
from scarcely.methods.optimizer import Optimizer
from tests.oracles import precision as oracle
from tests.runs import compose, data_of, job_of, same_weights, start_ranks, train_here, weights

SHAPES = (
    "method=multilabel",
    "data=shapes",
    "data.image_size=64",
    "data.train_images=40",
    "data.test_images=20",
    "data.augmentation.padding=4",
    "backbone=mnist_net",
    "backbone.width=4",
    "trainer=cpu",
    "batch_size=10",
    "epochs=3",
    "eval_every=1",
    "embedding_size=0",
)


def multilabel(targets, **settings) -> Multilabel:
    torch.manual_seed(0)
    method = Multilabel(MLP(6, (8,)), num_classes=3, optimizer=Optimizer(), **settings)
    method.register_buffer("targets", torch.tensor(targets, dtype=torch.int8), persistent=False)
    return method


def batch_of(rows) -> Batch:
    x = torch.randn(len(rows), 6, generator=torch.Generator().manual_seed(1))
    return Batch(torch.tensor(rows), (x,), torch.full((len(rows),), -1))


TARGETS = st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3), min_size=4, max_size=4)


# -- the loss --------------------------------------------------------------------------------------


@given(TARGETS, st.permutations(range(4)))
def test_the_loss_is_the_mean_cross_entropy_of_the_entries_that_count(targets, rows):
    method, batch = multilabel(targets), batch_of(rows)
    scores = method(batch.views[0]).tolist()
    expected = oracle.binary_cross_entropy(scores, [targets[row] for row in rows])
    assert method.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)


def test_what_is_difficult_has_no_gradient():
    method = multilabel([[1, -1, 0], [0, -1, 1]])
    method.training_step(batch_of([0, 1]), 0).backward()
    gradient = method.head.weight.grad.abs().sum(dim=1)
    assert gradient[1] == 0
    assert (gradient[[0, 2]] > 0).all()


def test_a_batch_in_which_nothing_counts_gives_zero_and_no_gradient():
    method = multilabel([[-1, -1, -1]])
    loss = method.training_step(batch_of([0]), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.abs().max() == 0 for p in method.parameters())


def test_the_record_has_the_mean_average_precision_of_an_epoch():
    targets = [[1, 0, -1], [0, 1, 0], [1, -1, 0], [0, 1, 0]]
    method, batch = multilabel(targets), batch_of([2, 0, 3, 1])
    scores = method(batch.views[0])
    for epoch in range(2):  # the second knows nothing of the first
        for rows in (slice(0, 2), slice(2, 4)):
            method.training_step(Batch(batch.index[rows], (batch.views[0][rows],), batch.labels[rows]), epoch)
        found = method.epoch_metrics()
        shown = torch.tensor(targets)[batch.index]
        by_class = [oracle.average_precision(scores[:, c].tolist(), shown[:, c].tolist()) for c in (0, 1)]
        assert found == {"map": pytest.approx(sum(by_class) / 2)}  # the third class does not occur


def test_each_class_has_a_probability_of_its_own():
    method = multilabel([[1, 1, 0]])
    scores = torch.tensor([[0.0, 3.0, -3.0]])
    expected = [1 / (1 + np.exp(-s)) for s in (0, 3, -3)]
    assert method.probabilities(scores)[0].tolist() == pytest.approx(expected, rel=1e-6)


# -- where the targets come from -------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage():
    """The configuration and the data of a tiny run, in which some objects are difficult."""
    config = compose(base=SHAPES)
    data = data_of(config)
    assert (data.targets("train", "split") == -1).any()
    return config, data


class Interrupted(Multilabel):
    """Ctrl-C in the second epoch, once; writes down which targets each step learnt from."""

    armed = False
    seen: ClassVar[list] = []

    def training_step(self, batch, batch_idx):
        if type(self).armed and self.current_epoch == 1 and batch_idx == 2:
            type(self).armed = False
            raise KeyboardInterrupt
        type(self).seen.append((batch.index, self.targets[batch.index]))
        return super().training_step(batch, batch_idx)


def interruptible(config, data):
    return job_of(
        config, data, method={**config["plan"][-1]["method"], "_target_": f"{__name__}.Interrupted"}
    )


def test_an_interrupted_stage_ends_with_the_same_weights(stage, tmp_path):
    config, data = stage
    job = interruptible(config, data)
    train_here(job, tmp_path / "whole", data)
    Interrupted.armed = True
    with pytest.raises(KeyboardInterrupt):
        train_here(job, tmp_path / "twice", data)
    train_here(job, tmp_path / "twice", data)
    assert same_weights(tmp_path / "whole", tmp_path / "twice")
    assert "targets" not in weights(tmp_path / "whole"), "they belong to the data"


def test_each_image_is_learnt_with_its_own_targets(stage, tmp_path):
    config, data = stage
    Interrupted.seen.clear()
    train_here(interruptible(config, data), tmp_path, data)
    annotated = data.annotated("train", "split")
    assert len(Interrupted.seen) == 3 * 4
    for index, targets in Interrupted.seen:
        for row, found in zip(index.tolist(), targets.tolist(), strict=True):
            one = annotated[row]
            clear = {int(c) for c, d in zip(one.labels, one.difficult) if not d}
            difficult = {int(c) for c in one.labels} - clear
            assert found == [1 if c in clear else -1 if c in difficult else 0 for c in range(6)]


def test_two_processes_learn_what_one_learns(stage, tmp_path):
    """With frozen BatchNorm: its statistics are those of a rank's own images."""
    config, data = stage
    method = {**config["plan"][-1]["method"], "freeze": 4, "frozen_bn": "eval"}
    job = job_of(config, data, method=method)
    two = job_of(config, data, method=method, trainer={**config["trainer"], "devices": 2})
    train_here(job, tmp_path / "one", data)
    for process in start_ranks(two, tmp_path / "two"):
        assert process.wait() == 0, process.output
    a, b = (read_rows(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    for row, other in zip(a, b, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["map"] == pytest.approx(other["map"], abs=1e-6)
    assert len({row["loss"] for row in a}) == 3  # it did learn something
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(second[name], first[name], rtol=1e-4, atol=1e-6)


def test_the_key_of_a_stage_tells_targets_apart(stage):
    """Another image shows one class more; its largest object, and so its label, is the same."""
    config, data = stage
    job, before = job_of(config, data), data_of(config)
    assert stages.fingerprint_of(job, before) == stages.fingerprint_of(job, data)
    one = before.annotated("train", "split")[0]
    one.labels[-1] = next(c for c in range(6) if c not in one.labels)
    assert before.targets("train", "split")[0].tolist() != data.targets("train", "split")[0].tolist()
    assert stages.fingerprint_of(job, before) != stages.fingerprint_of(job, data)
    supervised = job_of(compose("method=supervised", base=SHAPES), data)
    assert stages.fingerprint_of(supervised, before) == stages.fingerprint_of(supervised, data)


# -- whole runs ------------------------------------------------------------------------------------


def test_a_run_leaves_scores_and_what_they_are_made_of(tmp_path, capfd):
    folder = tmp_path / "run"
    assert main([*SHAPES, "fast=true", f"run_dir={folder}"]) == 0
    assert "report:" in capfd.readouterr().out
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    with np.load(folder / "predictions.npz") as arrays:
        for part, count in (("train", 40), ("test", 20)):
            probabilities, targets = arrays[f"{part}_probabilities"], arrays[f"{part}_targets"]
            assert probabilities.shape == targets.shape == (count, 6)
            by_class = [oracle.average_precision(*zip(*column)) for column in columns(probabilities, targets)]
            names = [str(name) for name in arrays["classes"]]
            assert [metrics[f"{part}/ap/{name}"] for name in names] == pytest.approx(by_class, abs=1e-6)
            assert metrics[f"{part}/map"] == pytest.approx(sum(by_class) / 6)
        assert "predicted" not in arrays
    explained = tmp_path / "explained"
    given = [f"ckpt={folder}", "method.evaluations=[meta]", "method.methods=[gradient]"]
    assert main(["method=normgrad", *SHAPES[1:6], *given, "fast=true", f"run_dir={explained}"]) == 0
    about = json.loads((explained / "saliency.json").read_text())
    assert about["meta_loss"] == "binary_cross_entropy", "the loss that the run learnt by"


def columns(probabilities, targets):
    return [list(zip(p.tolist(), t.tolist())) for p, t in zip(probabilities.T, targets.T)]


def test_a_run_on_digits_is_refused_before_training(tmp_path, capfd):
    folder = Path(tmp_path / "run")
    assert main(["method=multilabel", "data=digits", "trainer=cpu", f"run_dir={folder}"]) == 2
    message = capfd.readouterr().err
    assert message.count("error: ") == 1
    assert "multilabel learns from all classes that an image shows" in message
    assert "data=shapes" in message
    assert not folder.exists()
