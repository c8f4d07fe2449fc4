"""docs/coming_from.md: what it says that one writes is what there is, there (as far as it is installed) and here."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.callbacks import ModelPruning

import lt_lightning
from lt_lightning import Filters, LotteryTicketPruning, Refill, TicketTraining, shrink

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "coming_from.md").read_text()
OURS: dict[str, Callable[..., Any]] = {
    "LotteryTicketPruning": LotteryTicketPruning, "Filters": Filters, "Refill": Refill, "shrink": shrink,
    "TicketTraining": TicketTraining,
}  # fmt: skip


def rows(title: str) -> list[list[str]]:
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]


def arguments(cells: list[str]) -> set[str]:
    """Keywords of calls, and alone (`amount=…`), that stand in code."""
    codes = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    return {name for code in codes for name in re.findall(r"(?:^|[(,] ?)(\w+)=", code)}


def test_arguments_of_model_pruning() -> None:
    named = arguments([there for there, _ in rows("ModelPruning of Lightning")])
    assert len(named) > 5
    assert named <= set(inspect.signature(ModelPruning).parameters)


def test_arguments_of_torch_pruning() -> None:
    pruning = pytest.importorskip("torch_pruning")
    there = [there for there, _ in rows("Torch-Pruning")]
    named = arguments(there) - {"p"}
    assert len(named) > 7
    assert named <= set(inspect.signature(pruning.pruner.BasePruner).parameters)
    for name in re.findall(r"\b(\w+Importance)\(", " ".join(there)):
        assert hasattr(pruning.importance, name)


def test_calls_of_ours() -> None:
    """Every call that can be parsed has arguments that there are, and values that are allowed."""
    calls = 0
    for code in re.findall(r"`([^`\n]*)`", PAGE):
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OURS:
                calls += 1
                made = inspect.signature(OURS[node.func.id])
                assert {each.arg for each in node.keywords} <= set(made.parameters), code
                if node.func.id in ("Filters", "Refill"):
                    eval(ast.unparse(node), vars(lt_lightning) | OURS)
    assert calls >= 10


def test_arguments_of_the_callback_that_stand_alone() -> None:
    named = arguments([here for _, here in rows("ModelPruning of Lightning")])
    assert named <= {*inspect.signature(LotteryTicketPruning).parameters, *inspect.signature(shrink).parameters}
