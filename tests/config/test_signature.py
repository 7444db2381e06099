"""Types, ranges and defaults are read from source files, and nothing is imported for it."""

import subprocess
import sys
from pathlib import Path

import pytest

from scarcely.config.signature import Component, constant_of, describe, mismatch, signature_of
from scarcely.spec import Annotated, Literal, NonNegative, PositiveInt, Range, UnitInterval

ROOT = Path(__file__).resolve().parents[2]

FITS = [
    (int, [0, -3, 10**12], [1.0, True, "1", None, [1]]),
    (float, [0, 1.5, -2], [True, "1.5", None, float("nan"), float("inf"), -float("inf")]),
    (bool, [True, False], [0, 1, "true", None]),
    (str, ["", "a"], [1, None, True, ["a"]]),
    (None, [None], [0, "", False]),
    (list, [[], [1, "a"]], ["a", 1, None, {"a": 1}]),
    (dict, [{}, {"a": 1}], [[], "a", None]),
    (list[int], [[], [1, 2]], [[1, "2"], [1.5], 1]),
    (list[PositiveInt], [[1]], [[0], [1, -1]]),
    (tuple[int, ...], [[], [1, 2, 3]], [["a"], 1]),
    (tuple[int, str], [[1, "a"]], [["a", 1], [1], [1, "a", 2]]),
    (dict[str, int], [{"a": 1}], [{"a": "b"}, {1: 1}, {"_target_": 1}]),
    (dict[Literal["a", "b"], dict], [{"a": {}}, {}], [{"c": {}}, {"a": 1}]),
    (PositiveInt, [1, 7], [0, -1, 1.0, True]),
    (NonNegative, [0, 0.0, 3], [-1e-9, float("inf")]),
    (UnitInterval, [0, 1, 0.5], [1.0001, -0.1]),
    (Annotated[float, Range(above=0, below=1)], [0.5], [0, 1]),
    (PositiveInt | None, [None, 3], [0, "3"]),
    (int | str, [3, "layer3"], [3.0, None, True]),
    (Literal["all", "split"], ["all"], ["All", "", None]),
    (Literal[1, 3], [1, 3], [2, True, 1.0, "1"]),
    (Component, [{"_target_": "a.B"}], [{}, "a.B", 3, None]),
]


