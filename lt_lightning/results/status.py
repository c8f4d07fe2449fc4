"""The status of the tasks of a job, a sweep or a whole root: done, running, failed, or missing."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from lt_lightning.results import locks
from lt_lightning.results.failures import Failure
from lt_lightning.results.job_record import FILE, JobRecord, Task, TicketKind, jobs_of
from lt_lightning.results.records import results_of
from lt_lightning.storage.layout import trained_rounds

Kind = Literal["done", "running", "failed", "missing"]
COLOURS: dict[Kind, str] = {"done": "green", "running": "blue", "failed": "red", "missing": "yellow"}


@dataclass(frozen=True)
class State:
    """The state of a task.

    Attributes:
        task: the task.
        kind: kind of the state; `missing` is a task that nobody runs, begun or not.
        detail: owner who runs the task, reason why it failed, or what of it is there already.
    """

    task: Task
    kind: Kind
    detail: str = ""


def state_of(task: Task) -> State:
    """Return the state of a task by now."""
    if (owner := locks.owner_of(task.folder)) is not None:
        return State(task, "running", str(owner))
    if results_of(task) is not None:
        return State(task, "done")
    if (failure := Failure.load(task.folder)) is not None:
        return State(task, "failed", failure.error)
    rounds = trained_rounds(task.folder)
    return State(task, "missing", f"begun: {len(rounds)} of {len(task.parts)} trainings are there" if rounds else "")


def tasks_under(root: Path) -> list[Task]:
    """Return the tasks that the jobs under a root ask for, and those whose folders exist although no job names them.

    A record that cannot be read is left out, with a warning.
    """
    jobs = sorted(file.parent for file in (root / "jobs").rglob(FILE))
    return _tasks(jobs, root, sorted(root.glob("*/round_??/*-????????")))


def tasks_of(search: Path) -> list[Task]:
    """Return the same for one search, whatever else is under its root."""
    return _tasks(jobs_of(search), search, sorted(search.glob("round_??/*-????????")))


def _tasks(jobs: Sequence[Path], within: Path, folders: Sequence[Path]) -> list[Task]:
    tasks: dict[Task, None] = {}
    for job in jobs:
        try:
            asked = JobRecord.load(job).asked_tasks
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}; the job is left out", stacklevel=3)
            continue
        tasks |= dict.fromkeys(task for task in asked if task.folder.is_relative_to(within))
    known = {part for task in tasks for part in task.parts}
    for folder in folders:
        if folder not in known:
            name, number = folder.name.rpartition("-")[0], int(folder.parent.name.partition("_")[2])
            tasks[Task(folder, f"{name}, round {number}", number, TicketKind(name), (folder,))] = None
    return list(tasks)


def print_status(tasks: Iterable[Task], root: Path, console: Console) -> list[State]:
    """Print a line for each task, with its folder under the root, and the number of tasks in each state."""
    states = [state_of(task) for task in dict.fromkeys(tasks)]
    for state in states:
        folder = state.task.folder
        where = folder.relative_to(root) if folder.is_relative_to(root) else folder
        line = Text.assemble((f"{state.kind:8}", COLOURS[state.kind]), f"{where}  {state.task.label}")
        console.print(line + Text(f"; {state.detail}" if state.detail else ""), soft_wrap=True, highlight=False)
    console.print(summary_of(states), highlight=False)
    return states


def summary_of(states: Sequence[State]) -> str:
    """Return the number of tasks in each state, such as `3 done, 1 running, 0 failed, 2 missing`."""
    counts = Counter(state.kind for state in states)
    return ", ".join(f"{counts[kind]} {kind}" for kind in COLOURS)
