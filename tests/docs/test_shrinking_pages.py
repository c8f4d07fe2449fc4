"""The code that the README and docs/shrinking.md show of `shrink` runs as it is printed, and prints what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str) -> Iterator[tuple[str, list[str]]]:
    """Code that is about `shrink`, and the lines that are shown of what it prints."""
    found: list[tuple[str, str]] = re.findall(r"```(python|text)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for (kind, code), (next_kind, printed) in zip(found, [*found[1:], ("", "")], strict=True):
        if kind == "python" and (" = shrink(" in code or page != "README.md"):
            yield code, [line for line in printed.splitlines() if next_kind == "text" and line != "…"]


@pytest.mark.parametrize(("page", "shown"), [("README.md", 7), ("docs/shrinking.md", 6)])
def test_the_code_of_the_page_runs(page: str, shown: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "README.md":
        pytest.importorskip("transformers", reason="the package transformers is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    lines: list[str] = []
    for code, expected in blocks(page):
        with redirect_stdout(StringIO()) as printed:
            exec(code, names)
        got = printed.getvalue().splitlines()
        assert [line for line in expected if line not in got] == []
        lines += expected
    assert len(lines) >= shown
    assert [path.name for path in tmp_path.iterdir()] == ["half.safetensors"]
