"""Read a component's constructor arguments from its source file, without importing it.

Importing a method means importing torch, which takes seconds; a typo should be told at once.
So the signatures of this project's components, and of users' own modules, are read with `ast`;
only what cannot be read so (compiled or re-exported third-party classes) is imported.
"""

from __future__ import annotations

import ast
import collections.abc
import contextlib
import importlib
import importlib.util
import inspect
import sys
import types
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scarcely import spec

_ANY = Any
_DEFINITION = ast.ClassDef | ast.FunctionDef
LARGEST = 2**53  # of whole numbers: what is larger overflows somewhere below Python
_SEQUENCES = (list, tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)


class Component:
    """Annotation of an argument that is an object: in YAML a mapping with a ``_target_``."""

    def __class_getitem__(cls, item: Any) -> type[Component]:
        return cls  # Callable[[Tensor], Tensor] is a component too


_NAMES: dict[str, Any] = {
    **{name: getattr(spec, name) for name in spec.__all__},
    **{name: getattr(typing, name) for name in ("Any", "Optional", "Union", "Sequence", "Mapping")},
    **{t.__name__: t for t in (int, float, str, bool, list, dict, tuple)},
    "None": None,
    "Callable": Component,
}
# classes with such a base are written as plain values in YAML, all others are components
_PLAIN_BASES = {
    "Enum",
    "IntEnum",
    "StrEnum",
    "TypedDict",
    "NamedTuple",
    *(t.__name__ for t in (str, int, float)),
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
    found = _from_source(path, name) if path is not None else None
    return found or _from_import(module, name)


def constant_of(target: str, name: str) -> Any:
    """Return the literal that a class, or the first of its bases to do so, assigns to ``name``; else None."""
    module, _, class_name = target.rpartition(".")
    with contextlib.suppress(LookupError):
        path = _source(module)
        return _constant(path, class_name, name) if path is not None else None
    return None


def source_of(target: str) -> Path | None:
    """Return the source file that a ``_target_`` names; None where there is none."""
    with contextlib.suppress(LookupError):
        return _source(target.rpartition(".")[0])
    return None


@cache
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
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise LookupError(f"{path} cannot be read: {error.msg} in line {error.lineno}") from error


def _definition(path: Path, name: str) -> _DEFINITION | None:
    return next((n for n in _tree(path).body if isinstance(n, _DEFINITION) and n.name == name), None)


def _from_source(path: Path, name: str) -> Signature | None:
    """Return what can be read in the file; None if only an import can tell."""
    node = _definition(path, name)
    if isinstance(node, ast.FunctionDef):
        return _arguments(path, node, skip_first=False)
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return _arguments(path, item, skip_first=True)
        if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            return _fields(path, node)
        if not node.bases:
            return Signature({}, open=False)
        for base in node.bases:  # the first base that declares a constructor
            found = _follow(path, ast.unparse(base), _from_source)
            if found is not None:
                return found
        return None
    if name in _imports(path):
        return signature_of(_imports(path)[name])
    if _bound(path, name):  # by an assignment, a relative import, inside of a try
        return None
    names = [n.name for n in _tree(path).body if isinstance(n, _DEFINITION) and not n.name.startswith("_")]
    raise LookupError(f"there is no {name!r} in {path.name}, which has {', '.join(names)}")


def _follow(path: Path, name: str, read: Any) -> Any:
    """Read a name where it is defined: in this file, or in a file of the project that it is imported from."""
    if _definition(path, name) is not None:
        return read(path, name)
    imported = _imports(path).get(name)
    if imported is None or not _readable(imported):
        return None
    module, _, original = imported.rpartition(".")
    with contextlib.suppress(LookupError):
        source = _source(module)
        return _follow(source, original, read) if source is not None else None
    return None


def _readable(imported: str) -> bool:
    # looking for a module imports its packages: cheap for ours and for a user's own, not for torch
    top = imported.split(".")[0]
    if top == "scarcely":
        return True
    found = importlib.util.find_spec(top) if top not in sys.stdlib_module_names else None
    return found is not None and "site-packages" not in str(found.origin or found.submodule_search_locations)


@cache
def _imports(path: Path) -> dict[str, str]:
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in _tree(path).body
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
        for alias in node.names
    }


def _bound(path: Path, name: str) -> bool:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.alias) and (node.asname or node.name) in (name, "*"):
            return True
        if isinstance(node, _DEFINITION) and node.name == name:
            return True
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            return True
    return False


def _assigned(path: Path, name: str) -> ast.expr | None:
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(t) == name for t in node.targets):
            return node.value
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return node.value
    return None


def _constant(path: Path, class_name: str, name: str) -> Any:
    node = _definition(path, class_name)
    if not isinstance(node, ast.ClassDef):
        return None
    for item in node.body:
        if isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
            targets = item.targets if isinstance(item, ast.Assign) else [item.target]
            if any(ast.unparse(t) == name for t in targets):
                with contextlib.suppress(ValueError):
                    return ast.literal_eval(item.value)
    for base in node.bases:
        found = _follow(path, ast.unparse(base), lambda where, what: _constant(where, what, name))
        if found is not None:
            return found
    return None


