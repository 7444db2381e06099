"""Every example runs as it stands and ends in a picture."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
QUICK = ("cluster_digits", "saliency_map")
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def picture_of(name, folder):
    from PIL import Image

    out = folder / "picture.png"
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["picture.png"]  # nothing else is left behind
    return np.asarray(Image.open(out).convert("L"))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_an_example_ends_in_a_picture(name, tmp_path):
    picture = picture_of(name, tmp_path)
    assert min(picture.shape) >= 200
    assert picture.std() > 5  # more than a blank page


def test_there_are_five_short_examples():
    assert len(NAMES) == 5
    texts = [(EXAMPLES / f"{name}.py").read_text() for name in NAMES]
    assert all(len([line for line in text.splitlines() if line.strip()]) < 40 for text in texts)
