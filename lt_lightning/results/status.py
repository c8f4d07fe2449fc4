"""What is there of a job, a sweep or a whole root: finished, running, failed, or missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from lt_lightning.files import read_json
from lt_lightning.results import locks
from lt_lightning.results.failures import Failure
from lt_lightning.results.paths import Task
from lt_lightning.results.records import results_of

Kind = Literal["done", "running", "failed", "missing"]
COLOURS: dict[Kind, str] = {"done": "green", "running": "blue", "failed": "red", "missing": "yellow"}


@dataclass(frozen=True)
class State:
    """How far a task is.

    Attributes:
        task: in question.
        kind: `missing` is what nobody is at, begun or not.
        told: by whom it is run, or why it failed.
    """

    task: Task
    kind: Kind
    told: str = ""


def state_of(task: Task) -> State:
    """How far a task is, now."""
    if (owner := locks.owner_of(task.folder)) is not None:
        return State(task, "running", str(owner))
    if results_of(task) is not None:
        return State(task, "done")
    if (failure := Failure.load(task.folder)) is not None:
        return State(task, "failed", failure.error)
    rounds = rounds_done(task.folder)
    return State(task, "missing", f"begun: {len(rounds)} of {len(task.parts)} trainings are there" if rounds else "")


def rounds_done(search: Path) -> list[int]:
    """Rounds of a search, finished or not, whose trained tickets are there."""
    try:
        return [int(facts["round"]) for facts in read_json(search / "rounds.json")]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def print_status(tasks: Iterable[Task], root: Path, console: Console) -> list[State]:
    """Prints a line for each task, with its folder under the root, and how many there are of each kind."""
    states = [state_of(task) for task in dict.fromkeys(tasks)]
    for state in states:
        folder = state.task.folder
        where = folder.relative_to(root) if folder.is_relative_to(root) else folder
        line = Text.assemble((f"{state.kind:8}", COLOURS[state.kind]), f"{where}  {state.task.label}")
        console.print(line + Text(f"; {state.told}" if state.told else ""), soft_wrap=True, highlight=False)
    console.print(summary_of(states), highlight=False)
    return states


def summary_of(states: Sequence[State]) -> str:
    """`3 done, 1 running, 0 failed, 2 missing`."""
    counts = Counter(state.kind for state in states)
    return ", ".join(f"{counts[kind]} {kind}" for kind in COLOURS)