def _arguments(path: Path, function: ast.FunctionDef, *, skip_first: bool) -> Signature:
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    first_default = len(positional) - len(args.defaults)
    parameters = {
        a.arg: Parameter(_annotation(path, a.annotation), required=i < first_default)
        for i, a in enumerate(positional)
    }
    if skip_first and positional:
        del parameters[positional[0].arg]
    for a, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        parameters[a.arg] = Parameter(_annotation(path, a.annotation), required=default is None)
    shared = None if args.kwarg is None else _unpacked(path, args.kwarg.annotation)
    return Signature({**(shared or {}), **parameters}, open=args.kwarg is not None and shared is None)


def _unpacked(path: Path, annotation: ast.expr | None) -> dict[str, Parameter] | None:
    """Return the keys of the TypedDict in ``**kwargs: Unpack[...]`` (PEP 692); None for other kwargs."""
    text = "" if annotation is None else ast.unparse(annotation)
    if not text.startswith("Unpack["):
        return None
    found = _follow(path, text.removeprefix("Unpack[").removesuffix("]"), _typed_dict)
    return found if isinstance(found, dict) else None


def _typed_dict(path: Path, name: str) -> dict[str, Parameter] | None:
    node = _definition(path, name)
    if not isinstance(node, ast.ClassDef):
        return None
    optional = any(k.arg == "total" and ast.unparse(k.value) == "False" for k in node.keywords)
    fields = _fields(path, node).parameters
    return {key: Parameter(field.annotation, not optional) for key, field in fields.items()}


def _fields(path: Path, node: ast.ClassDef) -> Signature:
    inherited: dict[str, Parameter] = {}
    for base in reversed(node.bases):  # a dataclass has the fields of its bases before its own
        found = _follow(path, ast.unparse(base), _from_source)
        inherited |= found.parameters if found is not None else {}
    own = {
        item.target.id: Parameter(_annotation(path, item.annotation), required=item.value is None)
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not ast.unparse(item.annotation).startswith("ClassVar")
    }
    return Signature({**inherited, **own}, open=False)


class _Scope(dict[str, Any]):
    """The names that an annotation in a file may use."""

    def __init__(self, path: Path) -> None:
        super().__init__(_NAMES)
        self.path = path

    def __missing__(self, name: str) -> Any:
        self[name] = _ANY  # an alias of itself must end
        self[name] = self._meaning(name)
        return self[name]

    def _meaning(self, name: str) -> Any:
        node = _definition(self.path, name)
        if isinstance(node, ast.ClassDef):
            return _ANY if {ast.unparse(b).split(".")[-1] for b in node.bases} & _PLAIN_BASES else Component
        alias = _assigned(self.path, name)
        if alias is not None:
            return _evaluate(alias, self)
        imported = _imports(self.path).get(name)
        if imported is not None and _readable(imported):
            module, _, original = imported.rpartition(".")
            with contextlib.suppress(LookupError):
                source = _source(module)
                return _Scope(source)[original] if source is not None else _ANY
        return _ANY  # Tensor and the like


def _annotation(path: Path, node: ast.expr | None) -> Any:
    return _ANY if node is None else _evaluate(node, _Scope(path))


def _evaluate(node: ast.expr, scope: _Scope) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    try:
        return eval(compile(ast.Expression(node), "<annotation>", "eval"), {"__builtins__": {}}, scope)
    except Exception:
        return _ANY  # nn.Module and the like are supplied by the run, not by the configuration


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
        return "any value"
    if annotation is None or annotation is type(None):
        return "null"
    if annotation is Component:
        return "a mapping with a _target_"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        ranges = [str(a) for a in args[1:] if isinstance(a, spec.Range)]
        return " ".join([describe(args[0]), *ranges])
    if origin is typing.Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if annotation in _SEQUENCES or origin in _SEQUENCES:
        if not args:
            return "a list"
        if origin is tuple and Ellipsis not in args:
            return "a list of " + " and ".join(describe(a) for a in args)
        return f"a list, each item {describe(args[0])}"
    if annotation in _MAPPINGS or origin in _MAPPINGS:
        return f"a mapping from {describe(args[0])} to {describe(args[1])}" if args else "a mapping"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def mismatch(value: Any, annotation: Any) -> bool:
    """Whether a plain value (from YAML) does not fit an annotation."""
    if annotation is _ANY:
        return False
    if annotation is None or annotation is type(None):
        return value is not None
    if annotation is Component:
        return not (isinstance(value, dict) and "_target_" in value)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        ranges = [a for a in args[1:] if isinstance(a, spec.Range)]
        number = isinstance(value, int | float)
        return mismatch(value, args[0]) or (number and any(value not in a for a in ranges))
    if origin is typing.Literal:
        return not any(value == a and type(value) is type(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return all(mismatch(value, a) for a in args)
    if annotation in _SEQUENCES or origin in _SEQUENCES:
        if not isinstance(value, list | tuple):
            return True
        if origin is tuple and Ellipsis not in args:
            return len(value) != len(args) or any(map(mismatch, value, args))
        return bool(args) and any(mismatch(v, args[0]) for v in value)
    if annotation in _MAPPINGS or origin in _MAPPINGS:
        if not isinstance(value, dict):
            return True
        if args and "_target_" in value:
            return True  # an object, where names and their values are asked for
        return bool(args) and any(mismatch(k, args[0]) or mismatch(v, args[1]) for k, v in value.items())
    if annotation is bool:
        return not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST
    if annotation is float:
        finite = isinstance(value, int | float) and value == value and abs(value) != float("inf")
        return isinstance(value, bool) or not finite
    if annotation is str:
        return not isinstance(value, str)
    return False
