"""Bisection: the last round whose structured ticket is not below the dense network, without retraining every round's.

What is asked for next follows from the results that are finished, whoever made them: a killed job goes on where it was,
and what was retrained before is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from omegaconf import DictConfig

from lt_lightning.experiment.protocols.protocol import Protocol
from lt_lightning.results.job_record import Task
from lt_lightning.results.records import Result, results_of
from lt_lightning.results.ticket_kind import TicketKind
from lt_lightning.results.verdict import not_below

SEARCHES = ("all", "bisect")
EXPLANATION = (
    "Bisected, each seed by its own accuracy: a ticket holds that is not below its dense network on the test set. "
    "What rounds that were not tested would have come to is not known."
)
CAVEAT = "Rounds were chosen by what came out, so verdicts may err more often than intervals say."


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


class Bisection(Protocol):
    """Ask for the retraining of about log2 of a structure's tickets (`search=bisect`)."""

    name = "bisection"

    def tasks(self, config: DictConfig, tasks: Sequence[Task]) -> list[Task]:
        """Check the option; bisection adds no tasks."""
        if config.search not in SEARCHES:
            raise ValueError(f"search={config.search!r} is not one of {', '.join(SEARCHES)}")
        return []

    def asked(self, config: DictConfig, tasks: Sequence[Task], at_most: bool = False) -> list[Task]:
        """Return the search, every ticket whose round is tested, the one of each structure to be tested next, controls.

        Which rounds will be tested is not known, but they are equally long: with `at_most` as many as may be tested.
        """
        if config.search != "bisect":
            return list(tasks)
        if at_most:
            return _chosen(tasks, lambda bracket: bracket.open[: bracket.left])
        return _chosen(tasks, lambda bracket: bracket.open[len(bracket.open) // 2 :][:1])

    def notes(self, config: DictConfig, tasks: Sequence[Task]) -> list[str]:
        """Return what was found, a line for each structure."""
        if config.search != "bisect":
            return []
        search = tasks[0].folder.name
        lines = [f"  {search}, {kind}: {bracket_of(mine)}" for kind, mine in _tickets_by_kind(tasks).items()]
        return [EXPLANATION, *lines, CAVEAT] if lines else []


def bracket_of(tasks: Sequence[Task]) -> Bracket:
    """Return what the finished tickets of one kind tell.

    Args:
        tasks: retrainings of the tickets, one for each round.
    """
    return bracket_from((task.round for task in tasks), (result for task in tasks for result in results_of(task) or ()))


def bracket_from(rounds: Iterable[int], results: Iterable[Result]) -> Bracket:
    """Return what results of one kind of ticket tell.

    Args:
        rounds: rounds that may be tested.
        results: results of those that were tested.
    """
    outcomes = {result.round: not_below(result.accuracy - result.dense_accuracy) for result in results}
    return Bracket(tuple(sorted(rounds)), outcomes)


def _chosen(tasks: Sequence[Task], more: Callable[[Bracket], Sequence[int]]) -> list[Task]:
    """The tasks less those tickets, with their controls, whose rounds are neither tested nor chosen."""
    left_out = set()
    for mine in _tickets_by_kind(tasks).values():
        bracket = bracket_of(mine)
        rounds = {*bracket.outcomes, *more(bracket)}
        left_out |= {task.folder for task in mine if task.round not in rounds}
    return [task for task in tasks if task.folder not in left_out and task.source not in left_out]


def _tickets_by_kind(tasks: Sequence[Task]) -> dict[TicketKind, list[Task]]:
    """Retrainings of tickets, without controls, by the kind of the ticket."""
    found: dict[TicketKind, list[Task]] = {}
    for task in tasks:
        if task.kind is not None and not task.kind.control:
            found.setdefault(task.kind, []).append(task)
    return found


def _listed(rounds: Sequence[int]) -> str:
    """Rounds, for people.

    >>> _listed([2]), _listed([2, 4]), _listed([1, 2, 3])
    ('round 2', 'rounds 2, 4', 'rounds 1 to 3')
    """
    if len(rounds) > 2 and list(rounds) == list(range(rounds[0], rounds[-1] + 1)):
        return f"rounds {rounds[0]} to {rounds[-1]}"
    return f"round{'s' * (len(rounds) > 1)} {', '.join(map(str, rounds))}"
