"""k-means as a method: scikit-learn's on raw inputs, or on the features of a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as Reference

from scarcely.backbones.small import MLP, SmallCNN
from scarcely.data.loader import Batch
from scarcely.methods.base import Place
from scarcely.methods.kmeans import KMeans, fit_kmeans
from scarcely.seeds import derive_seed
from tests.runs import compose


def blobs(n=90, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return 4 * torch.randn(3, 6, generator=g)[labels] + torch.randn(n, 6, generator=g), labels


def batches_of(x, labels, size=40):
    parts = torch.arange(len(x)).split(size)
    return [Batch(part, (x[part],), labels[part]) for part in parts]


def fitted(method, batches):
    method.place = Place(seed=3, stage="cluster")
    method.prepare(batches)
    return method


def reference(features, clusters=3):
    seed = derive_seed(3, "cluster", "kmeans") % 2**32
    return Reference(clusters, n_init=10, random_state=seed).fit(np.asarray(features, dtype=np.float32))


def test_raw_kmeans_is_scikit_learns():
    x, labels = blobs()
    batches = batches_of(x, labels)
    method = fitted(KMeans(MLP(6, (4,)), 3, (6,)), batches)
    expected = reference(x)
    np.testing.assert_allclose(method.centroids.numpy(), expected.cluster_centers_, rtol=1e-5)
    predicted = method.predict_all(batches).probabilities.argmax(1)
    np.testing.assert_array_equal(predicted.numpy(), expected.labels_)


def test_raw_images_are_clustered_as_flat_pixels():
    g = torch.Generator().manual_seed(0)
    images = torch.randn(30, 2, 16, 16, generator=g).contiguous(memory_format=torch.channels_last)
    method = KMeans(SmallCNN(in_channels=2, width=2, num_features=4), 3, (2, 16, 16))
    batches = batches_of(images, torch.zeros(30).long())
    fitted(method, batches)
    expected = reference(images.contiguous().view(30, -1))
    np.testing.assert_allclose(method.centroids.numpy(), expected.cluster_centers_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "inherited", "size"),
    [("auto", False, 6), ("auto", True, 4), ("raw", True, 6), ("features", False, 4)],
)
def test_auto_takes_features_where_there_are_trained_ones(space, inherited, size):
    torch.manual_seed(0)
    net = MLP(6, (4,))
    x, labels = blobs()
    method = fitted(KMeans(net, 3, (6,), inherited=inherited, space=space), batches_of(x, labels))
    assert method.centroids.shape == (3, size)
    with torch.no_grad():
        expected = reference(net(x) if size == 4 else x)
    np.testing.assert_allclose(method.centroids.numpy(), expected.cluster_centers_, rtol=1e-4, atol=1e-5)


def test_the_nearest_centroid_has_the_highest_score():
    method = KMeans(MLP(6, (4,)), 2, (6,))
    method.centroids = torch.tensor([[0.0] * 6, [2.0] * 6])
    scores = method.logits(torch.tensor([[0.5] * 6, [1.9] * 6]))
    torch.testing.assert_close(scores, -torch.tensor([[1.5, 13.5], [21.66, 0.06]]), rtol=1e-4, atol=1e-4)


def test_large_sets_are_clustered_as_well_in_mini_batches(monkeypatch):
    x, _ = blobs(600)
    full = fit_kmeans(x.numpy(), 3, seed=0)
    monkeypatch.setattr("scarcely.methods.kmeans.LARGE", 500)
    small = fit_kmeans(x.numpy(), 3, seed=0)

    def inertia(centroids):
        return torch.cdist(x, torch.from_numpy(centroids)).square().min(dim=1).values.sum().item()

    assert not np.array_equal(full, small)  # another algorithm did run
    assert inertia(small) < 1.02 * inertia(full)


def test_where_classes_are_known_the_others_are_clustered_on_the_features_of_a_supervised_stage():
    known = "data.labelled_classes=[0,2,4,6,8]"
    plain, found, own = (
        compose("method=kmeans", *given) for given in ((), (known,), (known, "method.before=[]"))
    )
    assert [s["name"] for s in plain["plan"]] == ["cluster"]
    assert (plain["method"]["task"], plain["protocol"]) == ("clustering", "all")
    assert [s["name"] for s in found["plan"]] == ["supervised", "cluster"]
    assert (found["method"]["task"], found["method"]["role"]) == ("discovery", "unlabelled")
    assert found["protocol"] == "split"
    assert [s["name"] for s in own["plan"]] == ["cluster"]
