"""docs/tutorial.py runs, and docs/tutorial.md and docs/tutorial.ipynb are what it says and prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cases import slow_but

ROOT = Path(__file__).resolve().parents[2]
# What makes it shorter, and changes nothing that it prints but numbers: fewer epochs, of fewer steps.
SHORTER = {"EPOCHS = 3": "EPOCHS = 2", "batch_size=64": "batch_size=300"}


def without_numbers(text: str) -> str:
    """Numbers that are printed differ between machines; all else does not."""
    return re.sub(r"\d+(\.\d+)?", "#", text)


def without_printed_numbers(page: str) -> str:
    return re.sub(r"```text\n.*?```", lambda printed: without_numbers(printed[0]), page, flags=re.DOTALL)


def sources(notebook: dict[str, Any], kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def printed_by(notebook: dict[str, Any]) -> list[str]:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} == {"stream"}
    return ["".join(output["text"]) for output in outputs]


@pytest.mark.parametrize("changes", slow_but([SHORTER], [SHORTER, {}]), ids=["shorter", "as it is"])
def test_page_and_notebook_are_what_a_run_prints(
    changes: dict[str, str], script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run executes the notebook's code cells, in their order, in one namespace."""
    tutorial = script("docs/tutorial_page.py")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    source = tmp_path / "tutorial.py"
    source.write_text(replaced(tutorial.SOURCE.read_text(), changes))
    finished, back = tutorial.run(source), {short: long for long, short in changes.items()}
    page = replaced(tutorial.page(finished), back)
    notebook = json.loads(replaced(tutorial.notebook(finished), back))
    written = json.loads(tutorial.NOTEBOOK.read_text())
    told = "run `python docs/tutorial_page.py`"
    assert without_printed_numbers(page) == without_printed_numbers(tutorial.PAGE.read_text()), told
    for kind in ("markdown", "code"):
        assert sources(notebook, kind) == sources(written, kind), told
    assert list(map(without_numbers, printed_by(notebook))) == list(map(without_numbers, printed_by(written))), told
    assert "outputs below 1e-5: True" in page
    assert "as accurate as when it was trained: True" in page
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def replaced(text: str, changes: dict[str, str]) -> str:
    """A text in which each of the passages, which must stand there once, is another."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_the_notebook_has_the_code_of_the_source_and_the_form_that_jupyter_reads() -> None:
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert {"cells", "metadata", "nbformat", "nbformat_minor"} == set(notebook)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names) > 15
    for cell in notebook["cells"]:
        own = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | own
    lines = [line for line in "\n".join(sources(notebook, "code")).splitlines() if line]
    source = (ROOT / "docs" / "tutorial.py").read_text().splitlines()
    texts = [line for line in source if line.startswith("#")]
    assert lines == [line for line in source if line and line not in texts]
    assert (ROOT / "docs" / "tutorial.ipynb").stat().st_size < 40_000


def test_cells_are_told_apart(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    tutorial = script("docs/tutorial_page.py")
    source = tmp_path / "small.py"
    source.write_text("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1 / 3\nprint(x, 12)\n\n\n# %%\ny = x\n")
    finished = tutorial.run(source)
    page = tutorial.page(finished)
    shown = "# Title\n\nText.\n\n```python\nx = 1 / 3\nprint(x, 12)\n```\n\n```text\n0.3333333333333333 12\n```\n"
    assert page.endswith(f"\n{shown}\n```python\ny = x\n```\n")
    assert without_printed_numbers(page).endswith("```text\n# #\n```\n\n```python\ny = x\n```\n")
    notebook = json.loads(tutorial.notebook(finished))
    assert sources(notebook, "markdown") == ["# Title\n\nText."]
    assert sources(notebook, "code") == ["x = 1 / 3\nprint(x, 12)", "y = x"]
    assert printed_by(notebook) == ["0.3333333333333333 12\n"]
    source.write_text("# %%\n\n1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        tutorial.run(source)
    assert caught.traceback[-1].lineno == 2  # counted from 0: errors name the source's line