@pytest.mark.parametrize(("annotation", "right", "wrong"), FITS, ids=[describe(a) for a, _, _ in FITS])
def test_a_value_fits_its_annotation_or_not(annotation, right, wrong):
    for value in right:
        assert not mismatch(value, annotation), value
    for value in wrong:
        assert mismatch(value, annotation), value


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (PositiveInt, "a whole number at least 1"),
        (NonNegative | None, "a number at least 0 or null"),
        (Annotated[float, Range(above=0, high=1)], "a number above 0 and at most 1"),
        (Literal["sgd", "adam"], "one of sgd, adam"),
        (list[PositiveInt], "a list, each item a whole number at least 1"),
        (bool, "true or false"),
    ],
)
def test_what_an_annotation_accepts_is_said_in_words(annotation, words):
    assert describe(annotation) == words


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Write a module, and return the signatures of what is in it."""
    monkeypatch.syspath_prepend(tmp_path)
    count = iter(range(100))

    def write(text, **others):
        name = f"written_{tmp_path.name}_{next(count)}".replace("-", "_")
        for other, content in others.items():
            (tmp_path / f"{other}.py").write_text(content)
        (tmp_path / f"{name}.py").write_text(text)
        return lambda target: signature_of(f"{name}.{target}")

    return write


def annotations(signature):
    return {name: p.annotation for name, p in signature.parameters.items()}


def test_arguments_keep_their_types_and_whether_they_must_be_given(source):
    read = source(
        "from scarcely.spec import PositiveInt, Literal\n"
        "class A:\n"
        "    def __init__(self, a, b: PositiveInt, c: 'Literal[1, 2]' = 1,\n"
        "        *, d: float, e: str | None = None): pass\n"
    )
    found = read("A")
    assert annotations(found)["b"] == PositiveInt
    assert annotations(found)["c"] == Literal[1, 2]
    assert annotations(found)["e"] == str | None
    assert [n for n, p in found.parameters.items() if p.required] == ["a", "b", "d"]
    assert not found.open


def test_functions_are_read_as_classes_are(source):
    read = source("def f(features, k: int, **rest):\n    pass\n")
    assert list(read("f").parameters) == ["features", "k"]
    assert read("f").open


def test_dataclasses_have_their_fields_and_those_of_their_bases(source):
    read = source(
        "from dataclasses import dataclass, field\n"
        "from typing import ClassVar\n"
        "@dataclass\n"
        "class Base:\n    lr: float\n    name: str = 'sgd'\n"
        "@dataclass(frozen=True)\n"
        "class Derived(Base):\n"
        "    KINDS: ClassVar[int] = 3\n"
        "    steps: list[int] = field(default_factory=list)\n"
    )
    assert annotations(read("Derived")) == {"lr": float, "name": str, "steps": list[int]}
    assert [n for n, p in read("Derived").parameters.items() if p.required] == ["lr"]


def test_a_constructor_is_inherited_across_files(source):
    read = source(
        "from base_of_it import Base\nclass Middle(Base):\n    x = 1\nclass Own(Middle):\n    pass\n",
        base_of_it="class Base:\n    def __init__(self, depth: int) -> None:\n        pass\n",
    )
    assert annotations(read("Own")) == {"depth": int}


def test_a_class_without_constructor_takes_nothing(source):
    found = source("class Plain:\n    pass\n")("Plain")
    assert found.parameters == {}
    assert not found.open


def test_aliases_are_followed_and_objects_told_from_values(source):
    read = source(
        "from collections.abc import Callable\n"
        "from enum import Enum\n"
        "from scarcely.methods.optimizer import Optimizer\n"
        "from scarcely.spec import Literal\n"
        "Split = Literal['a', 'b']\n"
        "Loop = Loop | None\n"
        "class Own:\n    pass\n"
        "class Colour(Enum):\n    RED = 1\n"
        "def f(split: Split, optimizer: Optimizer, own: Own | None, labeler: Callable[[int], int],\n"
        "      colour: Colour, tensor: Tensor, module: nn.Module, loop: Loop): pass\n"
    )
    found = annotations(read("f"))
    assert found["split"] == Literal["a", "b"]
    assert found["optimizer"] is Component
    assert found["labeler"] is Component
    assert not mismatch(None, found["own"])
    assert mismatch("Own", found["own"])
    for name in ("colour", "tensor", "module", "loop"):  # what cannot be told is not refused
        assert not mismatch("anything", found[name]), name


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("LSDC", "not of the form"),
        ("scarcely.methods.nothing.LSDC", "no module"),
        ("nowhere.at.All", "no module"),
        ("scarcely.methods.lsdc.LSD", "has LSDC"),
        ("math.nothing", "no math.nothing"),
    ],
)
def test_a_target_that_does_not_exist_is_told(target, said):
    with pytest.raises(LookupError, match=said):
        signature_of(target)


def test_a_syntax_error_in_a_module_is_told_with_its_line(source):
    read = source("x = 1\nclass Broken(:\n")
    with pytest.raises(LookupError, match="line 2"):
        read("Broken")


def test_what_cannot_be_read_is_imported(source):
    read = source(
        "from json import *\n"  # json/__init__.py imports its encoder relatively
        "try:\n    from nowhere import f\nexcept ImportError:\n    def f(a, *, b=1): pass\n"
        "class Base(dict): pass\n"
    )
    assert list(read("f").parameters) == ["a", "b"]
    assert "indent" in read("JSONEncoder").parameters
    assert "indent" in signature_of("json.JSONEncoder").parameters
    assert signature_of("math.hypot").open  # compiled: nothing is known of its arguments


def test_class_constants_are_inherited(source):
    assert constant_of("scarcely.backbones.small.MLP", "image_input") is False
    assert constant_of("scarcely.backbones.resnet.ResNet18", "image_input") is True
    assert constant_of("scarcely.backbones.small.MLP", "nothing") is None
    assert constant_of("nowhere.at.All", "image_input") is None


def test_composing_and_checking_import_no_heavy_module():
    code = (
        "import sys\n"
        "from scarcely.config.compose import compose_run\n"
        "from scarcely.config.check import check\n"
        "check(compose_run([]))\n"
        "check(compose_run(['method=kmeans', 'data=tfidf', 'pretext=denoising', 'logger=wandb']))\n"
        "heavy = {'torch', 'pytorch_lightning', 'sklearn', 'scipy', 'matplotlib', 'PIL', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )
    assert done.stdout.strip() == "[]"
