"""The record of a job: the tasks that it consists of, and what became of it; one `job.json` in the job's own folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lt_lightning.storage.files import read_json, write_json
from lt_lightning.storage.litter import clear_litter


@dataclass(frozen=True, order=True)
class TicketKind:
    """What tells tickets of one round apart.

    Attributes:
        structure: `dense`, `unstructured`, or the name of a structure.
        control: which control of the ticket it is (`reinit`, ...); empty for the ticket itself.
        origin: the data set whose search found its mask; empty where it is the job's own search.
    """

    structure: str
    control: str = ""
    origin: str = ""

    def __str__(self) -> str:
        """The kind as tables show it.

        >>> print(TicketKind("refill", "reinit"), TicketKind("refill", origin="cifar10"), sep="; ")
        refill (reinit control); refill from cifar10
        """
        control = f" ({self.control} control)" if self.control else ""
        return f"{self.structure}{control}" + (f" from {self.origin}" if self.origin else "")


# The record of a job: the tasks that it consists of, and what became of it; one `job.json` in the job's own folder.

FILE = "job.json"
JOBS = "jobs.txt"  # in the folder of a search: a line for each job that asked for it


@dataclass(frozen=True)
class Task:
    """What one process does in one go: a whole search, or the retraining of one ticket.

    Attributes:
        folder: folder of the task; its name ends with the fingerprint of what determines the result.
        label: name of the task for people.
        round: round whose ticket is retrained; 0 for a search.
        kind: kind of the ticket; None for a search.
        parts: folders that each hold a result when the task is finished.
        source: folder of the ticket that this one is made from; None for a search.
        protocol: name of the protocol that makes the ticket; empty where a structure of the job makes it.
        whole_schedule: whether the training lasts as long as that of the dense network, whatever the rewind point.
        cycles: number of trainings one after another; each but the first lasts from the rewind point on.
        goes_on: whether the ticket is made from the trained weights of its source, which must be finished.
    """

    folder: Path
    label: str
    round: int
    kind: TicketKind | None
    parts: tuple[Path, ...]
    source: Path | None = None
    protocol: str = ""
    whole_schedule: bool = False
    cycles: int = 1
    goes_on: bool = False


def tasks_to_json(tasks: Sequence[Task], base: Path | None = None) -> list[dict[str, Any]]:
    """Return tasks as JSON values.

    Args:
        tasks: tasks to be written.
        base: folder that paths are written relative to, so that it can be moved with what they name; None: as they are.
    """

    def text(path: Path) -> str:
        return str(path) if base is None else os.path.relpath(path, base)

    return [
        {
            **asdict(task),
            "folder": text(task.folder),
            "parts": [text(part) for part in task.parts],
            "source": None if task.source is None else text(task.source),
        }
        for task in tasks
    ]


def tasks_from_json(values: Sequence[dict[str, Any]], base: Path | None = None) -> tuple[Task, ...]:
    """Return the tasks that `tasks_to_json` has written.

    Raises:
        KeyError, TypeError: if the values are no tasks.
    """

    def path(text: str) -> Path:
        head, tail = base or Path(), Path(text)
        while tail.parts[:1] == ("..",) and head.name not in ("", ".."):  # the base's own `..` stay
            head, tail = head.parent, tail.relative_to("..")
        return head / tail

    return tuple(
        Task(
            path(value["folder"]),
            value["label"],
            value["round"],
            None if value["kind"] is None else TicketKind(**value["kind"]),
            tuple(path(part) for part in value["parts"]),
            None if value["source"] is None else path(value["source"]),
            value["protocol"],
            value["whole_schedule"],
            value["cycles"],
            value["goes_on"],
        )
        for value in values
    )


@dataclass(frozen=True)
class Cost:
    """What a task still costs.

    Attributes:
        folder: folder of the task; what several jobs share has the same.
        trainings: number of trainings that are still to be run.
        epochs: number of their epochs in all.
        seconds: duration of one epoch.
        at_most: whether the job may turn out to do without the task.
    """

    folder: str
    trainings: int
    epochs: int
    seconds: float
    at_most: bool = False


def describe_costs(costs: Iterable[Cost]) -> str:
    """Return the sum of what tasks cost in one line; what several jobs share counts once.

    >>> describe_costs([Cost("a", 3, 20, 1.5), Cost("b", 1, 10, 1.5), Cost("a", 3, 20, 1.5)]).partition(" (")[0]
    '4 trainings of 30 epochs in all, 1.5 s an epoch: 45 s'
    """
    each = {cost.folder: cost for cost in costs}.values()
    if not each:
        return "nothing to train: everything is there"
    speeds = sorted({round(cost.seconds, 6) for cost in each})
    speed = " to ".join(format_duration(seconds) for seconds in dict.fromkeys((speeds[0], speeds[-1])))
    seconds = sum(cost.epochs * cost.seconds for cost in each)
    end = time.strftime("%b %d %H:%M", time.localtime(time.time() + seconds))
    trainings, epochs = sum(cost.trainings for cost in each), sum(cost.epochs for cost in each)
    bound = "at most " if any(cost.at_most for cost in each) else ""
    return (
        f"{bound}{trainings} trainings of {epochs} epochs in all, {speed} an epoch: {format_duration(seconds)} "
        f"(done {end}, if begun now and one after the other)"
    )


def format_duration(seconds: float) -> str:
    """Return a duration as people write it.

    >>> format_duration(0.1234), format_duration(59.9), format_duration(125), format_duration(3725)
    ('0.12 s', '60 s', '2:05 min', '1:02:05 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h" if minutes >= 60 else f"{minutes}:{rest:02d} min"


@dataclass(frozen=True)
class JobRecord:
    """What is on disk of one job.

    Attributes:
        number: number of the job in its sweep; 0 for a single job.
        overrides: overrides of the command line that make the job, by key.
        tasks: tasks that the job consists of.
        asked: places in `tasks` of those that the job asks for, as far as is known by now.
        notes: lines that the protocols have to say about the results.
        error: what went wrong, in one line; empty if nothing did.
        costs: what the job would cost, if it was planned.
        trained: whether the job had something to train; None until it has ended.
    """

    number: int = 0
    overrides: dict[str, str] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ()
    asked: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    costs: tuple[Cost, ...] = ()
    trained: bool | None = None

    @property
    def asked_tasks(self) -> list[Task]:
        """The tasks that the job asks for."""
        return [self.tasks[place] for place in self.asked]

    def save(self, folder: Path) -> None:
        """Write the record into the job's folder."""
        values = asdict(self) | {"tasks": tasks_to_json(self.tasks, folder)}
        write_json(folder / FILE, values)

    @classmethod
    def load(cls, folder: Path) -> JobRecord:
        """Read the record in a job's folder.

        Raises:
            OSError: if there is none.
            ValueError: if it is damaged.
        """
        values: Any = read_json(folder / FILE)
        try:
            return cls(
                **values | {
                    "tasks": tasks_from_json(values["tasks"], folder),
                    "asked": tuple(values["asked"]),
                    "notes": tuple(values["notes"]),
                    "costs": tuple(Cost(**cost) for cost in values["costs"]),
                }
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / FILE} is damaged: {error}") from None

    def note(self, folder: Path) -> None:
        """Name the job's folder in that of its search, once there is one, and remove what killed jobs have left.

        So what asks about one search need not read the records of all jobs under the root.
        """
        if not self.tasks or not (search := self.tasks[0].folder).is_dir():
            return
        others = jobs_of(search)
        if folder.resolve() not in [other.resolve() for other in others]:
            with (search / JOBS).open("a", encoding="utf-8") as file:
                file.write(os.path.relpath(folder, search) + "\n")
        for other in others:
            clear_litter(other)


def jobs_of(search: Path) -> list[Path]:
    """Return the folders of the jobs that asked for a search."""
    try:
        return [search / line for line in (search / JOBS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
