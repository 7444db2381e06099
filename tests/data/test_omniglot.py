from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scarcely.config.signature import constant_of, mismatch, signature_of
from scarcely.data.omniglot import Omniglot
from scarcely.errors import ConfigError, DataError

from .files import GREY, noise, real

TARGET = "scarcely.data.omniglot.Omniglot"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path_factory.mktemp("cache")))


def draw(path: Path, seed: int) -> np.ndarray:
    """Write a drawing as the published ones are: 105 pixels, one bit, white paper."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(seed, 105, 105) > 30
    Image.fromarray(pixels).save(path)
    return pixels


def tree(base: Path) -> Path:
    """Write two background alphabets of 2 and 1 characters, and two to be discovered, of 1 and 2."""
    characters = [
        "images_background/Greek/character01", "images_background/Greek/character02",
        "images_background/Arcadian/character01",
        "images_evaluation/Ge_ez/character01",
        "images_evaluation/Angelic/character01", "images_evaluation/Angelic/character02",
    ]  # fmt: skip
    for number, character in enumerate(characters):
        for drawing in range(2):
            draw(base / character / f"{number:04d}_{drawing:02d}.png", seed=2 * number + drawing)
    return base


def load(root: Path, **options) -> Omniglot:
    module = Omniglot(augmentation=GREY, root=str(root), **({"download": False} | options))
    module.check()
    module.prepare_data()
    module.setup()
    return module


@pytest.mark.parametrize("folder", ["", "omniglot-py", "omniglot"])
def test_background_characters_are_known_and_one_alphabet_is_new(tmp_path, folder):
    tree(tmp_path / folder)
    module = load(tmp_path)
    assert module.classes == (
        "Arcadian/character01", "Greek/character01", "Greek/character02",
        "Angelic/character01", "Angelic/character02",
    )  # fmt: skip
    assert (module.num_known, module.num_new) == (3, 2)
    assert module.parts["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert module.parts["unlabelled"].labels.tolist() == [3, 3, 4, 4]
    assert module.parts["unlabelled"].names[0] == "images_evaluation/Angelic/character01/0004_00.png"
    assert module.input_shape == (1, 32, 32)
    assert module.pool("labelled", "all") is module.parts["train"]
    assert module.pool("unlabelled", "split") is module.parts["unlabelled"]
    assert len(module.pool("mixed", "all")) == 10


def test_strokes_are_bright_and_nothing_is_lost_at_full_size(tmp_path):
    tree(tmp_path)
    image = load(tmp_path, size=105).parts["train"].inputs[0, ..., 0]
    paper = noise(4, 105, 105) > 30
    np.testing.assert_array_equal(image, np.where(paper, 0, 255))


def test_small_images_are_the_mean_of_what_they_cover(tmp_path):
    tree(tmp_path)
    small = load(tmp_path).parts["train"].inputs[0, ..., 0].float()
    whole = np.where(noise(4, 105, 105) > 30, 0, 255)
    assert abs(small.mean() - whole.mean()) < 3  # of 255; each pixel rounds
    assert len(small.unique()) > 50, "grey, so antialiased"


@pytest.mark.parametrize(("alphabet", "new"), [(0, 2), ("Angelic", 2), (1, 1), ("Ge_ez", 1)])
def test_an_alphabet_is_chosen_by_number_or_name(tmp_path, alphabet, new):
    module = load(tree(tmp_path), alphabet=alphabet)
    assert module.num_new == new
    assert module.num_known == 3


@pytest.mark.parametrize("alphabet", ["Angelik", "Greek", 2, -1, "0"])
def test_an_alphabet_that_is_not_there_is_told_at_once_with_those_that_are(tmp_path, alphabet):
    module = Omniglot(augmentation=GREY, root=str(tree(tmp_path)), alphabet=alphabet)
    with pytest.raises(ConfigError, match="no evaluation alphabet") as error:
        module.check()
    assert error.value.where == "data.alphabet"
    assert "Angelic, Ge_ez" in str(error.value.instead)
    assert ("did you mean Angelic" in str(error.value)) == (alphabet == "Angelik")


def test_other_alphabets_share_the_decoded_background(tmp_path, monkeypatch):
    first = load(tree(tmp_path), alphabet=0)
    again = load(tmp_path, alphabet=1)
    assert first.parts["train"].fingerprint() == again.parts["train"].fingerprint()
    assert first.fingerprint() != again.fingerprint()
    monkeypatch.setattr("scarcely.data.decode.decode_image", None)
    assert load(tmp_path, alphabet=1).fingerprint() == again.fingerprint()


def test_the_configuration_knows_the_choice():
    alphabet = signature_of(TARGET).parameters["alphabet"].annotation
    assert not any(mismatch(good, alphabet) for good in (0, 19, "Angelic"))
    assert all(mismatch(bad, alphabet) for bad in (20, -1, None, [0]))
    assert constant_of(TARGET, "discovers") is True
    assert constant_of(TARGET, "split_keys") == ("alphabet",)


# Where it comes from


def test_the_published_archives_are_unpacked(tmp_path, monkeypatch):
    from torchvision.datasets import Omniglot as Published
    from torchvision.datasets.utils import calculate_md5

    base = tmp_path / "root/omniglot-py"
    base.mkdir(parents=True)
    tree(tmp_path / "made")
    sums = {}
    for name in ("images_background", "images_evaluation"):
        archive = shutil.make_archive(str(base / name), "zip", tmp_path / "made", name)
        sums[name] = calculate_md5(archive)
    with pytest.raises(DataError, match="checksum"):
        load(tmp_path / "root")
    monkeypatch.setattr(Published, "zips_md5", sums)
    module = load(tmp_path / "root")
    assert module.num_known == 3
    assert sorted(path.name for path in base.iterdir() if path.is_dir()) == list(sums)


def test_a_download_is_moved_in_whole(tmp_path, monkeypatch):
    from torchvision import datasets

    fetched = []

    def published(folder, background, download):
        assert download
        part = "images_background" if background else "images_evaluation"
        fetched.append(part)
        tree(tmp_path / "made")
        shutil.copytree(tmp_path / "made" / part, Path(folder) / "omniglot-py" / part)

    published.zips_md5 = {"images_background": "0", "images_evaluation": "0"}
    monkeypatch.setattr(datasets, "Omniglot", published)
    root = tmp_path / "data"
    assert load(root, download=True).num_known == 3
    assert load(root, download=True).num_known == 3
    assert fetched == ["images_background", "images_evaluation"]
    assert [path.name for path in root.iterdir() if path.suffix != ".lock"] == ["omniglot-py"]


def test_without_a_network_the_message_says_where_the_files_go(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match="could not be downloaded") as error:
        load(tmp_path / "data", download=True)
    assert "omniglot-py/images_background" in str(error.value)
    assert not (tmp_path / "data").exists()


def test_what_is_missing_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="needs a folder"):
        Omniglot(augmentation=GREY).check()
    with pytest.raises(DataError, match=r"data\.download=false"):
        load(tmp_path)
    (tmp_path / "images_background").mkdir()
    with pytest.raises(DataError, match="images_evaluation is missing"):
        load(tmp_path)


def test_folders_without_images_or_characters_are_refused(tmp_path):
    tree(tmp_path)
    shutil.rmtree(tmp_path / "images_background/Greek/character01")
    shutil.rmtree(tmp_path / "images_background/Greek/character02")
    with pytest.raises(DataError, match="Greek holds no folders"):
        load(tmp_path)


def test_the_real_set_has_964_known_characters_and_the_statistics_of_its_config():
    from omegaconf import OmegaConf

    module = load(real("omniglot"), alphabet="Tengwar")
    train = module.parts["train"]
    assert (len(train), module.num_known, module.num_new) == (19_280, 964, 25)
    assert len(module.parts["unlabelled"]) == 500
    assert torch.equal(train.labels.bincount(), torch.full((964,), 20))
    config = OmegaConf.load(Path(__file__).resolve().parents[2] / "conf/data/omniglot.yaml")
    values = train.inputs.float() / 255
    assert values.mean().item() == pytest.approx(config.augmentation.mean[0], abs=1e-4)
    assert values.std().item() == pytest.approx(config.augmentation.std[0], abs=1e-4)
