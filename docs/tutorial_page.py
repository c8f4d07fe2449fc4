"""Runs docs/tutorial.py cell by cell, and writes it with what it prints to docs/tutorial.md."""

from __future__ import annotations

import io
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final

from lt_lightning.storage.files import write_bytes

DOCS: Final = Path(__file__).resolve().parent
SOURCE: Final = DOCS / "tutorial.py"
PAGE: Final = DOCS / "tutorial.md"
NOTE: Final = (
    "<!-- Written by `python docs/tutorial_page.py`. Do not edit: change docs/tutorial.py, and run it again. -->\n"
)


def page(source: Path = SOURCE) -> str:
    """The tutorial as Markdown: text, code, and what the code prints, which is run here, in the current folder."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    return NOTE + "".join(
        f"\n{part}\n" for kind, first, text in cells(source) for part in _shown(kind, first, text, namespace)
    )


def cells(source: Path = SOURCE) -> Iterator[tuple[str, int, str]]:
    """Kind (`text` or `code`), number of the first line, and content of every cell."""
    lines = source.read_text().splitlines()
    marks = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    for begin, end in zip(marks, [*marks[1:], len(lines)], strict=True):
        kind = "text" if "[markdown]" in lines[begin] else "code"
        first = next((number for number in range(begin + 1, end) if lines[number]), end)
        yield kind, first + 1, "\n".join(lines[first:end]).rstrip("\n")


def _shown(kind: str, first: int, text: str, namespace: dict[str, object]) -> Iterator[str]:
    if kind == "text":
        yield re.sub("^# ?", "", text, flags=re.MULTILINE)
        return
    yield f"```python\n{text}\n```"
    printed = io.StringIO()
    code = compile("\n" * (first - 1) + text, str(SOURCE), "exec")  # with this file's `annotations`, too
    with redirect_stdout(printed):
        exec(code, namespace)
    if printed.getvalue():
        yield f"```text\n{printed.getvalue().rstrip()}\n```"


if __name__ == "__main__":
    ArgumentParser(description=__doc__).parse_args()
    write_bytes(PAGE, page().encode())
