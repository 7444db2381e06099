"""Read a component's constructor arguments from its source file, without importing it.

Importing a method means importing torch, which takes seconds; a typo should be told at once.
So the signatures of this project's components, and of users' own modules, are read with `ast`;
only what cannot be read so (compiled or re-exported third-party classes) is imported.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import types
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scarcely import spec

_ANY = Any
_NAMES: dict[str, Any] = {
    **{name: getattr(spec, name) for name in spec.__all__},
    **{name: getattr(typing, name) for name in ("Any", "Optional", "Union", "Sequence", "Mapping")},
    **{t.__name__: t for t in (int, float, str, bool, list, dict, tuple)},
    "None": None,
}


@dataclass(frozen=True)
class Parameter:
    """One argument: its annotation (``Any`` where unknown) and whether it must be given."""

    annotation: Any
    required: bool


@dataclass(frozen=True)
class Signature:
    """The arguments of a constructor or function; ``open`` if it takes ``**kwargs``."""

    parameters: dict[str, Parameter]
    open: bool


@cache
def signature_of(target: str) -> Signature:
    """Return the signature behind a ``_target_`` such as ``scarcely.methods.lsdc.LSDC``.

    Raises:
        LookupError: there is no such module or no such name in it.
    """
    module, _, name = target.rpartition(".")
    if not module:
        raise LookupError(f"{target!r} is not of the form package.module.Name")
    path = _source(module)
    if path is not None:
        found = _from_source(path, name)
        if found is not None:
            return found
    return _from_import(module, name)


def _source(module: str) -> Path | None:
    # find_spec imports the parents, whose __init__ files are empty here
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise LookupError(f"there is no module {module!r}") from error
    if found is None:
        raise LookupError(f"there is no module {module!r}")
    if found.origin and found.origin.endswith(".py"):
        return Path(found.origin)
    return None


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _from_source(path: Path, name: str) -> Signature | None:
    tree = _tree(path)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node, skip_first=False)
        if isinstance(node, ast.ClassDef) and node.name == name:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return _arguments(item, skip_first=True)
            if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                return _fields(node)
            for base in node.bases:  # the first base that declares a constructor
                found = _base(path, tree, ast.unparse(base))
                if found is not None:
                    return found
            return None
    imported = _imports(tree).get(name)
    if imported is not None:
        return signature_of(imported)
    if _importable_name(path, name):
        return None
    raise LookupError(f"there is no {name!r} in {path.name}")


def _importable_name(path: Path, name: str) -> bool:
    # names that are assigned (Alias = Class) or re-exported with a star need the import
    return any(
        (isinstance(n, ast.Assign | ast.AnnAssign | ast.ImportFrom) and name in ast.unparse(n))
        or "*" in ast.unparse(n)
        for n in _tree(path).body
        if isinstance(n, ast.Assign | ast.AnnAssign | ast.ImportFrom)
    )


def _base(path: Path, tree: ast.Module, name: str) -> Signature | None:
    if any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body):
        return _from_source(path, name)
    imported = _imports(tree).get(name)
    if imported is None or not imported.startswith("scarcely"):
        return None
    return signature_of(imported)


def _imports(tree: ast.Module) -> dict[str, str]:
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
        for alias in node.names
    }


def _arguments(function: ast.FunctionDef, *, skip_first: bool) -> Signature:
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    first_default = len(positional) - len(args.defaults)
    parameters = {
        a.arg: Parameter(_annotation(a.annotation), required=i < first_default)
        for i, a in enumerate(positional)
    }
    if skip_first and positional:
        del parameters[positional[0].arg]
    for a, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        parameters[a.arg] = Parameter(_annotation(a.annotation), required=default is None)
    return Signature(parameters, open=args.kwarg is not None)


def _fields(node: ast.ClassDef) -> Signature:
    return Signature(
        {
            item.target.id: Parameter(_annotation(item.annotation), required=item.value is None)
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        },
        open=False,
    )


def _annotation(node: ast.expr | None) -> Any:
    if node is None:
        return _ANY
    try:
        return eval(compile(ast.Expression(node), "<annotation>", "eval"), {"__builtins__": {}}, dict(_NAMES))
    except Exception:
        return _ANY  # Tensor, nn.Module and the like are supplied by the run, not by the configuration


def _from_import(module: str, name: str) -> Signature:
    try:
        target = getattr(importlib.import_module(module), name)
        found = inspect.signature(target)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"there is no {module}.{name}") from error
    except (TypeError, ValueError):
        return Signature({}, open=True)
    kinds = {p.kind for p in found.parameters.values()}
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return Signature(
        {
            p.name: Parameter(_ANY, required=p.default is inspect.Parameter.empty)
            for p in found.parameters.values()
            if p.kind in plain
        },
        open=inspect.Parameter.VAR_KEYWORD in kinds,
    )


def describe(annotation: Any) -> str:
    """Say in words what an annotation accepts."""
    if annotation is _ANY:
        return "anything"
    if annotation is None or annotation is type(None):
        return "null"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        ranges = [str(a) for a in args[1:] if isinstance(a, spec.Range)]
        return " ".join([describe(args[0]), *ranges])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin in (list, tuple) or annotation in (list, tuple):
        return f"a list of {describe(args[0])}" if args else "a list"
    if origin is dict or annotation is dict:
        return "a mapping"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def mismatch(value: Any, annotation: Any) -> bool:
    """Whether a plain value (from YAML) does not fit an annotation."""
    if annotation is _ANY:
        return False
    if annotation is None or annotation is type(None):
        return value is not None
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        if mismatch(value, args[0]):
            return True
        return value is not None and any(isinstance(a, spec.Range) and value not in a for a in args[1:])
    if origin is typing.Literal:
        return not any(value == a and type(value) is type(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return all(mismatch(value, a) for a in args)
    if origin in (list, tuple) or annotation in (list, tuple):
        return not isinstance(value, list | tuple) or any(mismatch(v, args[0]) for v in value if args)
    if origin is dict or annotation is dict:
        return not isinstance(value, dict)
    if annotation is bool:
        return not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, bool) or not isinstance(value, int)
    if annotation is float:
        finite = isinstance(value, int | float) and value == value and abs(value) != float("inf")
        return isinstance(value, bool) or not finite
    if annotation is str:
        return not isinstance(value, str)
    return False
