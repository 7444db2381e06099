"""Domains that are not given: what is seen of them, and whose adapters classify an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely.data.augment import ImageAugmentation
from scarcely.data.decathlon import Decathlon
from scarcely.data.domain_set import channel_statistics
from scarcely.data.loader import Batch
from scarcely.data.together import Mixed
from scarcely.domains import scores
from scarcely.errors import ConfigError
from scarcely.methods.domain_prediction import half_as_deep, normalised_anew
from scarcely.metrics.decathlon import decathlon_score
from tests.domains.runs import network, run
from tests.oracles import domain_prediction as oracle

CLASSES = {"birds": 3, "dtd": 2, "plants": 4}
NAMES = tuple(CLASSES)
COLOURS = {"birds": 20, "dtd": 120, "plants": 220}  # what tells them apart


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Class folders of three domains, noise around a grey of their own."""
    folder = tmp_path_factory.mktemp("domains")
    rng = np.random.default_rng(0)
    for name, classes in CLASSES.items():
        for number in range(24 if name == "birds" else 16):
            file = folder / name / f"{number % classes}" / f"{number:02}.png"
            write_grey(file, COLOURS[name] + rng.integers(-20, 20, (9, 9, 3)))
    return folder


def write_grey(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def images(cache, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(cache / "images"))


def of(root: Path, *names: str) -> str:
    return "data.domains={" + ", ".join(f"{name}: {root / name}" for name in names or NAMES) + "}"


def mixed(root: Path, **settings) -> Mixed:
    folders = {name: str(root / name) for name in NAMES}
    augmentation = ImageAugmentation(None, None, flip=True)
    each = []
    for name in NAMES:
        data = Decathlon(augmentation=augmentation, domains=folders, domain=name, image_size=8, size=9)
        data.setup()
        each.append(data)
    return Mixed(name="domains", each=each, **settings)


# -- what the predictor sees ----------------------------------------------------------------------


def test_batches_hold_equally_many_images_of_each_domain_which_are_their_labels(root):
    data = mixed(root, rounds=3)
    batches = list(data.training_loader("train", "split", batch_size=13, seed=1))
    assert len(batches) == 3
    for batch in batches:
        assert batch.labels.bincount().tolist() == [4, 4, 4]
        assert batch.views[0].shape == (12, 3, 8, 8)
        grey = data.augmentation.replaced(mean=data.statistics()[0], std=data.statistics()[1]).invert
        shown = grey(batch.views[0]).double().mean(dim=(1, 2, 3))
        expected = torch.tensor([COLOURS[NAMES[label]] for label in batch.labels.tolist()])
        assert ((shown - expected).abs() < 15).all()  # normalised alike, whatever the domain
    sizes = [len(one.pool("train", "split")) for one in data.each.values()]
    labels = [batch.labels for batch in data.evaluation_loader("train", "split", batch_size=5)]
    assert torch.cat(labels).bincount().tolist() == sizes


def test_the_statistics_are_those_of_all_domains_in_equal_parts(root):
    data = mixed(root)
    for channel in range(3):
        pixels = []
        for count, one in enumerate(data.each.values(), start=1):
            images = one.pool("train", "split").inputs[:count]
            mean, std = channel_statistics(images)
            one.augmentation = one.augmentation.replaced(mean=mean, std=std)
            pixels.append([value / 255 for value in images[..., channel].flatten().tolist()])
        mean, std = oracle.statistics(pixels)
        found = data.statistics()
        assert (found[0][channel], found[1][channel]) == pytest.approx((mean, std))


def test_images_are_normalised_anew_each_by_its_own_statistics():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 6, 6, 3), generator=generator, dtype=torch.uint8)
    now, *then = (
        ImageAugmentation(
            torch.rand(3, generator=generator).tolist(), (torch.rand(3, generator=generator) + 0.1).tolist()
        )
        for _ in range(5)
    )
    found = normalised_anew(now.clean(pixels), now, then)
    for image, own, seen in zip(pixels, then, found, strict=True):
        torch.testing.assert_close(seen, own.clean(image[None])[0], rtol=1e-4, atol=1e-5)


