"""Errors in a configuration: each in one line that names the key, its value and what is allowed.

What a class takes is read off its signature. Importing PyTorch and Lightning to look at it takes longer than all else a
finished job does, so what was found is kept in the user's cache folder for as long as no file of the package changes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, Union, Unpack, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from lt_lightning.results.failures import with_key
from lt_lightning.storage.files import cache_folder, read_json, write_json
from lt_lightning.storage.foreign import named
from lt_lightning.storage.near_names import did_you_mean

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
    arguments: list[str] = field(default_factory=list)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    operational: list[str] = field(default_factory=list)
    counts_or_shares: list[str] = field(default_factory=list)


@cache
def signature_of(target: str) -> Signature:
    """Return the signature of what a `_target_` names; of what does not exist its name alone."""
    state = {name: state_of_files(name) for name in (OWN, target.partition(".")[0])}
    path = cache_folder() / "signatures" / f"{target}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = read_json(path)
        if known["state"] == state and None not in state.values():
            return Signature(**known["signature"])
    signature = imported(target)
    with suppress(OSError):  # without a cache it is found anew each time
        write_json(path, {"state": state, "signature": asdict(signature)})
    return signature


@cache
def state_of_files(package: str) -> str | None:
    """Return a text that changes with the Python files of a package; None if there are none."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    folders = (spec and spec.submodule_search_locations) or []
    files = [path for folder in folders for path in Path(folder).rglob("*.py")]
    if spec is not None and not files and spec.has_location:
        files = [Path(str(spec.origin))]
    if not files:
        return None
    states = sorted(f"{path} {status.st_size} {status.st_mtime_ns}" for path in files if (status := path.stat()))
    return hashlib.sha256("\n".join(states).encode()).hexdigest()


def imported(target: str) -> Signature:
    """Return the signature of what a dotted name stands for, which is imported."""
    try:
        found = resolve_name(target)
        name = _stable_name(found)
        parameters = _parameters(found)
    except Exception:  # whatever importing it raises; the check of the options says what
        return Signature(target)
    values = {key: _written(each.default) for key, each in parameters.items()}
    hints = {key: set(re.findall(r"\w+", str(each.annotation))) for key, each in parameters.items()}
    return Signature(
        name,
        list(parameters),
        {key: value for key, value in values.items() if value is not ...},
        [option for kind in inspect.getmro(found) for option in vars(kind).get("operational", ())]
        if inspect.isclass(found)
        else [],
        [key for key, words in hints.items() if {"int", "float"} <= words],
    )


