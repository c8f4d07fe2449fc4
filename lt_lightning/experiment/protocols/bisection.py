"""Bisection: the last round whose structured ticket is not below the dense network, without retraining every round's.

What is asked for next follows from the results that are finished, whoever made them: a killed job goes on where it was,
and what was retrained before is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from omegaconf import DictConfig

from lt_lightning.experiment.config.tasks import tasks_of
from lt_lightning.results.paths import Task, is_confirmed
from lt_lightning.results.records import Result, results_of
from lt_lightning.results.verdict import not_below

EXPLAINED = (
    "Bisected, each seed by its own accuracy: a ticket holds that is not below its dense network on the test set. "
    "What rounds that were not tested would have come to is not known."
)


@dataclass(frozen=True)
class Bracket:
    """Between which rounds the tickets of a structure fall below their dense network, as far as they were tested.

    Attributes:
        rounds: that may be tested, ascending.
        outcomes: of those that were, by round: whether the ticket holds, that is, is not below the dense network.
    """

    rounds: tuple[int, ...]
    outcomes: Mapping[int, bool]

    @cached_property
    def holds(self) -> int | None:
        """The last tested round that holds, whatever earlier ones do (the paper's extreme); None if none does."""
        return max((number for number, holds in self.outcomes.items() if holds), default=None)

    @cached_property
    def fails(self) -> int | None:
        """The first tested round after it; None if none was tested there."""
        return min((number for number in self.outcomes if number > (self.holds or 0)), default=None)

    @cached_property
    def contrary(self) -> tuple[int, ...]:
        """Tested rounds that fail although a later one holds."""
        return tuple(sorted(n for n, holds in self.outcomes.items() if n < (self.holds or 0) and not holds))

    @cached_property
    def open(self) -> tuple[int, ...]:
        """Rounds after the last that holds and before the first that fails: the extreme may be any of them."""
        return tuple(n for n in self.rounds if (self.holds or 0) < n and (self.fails is None or n < self.fails))

    @property
    def next(self) -> int | None:
        """The round to be tested next; None if nothing is open.

        >>> Bracket((1, 2, 3, 4, 5), {}).next, Bracket((1, 2, 3, 4, 5), {3: True, 4: False}).next
        (3, None)
        """
        return self.open[len(self.open) // 2] if self.open else None

    @property
    def left(self) -> int:
        """Tests that are still to be made, at most: of n open rounds log2(n + 1), rounded up."""
        return len(self.open).bit_length()

    def __str__(self) -> str:
        """For people.

        >>> print(Bracket((1, 2, 3, 4, 5), {3: True, 4: False}))
        holds at round 3, fails at round 4; tested 3, 4 of rounds 1 to 5
        >>> print(Bracket((1, 2, 3, 4, 5), {3: True}))
        holds at round 3; tested 3 of rounds 1 to 5; next is round 5, at most 2 are to be tested
        """
        parts = [f"holds at {'no tested round' if self.holds is None else f'round {self.holds}'}"]
        parts += [f"fails at round {self.fails}"] if self.fails is not None else []
        parts += [f"yet fails at {_listed(self.contrary)}, too"] if self.contrary else []
        tested = ", ".join(map(str, sorted(self.outcomes))) or "none"
        told = [", ".join(parts)] if self.outcomes else []
        told.append(f"tested {tested} of {_listed(self.rounds)}")
        told += [f"next is round {self.next}, at most {self.left} are to be tested"] if self.open else []
        return "; ".join(told)


def bisects(config: DictConfig) -> bool:
    """Whether a job bisects."""
    return bool(config.search == "bisect")


def asked_of(config: DictConfig) -> list[Task]:
    """What a job asks for, as far as is known by now; see `asked`."""
    return asked(tasks_of(config), bisects(config))


def asked(tasks: Sequence[Task], bisect: bool = True) -> list[Task]:
    """What is asked for of a job's tasks, as far as is known by now.

    Without bisection that is all. With it: the search, every ticket whose round is tested, the one of each structure
    that is to be tested next, and their controls.
    """
    return _chosen(tasks, lambda found: found.open[len(found.open) // 2 :][:1]) if bisect else list(tasks)


def at_most(tasks: Sequence[Task], bisect: bool = True) -> list[Task]:
    """Tasks that cost what all that a job will have asked for in the end costs at most.

    Which rounds bisection will test is not known, but they are equally long.
    """
    return _chosen(tasks, lambda found: found.open[: found.left]) if bisect else list(tasks)


def _chosen(tasks: Sequence[Task], more: Callable[[Bracket], Sequence[int]]) -> list[Task]:
    cells = retrainings_by_structure(tasks)
    numbers = {name: {*(found := bracket(mine)).outcomes, *more(found)} for name, mine in cells.items()}
    every = {cell.folder for mine in cells.values() for cell in mine}
    wanted = {cell.folder for name, mine in cells.items() for cell in mine if cell.number in numbers[name]}
    left_out = every - wanted
    return [task for task in tasks if task.folder not in left_out and task.source not in left_out]


def retrainings_by_structure(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """Tasks that retrain a structure's tickets, by its name, without controls and what a screening had confirmed."""
    cells: dict[str, list[Task]] = {}
    for task in tasks:
        if task.structure and not task.control and not is_confirmed(task.structure):
            cells.setdefault(task.structure, []).append(task)
    return cells


def bracket(cells: Sequence[Task]) -> Bracket:
    """What the finished tickets of one structure tell.

    Args:
        cells: their tasks, one for each round.
    """
    return bracket_of((cell.number for cell in cells), (result for cell in cells for result in results_of(cell) or ()))


def bracket_of(rounds: Iterable[int], results: Iterable[Result]) -> Bracket:
    """What results of one structure tell.

    Args:
        rounds: that may be tested.
        results: of those that were.
    """
    outcomes = {result.round: not_below(result.accuracy - result.dense_accuracy) for result in results}
    return Bracket(tuple(sorted(rounds)), outcomes)


def bracket_lines(tasks: Sequence[Task]) -> Iterator[str]:
    """For people: a line for each structure of a job that bisects."""
    for name, cells in retrainings_by_structure(tasks).items():
        yield f"  {tasks[0].folder.name}, {name}: {bracket(cells)}"


def _listed(rounds: Sequence[int]) -> str:
    """Rounds, for people.

    >>> _listed([2]), _listed([2, 4]), _listed([1, 2, 3])
    ('round 2', 'rounds 2, 4', 'rounds 1 to 3')
    """
    if len(rounds) > 2 and list(rounds) == list(range(rounds[0], rounds[-1] + 1)):
        return f"rounds {rounds[0]} to {rounds[-1]}"
    return f"round{'s' * (len(rounds) > 1)} {', '.join(map(str, rounds))}"
