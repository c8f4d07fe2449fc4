"""What the name behind a `_target_` is and takes.

A finished job is found by its fingerprint, for which the defaults of classes must be known, and importing PyTorch and
Lightning to look at them takes longer than all else. So what was found is kept in the user's cache folder for as long
as no file of the package changes.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lt_lightning.storage.files import cache_folder, read_json, write_json

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
    newest = max((path.stat().st_mtime_ns for path in files), default=0)
    return f"{len(files)} files in {[*folders] or files}, the newest of {newest}" if files else None


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
