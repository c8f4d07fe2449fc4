"""Which density every round prunes to."""

from __future__ import annotations

import math


def density_after(rounds: int, rate: float) -> float:
    """Share of the weights left after that many rounds, each of which prunes the share `rate` of the rest.

    >>> round(density_after(2, 0.2), 6)
    0.64
    """
    return float((1 - rate) ** rounds)


def densities(rounds: int, rate: float, density: float | None = None, at_once: bool = False) -> list[float]:
    """The density of every pruning round.

    Args:
        rounds: how many; not looked at where a density is asked for.
        rate: share of the remaining weights that a round prunes, in (0, 1).
        density: to end at exactly, in (0, 1): as many rounds as reach it, of which the last prunes less.
        at_once: whether a round does not build on the one before: one round then reaches the density.

    >>> [round(each, 3) for each in densities(3, 0.2)], [round(each, 3) for each in densities(3, 0.2, 0.5)]
    ([0.8, 0.64, 0.512], [0.8, 0.64, 0.512, 0.5])
    >>> densities(3, 0.2, 0.5, at_once=True)
    [0.5]
    """
    if density is None:
        return [density_after(number, rate) for number in range(1, rounds + 1)]
    if at_once:
        return [density]
    # A density that is a power of 1 - rate, up to rounding, takes no round more.
    needed = max(1, math.ceil(math.log(density) / math.log(1 - rate) - 1e-9))
    return [density_after(number, rate) for number in range(1, needed)] + [density]
