"""The page docs/own_method.md, followed to the letter in an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own_method.md"
# a file's name on a line of its own, and the block that is to be written to it
FILE = re.compile(r"^`([\w./]+)`\n\n```(?:python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name, text in FILE.findall(PAGE.read_text()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def commands() -> list[str]:
    return "".join(COMMANDS.findall(PAGE.read_text())).splitlines()


def shell(command, folder, **environment):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_page_names_a_module_a_yaml_a_test_and_two_commands(folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"my_methods.py", "conf/method/agreement.yaml", "test_my_methods.py"}
    assert [command.split()[0] for command in commands()] == ["python", "PYTHONPATH=."]


def test_the_command_of_the_page_trains_the_method_better_than_chance(folder):
    shell(commands()[1], folder)
    results = json.loads((folder / "first" / "results.json").read_text())
    assert results["method"] == "agreement"
    assert results["metrics"]["acc"] > 0.5  # chance is 0.1, 0.80 measured
    assert (folder / "first" / "report.html").is_file()


@pytest.mark.slow
def test_the_test_of_the_page_passes(folder):
    shell(commands()[0], folder)


@pytest.mark.slow
def test_the_python_of_the_page_fits_the_method(folder):
    code = re.search(r"^```python\n(import scarcely\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    more = (
        "from sklearn.datasets import load_digits\n"
        "clusterer.set_params(epochs=1, random_state=0, accelerator='cpu')\n"
        "assert len(set(clusterer.fit_predict(load_digits().images / 16))) > 1\n"
    )
    (folder / "notebook.py").write_text(code[1] + more)
    shell("python notebook.py", folder, PYTHONPATH=".")
