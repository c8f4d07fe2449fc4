"""What a whole search costs, counted in trainings of the dense network, beside the paper's way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lt_lightning.pruning.densities import density_after

SCREENINGS = (4, 8)
"""Parts of a training that trainings of a screening are."""
CONFIRMED = 2
"""Tickets of a structure that are confirmed at most."""


@dataclass(frozen=True)
class Search:
    """A search and the retraining of what its rounds are structured into.

    Attributes:
        rounds: of pruning, after the dense one.
        epochs: of a training.
        rewind: epochs that a round leaves out, since it starts from there.
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
    """In trainings of the dense network.

    Attributes:
        way: how it is done.
        rounds: for the rounds of pruning, the dense one included; with a screening both dense ones.
        retraining: for the structured tickets, and for the unstructured ones that are confirmed.
        to_paper: of all of it, over the paper's.
    """

    way: str
    rounds: float
    retraining: float
    to_paper: float


def papers(search: Search, structures: int) -> float:
    """Every round and every ticket is a whole training of the dense network: rounds + 1, and one a ticket.

    >>> papers(Search(10, 160, 8), structures=2)
    31.0
    """
    return float(search.rounds + 1 + search.rounds * structures)


def step_share(density: float, measured: Mapping[float, float]) -> float:
    """Time of a ticket's training step over the dense one's.

    Args:
        density: of the ticket.
        measured: that share by density; 1 for all weights is known. In between it is linear, below the lowest density
            that was measured it is that one's.

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
    """The paper's way and ours.

    - All start at the rewind point, so a round or a retraining leaves out what lies before it.
    - `masked` retrains every ticket on the full network, `shrunk` on the smaller one.
    - `bisection` retrains only as many tickets of each structure as the search for the sparsest that wins needs: one
      of each halving of the rounds.
    - `screened` does that with trainings of a part of the epochs, as many of them left out for the rewind point; then
      comes a whole dense training, and that of two tickets of each structure, and of two unstructured ones, at most.

    Args:
        search: see there.
        measured: by structure, the time of a training step by density, see `step_share`.
    """
    whole = papers(search, len(measured))
    left = 1 - search.rewind / search.epochs
    rounds = 1 + search.rounds * left
    each = {name: _retraining(search, left, shares) for name, shares in measured.items()}
    looked_at = halvings(search.rounds)
    ways = {
        "masked": search.rounds * len(measured) * left,
        "shrunk": sum(sum(shares) for shares in each.values()),
        "shrunk, bisection": sum(sum(sorted(shares)[-looked_at:]) for shares in each.values()),
    }
    return [
        SearchCost("the paper's", float(search.rounds + 1), float(search.rounds * len(measured)), 1.0),
        *(SearchCost(way, rounds, retraining, (rounds + retraining) / whole) for way, retraining in ways.items()),
        *(_screened(search, part, each, whole) for part in SCREENINGS if search.epochs // part > search.rewind),
    ]


def _screened(search: Search, part: int, each: Mapping[str, Sequence[float]], whole: float) -> SearchCost:
    """With trainings of a part of the epochs; of tickets the dearest are confirmed, whichever they turn out to be.

    Args:
        search: as it would be without.
        part: of its epochs.
        each: by structure, what every round's ticket costs at full length.
        whole: of the paper's way.
    """
    left = 1 - search.rewind / search.epochs
    short = (search.epochs // part - search.rewind) / search.epochs
    rounds = 1 + search.epochs // part / search.epochs + search.rounds * short
    looked_at = halvings(search.rounds)
    screened = sum(sum(sorted(costs)[-looked_at:]) for costs in each.values()) * short / left
    confirmed = sum(sum(sorted(costs)[-CONFIRMED:]) for costs in each.values())
    retraining = screened + confirmed + min(CONFIRMED, search.rounds) * left
    way = f"shrunk, bisection, screened at 1/{part} of the epochs"
    return SearchCost(way, rounds, retraining, (rounds + retraining) / whole)


def halvings(rounds: int) -> int:
    """Tickets that are looked at, at most, to find the last round that wins, if every earlier one does.

    >>> [halvings(rounds) for rounds in (1, 3, 10)]
    [1, 2, 4]
    """
    return math.ceil(math.log2(rounds + 1))


def _retraining(search: Search, left: float, measured: Mapping[float, float]) -> Sequence[float]:
    """Of every round's ticket."""
    return [left * step_share(density_after(n, search.rate), measured) for n in range(1, search.rounds + 1)]
