"""What the tests of runs over several domains share: a release, a cache, every method once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

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
def runs(root, cache, tmp_path_factory, worker_id) -> dict[str, tuple[Path, dict]]:
    """Every method once, by the first worker that asks for it."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "domains"
    folder.mkdir(exist_ok=True)
    done = folder / "results.json"
    with FileLock(folder / ".lock"):
        if not done.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SCARCELY_CACHE", str(cache / "images"))
                results = {method: run(folder / method, root, cache, method) for method in METHODS}
            done.write_text(json.dumps(results))
    return {method: (folder / method, found) for method, found in json.loads(done.read_text()).items()}
