from __future__ import annotations

import math
import pickle
from datetime import timedelta

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from scarcely.functional.clustering import (
    adjusted_rand_index,
    clustering_accuracy,
    confusion_counts,
    normalized_mutual_information,
)
from scarcely.metrics import ClusterAccuracy


def samples(n=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 4, (n,), generator=generator)
    clusters = torch.randint(0, 5, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < 0.5, labels.clamp(min=0), clusters), labels


def test_scores_are_those_of_all_batches_together():
    clusters, labels = samples()
    metric = ClusterAccuracy(num_clusters=5, num_classes=4)
    for batch in zip(clusters.split(64), labels.split(64)):
        metric.update(*batch)
    counts = confusion_counts(labels, clusters, 4, 5)
    assert torch.equal(metric.counts, counts)
    scores = metric.compute()
    assert scores["acc"].item() == pytest.approx(clustering_accuracy(counts))
    assert scores["nmi"].item() == pytest.approx(normalized_mutual_information(counts))
    assert scores["ari"].item() == pytest.approx(adjusted_rand_index(counts))
    assert all(score.dtype == torch.float32 and score.ndim == 0 for score in scores.values())


def test_unlabelled_samples_do_not_count():
    clusters, labels = samples()
    metric, labelled = ClusterAccuracy(5, 4), ClusterAccuracy(5, 4)
    metric.update(clusters, labels)
    labelled.update(clusters[labels >= 0], labels[labels >= 0])
    assert (labels < 0).any()
    assert torch.equal(metric.counts, labelled.counts)


def test_scores_of_clusters_decide_by_their_largest():
    clusters, labels = samples()
    scores = torch.nn.functional.one_hot(clusters, 5) + 0.5 * torch.rand(200, 5)
    metric, expected = ClusterAccuracy(5, 4), ClusterAccuracy(5, 4)
    metric.update(scores, labels)
    expected.update(clusters, labels)
    assert torch.equal(metric.counts, expected.counts)


def test_scores_of_another_number_of_clusters_are_refused():
    with pytest.raises(ValueError, match="4 clusters"):
        ClusterAccuracy(5, 4).update(torch.zeros(3, 4), torch.zeros(3).long())


def test_renamed_classes_are_a_perfect_clustering():
    labels = torch.arange(12) % 3
    metric = ClusterAccuracy(3, 3)
    metric.update((labels + 1) % 3, labels)
    assert {name: score.item() for name, score in metric.compute().items()} == {"acc": 1, "nmi": 1, "ari": 1}


def test_without_labelled_samples_the_scores_are_not_numbers():
    metric = ClusterAccuracy(3, 3)
    metric.update(torch.zeros(4).long(), torch.full((4,), -1))
    assert all(math.isnan(score) for score in metric.compute().values())


def test_counts_follow_updates_and_resets():
    metric = ClusterAccuracy(2, 2)
    one = torch.zeros(1).long()
    metric.update(one, one)
    before = metric.counts
    metric.update(one, one)
    assert metric.counts[0, 0] == 2
    assert before[0, 0] == 1, "counts that were given out do not change"
    metric.reset()
    metric.update(one, one + 1)
    assert metric.counts.tolist() == [[0, 0], [1, 0]]


def test_metric_survives_pickling():
    clusters, labels = samples()
    metric = ClusterAccuracy(5, 4)
    metric.update(clusters, labels)
    assert torch.equal(pickle.loads(pickle.dumps(metric)).counts, metric.counts)


def score_a_share(rank, address, results):
    """One of two processes: a share of the samples, and no equal shares."""
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    try:
        clusters, labels = samples()
        share = slice(0, 130) if rank == 0 else slice(130, None)
        metric = ClusterAccuracy(5, 4)
        metric.update(clusters[share], labels[share])
        scores, counts = metric.compute(), metric.counts
        metric.update(clusters[:0], labels[:0])
        torch.save((scores, counts, metric.compute()), results / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_state_sums_over_ranks(tmp_path):
    arguments = f"file://{tmp_path / 'rendezvous'}", tmp_path
    # This process is the other rank: importing torch and torchmetrics once more is what takes the time.
    rank_0 = torch.multiprocessing.spawn(score_a_share, arguments, nprocs=1, join=False)
    score_a_share(1, *arguments)
    rank_0.join()
    clusters, labels = samples()
    single = ClusterAccuracy(5, 4)
    single.update(clusters, labels)
    for rank in (0, 1):
        scores, counts, again = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(counts, single.counts)
        assert scores == single.compute()
        assert again == scores, "computing does not leave the sum in the state, to be summed again"


def test_counts_need_no_other_rank_once_computed(monkeypatch):
    metric = ClusterAccuracy(5, 4)
    metric.update(*samples())
    metric.compute()
    monkeypatch.setattr(ClusterAccuracy, "sync", lambda *args, **kwargs: pytest.fail("a collective call"))
    assert metric.counts.sum() == (samples()[1] >= 0).sum()
