"""Sharing out a budget of weights over layers that can only keep whole steps of them."""

from __future__ import annotations

from collections.abc import Sequence

_HALVINGS = 60


def apportion(asked: Sequence[int], steps: Sequence[int], most: Sequence[int], total: int) -> list[int]:
    """How many steps every layer keeps, so that all of them together keep `total` weights.

    A layer gets what it asks for, times one common factor if the layers together ask for more than there is;
    rounded down to whole steps; what is left by the rounding goes, step by step, to the layer that is furthest
    below its share. So the sum is never above `total`, and short of it by less than the smallest step that is
    still free, with one exception: no layer gets less than one step, even if that exceeds `total`.

    Args:
        asked: weights by layer.
        steps: weights of one step, by layer; all positive.
        most: steps that a layer has, at least 1 each.
        total: weights to share out.

    Returns:
        Steps by layer, each between 1 and `most`.

    >>> apportion(asked=[50, 50], steps=[8, 8], most=[100, 100], total=100)
    [6, 6]
    >>> apportion(asked=[50, 50], steps=[8, 1], most=[100, 100], total=100)
    [6, 52]
    >>> apportion(asked=[100, 100], steps=[10, 10], most=[20, 20], total=60)
    [3, 3]
    """

    def shares(factor: float) -> list[float]:
        return [
            min(max(factor * want / step, 1.0), float(high))
            for want, step, high in zip(asked, steps, most, strict=True)
        ]

    def weights(counts: Sequence[float]) -> float:
        return sum(count * step for count, step in zip(counts, steps, strict=True))

    ideal = shares(1.0)
    if weights(ideal) > total:
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if weights(shares(middle)) > total else (middle, high)
        ideal = shares(low)

    counts = [int(share) for share in ideal]
    left = total - sum(count * step for count, step in zip(counts, steps, strict=True))
    while free := [i for i, step in enumerate(steps) if step <= left and counts[i] < most[i]]:
        layer = max(free, key=lambda i: ideal[i] - counts[i])
        counts[layer] += 1
        left -= steps[layer]
    return counts
