"""What the name behind a `_target_` is and takes, read from its source: nothing is imported, so that it takes no time.

A finished job is found by its fingerprint, for which the defaults of classes must be known; importing PyTorch and
Lightning to look at them would take longer than all else. What the source does not show plainly (a class made by a
call, a name from a star import) is imported after all.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

OWN = "lt_lightning"


@dataclass(frozen=True)
class Signature:
    """What can be said of a class or function without calling it.

    Attributes:
        name: stable name: that of one of our own classes alone, else its path with the module that defines it.
        arguments: names of the arguments; empty if they are not known.
        defaults: default of every argument whose default can be written in a configuration.
        operational: arguments that change how, but not what, is computed.
        counts_or_shares: arguments that take a whole number and a fraction for two things, as `limit_val_batches` does.
    """

    name: str
    arguments: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    operational: frozenset[str] = frozenset()
    counts_or_shares: frozenset[str] = frozenset()


@cache
def signature_of(target: str) -> Signature:
    """Return the signature of what a `_target_` names; of what does not exist its name alone."""
    try:
        return _from_source(*_locate(target))
    except _NotPlainError:
        return _from_object(target)


class _NotPlainError(Exception):
    """The source does not show it plainly."""


# By reading the source


@dataclass(frozen=True)
class _Module:
    name: str
    definitions: Mapping[str, list[ast.stmt]]


@dataclass(frozen=True)
class _Arguments:
    """The arguments of one function or dataclass, each with its annotation and, if it has one, its default.

    `others` says whether it takes any argument besides, and hands it to its base class.
    """

    annotations: Mapping[str, ast.expr | None]
    defaults: Mapping[str, tuple[_Module, ast.expr]]
    others: bool = False


def _locate(target: str) -> tuple[_Module, ast.stmt]:
    """Return the module that defines a dotted name, and the definition."""
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if (module := _module(".".join(parts[:end]))) is not None:
            if end != len(parts) - 1:
                raise _NotPlainError  # a method, or an attribute of an object
            return _definition(module, parts[-1])
    raise _NotPlainError


@cache
def _module(name: str) -> _Module | None:
    """Return a module that is there as source."""
    top, *rest = name.split(".")
    try:
        spec = find_spec(top)
        for end in range(len(rest)):
            if spec is not None:
                path = spec.submodule_search_locations
                spec = path and PathFinder.find_spec(".".join([top, *rest[: end + 1]]), path)  # type: ignore[assignment]
        if not spec or not spec.origin or not spec.origin.endswith(".py"):
            return None
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (ImportError, ValueError, SyntaxError, OSError):
        return None
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    definitions: dict[str, list[ast.stmt]] = {}
    for statement in _statements(tree.body):
        if isinstance(statement, ast.ImportFrom) and statement.level:
            base = package.split(".")[: len(package.split(".")) + 1 - statement.level]
            statement.module = ".".join([*base, *([statement.module] if statement.module else [])])
        for defined in _names(statement):
            definitions.setdefault(defined, []).append(statement)
    return _Module(name, definitions)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those under `if TYPE_CHECKING` and `try`, too."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            yield from _statements([*statement.body, *statement.orelse])


def _names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.ClassDef() | ast.FunctionDef():
            return [statement.name]
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return [name]
        case ast.Import() | ast.ImportFrom():
            return [alias.asname or alias.name for alias in statement.names]
    return []


def _definition(module: _Module, name: str) -> tuple[_Module, ast.stmt]:
    """Return the definition of a name, wherever the module has it from."""
    match module.definitions.get(name):
        case [ast.ImportFrom(module=str(origin), names=names)]:
            original = next(alias.name for alias in names if (alias.asname or alias.name) == name)
            source = _module(origin)
            if source is None or source == module:
                raise _NotPlainError
            return _definition(source, original)
        case [statement]:
            return module, statement
    raise _NotPlainError


def _from_source(module: _Module, statement: ast.stmt) -> Signature:
    if not isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
        raise _NotPlainError
    found = _arguments(module, statement)
    defaults = {name: _value(*default) for name, default in found.defaults.items()}
    return Signature(
        _stable_name(module.name, statement.name),
        tuple(found.annotations),
        {name: value for name, value in defaults.items() if value is not ...},
        frozenset(_operational(module, statement)),
        frozenset(name for name, hint in found.annotations.items() if {"int", "float"} <= _names_in(hint)),
    )


def _arguments(module: _Module, statement: ast.ClassDef | ast.FunctionDef) -> _Arguments:
    if isinstance(statement, ast.FunctionDef):
        return _of_function(module, statement.args)
    if "__init__" in (methods := {each.name: each for each in statement.body if isinstance(each, ast.FunctionDef)}):
        match [each for each in methods["__init__"].decorator_list if isinstance(each, ast.Call)]:
            case [ast.Call(func=ast.Name(id="arguments_of"), args=[ast.Name(id=options)])]:
                origin, definition = _definition(module, options)
                assert isinstance(definition, ast.ClassDef)
                return _arguments(origin, definition)
        own = _of_function(module, methods["__init__"].args, skip=1)
        return _joined(_of_bases(module, statement), own) if own.others else own
    if any("dataclass" in _names_in(decorator) for decorator in statement.decorator_list):
        return _joined(_of_bases(module, statement), _of_fields(module, statement))
    return _of_bases(module, statement)


def _of_function(module: _Module, arguments: ast.arguments, skip: int = 0) -> _Arguments:
    placed = [*arguments.posonlyargs, *arguments.args]
    required: list[ast.expr | None] = [None] * (len(placed) - len(arguments.defaults))
    pairs = list(zip(placed, [*required, *arguments.defaults], strict=True))[skip:]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return _Arguments(
        {argument.arg: argument.annotation for argument, _ in pairs},
        {argument.arg: (module, default) for argument, default in pairs if default is not None},
        arguments.kwarg is not None,
    )


def _of_fields(module: _Module, statement: ast.ClassDef) -> _Arguments:
    annotations: dict[str, ast.expr | None] = {}
    defaults = {}
    for each in statement.body:
        match each:
            case ast.AnnAssign(target=ast.Name(id=name)) if "ClassVar" not in _names_in(each.annotation):
                annotations[name] = each.annotation
                if each.value is not None:
                    defaults[name] = (module, each.value)
    return _Arguments(annotations, defaults)


def _of_bases(module: _Module, statement: ast.ClassDef) -> _Arguments:
    """Return the arguments of the first base class that has any."""
    for base in statement.bases:
        origin, definition = _base(module, base)
        if not isinstance(definition, ast.ClassDef):
            raise _NotPlainError
        if (found := _arguments(origin, definition)).annotations:
            return found
    return _Arguments({}, {})


def _base(module: _Module, base: ast.expr) -> tuple[_Module, ast.stmt]:
    while isinstance(base, ast.Subscript):
        base = base.value
    if isinstance(base, ast.Name):
        return _definition(module, base.id)
    raise _NotPlainError


def _joined(inherited: _Arguments, own: _Arguments) -> _Arguments:
    return _Arguments(
        {**inherited.annotations, **own.annotations},
        {**{k: v for k, v in inherited.defaults.items() if k not in own.annotations}, **own.defaults},
        inherited.others,
    )


def _operational(module: _Module, statement: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    """Yield what a class and its bases of the same package name in their attribute `operational`."""
    if isinstance(statement, ast.FunctionDef):
        return
    for each in statement.body:
        if "operational" in _names(each) and isinstance(each, (ast.Assign, ast.AnnAssign)) and each.value is not None:
            yield from ast.literal_eval(each.value)
    for base in statement.bases:
        try:
            found, definition = _base(module, base)
        except _NotPlainError:
            continue
        if isinstance(definition, ast.ClassDef) and found.name.split(".")[0] == module.name.split(".")[0]:
            yield from _operational(found, definition)


def _value(module: _Module, node: ast.expr) -> Any:
    """Return a default as a configuration has it; `...` if that cannot be."""
    match node:
        case ast.Name(id=name):
            try:
                origin, statement = _definition(module, name)
            except _NotPlainError:
                return ...
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
                return _value(origin, statement.value)
            return ...
        case ast.Call(func=ast.Name(id="field"), keywords=keywords):
            given = {each.arg: each.value for each in keywords}
            if "default" in given:
                return _value(module, given["default"])
            return {"list": [], "dict": {}}.get(ast.unparse(given.get("default_factory", node)), ...)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            try:
                made = _from_source(*_definition(module, name))
            except _NotPlainError:
                return ...
            values = {str(each.arg): _value(module, each.value) for each in keywords}
            return ... if ... in values.values() else {"_target_": made.name, **values}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...


def _names_in(node: ast.AST | None) -> set[str]:
    """Return all names in an expression, and the last parts of dotted ones."""
    inside = [] if node is None else list(ast.walk(node))
    return {each.id for each in inside if isinstance(each, ast.Name)} | {
        each.attr for each in inside if isinstance(each, ast.Attribute)
    }


def _stable_name(module: str, name: str) -> str:
    return name if module.split(".")[0] == OWN else f"{module}.{name}"


# By importing it


def _from_object(target: str) -> Signature:
    try:
        found = resolve_name(target)
        name = _stable_name(found.__module__, found.__qualname__)
    except Exception:  # whatever importing it raises; the check of the options says what
        return Signature(target)
    operational = frozenset(
        option for kind in getattr(found, "__mro__", ()) for option in kind.__dict__.get("operational", ())
    )
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return Signature(name, operational=operational)
    defaults = {
        key: each.default
        for key, each in parameters.items()
        if each.default is None or isinstance(each.default, (bool, int, float, str, list, tuple))
    }
    hints = {key: str(each.annotation) for key, each in parameters.items()}
    both = frozenset(key for key, hint in hints.items() if "int" in hint and "float" in hint)
    return Signature(name, tuple(parameters), defaults, operational, both)
