from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scarcely.data.augment import ImageAugmentation, VectorAugmentation
from scarcely.data.digits import Digits
from scarcely.data.two_moons import TwoMoons

CONF = Path(__file__).parents[2] / "conf"


def _digits(size: int = 16) -> Digits:
    data = Digits(augmentation=ImageAugmentation([0.305], [0.319], padding=1, pad_mode="zero"), size=size)
    data.setup()
    return data


def _moons(**options) -> TwoMoons:
    data = TwoMoons(augmentation=VectorAugmentation(noise=0.05), **options)
    data.setup()
    return data


def test_at_eight_pixels_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data, original = _digits(8), load_digits()
    for part, rows in (("train", [i for i in range(1797) if i % 5 != 4]), ("test", range(4, 1797, 5))):
        pixels = torch.tensor(original.images[list(rows)] * 255 / 16).round().to(torch.uint8)
        assert torch.equal(data.parts[part].inputs.squeeze(-1), pixels)
        assert data.parts[part].labels.tolist() == original.target[list(rows)].tolist()


def test_digits_have_the_mean_and_deviation_of_their_config():
    data = _digits()
    clean = torch.cat([batch.views[0] for batch in data.evaluation_loader("train", "all", batch_size=600)])
    assert clean.shape == (1797, 1, 16, 16)
    assert abs(clean.mean()) < 0.01
    assert abs(clean.std() - 1) < 0.01


def test_digits_name_ten_classes_all_of_which_occur_in_both_parts():
    data = _digits(8)
    assert data.classes == tuple("0123456789")
    for part in data.parts.values():
        assert part.labels.unique().tolist() == list(range(10))


def test_moons_depend_on_their_own_seed_only():
    torch.manual_seed(1)
    first = _moons()
    torch.manual_seed(2)
    assert first.fingerprint() == _moons().fingerprint()
    assert first.fingerprint() != _moons(data_seed=1).fingerprint()
    assert [len(first.parts[part]) for part in ("train", "test")] == [400, 100]


def test_moons_without_noise_lie_on_their_half_circles():
    samples = _moons(samples=40, noise=0.0).pool("train", "all")
    upper = samples.inputs[samples.labels == 0]
    lower = samples.inputs[samples.labels == 1] - torch.tensor([1.0, 0.5])
    for half, sign in ((upper, 1), (lower, -1)):
        torch.testing.assert_close(half.norm(dim=1), torch.ones(20))
        assert (half[:, 1] * sign > -1e-5).all()


@pytest.mark.parametrize(
    ("name", "shape", "backbone"), [("digits", (1, 16, 16), "small_cnn"), ("two_moons", (2,), "mlp")]
)
def test_the_shipped_config_builds_the_data_set_and_names_its_backbone(name, shape, backbone, tmp_path):
    (tmp_path / "main.yaml").write_text(
        "defaults: [{backbone: resnet18}, {data: digits}, _self_]\nseed: 0\n"
        f"hydra: {{searchpath: ['file://{CONF}']}}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = compose("main", overrides=[f"data={name}"])
        other = compose("main", overrides=[f"data={name}", "backbone=resnet18"])
    assert config.backbone == OmegaConf.load(CONF / "backbone" / f"{backbone}.yaml")
    assert other.backbone == OmegaConf.load(CONF / "backbone" / "resnet18.yaml")
    data = instantiate(config.data)
    data.check()
    data.setup()
    assert data.name == name
    assert data.input_shape == shape
    loader = data.training_loader("train", "all", batch_size=64, views=3)
    assert next(iter(loader)).views[2].shape == (64, *shape)
