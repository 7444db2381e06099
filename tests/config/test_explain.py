"""What Hydra finds wrong is said in our words, with what was probably meant."""

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from scarcely.config.explain import explain, nearest, no_option
from tests.config.composing import composed

FOUND = {
    "data=cifar11": ("data", "there is no data=cifar11", "data=cifar10, cifar100, cifar100_20"),
    "method/labeler=nearest": ("method/labeler", "no method/labeler=nearest", "cosine, knn, l2, rank, sne"),
    "experiment=lsdc/table9": ("experiment", "no experiment=lsdc/table9", "experiment=lsdc/table"),
    "method.labler=knn": (
        "method.labler",
        "no setting 'method.labler'",
        "method/labeler=cosine|knn|l2|rank|sne",
    ),
    "method.labeler.temperature=1": ("method.labeler.temperature", "not chosen", "method/labeler=sne"),
    "data.on_error=skip": ("data.on_error", "not chosen", "data=imagefolder"),
    "seed.x=1": ("seed.x", "no setting 'seed.x'", "seed"),
    "+seed=1": ("seed", "exists already", "seed=VALUE without the +"),
    "++data=digits": ("data", "nothing is added", "data=digits without the +"),
    "~xyzzy": ("xyzzy", "no setting 'xyzzy'", "--help"),
    "data.size=${nothing}": ("data.size", "Interpolation key 'nothing' not found", "--help"),
}


@pytest.mark.parametrize("override", FOUND)
def test_a_mistake_is_named_with_its_place_and_what_would_be_right(override):
    where, what, instead = FOUND[override]
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        composed(override)
    told = explain(error.value)
    assert told.where == where
    assert what in told.what
    assert instead in told.instead
    assert "provider=" not in str(told), "Hydra's search path is no help"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "method.optimizer.lr"),
        ("method.lr", "method.optimizer.lr"),
        ("optimizer.lr", "method.optimizer.lr"),
        ("epoch", "epochs"),
        ("batchsize", "batch_size"),
        ("labeler", "method/labeler=cosine|knn|l2|rank|sne"),
        ("method/labler", "method/labeler=cosine|knn|l2|rank|sne"),
        ("datas", "data="),
        ("root", "data.root"),
        ("trainer.device", "trainer.devices"),
        ("precision", "trainer.precision"),
        ("output", "output_dir"),
        ("xyzzy", "--help"),
    ],
)
def test_the_nearest_setting_comes_first(key, meant):
    assert meant in nearest(key).partition(" or ")[0]


def test_a_long_list_of_options_is_cut():
    told = no_option("experiment", "zzz", [f"row{i}" for i in range(100)])
    assert "row11, … (100 in all" in told.instead
    assert len(told.instead) < 200
