"""What the hard tests share: images of three domains and a classifier to explain."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.domains.runs import write_release
from tests.hard.runs import SHAPES, Scenario


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    """A folder with a release of three domains, and the run of a classifier of shapes."""
    root = write_release(tmp_path_factory.mktemp("material"))
    classifier = Scenario(("method=supervised", *SHAPES, "epochs=1", "batch_size=12"))
    process = classifier.start(root / "trained", root)
    assert process.wait() == 0, process.output
    (root / "classifier").symlink_to(root / "trained" / "run")
    return root
