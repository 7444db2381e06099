"""Every example runs as it stands and ends in a picture."""

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_ends_in_a_picture(name, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "picture.png"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")  # a new process would import for long
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"], "nothing else is left behind"
    picture = np.asarray(Image.open("picture.png").convert("L"))
    assert min(picture.shape) >= 200
    assert picture.std() > 5, "more than a blank page"


def test_there_are_five_short_examples():
    assert len(NAMES) == 5
    texts = [(EXAMPLES / f"{name}.py").read_text() for name in NAMES]
    assert all(len([line for line in text.splitlines() if line.strip()]) < 40 for text in texts)
