"""What does not fit is told before any training of several domains."""

from __future__ import annotations

import pytest

from scarcely.config.check import check
from scarcely.config.compose import compose_run
from scarcely.errors import ConfigError, DataError
from tests.domains.runs import TINY, run, write_colours


@pytest.mark.parametrize(
    ("method", "overrides", "error", "what"),
    [
        ("parallel_adapters", ["data.domains=[birds]"], ConfigError, "there is no other domain"),
        ("parallel_adapters", ["data.domains=[birds,birdz]"], DataError, "birdz"),
        ("parallel_adapters", ["method.where=nowhere"], ConfigError, "nowhere"),
        ("parallel_adapters", ["method.decay={birdz: 1}"], ConfigError, "birdz"),
        ("svd_adapters", ["method.rank=0"], ConfigError, "method.rank"),
        ("svd_adapters", ["method.rank=500"], ConfigError, "rank 500"),
        ("svd_adapters", ["method.rank=2", "method.energy=0.5"], ConfigError, "rank and as energy"),
        ("finetune", ["method.last=100"], ConfigError, "last 100 convolutions"),
        ("lwf", ["data.source=null", "method.before=[]"], ConfigError, "source's classifier"),
        ("finetune", ["batch_size=1"], ConfigError, "signs finetune: of one image in a batch"),
        (
            "series_adapters",
            ["stages.source.batch_size=1"],
            ConfigError,
            "birds series_adapters: of one image",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_any_training(root, cache, tmp_path, method, overrides, error, what):
    with pytest.raises(error, match=what):
        run(tmp_path / "run", root, tmp_path / "none", method, *overrides)
    assert not (tmp_path / "none").exists()


def test_a_method_of_several_domains_wants_several():
    config = compose_run(["method=parallel_adapters", "data=digits"])
    with pytest.raises(ConfigError, match="several domains"):
        check(config)


def test_one_domain_of_the_set_is_refused_too(root):
    config = compose_run(["method=finetune", *TINY, f"data.root={root}", "data.domain=signs"])
    with pytest.raises(ConfigError, match="several domains"):
        check(config)


def test_no_validation_part_is_told_where_it_has_to_choose(cache, tmp_path):
    for name, images in (("birds", 10), ("signs", 4)):
        write_colours(tmp_path / name / "train", 2, images)
        write_colours(tmp_path / name / "test", 2, 2)
    of = f"data.domains={{birds: {tmp_path / 'birds'}, signs: {tmp_path / 'signs'}}}"
    with pytest.raises(DataError, match="signs has too few images"):
        run(tmp_path / "run", tmp_path, tmp_path / "none", "parallel_adapters", of, "method.decay=validation")
    assert not (tmp_path / "none").exists()


def test_one_image_in_a_batch_will_do_where_the_network_ends_in_more_than_a_pixel(root, cache, tmp_path):
    given = ("batch_size=1", "data.image_size=16", "fast=true", "method.reference=none")
    results = run(tmp_path / "run", root, cache, "parallel_adapters", *given)
    assert len(results["domains"]) == 3