def _parameters(found: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function; of a class also those that its constructor hands to its base classes."""
    if not inspect.isclass(found):
        return dict(inspect.signature(found).parameters)
    known: dict[str, inspect.Parameter] = {}
    for kind in (each for each in inspect.getmro(found)[:-1] if "__init__" in vars(each)):
        _, *own = inspect.signature(vars(kind)["__init__"]).parameters.values()
        known = {each.name: each for each in own if each.kind is not each.VAR_KEYWORD} | known
        if len(own) == len([each for each in own if each.kind is not each.VAR_KEYWORD]):
            break
    return known


def _written(default: Any) -> Any:
    """Return a default as a configuration has it; `...` if that cannot be."""
    if is_dataclass(default) and not isinstance(default, type):
        options = {key: _written(value) for key, value in vars(default).items()}
        return ... if ... in options.values() else {"_target_": _path(type(default)), **options}
    try:
        return json.loads(json.dumps(default))
    except (TypeError, ValueError):
        return ...


def _stable_name(found: Any) -> str:
    return str(found.__qualname__) if found.__module__.partition(".")[0] == OWN else _path(found)


def _path(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


LARGEST = 2**63 - 1  # that a tensor can hold
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Say where in the configuration an object stands that only names its own argument: `margin=2` in `verdict`.

    Raises:
        ValueError, FileNotFoundError: what was raised inside, beginning with the key.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise _named(error, key) from error.__cause__


@contextmanager
def naming_among(config: DictConfig, *keys: str) -> Iterator[None]:
    """Say the same of several objects that are at work together: the key is that of the one with such an argument.

    Raises:
        ValueError, FileNotFoundError: what was raised inside, beginning with the key if it names such an argument.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        argument = re.match(r"(\w+)=", str(error))
        nodes = {key: config.get(key) for key in keys}
        known = (key for key, node in nodes.items() if node is not None and argument and argument[1] in _takes(node))
        raise _named(error, next(known, "")) from error.__cause__


def _named(error: Exception, key: str) -> Exception:
    return type(error)(with_key(key, str(error))) if error.args == (str(error),) else error


def _takes(node: Any) -> Collection[str]:
    return {*node, *signature_of(str(node.get("_target_", ""))).arguments}


def shown(value: Any) -> str:
    """Write a value as it stands in a configuration.

    >>> shown(None), shown([1, True]), shown("a"), shown(0.5)
    ('null', '[1,true]', "'a'", '0.5')
    """
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{shown(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def check_options(config: DictConfig) -> None:
    """Compare the options of everything that is named by a `_target_` with the annotations of what it names.

    Raises:
        ValueError: naming the key, its value and what it must be.
    """
    for path, node in nodes_of(OmegaConf.to_container(config, resolve=True)):
        if "_target_" in node:
            _check_target(path, node)


def nodes_of(value: Any, path: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield every mapping at any depth, with its dotted key."""
    if isinstance(value, Mapping):
        yield path, value
    inside = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from nodes_of(each, f"{path}.{key}" if path else str(key))


def _check_target(path: str, node: Mapping[str, Any]) -> None:
    name = node["_target_"]
    try:
        target = named(name)
    except Exception as error:  # whatever importing it raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}._target_={name}: cannot be imported ({reason})") from None
    if not callable(target):
        raise ValueError(f"{path}._target_={name}: is a {type(target).__name__}, and must be a class or a function")
    known, others = annotated(target)
    for key, value in node.items():
        if key.startswith("_"):
            continue
        if key not in known and not others:
            raise ValueError(
                f"{path}.{key}={shown(value)}: {target.__name__} has no such option; it has {', '.join(known)}"
                f"{did_you_mean(key, known)}"
            )
        if not _is_finite(value, target):
            raise ValueError(f"{path}.{key}={shown(value)}: must be a finite number, whole ones at most {LARGEST}")
        if not fits(value, hint := known.get(key, Any)):
            near = did_you_mean(value, choices_of(hint))
            raise ValueError(f"{path}.{key}={shown(value)}: must be {describe(hint)}{near}")


def annotated(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Return the type of every argument, and whether there may be others."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function)
        parameters = inspect.signature(target).parameters.values()
    except (NameError, TypeError, ValueError):  # of names for type checkers only, or a function written in C
        return {}, True
    known: dict[str, Any] = {}
    others = False
    for parameter in parameters:
        hint = hints.get(parameter.name, Any)
        if parameter.kind != parameter.VAR_KEYWORD:
            known[parameter.name] = hint
        elif get_origin(hint) is Unpack:
            known |= get_type_hints(get_args(hint)[0])
        else:
            others = True
    return known, others


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value from a YAML file can be given where that type is annotated; in doubt it can.

    >>> from collections.abc import Sequence
    >>> fits(3, float), fits("3", float), fits(["a"], Sequence[str]), fits("a", Sequence[str])
    (True, False, True, False)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if hint is float:
        return _is_whole(value) or isinstance(value, float)
    if hint is int:
        return _is_whole(value)
    if hint in NAMES:
        return isinstance(value, hint)
    if _is_list(hint):
        inner = [each for each in arguments if each is not Ellipsis][:1] or [Any]
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if inspect.isclass(origin or hint) and getattr(hint, "__module__", "").startswith("lt_lightning"):
        return isinstance(value, Mapping) and "_target_" in value
    return True


def choices_of(hint: Any) -> list[Any]:
    """Return the values that a type names, if it names any."""
    arguments = list(get_args(hint))
    return arguments if get_origin(hint) is Literal else [each for inner in arguments for each in choices_of(inner)]


def describe(hint: Any) -> str:
    """Describe a type to people.

    >>> from collections.abc import Sequence
    >>> describe(Literal["a", "b"] | None), describe(Sequence[float])
    ('one of a, b or null', 'a list')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(each) for each in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if hint in NAMES:
        return NAMES[hint]
    if hint is Path:
        return "a path"
    if origin is dict:
        return "a node"
    return "a list" if _is_list(hint) else f"a node with a _target_ ({getattr(hint, '__name__', hint)})"


def _is_finite(value: Any, target: Callable[..., Any]) -> bool:
    """Whether a number is one that a tensor can hold; infinity is allowed to classes that are not ours."""
    if isinstance(value, float):
        return math.isfinite(value) or not target.__module__.startswith(OWN)
    return not _is_whole(value) or abs(value) <= LARGEST


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(hint: Any) -> bool:
    origin = get_origin(hint) or hint
    return inspect.isclass(origin) and issubclass(origin, typing.Sequence) and origin is not str
