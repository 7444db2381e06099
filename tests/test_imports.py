"""What a module imports at its top is paid for by every command that loads it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import scarcely

SOURCE = Path(scarcely.__file__).parent
HEAVY = {"matplotlib", "sklearn", "torchvision", "wandb"}
WITHOUT_TORCH = ("config", "reports", "cli.py", "errors.py", "files.py", "folder.py", "sweeps.py", "spec.py")


def imported_at_top(text: str) -> set[str]:
    """Return the packages that a module imports when it is loaded."""
    found = set()
    waiting: list[ast.stmt] = list(ast.parse(text).body)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            found.add((statement.module or "").partition(".")[0])
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            waiting += statement.orelse
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "handlers", "finalbody"):  # of a class, an if, a try, a with
                for inner in getattr(statement, name, []):
                    waiting += inner.body if isinstance(inner, ast.ExceptHandler) else [inner]
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import matplotlib.pyplot as plt", {"matplotlib"}),
        (
            "try:\n    from sklearn.base import clone\nexcept ImportError:\n    import wandb",
            {"sklearn", "wandb"},
        ),
        ("class A:\n    import torchvision", {"torchvision"}),
        ("def f():\n    import sklearn", set()),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sklearn", {"typing"}),
        ("from . import sklearn", set()),
    ],
)
def test_imports_are_found_where_they_are(text, expected):
    assert imported_at_top(text) == expected


@pytest.mark.parametrize("file", [p.relative_to(SOURCE).as_posix() for p in sorted(SOURCE.rglob("*.py"))])
def test_no_module_imports_what_not_every_command_needs(file):
    heavy = HEAVY | ({"torch"} if file.startswith(WITHOUT_TORCH) else set())
    assert not imported_at_top((SOURCE / file).read_text(encoding="utf-8")) & heavy
