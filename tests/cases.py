"""Which of many cases of one kind the default suite takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Return cases for `parametrize`, all of them slow but the quick ones, each of which must be among them."""
    listed = list(cases)
    assert not [case for case in quick if case not in listed], "a quick case is not among the cases"
    return [case if case in quick else _slow(case) for case in listed]


def _slow(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
