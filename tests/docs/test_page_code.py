"""The Python code of the pages (of the README what is about `shrink`) runs as printed, and prints what they say."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import sklearn.datasets
import torch
from sklearn.utils import Bunch

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str) -> Iterator[tuple[str, list[str]]]:
    """Code, and the lines that are shown of what it prints."""
    found: list[tuple[str, str]] = re.findall(r"```(python|text)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for (kind, code), (next_kind, printed) in zip(found, [*found[1:], ("", "")], strict=True):
        if kind == "python" and (" = shrink(" in code or page != "README.md"):
            yield code, [line for line in printed.splitlines() if next_kind == "text" and line != "…"]


# What makes the page's network smaller, or its search shorter, of which nothing is printed that the page says.
SMALLER = {
    "README.md": (
        "BertConfig(num_hidden_layers=2)",
        "BertConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=1000)",
    ),
    "docs/shrinking.md": ("cifar_resnet(20, classes=10)", "cifar_resnet(8, classes=10)"),
    "docs/own_network.md": ("rounds=3", "rounds=2"),
    "docs/extending.md": ("cifar_resnet(20, classes=10)", "cifar_resnet(8, classes=10)"),
}
WRITTEN = {
    "README.md": ["half.safetensors"],
    "docs/shrinking.md": ["half.safetensors"],
    "docs/own_network.md": ["small.safetensors", "tickets"],
    "docs/extending.md": [],
}


def run(page: str, monkeypatch: pytest.MonkeyPatch, folder: Path, smaller: tuple[str, str] = ("", "")) -> list[str]:
    """Run a page's code, with a passage exchanged, and return the lines that are shown and not printed."""
    if page == "README.md":
        pytest.importorskip("transformers", reason="the package transformers is not installed")
    digits = sklearn.datasets.load_digits()
    few = Bunch(images=digits.images[:200], target=digits.target[:200])
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: few)
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    missing: list[str] = []
    for code, expected in blocks(page):
        with redirect_stdout(StringIO()) as printed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice
            exec(code.replace(*smaller), names)
        got = printed.getvalue().splitlines()
        missing += [line for line in expected if line not in got]
    assert names
    assert sorted(path.name for path in folder.iterdir()) == WRITTEN[page]
    return missing


@pytest.mark.parametrize("page", SMALLER)
def test_the_code_of_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(SMALLER[page][0] in code for code, _ in blocks(page))
    run(page, monkeypatch, tmp_path, SMALLER[page])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "shown"),
    [("README.md", 7), ("docs/shrinking.md", 6), ("docs/own_network.md", 0), ("docs/extending.md", 0)],
)
def test_the_page_shows_what_its_code_prints(
    page: str, shown: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(len(lines) for _, lines in blocks(page)) >= shown
    assert run(page, monkeypatch, tmp_path) == []
