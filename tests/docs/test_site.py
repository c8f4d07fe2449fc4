"""The pages are built without a warning, hold every public module, and load nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mkdocs", reason="needs the extra `docs`")
pytest.importorskip("mkdocstrings", reason="needs the extra `docs`")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_strict_build(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).parent.as_posix(): path.read_text() for path in tmp_path.rglob("index.html")}
    assert {".", "tutorial", "architecture", "options", "api/lt_lightning", "api/structures"} <= set(pages)
    for text in pages.values():
        assert not re.search(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//", text)
        assert not re.search(r"<link[^>]* href=\"?(?:https?:)?//[^>]*stylesheet", text)
    assert 'id="lt_lightning.training.callback.LotteryTicketPruning"' in pages["api/training"]
    assert "&gt;&gt;&gt;" in pages["api/pruning"]  # a doctest
    assert not re.search(r"<blockquote>\s*(<blockquote>|<p>&gt;)", pages["api/pruning"])  # that is no code
    assert not (tmp_path / "api_pages.py").exists()


def test_each_public_module_is_on_one_page(script: Callable[[str], ModuleType]) -> None:
    api = script("docs/api_pages.py")
    listed = [name for modules in api.modules_by_folder(ROOT).values() for name in modules]
    files = {path for path in (ROOT / "lt_lightning").rglob("*.py") if not path.name.startswith("__")}
    assert len(listed) == len(set(listed))
    assert {ROOT / f"{name.replace('.', '/')}.py" for name in listed} == files
    text = api.page("structures", ["lt_lightning.structures.nm"], ROOT)
    assert text.startswith("# lt_lightning.structures\n\nFrom a round's mask")
    assert text.endswith("\n\n::: lt_lightning.structures.nm\n")


def test_doctests_become_code(script: Callable[[str], ModuleType]) -> None:
    fenced = script("docs/fenced_doctests.py").fenced
    assert fenced("A.\n\n>>> f(1)\n[2]\n>>> g()") == "A.\n\n```pycon\n>>> f(1)\n[2]\n>>> g()\n```"
    assert fenced("Example:\n    >>> f(\n    ...     1)\n    2\n\n    End.") == (
        "Example:\n    ```pycon\n    >>> f(\n    ...     1)\n    2\n    ```\n\n    End."
    )
    assert fenced("Nothing > here.") == "Nothing > here."
