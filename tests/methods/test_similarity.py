"""The similarity stage: its loss, its pair head, what it learns of new classes."""

from __future__ import annotations

import copy

import pytest
import torch

from scarcely import stages
from scarcely.backbones.small import MLP
from scarcely.data.loader import Batch
from scarcely.methods import similarity
from scarcely.methods.optimizer import Optimizer
from scarcely.methods.similarity import Similarity
from scarcely.methods.transfer import PairHead
from scarcely.metrics.pairs import pair_quality
from scarcely.seeds import derive_seed
from tests.oracles import transfer as oracle
from tests.runs import TINY, compose, data_of, discovery_jobs, train_here, weights


def method_of(seed=0, **changes) -> Similarity:
    torch.manual_seed(seed)
    return Similarity(MLP(6, (5, 7)), Optimizer(), **changes)


def batch_of(labels) -> Batch:
    x = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1))
    return Batch(torch.arange(len(labels)), (x,), torch.tensor(labels))


def literal_logits(head, features):
    """One pair after the other; BatchNorm by the batch."""
    mean, variance = features.mean(dim=0), features.var(dim=0, unbiased=False)
    normed = (features - mean) / (variance + head.norm.eps).sqrt() * head.norm.weight + head.norm.bias
    n = len(features)
    cosine = [
        [normed[i] @ normed[j] / (normed[i].norm() * normed[j].norm()) for j in range(n)] for i in range(n)
    ]
    return torch.stack([head.log_scale.exp() * torch.stack(row) + head.bias for row in cosine])


@pytest.mark.parametrize("share", [None, 0.5])
def test_loss_and_gradients_equal_the_literal_ones(share):
    method, batch = method_of(positive_share=share), batch_of([0, 1, 0, 2, 1, 1, 0])
    exact = copy.deepcopy(method).double()
    loss = method.training_step(batch, 0)
    loss.backward()
    same = batch.labels[:, None] == batch.labels
    logits = literal_logits(exact.pair_head, exact.backbone(batch.views[0].double()))
    expected = oracle.similarity_bce(logits, same, share)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, given), wanted in zip(method.named_parameters(), exact.parameters(), strict=True):
        # float32 forwards against float64 ones, through BatchNorm
        torch.testing.assert_close(given.grad.double(), wanted.grad, rtol=2e-3, atol=2e-5, msg=name)


def test_pairs_have_no_order():
    torch.manual_seed(0)
    head = PairHead(4).eval()
    logits = head(torch.randn(9, 4))
    torch.testing.assert_close(logits, logits.mT)
    # a sample and itself: the cosine is one
    torch.testing.assert_close(logits.diagonal(), torch.full((9,), 10.0 - 5.0))


@pytest.mark.parametrize("features", [torch.zeros(4, 3), torch.ones(4, 3), torch.full((4, 3), 1e4)])
def test_equal_and_zero_features_have_finite_scores_and_gradients(features):
    head, features = PairHead(3), features.requires_grad_()
    logits = head(features)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert features.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_a_batch_of_one_class_trains():
    method = method_of(positive_share=0.5)
    loss = method.training_step(batch_of([2, 2, 2]), 0)
    loss.backward()
    assert loss.isfinite()
    found = method.recent(1)
    assert found["pairs/positive"] == found["pairs/recall"]


def centred(x):
    """A network for which some of the samples are alike."""
    method = method_of().eval()
    method.pair_head.norm.running_mean.copy_(method.backbone(x).detach().mean(dim=0))
    return method


def test_final_scores_are_of_all_pairs_whatever_the_order_of_the_batches():
    labels = torch.arange(40) % 4
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    method = centred(x)

    def batches(order, size):
        return [Batch(rows, (x[rows],), labels[rows]) for rows in order.split(size)]

    found = method.pair_head(method.backbone(x)).detach() > 0
    expected = pair_quality(found.fill_diagonal_(True), labels)
    for order in (torch.arange(40), labels.argsort()):  # the second is that of files: class after class
        scores = method.final_metrics(batches(order, 10))
        assert scores == pytest.approx({name: float(share) for name, share in expected.items()})


def test_final_scores_of_several_chunks_are_shares_of_their_sums(monkeypatch):
    monkeypatch.setattr(similarity, "SCORED", 7)
    batch = batch_of([k // 10 for k in range(40)])
    method = centred(batch.views[0])
    positive = method.final_metrics([batch])["pairs/positive"]
    assert 0 < positive < 1
    order = torch.randperm(40, generator=torch.Generator().manual_seed(derive_seed(0, "train", "pairs")))
    logits = method.pair_head(method.backbone(batch.views[0])).detach()
    chunks = [logits[rows][:, rows][~torch.eye(len(rows), dtype=torch.bool)] for rows in order.split(7)]
    assert positive == pytest.approx((torch.cat(chunks) > 0).float().mean().item())


def test_a_stage_on_digits_learns_pairs_of_known_classes(tmp_path):
    known = "data.labelled_classes=[0,2,4,6,8]"
    settings = ("method=similarity", "pretext=none", "epochs=6", "batch_size=128", known)
    config = compose(*settings, base=[o for o in TINY if not o.startswith("batch_size")])
    data = data_of(config)
    (job,) = discovery_jobs(config, data, tmp_path)
    train_here(job, tmp_path / "similarity", data)
    method = stages.build_method(job, data.input_shape)
    method.load_state_dict(weights(tmp_path / "similarity"))
    clean = data.evaluation_loader("labelled", "split", batch_size=200)
    scores = method.final_metrics(clean)
    assert set(scores) == {"pairs/positive", "pairs/precision", "pairs/recall"}
    assert scores["pairs/precision"] > 0.4  # one pair in five is of one class
    assert scores["pairs/recall"] > 0.4
