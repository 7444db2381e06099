"""What the tests of runs over several domains share: a release, a cache, every method once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.domains.runs import METHODS, run, write_release


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def images(cache, monkeypatch):
    monkeypatch.setenv("SCARCELY_CACHE", str(cache / "images"))


@pytest.fixture(scope="session")
def runs(root, cache, tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """Every method once."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCARCELY_CACHE", str(cache / "images"))
        return {method: (folder / method, run(folder / method, root, cache, method)) for method in METHODS}
