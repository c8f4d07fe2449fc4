"""Errors in a configuration: each in one line that names the key, its value and what is allowed."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Union, Unpack, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.signatures import signature_of
from lt_lightning.results.failures import with_key

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
    _check("", OmegaConf.to_container(config, resolve=True))


def _check(path: str, node: Any) -> None:
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_target(path, node)
    for key, value in node.items():
        _check(f"{path}.{key}" if path else str(key), value)


def _check_target(path: str, node: Mapping[str, Any]) -> None:
    name = node["_target_"]
    try:
        target = get_object(name)
    except Exception as error:  # whatever importing it raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}._target_={name}: cannot be imported ({reason})") from None
    known, others = annotated(target)
    for key, value in node.items():
        if key.startswith("_"):
            continue
        if key not in known and not others:
            raise ValueError(
                f"{path}.{key}={shown(value)}: {target.__name__} has no such option; it has {', '.join(known)}"
            )
        if not fits(value, known.get(key, Any)):
            raise ValueError(f"{path}.{key}={shown(value)}: must be {describe(known[key])}")


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
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return _is_whole(value)
    if hint in NAMES:
        return isinstance(value, hint)
    if _is_list(hint):
        inner = [each for each in arguments if each is not Ellipsis][:1] or [Any]
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if inspect.isclass(origin or hint) and getattr(hint, "__module__", "").startswith("lt_lightning"):
        return isinstance(value, Mapping) and "_target_" in value
    return True


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
    return "a list" if _is_list(hint) else f"a node with a _target_ ({getattr(hint, '__name__', hint)})"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(hint: Any) -> bool:
    origin = get_origin(hint) or hint
    return inspect.isclass(origin) and issubclass(origin, typing.Sequence) and origin is not str
