"""The cost of a whole search, in trainings of the dense network, compared with the paper's way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from lt_lightning.pruning.densities import density_after


@dataclass(frozen=True)
class Search:
    """A search and the retraining of what its rounds are structured into.

    Attributes:
        rounds: number of rounds of pruning, after the dense one.
        epochs: number of epochs of a training.
        rewind: epoch from which a round starts.
        rate: share of the remaining weights that a round prunes.

    Raises:
        ValueError: if `rewind` is not within a training.
    """

    rounds: int
    epochs: int
    rewind: int
    rate: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.rewind < self.epochs:
            raise ValueError(f"rewind={self.rewind}: must be an epoch of a training of {self.epochs}")


@dataclass(frozen=True)
class SearchCost:
    """The cost of a search, in trainings of the dense network.

    Attributes:
        way: the way of searching, in words.
        rounds: cost of the rounds, the dense one included.
        retraining: cost of retraining the structured tickets.
        to_paper: cost of both over that of the paper's way.
    """

    way: str
    rounds: float
    retraining: float
    to_paper: float


def papers(search: Search, structures: int) -> float:
    """Return the cost of the paper's search, where every round and every ticket is a whole training.

    >>> papers(Search(10, 160, 8), structures=2)
    31.0
    """
    return float(search.rounds + 1 + search.rounds * structures)


def step_share(density: float, measured: Mapping[float, float]) -> float:
    """Return the time of a ticket's training step over the dense one's.

    Args:
        density: density of the ticket.
        measured: measured shares by density. Between two densities, or up to all weights, where the share is 1, it is
            linear; below the lowest density it is constant.

    >>> step_share(0.75, {0.5: 0.6}), step_share(0.1, {0.5: 0.6})
    (0.8, 0.6)
    """
    points = sorted({**measured, 1.0: 1.0}.items())
    if density <= points[0][0]:
        return points[0][1]
    for (below, low), (above, high) in pairwise(points):
        if density <= above:
            return low + (high - low) * (density - below) / (above - below)
    raise ValueError(f"density={density} is more than 1")


def costs(search: Search, measured: Mapping[str, Mapping[float, float]]) -> list[SearchCost]:
    """Return the costs of the paper's way and of ours.

    - Ours start at the rewind point, so a round or a retraining leaves out what lies before it.
    - `masked` retrains every ticket on the full network, `shrunk` on the smaller one.
    - `bisection` retrains only as many tickets of each structure as the search for the sparsest that wins needs: one
      of each halving of the rounds.
    - `grown` trains the dense network, and of each structure a chain of smaller and smaller tickets, which are not
      retrained (`recipe=strong`); also in a third of the rounds, which prune as much together.

    Args:
        search: the search.
        measured: time of a training step by density, see `step_share`, by structure.
    """
    whole = papers(search, len(measured))
    left = 1 - search.rewind / search.epochs
    rounds = 1 + search.rounds * left
    tickets = _tickets(search, measured)
    shrunk = sum(map(sum, tickets))
    bisected = sum(sum(sorted(each)[-halvings(search.rounds) :]) for each in tickets)
    fewer = max(1, round(search.rounds / 3))
    larger = replace(search, rounds=fewer, rate=1 - density_after(search.rounds, search.rate) ** (1 / fewer))
    ways = [
        ("the paper's", float(search.rounds + 1), float(search.rounds * len(measured))),
        ("masked", rounds, search.rounds * len(measured) * left),
        ("shrunk", rounds, shrunk),
        ("shrunk, bisection", rounds, bisected),
        ("grown", 1 + shrunk, 0.0),
        (f"grown, {fewer} rounds", 1 + sum(map(sum, _tickets(larger, measured))), 0.0),
    ]
    return [SearchCost(way, rounds, retraining, (rounds + retraining) / whole) for way, rounds, retraining in ways]


def _tickets(search: Search, measured: Mapping[str, Mapping[float, float]]) -> list[list[float]]:
    """Return the cost of every round's ticket, of every structure, from the rewind point on."""
    left = 1 - search.rewind / search.epochs
    densities = [density_after(number, search.rate) for number in range(1, search.rounds + 1)]
    return [[left * step_share(density, shares) for density in densities] for shares in measured.values()]


def halvings(rounds: int) -> int:
    """Return the most tickets that it takes to find the last round that wins, if every earlier one does.

    >>> [halvings(rounds) for rounds in (1, 3, 10)]
    [1, 2, 4]
    """
    return math.ceil(math.log2(rounds + 1))