def test_the_predictor_has_half_the_depth():
    resnet = {"_target_": "scarcely.backbones.resnet26.ResNet26", "width": 16, "blocks": 4}
    assert half_as_deep(resnet) == {**resnet, "blocks": 2}
    other = half_as_deep(
        {"_target_": "scarcely.backbones.torchvision_networks.TorchvisionNetwork", "name": "resnet18"}
    )
    assert other == {"_target_": resnet["_target_"], "blocks": 2}


# -- whole runs -----------------------------------------------------------------------------------

PREDICT = ("method.reference=none", "data.signs=[]", "stages.domain_prediction.epochs=2")
BEFORE = "method.before=[source,domain_prediction]"
AFTER_ADAPTERS = "method.before=[source,parallel_adapters,domain_prediction]"


@pytest.mark.parametrize(
    ("method", "before"),
    [("parallel_adapters", BEFORE), ("series_adapters", BEFORE), ("svd_adapters", AFTER_ADAPTERS)],
)
def test_images_are_classified_by_the_adapters_of_the_domain_that_is_predicted(
    root, cache, tmp_path, monkeypatch, method, before
):
    used: list[tuple] = []
    predict = scores.predict_both
    monkeypatch.setattr(scores, "predict_both", lambda *given: used.append(given) or predict(*given))
    rounds = "stages.domain_prediction.rounds=15"
    given = PREDICT if method != "parallel_adapters" else PREDICT[1:]
    results = run(tmp_path / "run", root, cache, method, before, *given, rounds, of(root))
    metrics, limits = results["metrics"], results["max_errors"]
    if limits is not None:
        errors = {name: 1 - metrics[f"domain/{name}/predicted_accuracy"] for name in NAMES}
        assert metrics["decathlon/score_predicted"] == pytest.approx(decathlon_score(errors, limits))
    predictor, one, known, _, seen_with = used[0]

    networks = [network(tmp_path / "run", name) for name in NAMES]
    data = mixed(root)
    statistics = [(list(d.augmentation.mean), list(d.augmentation.std)) for d in data.each.values()]
    tests = [d.pool("test", "split") for d in data.each.values()]
    images = torch.cat([test.inputs for test in tests])
    expected = oracle.predict(predictor, networks, images[:, :8, :8], data.statistics(), statistics)
    labels = torch.cat([test.labels for test in tests])
    batch = Batch(torch.arange(len(images)), (seen_with.clean(images),), labels)
    domain, classes, _ = predict(predictor, one, known, [batch], seen_with)
    assert list(zip(domain.tolist(), classes.tolist(), strict=True)) == expected
    assert len(domain.unique()) > 1  # mixed inside one batch

    truth = [(number, label) for number, test in enumerate(tests) for label in test.labels.tolist()]
    for number, name in enumerate(NAMES):
        hits = [a == b for a, b in zip(expected, truth, strict=True) if b[0] == number]
        assert metrics[f"domain/{name}/predicted_accuracy"] == pytest.approx(sum(hits) / len(hits))
    mean = sum(metrics[f"domain/{name}/predicted_accuracy"] for name in NAMES) / 3
    assert metrics["mean/predicted_accuracy"] == pytest.approx(mean)
    right = [a[0] == b[0] for a, b in zip(expected, truth, strict=True)]
    assert metrics["domain_prediction/accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize(
    ("method", "overrides", "what"),
    [
        ("parallel_adapters", ["data.signs=[dtd]"], "images of birds have 8 pixels, those of dtd 9"),
        ("finetune", [], "method=finetune has none"),
        ("parallel_adapters", ["method.shared=true"], "method=parallel_adapters has none"),
        ("parallel_adapters", ["trainer.devices=2"], "one device"),
        ("parallel_adapters", ["method.before=[domain_prediction]", "data.source=null"], "a random network"),
    ],
)
def test_what_cannot_be_predicted_is_told_before_any_training(root, tmp_path, method, overrides, what):
    overrides = [*PREDICT, BEFORE, of(root), *overrides]
    overrides = [o for o in overrides if o != BEFORE or "method.before=[domain_prediction]" not in overrides]
    with pytest.raises(ConfigError, match=what):
        run(tmp_path / "run", root, tmp_path / "none", method, *overrides)
    assert not (tmp_path / "none").exists()
