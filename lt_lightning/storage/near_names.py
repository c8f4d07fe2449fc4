"""What was probably meant by the name of an option, a choice or a file that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(wrong: object, names: Iterable[object]) -> str:
    """Return what is added to an error if a wrong name is nearly one that there is; else nothing.

    >>> did_you_mean("refil", ["regroup", "refill"]), did_you_mean("x", ["refill"])
    (' (did you mean refill?)', '')
    """
    near = get_close_matches(str(wrong), list(map(str, names)), 1)
    return f" (did you mean {near[0]}?)" if near else ""
