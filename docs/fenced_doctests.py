"""An extension of Griffe: doctests within docstrings are shown as code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class FencedDoctests(Extension):
    """Changes every docstring that is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called by Griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    """Puts doctests, up to the next empty line, between fences of Markdown."""
    return re.sub(r"^([ \t]*)(>>> .*(?:\n[ \t]*\S.*)*)", r"\1```pycon\n\1\2\n\1```", docstring, flags=re.MULTILINE)
