"""Everything public says what it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain
from types import ModuleType

import pytest

import lt_lightning


def modules() -> list[str]:
    found = pkgutil.walk_packages(lt_lightning.__path__, f"{lt_lightning.__name__}.", onerror=lambda _: None)
    names = [lt_lightning.__name__, *(module.name for module in found)]
    return [name for name in names if not any(part.startswith("_") for part in name.split("."))]


@cache
def imported(name: str) -> ModuleType | None:
    """The module; None if it needs a package that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(lt_lightning.__name__):
            raise
        return None


def undocumented(module: ModuleType) -> Iterator[str]:
    """Names of what has no docstring. What overrides or implements something need not repeat what that says."""
    if not inspect.getdoc(module):
        yield module.__name__
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(member) and member.__name__ == name:
            if not (vars(member).get("__doc__") or "").strip():
                yield f"{module.__name__}.{name}"
            yield from (f"{module.__name__}.{name}.{method}" for method in undocumented_methods(member))
        elif inspect.isfunction(inspect.unwrap(member)) and not inspect.getdoc(member):
            yield f"{module.__name__}.{name}"


def undocumented_methods(owner: type) -> Iterator[str]:
    for name, member in vars(owner).items():
        function = inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))
        told = inspect.getdoc(getattr(owner, name)) or (not is_protocol(owner) and name in of_protocols())
        if function and not name.startswith("_") and not told:
            yield name


@cache
def of_protocols() -> frozenset[str]:
    """Methods that a protocol of the package describes, for all that implement it."""
    found = filter(None, map(imported, modules()))
    classes = [member for module in found for member in vars(module).values()]
    return frozenset(chain.from_iterable(vars(owner) for owner in classes if is_protocol(owner)))


def is_protocol(owner: object) -> bool:
    return bool(getattr(owner, "_is_protocol", False)) and str(getattr(owner, "__module__", "")).startswith(
        "lt_lightning"
    )


@pytest.mark.parametrize("name", modules())
def test_public_names_have_docstrings(name: str) -> None:
    module = imported(name)
    if module is None:
        pytest.skip("needs an extra that is not installed")
    assert list(undocumented(module)) == []


def test_a_missing_docstring_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("nothing")
    monkeypatch.setitem(sys.modules, "nothing", module)
    exec(
        "class A:\n"
        "    '''It has one.'''\n"
        "    def told(self): 'So.'\n"
        "    def silent(self): pass\n"
        "    @property\n"
        "    def value(self): pass\n"
        "    def _own(self): pass\n"
        "class B(A):\n"
        "    def silent(self): pass\n"
        "    def told(self): pass\n"
        "def f(): pass\n"
        "def g(): 'So.'\n"
        "def _h(): pass\n",
        vars(module),
    )
    expected = ["nothing", *(f"nothing.{name}" for name in ("A.silent", "A.value", "B", "B.silent", "f"))]
    assert list(undocumented(module)) == expected
