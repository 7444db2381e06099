"""Every data set that reads files has a configuration that builds it."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scarcely.config.signature import signature_of
from scarcely.errors import DataError

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "data"
SHAPES = {
    "arrays": (32, 32, 3),
    "voc": (224, 224, 3),
    "coco": (224, 224, 3),
    "objects": (224, 224, 3),
    "shapes": (128, 128, 3),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "kmnist": (28, 28, 1),
    "usps": (16, 16, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "cifar100_20": (32, 32, 3),
    "svhn": (32, 32, 3),
    "stl10": (96, 96, 3),
    "imagefolder": (32, 32, 3),
    "omniglot": (32, 32, 1),
    "imagenet": (224, 224, 3),
    "reuters10k": (2000,),
    "tfidf": (2000,),
}


@pytest.fixture(params=SHAPES)
def module(request, monkeypatch, tmp_path):
    monkeypatch.setenv("SCARCELY_DATA", str(tmp_path / "empty"))
    config = OmegaConf.load(FOLDER / f"{request.param}.yaml")
    del config["defaults"]
    module = instantiate(OmegaConf.create({"seed": 0, "data": config}).data)
    assert module.name == request.param
    return module


def test_the_augmentation_fits_the_images(module):
    shape = SHAPES[module.name]
    assert module.kind == ("images" if len(shape) == 3 else "vectors")
    module.augmentation.check(shape)


def test_every_argument_has_a_key_and_every_key_its_reason(module):
    text = (FOLDER / f"{module.name}.yaml").read_text()
    config = OmegaConf.load(FOLDER / f"{module.name}.yaml")
    wanted = set(signature_of(config["_target_"]).parameters) | {"_target_", "defaults"}
    assert set(config) == wanted
    for line in text.partition("_target_:")[2].splitlines()[1:]:
        bare = not line or line == "augmentation:" or "_target_" in line
        assert bare or "  # " in line, line


def test_data_that_nobody_can_download_are_asked_for_at_once(module):
    if module.name in ("imagefolder", "voc", "coco", "objects", "imagenet", "tfidf", "reuters10k", "arrays"):
        with pytest.raises(DataError) as error:
            module.check()
        assert error.value.where == "data.root"
        assert error.value.instead
    else:
        module.check()


def test_a_flip_never_makes_another_sign(module):
    if module.kind == "images":
        signs = ("mnist", "kmnist", "usps", "svhn", "omniglot")
        assert module.augmentation.flip is (module.name not in signs)
