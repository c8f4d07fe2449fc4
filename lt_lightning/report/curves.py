"""Results turned into what figures show: curves with intervals, the dense band, the Pareto front, learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.special import stdtrit

from lt_lightning.results.aggregate import Row
from lt_lightning.ticket_names import DENSE, UNSTRUCTURED

CONFIDENCE = 0.95

Kind = tuple[str, str]
"""Structure, and control or nothing."""


@dataclass(frozen=True)
class Point:
    """Of a curve.

    Attributes:
        x: density, or a share of time or operations saved.
        y: mean accuracy.
        half: half the interval of the mean over seeds; None with one seed.
        seeds: number of them.
        round: of the ticket.
        by_mean: whether it is the extreme ticket by the paper's rule.
        shown: whether it is the one by the interval.
    """

    x: float
    y: float
    half: float | None
    seeds: int
    round: int
    by_mean: bool = False
    shown: bool = False


@dataclass(frozen=True)
class Curve:
    """Points of one kind of ticket, by descending density."""

    kind: Kind
    points: tuple[Point, ...]


def half_width(deviation: float | None, seeds: int, confidence: float = CONFIDENCE) -> float | None:
    """Half of Student's two-sided interval of a mean; None with fewer than two values.

    >>> round(half_width(1.0, 2), 3)  # 12.706 / sqrt(2)
    8.985
    """
    if deviation is None or seeds < 2:
        return None
    return float(stdtrit(seeds - 1, (1 + confidence) / 2)) * deviation / math.sqrt(seeds)


def density_curves(rows: Sequence[Row], marks: Mapping[str, tuple[int | None, int | None]]) -> list[Curve]:
    """Accuracy over density, a curve for each kind of ticket, the unstructured first; controls have no marks.

    Args:
        rows: of one data set, network and setting.
        marks: rounds of the extreme tickets of each structure: by the mean, and shown by the interval.
    """
    return [
        Curve(
            kind,
            tuple(
                _point(row, row.density, (None, None) if kind[1] else marks.get(kind[0], (None, None)))
                for row in _of(rows, kind)
            ),
        )
        for kind in kinds_of(rows)
    ]


def beside_each_other(curves: Sequence[Curve]) -> list[list[float]]:
    """Where the points of each curve are drawn: those of one round beside each other if they have bars.

    The first curve's stand where they are, the others' left and right of them in turn. The bars of a round take less
    than half of the way to the next one, as densities go in logarithms.

    >>> one, two = (Curve((name, ""), (Point(0.5, 0.9, 0.1, 2, 1),)) for name in ("a", "b"))
    >>> [[round(x, 3) for x in xs] for xs in beside_each_other([one, two])]
    [[0.5], [0.513]]
    """
    barred = any(point.half for curve in curves for point in curve.points)
    steps = [math.log(left.x / right.x) for left, right in pairwise(curves[0].points)] if curves else []
    step = min(0.4 * min(steps, default=1.0) / len(curves), 0.025) if barred else 0.0
    factors = [math.exp(step * (-(index // 2) if index % 2 == 0 else (index + 1) // 2)) for index in range(len(curves))]
    return [[factor * point.x for point in curve.points] for factor, curve in zip(factors, curves, strict=True)]


def extreme_points(
    curves: Sequence[Curve], places: Sequence[Sequence[float]], what: str
) -> list[tuple[Kind, Point, float]]:
    """The points that are marked as `by_mean` or `shown`, and where they are drawn (see `beside_each_other`)."""
    return [
        (curve.kind, point, x)
        for curve, xs in zip(curves, places, strict=True)
        for point, x in zip(curve.points, xs, strict=True)
        if getattr(point, what)
    ]


def arms(point: Point) -> tuple[float, float]:
    """Lengths of an interval's bars, up and down, as far as an accuracy can reach.

    >>> arms(Point(0.5, 0.75, 0.5, 2, 1))
    (0.25, 0.5)
    """
    half = point.half or 0.0
    return min(half, 1 - point.y), min(half, point.y)


def time_saved(row: Row) -> float:
    """Share of the dense network's time of inference; NaN if it was not measured."""
    return 1 - row.time_ratio_inference


def training_time_saved(row: Row) -> float:
    """Likewise of a training step."""
    return 1 - row.time_ratio_training


def flops_saved(row: Row) -> float:
    """Share of the dense network's multiply-adds that are not executed."""
    return 1 - row.flops_ratio


def dense_row(rows: Sequence[Row]) -> Row | None:
    """The dense network's; None if it is not finished."""
    return next((row for row in rows if row.structure == DENSE), None)


def kinds_of(rows: Sequence[Row]) -> list[Kind]:
    """Kinds of tickets in the order that figures show them: tickets, the unstructured first; then their controls."""
    kinds = sorted({(row.structure, row.control) for row in rows if row.structure != DENSE})
    return sorted(kinds, key=lambda kind: (bool(kind[1]), kind[0] != UNSTRUCTURED))


def structures_of(kinds: Sequence[Kind]) -> list[str]:
    """Their structures, in order."""
    return list(dict.fromkeys(structure for structure, _ in kinds))


def trade_points(rows: Sequence[Row], saved: Callable[[Row], float]) -> list[tuple[float, Row]]:
    """Tickets with what they save; those of which that is not known are left out."""
    points = [(saved(row), row) for row in rows if row.structure != DENSE]
    return [(x, row) for x, row in points if not math.isnan(x)]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates, by ascending x.

    Of equal points the first counts.

    >>> pareto([(0.0, 0.9), (0.5, 0.8), (0.4, 0.7), (0.6, 0.8)])
    [0, 3]
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    front: list[int] = []
    best = -math.inf
    for index in order:
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front[::-1]


def front_of(points: Sequence[tuple[float, Row]], dense: Row | None) -> list[tuple[float, Row]]:
    """The Pareto front of tickets and the dense network, with what each saves; controls are no tickets."""
    told = [] if dense is None else [(0.0, dense)]
    told += [(x, row) for x, row in points if not row.control]
    return [told[index] for index in pareto([(x, row.accuracy) for x, row in told])]


def _of(rows: Sequence[Row], kind: Kind) -> list[Row]:
    return sorted(
        (row for row in rows if (row.structure, row.control) == kind), key=lambda row: (-row.density, row.round)
    )


def _point(row: Row, x: float, marked: tuple[int | None, int | None]) -> Point:
    half = half_width(row.accuracy_sd, row.seeds)
    return Point(x, row.accuracy, half, row.seeds, row.round, row.round == marked[0], row.round == marked[1])
