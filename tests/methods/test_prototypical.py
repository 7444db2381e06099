"""Prototypical networks: episodes of groups, their loss, and a stage on digits."""

from __future__ import annotations

import copy

import pytest
import torch

from scarcely import stages
from scarcely.backbones.small import MLP
from scarcely.callbacks.history import read_rows
from scarcely.data.loader import Batch
from scarcely.errors import ConfigError
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.prototypical import Prototypical
from tests.oracles import transfer as oracle
from tests.runs import TINY, compose, data_of, discovery_jobs, train_here, weights


def method_of(group=4, num_classes=4, scale=None) -> Prototypical:
    torch.manual_seed(0)
    return Prototypical(MLP(6, (5, 7)), num_classes, Optimizer(), group=group, scale=scale)


def batch_of(labels) -> Batch:
    x = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1))
    return Batch(torch.arange(len(labels)), (x,), torch.tensor(labels))


@pytest.mark.parametrize("scale", [None, 10])
@pytest.mark.parametrize("left_over", [0, 3])
def test_the_first_half_of_a_group_is_support_and_the_second_query(left_over, scale):
    method, batch = method_of(scale=scale), batch_of([2] * 4 + [0] * 4 + [3] * 4 + [1] * left_over)
    exact = copy.deepcopy(method).double()
    loss = method.training_step(batch, 0)
    loss.backward()
    features, labels = exact.backbone(batch.views[0].double()), batch.labels
    if scale is not None:  # unit length, squared distances times the scale
        features = features / features.norm(dim=1, keepdim=True) * scale**0.5
    support, query = torch.tensor([0, 1, 4, 5, 8, 9]), torch.tensor([2, 3, 6, 7, 10, 11])
    expected, accuracy = oracle.prototypical_loss(
        features[support], labels[support], features[query], labels[query]
    )
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert method.recent(1)["accuracy"] == pytest.approx(accuracy)
    for given, wanted in zip(method.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(given.grad.double(), wanted.grad, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("labels", [[1], [1, 1, 1], [1] * 4])
def test_a_batch_with_nothing_to_tell_apart_costs_nothing(labels):
    method = method_of()
    loss = method.training_step(batch_of(labels), 0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_groups_without_halves_and_batches_of_one_group_are_refused():
    with pytest.raises(ConfigError, match="halves"):
        method_of(group=5).check(100)
    with pytest.raises(ConfigError, match="tell apart"):
        method_of(group=4).check(7)
    method_of(group=4).check(8)


def test_the_nearest_mean_is_the_mean_of_all_samples_of_a_class():
    method, batch = method_of(), batch_of([0, 1, 0, 1, 1, 3])  # nothing of class 2
    features = method.backbone(batch.views[0]).detach()
    means = {c: features[batch.labels == c].mean(dim=0) for c in (0, 1, 3)}
    nearest = [min(means, key=lambda c, f=f: (f - means[c]).norm().item()) for f in features]
    expected = (torch.tensor(nearest) == batch.labels).float().mean().item()
    assert method.final_metrics([batch]) == {"train/nearest_mean": pytest.approx(expected)}


def test_two_epochs_on_digits_draw_classes_together(tmp_path):
    config = compose(
        "method=prototypical", "pretext=none", "epochs=2", "method.group=10", "batch_size=50",
        base=[o for o in TINY if not o.startswith("batch_size")],
    )  # fmt: skip
    data = data_of(config)
    (job,) = discovery_jobs(config, data, tmp_path)
    untrained = stages.build_method(job, data.input_shape)
    train_here(job, tmp_path / job.name, data)
    method = stages.build_method(job, data.input_shape)
    method.load_state_dict(weights(tmp_path / job.name))
    clean = data.evaluation_loader("labelled", "split", batch_size=200)
    before, after = (m.final_metrics(clean)["train/nearest_mean"] for m in (untrained, method))
    assert after > before
    rows = read_rows(tmp_path / job.name / "metrics.csv")
    assert rows[-1]["accuracy"] > rows[0]["accuracy"]
    assert rows[-1]["loss"] < rows[0]["loss"]
