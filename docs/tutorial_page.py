"""Runs docs/tutorial.py cell by cell and writes it with what it prints to docs/tutorial.md and docs/tutorial.ipynb."""

from __future__ import annotations

import io
import json
import re
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lt_lightning.storage.files import write_bytes

DOCS: Final = Path(__file__).resolve().parent
SOURCE: Final = DOCS / "tutorial.py"
PAGE: Final = DOCS / "tutorial.md"
NOTEBOOK: Final = DOCS / "tutorial.ipynb"
NOTE: Final = (
    "<!-- Written by `python docs/tutorial_page.py`. Do not edit: change docs/tutorial.py, and run it again. -->\n"
)


@dataclass(frozen=True)
class Cell:
    """A part of the tutorial.

    Attributes:
        kind: `text` or `code`.
        content: Markdown, or Python.
        printed: what the code printed.
    """

    kind: str
    content: str
    printed: str = ""


def run(source: Path = SOURCE) -> list[Cell]:
    """Run the code, in the current folder."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    return [_run(kind, first, text, namespace) for kind, first, text in cells(source)]


def page(run_cells: Sequence[Cell]) -> str:
    """Return the tutorial as Markdown: text, code, and what the code printed."""
    return NOTE + "".join(f"\n{part}\n" for cell in run_cells for part in _shown(cell))


def notebook(run_cells: Sequence[Cell]) -> str:
    """Return the same as a notebook of Jupyter (format 4.5)."""
    written = [_notebook_cell(number, cell) for number, cell in enumerate(run_cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    values = {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def cells(source: Path = SOURCE) -> Iterator[tuple[str, int, str]]:
    """Kind (`text` or `code`), number of the first line, and content of every cell."""
    lines = source.read_text().splitlines()
    marks = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    for begin, end in zip(marks, [*marks[1:], len(lines)], strict=True):
        kind = "text" if "[markdown]" in lines[begin] else "code"
        first = next((number for number in range(begin + 1, end) if lines[number]), end)
        yield kind, first + 1, "\n".join(lines[first:end]).rstrip("\n")


def _run(kind: str, first: int, text: str, namespace: dict[str, object]) -> Cell:
    if kind == "text":
        return Cell(kind, re.sub("^# ?", "", text, flags=re.MULTILINE))
    printed = io.StringIO()
    code = compile("\n" * (first - 1) + text, str(SOURCE), "exec")  # with this file's `annotations`, too
    with redirect_stdout(printed):
        exec(code, namespace)
    return Cell(kind, text, printed.getvalue())


def _shown(cell: Cell) -> Iterator[str]:
    if cell.kind == "text":
        yield cell.content
        return
    yield f"```python\n{cell.content}\n```"
    if cell.printed:
        yield f"```text\n{cell.printed.rstrip()}\n```"


def _notebook_cell(number: int, cell: Cell) -> dict[str, Any]:
    content = {"id": f"cell-{number}", "metadata": {}, "source": cell.content.splitlines(keepends=True)}
    if cell.kind == "text":
        return {"cell_type": "markdown", **content}
    printed = {"output_type": "stream", "name": "stdout", "text": cell.printed.splitlines(keepends=True)}
    return {"cell_type": "code", "execution_count": None, **content, "outputs": [printed] if cell.printed else []}


if __name__ == "__main__":
    ArgumentParser(description=__doc__).parse_args()
    finished = run()
    write_bytes(PAGE, page(finished).encode())
    write_bytes(NOTEBOOK, notebook(finished).encode())
