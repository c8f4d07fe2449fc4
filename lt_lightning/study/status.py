"""What is there of a job, a sweep or a whole root: finished, running, failed, or missing."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text

from lt_lightning.files import read_json
from lt_lightning.study import locks
from lt_lightning.study.bisection import asked_of
from lt_lightning.study.failures import Failure
from lt_lightning.study.places import Task
from lt_lightning.study.results import results_of

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


def tasks_under(root: Path) -> list[Task]:
    """The tasks of every search under a root: those of the command that began it, and others that left something.

    A search whose configuration cannot be read, or lacks options, is left out, with a warning.
    """
    tasks: list[Task] = []
    for path in sorted(root.glob("*/config.yaml")):
        try:
            config = OmegaConf.load(path)
            config.paths.root = str(root)  # it may have been moved, or named from elsewhere
            config.transfer = {"from": None}  # its source may be gone; what came of it is found below
            asked = [task for task in asked_of(config) if task.folder.is_relative_to(path.parent)]  # type: ignore[arg-type]
        except (ValueError, OmegaConfBaseException) as error:
            warnings.warn(f"{str(error).splitlines()[0]}; the search of {path} is left out", stacklevel=2)
            continue
        known = {part for task in asked for part in task.parts}
        for folder in sorted(path.parent.glob("round_??/*-????????")):
            if folder not in known:
                name, number = folder.name.rpartition("-")[0], int(folder.parent.name.partition("_")[2])
                asked.append(Task(folder, f"{name}, round {number}", number, name, (folder,)))
        tasks += asked
    return tasks


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
