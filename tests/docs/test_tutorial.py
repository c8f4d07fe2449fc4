"""docs/tutorial.py runs, and docs/tutorial.md is what it says and prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.cases import slow_but


def without_numbers(page: str) -> str:
    """Numbers that are printed differ between machines; all else does not."""
    return re.sub(r"```text\n.*?```", lambda printed: re.sub(r"\d+(\.\d+)?", "#", printed[0]), page, flags=re.DOTALL)


# What makes it shorter, and changes nothing that it prints but numbers: fewer epochs, of fewer steps.
SHORTER = {"EPOCHS = 3": "EPOCHS = 2", "batch_size=64": "batch_size=300"}


@pytest.mark.parametrize("changes", slow_but([SHORTER], [SHORTER, {}]), ids=["shorter", "as it is"])
def test_the_page_is_what_a_run_prints(
    changes: dict[str, str], script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tutorial = script("docs/tutorial_page.py")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    source = tmp_path / "tutorial.py"
    source.write_text(replaced(tutorial.SOURCE.read_text(), changes))
    page = replaced(tutorial.page(source), {short: long for long, short in changes.items()})
    assert without_numbers(page) == without_numbers(tutorial.PAGE.read_text()), "run `python docs/tutorial_page.py`"
    assert "outputs below 1e-5: True" in page
    assert "as accurate as when it was trained: True" in page
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def replaced(text: str, changes: dict[str, str]) -> str:
    """A text in which each of the passages, which must stand there once, is another."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_cells_are_told_apart(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    source = tmp_path / "small.py"
    source.write_text("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1 / 3\nprint(x, 12)\n\n\n# %%\ny = x\n")
    page = script("docs/tutorial_page.py").page(source)
    shown = "# Title\n\nText.\n\n```python\nx = 1 / 3\nprint(x, 12)\n```\n\n```text\n0.3333333333333333 12\n```\n"
    assert page.endswith(f"\n{shown}\n```python\ny = x\n```\n")
    assert without_numbers(page).endswith("```text\n# #\n```\n\n```python\ny = x\n```\n")
    source.write_text("# %%\n\n1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        script("docs/tutorial_page.py").page(source)
    assert caught.traceback[-1].lineno == 2  # counted from 0: errors name the source's line
