"""Bisection: the last round whose structured ticket is not below the dense network, without retraining every round's.

Which ticket comes next follows from the results that are finished, whoever made them. So a killed job goes on where it
was, and no ticket is retrained twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from omegaconf import DictConfig

from lt_lightning.experiment.protocols.protocol import Protocol
from lt_lightning.results.job_record import Task, TicketKind
from lt_lightning.results.records import Result, results_of
from lt_lightning.results.verdict import not_below
from lt_lightning.storage.near_names import did_you_mean

EXPLANATION = (
    "Bisection, by the accuracy of each seed: a ticket passes if it is not below its dense network on the test set. "
    "The outcome of rounds that were not tested is unknown."
)
SEARCHES = ("all", "bisect")
CAVEAT = "Rounds were chosen by their outcome, so verdicts may err more often than the intervals say."


@dataclass(frozen=True)
class Bracket:
    """The rounds between which the tickets of a kind fall below their dense network, as far as they were tested.

    Attributes:
        rounds: rounds that may be tested, ascending.
        outcomes: whether the ticket passes, that is, is not below its dense network, for each round that was tested.
    """

    rounds: tuple[int, ...]
    outcomes: Mapping[int, bool]

    @cached_property
    def passes(self) -> int | None:
        """The last tested round that passes, whatever earlier ones do (the paper's extreme); None if none does."""
        return max((number for number, passes in self.outcomes.items() if passes), default=None)

    @cached_property
    def fails(self) -> int | None:
        """The first tested round after the last one that passes; None if none was tested there."""
        return min((number for number in self.outcomes if number > (self.passes or 0)), default=None)

    @cached_property
    def contrary(self) -> tuple[int, ...]:
        """Tested rounds that fail although a later one passes."""
        return tuple(sorted(n for n, passes in self.outcomes.items() if n < (self.passes or 0) and not passes))

    @cached_property
    def open(self) -> tuple[int, ...]:
        """Rounds after the last that passes and before the first that fails: the extreme may be any of them."""
        return tuple(n for n in self.rounds if (self.passes or 0) < n and (self.fails is None or n < self.fails))

    @property
    def next(self) -> int | None:
        """The round to be tested next; None if nothing is open.

        >>> Bracket((1, 2, 3, 4, 5), {}).next, Bracket((1, 2, 3, 4, 5), {3: True, 4: False}).next
        (3, None)
        """
        return self.open[len(self.open) // 2] if self.open else None

    @property
    def left(self) -> int:
        """Largest number of tests that are still to be made: log2(n + 1) for n open rounds, rounded up."""
        return len(self.open).bit_length()

    def __str__(self) -> str:
        """The bracket in one line.

        >>> print(Bracket((1, 2, 3, 4, 5), {3: True, 4: False}))
        passes at round 3, fails at round 4; tested 3, 4 of rounds 1 to 5
        >>> print(Bracket((1, 2, 3, 4, 5), {3: True}))
        passes at round 3; tested 3 of rounds 1 to 5; next is round 5, at most 2 are to be tested
        """
        outcome = [f"passes at {'no tested round' if self.passes is None else f'round {self.passes}'}"]
        outcome += [f"fails at round {self.fails}"] if self.fails is not None else []
        outcome += [f"but also fails at {_listed(self.contrary)}"] if self.contrary else []
        tested = ", ".join(map(str, sorted(self.outcomes))) or "none"
        parts = [", ".join(outcome)] if self.outcomes else []
        parts.append(f"tested {tested} of {_listed(self.rounds)}")
        parts += [f"next is round {self.next}, at most {self.left} are to be tested"] if self.open else []
        return "; ".join(parts)


class Bisection(Protocol):
    """Retrains about log2 of a structure's tickets only (`search=bisect`)."""

    name = "bisection"

    def wanted(self, config: DictConfig) -> bool:
        """Whether not every round is to be retrained."""
        if config.search not in SEARCHES:
            raise ValueError(
                f"search={config.search!r}: must be one of {', '.join(SEARCHES)}{did_you_mean(config.search, SEARCHES)}"
            )
        return bool(config.search == "bisect")

    def asked(self, config: DictConfig, tasks: Sequence[Task], at_most: bool = False) -> list[Task]:
        """Return the search, the tickets of the rounds that are tested or come next, and the controls of these.

        With `at_most` return as many tickets as may be tested: which ones is unknown, but they train equally long.
        """
        if at_most:
            return _chosen(tasks, lambda bracket: bracket.open[: bracket.left])
        return _chosen(tasks, lambda bracket: bracket.open[len(bracket.open) // 2 :][:1])

    def notes(self, config: DictConfig, tasks: Sequence[Task]) -> list[str]:
        """Return the outcome so far, a line for each kind of ticket."""
        search = tasks[0].folder.name
        lines = [f"  {search}, {kind}: {bracket_of(mine)}" for kind, mine in _tickets_by_kind(tasks).items()]
        return [EXPLANATION, CAVEAT, *lines] if lines else []


def bracket_of(tasks: Sequence[Task]) -> Bracket:
    """Return the bracket of one kind of ticket by its finished tasks.

    Args:
        tasks: retrainings of the tickets, one for each round.
    """
    return bracket_from((task.round for task in tasks), (result for task in tasks for result in results_of(task) or ()))


def bracket_from(rounds: Iterable[int], results: Iterable[Result]) -> Bracket:
    """Return the bracket of one kind of ticket by its results.

    Args:
        rounds: rounds that may be tested.
        results: results of the rounds that were tested.
    """
    outcomes = {result.round: not_below(result.accuracy - result.dense_accuracy) for result in results}
    return Bracket(tuple(sorted(rounds)), outcomes)


def _chosen(tasks: Sequence[Task], more: Callable[[Bracket], Sequence[int]]) -> list[Task]:
    """Return the tasks without the tickets, and their controls, whose rounds are neither tested nor chosen."""
    left_out = set()
    for mine in _tickets_by_kind(tasks).values():
        bracket = bracket_of(mine)
        rounds = {*bracket.outcomes, *more(bracket)}
        left_out |= {task.folder for task in mine if task.round not in rounds}
    return [task for task in tasks if task.folder not in left_out and task.source not in left_out]


def _tickets_by_kind(tasks: Sequence[Task]) -> dict[TicketKind, list[Task]]:
    """Return the retrainings of tickets, without controls and what goes on from another, by the kind of the ticket."""
    by_kind: dict[TicketKind, list[Task]] = {}
    for task in tasks:
        if task.kind is not None and not (task.kind.control or task.goes_on):
            by_kind.setdefault(task.kind, []).append(task)
    return by_kind


def _listed(rounds: Sequence[int]) -> str:
    """Return rounds as people list them.

    >>> _listed([2]), _listed([2, 4]), _listed([1, 2, 3])
    ('round 2', 'rounds 2, 4', 'rounds 1 to 3')
    """
    if len(rounds) > 2 and list(rounds) == list(range(rounds[0], rounds[-1] + 1)):
        return f"rounds {rounds[0]} to {rounds[-1]}"
    return f"round{'s' * (len(rounds) > 1)} {', '.join(map(str, rounds))}"
