"""What a search cost: trainings as the paper counts them, seconds, and those over a dense training's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lt_lightning.report.found import Search, named

DENSE, ROUNDS, WHOLE = "dense training (round 0)", "rounds of pruning", "together"


@dataclass(frozen=True)
class Cost:
    """Of one part of a search.

    Attributes:
        part: for people.
        trainings: number of them, as the paper counts: one a round, the dense one too, and one a ticket.
        seconds: wall time of all of them.
        in_dense: the same over that of the dense training; NaN if that is not known.
    """

    part: str
    trainings: int
    seconds: float
    in_dense: float


def costs_of(search: Search) -> list[Cost]:
    """Costs of the dense training, the rounds, each kind of ticket that was retrained alone, and all together.

    Fewer where the search is not finished; none without any training.
    """
    parts: dict[str, list[float]] = {}
    for facts in search.rounds:
        if (seconds := _seconds(facts)) is not None:
            parts.setdefault(ROUNDS if facts["round"] else DENSE, []).append(seconds)
    dense = next(iter(parts.get(DENSE, [])), math.nan)
    for twin in (False, True):
        for result in search.results:
            if bool(result.twin) == twin and retrained_alone(result.place):
                parts.setdefault(named(result.structure, result.twin), []).append(result.train_seconds)
    costs = [_cost(part, seconds, dense) for part, seconds in parts.items()]
    return [*costs, _cost(WHOLE, [each for seconds in parts.values() for each in seconds], dense)] if costs else []


def retrained_alone(place: str) -> bool:
    """Whether a ticket was trained outside of the search's rounds, by its folder.

    >>> retrained_alone("search/round_01/refill-0a1b2c3d"), retrained_alone("search/round_01/unstructured")
    (True, False)
    """
    return re.search(r"-[0-9a-f]{8}$", place) is not None


def _cost(part: str, seconds: list[float], dense: float) -> Cost:
    return Cost(part, len(seconds), sum(seconds), sum(seconds) / dense if dense > 0 else math.nan)


def _seconds(facts: Mapping[str, Any]) -> float | None:
    """Of a round, sparsifying included."""
    values = (facts.get("train_seconds"), facts.get("sparsify_seconds", 0.0))
    if not isinstance(facts.get("round"), int) or not all(isinstance(value, (int, float)) for value in values):
        return None
    return float(sum(values))
