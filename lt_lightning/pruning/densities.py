"""The density that every round prunes to."""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_ROUNDS = 1000


def density_after(rounds: int, rate: float) -> float:
    """Return the share of the weights left after so many rounds, each of which prunes the share `rate` of the rest.

    >>> round(density_after(2, 0.2), 6)
    0.64
    """
    return float((1 - rate) ** rounds)


def densities(
    rounds: int, rate: float, density: float | Sequence[float] | None = None, at_once: bool = False
) -> list[float]:
    """Return the density of every pruning round.

    Args:
        rounds: number of rounds; ignored where densities are given.
        rate: share of the remaining weights that a round prunes, in (0, 1).
        density: densities to hit exactly, each in (0, 1). From one to the next lower there are as many rounds as are
            needed to reach it, and the last of them may prune less.
        at_once: whether a round does not build on the one before: then one round reaches each density.

    Raises:
        ValueError: if more than `MOST_ROUNDS` rounds are asked for, or lead from one density to the next.

    >>> [round(each, 3) for each in densities(3, 0.2)], [round(each, 3) for each in densities(3, 0.2, 0.5)]
    ([0.8, 0.64, 0.512], [0.8, 0.64, 0.512, 0.5])
    >>> densities(3, 0.5, [0.3, 0.1]), densities(3, 0.5, [0.3, 0.1], at_once=True)
    ([0.5, 0.3, 0.15, 0.1], [0.3, 0.1])
    """
    if density is None:
        if rounds > MOST_ROUNDS:
            raise ValueError(f"rounds={rounds}: must be at most {MOST_ROUNDS}")
        return [density_after(number, rate) for number in range(1, rounds + 1)]
    ends = descending(density)
    if at_once:
        return ends
    found = [each for start, end in zip([1.0, *ends], ends, strict=False) for each in _down_to(start, end, rate)]
    if len(found) > MOST_ROUNDS:
        raise ValueError(f"rate={rate}: to density {ends[-1]} are {len(found)} rounds, more than {MOST_ROUNDS}")
    return found


def descending(density: float | Sequence[float]) -> list[float]:
    """Return the given densities, each once, the highest first.

    >>> descending(0.5), descending([0.1, 0.5, 0.1])
    ([0.5], [0.5, 0.1])
    """
    return sorted(set(density if isinstance(density, Sequence) else [density]), reverse=True)


def _down_to(start: float, end: float, rate: float) -> list[float]:
    # A share that is a power of 1 - rate, up to rounding, needs no further round.
    needed = max(1, math.ceil(math.log(end / start) / math.log1p(-rate) - 1e-9))
    if needed > MOST_ROUNDS:
        raise ValueError(f"rate={rate}: from density {start} to {end} are more than {MOST_ROUNDS} rounds")
    return [start * density_after(number, rate) for number in range(1, needed)] + [end]
