"""Clustering of rows into groups of equal size that share columns.

What is maximised is the sum of the values in the chosen (group, column) pairs. There are three starts: the connectivity
cut of a hypergraph (the paper's view, section 3.3), balanced k-means, and random groups. From any start `refine` climbs
to a local maximum of that sum. All of it is deterministic for a seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lt_lightning.structures.matrices import Labels, Rule, Values, chosen_sum, column_sums

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_STEPS = 100
_DECAY = 0.95
_ROUNDING = 1e-12  # of the gains: differences below it are none


def assign(gains: Floats, size: int) -> Integers:
    """Assign rows to groups of `size` rows so that the sum of their `gains` (rows x groups) is largest.

    Give every group a price. Rows that each go where their gain less the price is largest are assigned as well as so
    many rows in each group can be (linear programming duality). So prices are searched at which hardly a group has
    too many rows; those still too many move on one by one, each time along the cheapest way to a group with room,
    which keeps the assignment the best of its sizes (successive shortest paths). With few groups that takes a small
    part of the time of `scipy.optimize.linear_sum_assignment`, which knows nothing of groups: 2 ms instead of 60 for
    512 rows in 16 groups.

    Returns:
        the group of every row, (rows,).

    >>> assign(np.array([[5.0, 1.0], [6.0, 4.0], [4.0, 3.0], [3.0, 0.0]]), 2)
    array([0, 1, 1, 0])
    """
    groups = np.arange(gains.shape[1])
    least = _ROUNDING * float(np.abs(gains).max(initial=0.0))
    labels: Integers = (gains - _prices(gains, size)).argmax(axis=1)
    costs = np.empty((len(groups), len(groups)))
    movers = np.empty(costs.shape, dtype=np.int64)
    changed = groups.tolist()
    while True:
        for group in changed:
            costs[group], movers[group] = _moves(gains, labels, group)
        room = size - np.bincount(labels, minlength=len(groups))
        if not room.any():
            return labels
        changed = _cheapest_way(costs, room, least)
        for row, group in [(movers[a, b], b) for a, b in pairwise(changed)]:
            labels[row] = group


def _prices(gains: Floats, size: int) -> Floats:
    """Return prices of the groups at which nearly as many rows come to each group as belong there."""
    prices = best = np.zeros(gains.shape[1])
    step = float(np.ptp(gains, axis=1).mean()) / size / 2
    least = len(gains)
    for _ in range(min(_STEPS, len(gains))):
        extra = np.bincount((gains - prices).argmax(axis=1), minlength=len(prices)) - size
        if (many := int(np.abs(extra).sum()) // 2) < least:
            least, best = many, prices
        if not many:
            break
        prices = prices + step * extra
        step *= _DECAY
    return best


def _moves(gains: Floats, labels: Integers, group: int) -> tuple[Floats, Integers]:
    """Return for every group the least that a row of `group` loses by moving there, and that row."""
    members = np.flatnonzero(labels == group)
    if not len(members):
        return np.full(gains.shape[1], np.inf), np.zeros(gains.shape[1], dtype=np.int64)
    losses = gains[members, group, None] - gains[members]
    first = losses.argmin(axis=0)
    return losses[first, np.arange(gains.shape[1])], members[first]


def _cheapest_way(costs: Floats, room: Integers, least: float) -> list[int]:
    """Return the groups on the cheapest way from one with too many rows to one with room (Bellman and Ford)."""
    groups = np.arange(len(room))
    cost = np.where(room < 0, 0.0, np.inf)
    before = np.full(len(room), -1)
    while True:
        through = cost[:, None] + costs
        last = through.argmin(axis=0)
        cheaper = through[last, groups] < cost - least
        if not cheaper.any():
            break
        cost = np.where(cheaper, through[last, groups], cost)
        before = np.where(cheaper, last, before)
    way = [int(np.where(room > 0, cost, np.inf).argmin())]
    while before[way[-1]] >= 0:
        way.append(int(before[way[-1]]))
    return way[::-1]


# Clustering

Method = Literal["best", "hypergraph", "kmeans", "random"]

# The limit on pins bounds the time of the partitioner (512 x 4608: about half a second). Ten times as many pins cut
# fewer columns, but the groups keep no more magnitude after the refinement.
_PINS = 5_000
_KMEANS_STEPS = 8
_RESTART_WORK = 2**20
_ASSIGNMENT = 16
_MOST_RESTARTS = 64
_LEAST_GAIN = 1e-3
_IMBALANCE = 0.03


class PartitionerError(RuntimeError):
    """The hypergraph partitioner gave no groups."""


@dataclass(frozen=True)
class Clustering:
    """Groups of equal size.

    Attributes:
        labels: group of every row; groups are numbered by their first row.
        note: how the clustering differs from the method that was chosen; empty where it does not.
    """

    labels: Labels
    note: str = ""


def cluster(values: Values, groups: int, rule: Rule, method: Method = "best", seed: int = 0) -> Clustering:
    """Cluster the rows of `values` into groups of equal size.

    Args:
        values: values to maximise, rows x columns, not negative; zero where nothing survives.
        groups: number of groups, a divisor of the number of rows.
        rule: function that chooses the columns of every group.
        method: `hypergraph` and `kmeans` are refined; `random` is the control and is not; `best` refines k-means and
            random starts (one at least, the smaller the matrix the more), the hypergraph's too where the partitioner
            sees all of it, and takes the groups with the largest sum, never less than the control of the same seed.
        seed: seed of everything that is drawn.

    Raises:
        ValueError: if the rows do not divide into the groups.

    >>> from functools import partial
    >>> from lt_lightning.structures.matrices import largest_pairs
    >>> values = np.array([[1.0, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> cluster(values, 2, partial(largest_pairs, count=3), "kmeans").labels
    array([0, 1, 0, 1])
    """
    rows = len(values)
    if groups < 1 or rows % groups:
        raise ValueError(f"groups={groups}: {rows} rows cannot be divided into that many equal groups")
    if groups == 1:
        return Clustering(np.zeros(rows, dtype=np.int64))
    control = random_groups(rows, groups, seed)
    if method == "random":
        return Clustering(_numbered(control))

    starts: list[Labels] = []
    note = ""
    # Of a larger matrix the partitioner sees a part, and takes longer than all else. In 163 layers of ResNet-18 (as
    # drawn, with filters of unequal strength, and trained for 141 steps; densities 0.26 and 0.07, groups of 32 and 64)
    # the refinement of its groups kept 0.0015 of the magnitude less than the best of the other starts on average, more
    # in 33 layers, and at most 0.0027 more.
    if method == "hypergraph" or (method == "best" and int(np.count_nonzero(values)) <= _PINS):
        try:
            starts.append(hypergraph_groups(values > 0, groups, seed))
        except PartitionerError as error:
            note = str(error) if method == "best" else f"{error}; groups by k-means"
    if method != "hypergraph" or not starts:
        starts.append(kmeans_groups(values, groups, seed))
    if method == "best":
        # In a narrow matrix the assignment costs more than the sums, and grows faster with the rows.
        work = rows * max(values.shape[1], _ASSIGNMENT * rows)
        restarts = min(max(_RESTART_WORK // work, 1), _MOST_RESTARTS)
        starts += [random_groups(rows, groups, seed + i) for i in range(restarts)]
    candidates = [refine(values, labels, rule) for labels in starts]
    if method == "best":
        candidates.append(control)
    return Clustering(_numbered(max(candidates, key=lambda labels: chosen_sum(values, labels, rule))), note)


def refine(values: Values, labels: Labels, rule: Rule, steps: int = 50) -> Labels:
    """Return groups with at least the sum that those of `labels` have, of the same equal size.

    Two moves alternate, neither of which can lose: the best columns for the groups (the rule), and the best balanced
    assignment of the rows to the groups given those columns. It ends when a step gains less than 0.1 %.
    """
    size = len(labels) // (int(labels.max()) + 1)
    sums = column_sums(values, labels)
    chosen = rule(sums)
    best = float(sums[chosen].sum())
    for _ in range(steps):
        candidate = assign(values @ chosen.T.astype(values.dtype), size)
        sums = column_sums(values, candidate)
        chosen = rule(sums)
        now = float(sums[chosen].sum())
        if now <= best:
            break
        labels, before, best = candidate, best, now
        if best < before * (1 + _LEAST_GAIN):
            break
    return labels


def random_groups(rows: int, groups: int, seed: int) -> Labels:
    """Draw groups of equal size without looking at the values."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(groups), rows // groups))


def kmeans_groups(values: Values, groups: int, seed: int) -> Labels:
    """Return the groups of balanced k-means: every step assigns the rows optimally to centres that take equally many.

    The rows are compared by the square roots of their values, scaled to unit length: how large a filter is as a whole
    says nothing about the columns it uses, and roots keep few large weights from deciding alone.
    """
    roots = np.sqrt(values, dtype=np.float32, casting="same_kind")
    points = roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    size = len(points) // groups
    centres = points[_spread(points, groups, np.random.default_rng(seed))]
    labels: Labels | None = None
    for _ in range(_KMEANS_STEPS):
        closeness = points @ centres.T - (centres * centres).sum(axis=1) / 2
        nearest = assign(closeness.astype(np.float64), size)
        if labels is not None and np.array_equal(nearest, labels):
            break
        labels = nearest
        centres = column_sums(points, labels) / size
    assert labels is not None
    return labels


def hypergraph_groups(pattern: NDArray[np.bool_], groups: int, seed: int) -> Labels:
    """Return groups that cut few columns apart (mtkahypar, objective km1: over columns, the groups touched less one).

    Rows are vertices; every column joins its non-zero rows. Columns with one row, and columns with all of them, cost
    the same in any partition and are left out; of very many the partitioner sees a random part.

    Args:
        pattern: whether a value survives, rows x columns.
        groups: number of groups, a divisor of the number of rows.
        seed: seed of the partitioner and of the columns that it sees.

    Raises:
        PartitionerError: if mtkahypar cannot be imported (warns once) or gives no partition.
    """
    partition = _partitioner()
    if partition is None:
        raise PartitionerError("mtkahypar cannot be imported")
    counts = pattern.sum(axis=0)
    columns = np.flatnonzero((counts > 1) & (counts < len(pattern)))
    if (pins := int(counts[columns].sum())) > _PINS:
        seen = max(len(columns) * _PINS // pins, 1)
        columns = np.sort(np.random.default_rng(seed).choice(columns, seen, replace=False))
    edges = [np.flatnonzero(column).tolist() for column in pattern[:, columns].T]
    try:
        labels = np.array(partition(len(pattern), edges, groups, seed), dtype=np.int64)
    except Exception as error:  # the library's own exceptions have no common base
        raise PartitionerError(f"mtkahypar failed ({error})") from error
    # Exactly equal groups: as many rows as possible stay where they are.
    return assign((labels[:, None] == np.arange(groups)).astype(np.float64), len(labels) // groups)


@cache
def _partitioner() -> Callable[[int, list[list[int]], int, int], list[int]] | None:
    """Return a function of vertices, edges, parts and seed; None, with one warning, if mtkahypar cannot be imported."""
    try:
        import mtkahypar
    except ImportError as error:
        warnings.warn(f"mtkahypar cannot be imported ({error}): rows are clustered by k-means", stacklevel=2)
        return None
    # The only preset that repeats its results; the others do not even on one thread.
    library: Any = mtkahypar.initialize(1, False)

    def partition(vertices: int, edges: list[list[int]], parts: int, seed: int) -> list[int]:
        context = library.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
        context.set_partitioning_parameters(parts, _IMBALANCE, mtkahypar.Objective.KM1)
        context.logging = False
        mtkahypar.set_seed(seed)
        graph = library.create_hypergraph(context, vertices, len(edges), edges)
        labels: list[int] = graph.partition(context).get_partition()
        return labels

    return partition


def _spread(points: NDArray[np.float32], count: int, draw: np.random.Generator) -> list[int]:
    """Draw the indices of points far apart (k-means++): the squared distance to those before is a point's weight."""
    picked = [int(draw.integers(len(points)))]
    distance = np.full(len(points), np.inf)
    squares = np.einsum("ij,ij->i", points, points)
    for _ in range(count - 1):
        last = picked[-1]
        apart = squares + squares[last] - 2 * (points @ points[last])
        distance = np.minimum(distance, np.maximum(apart, 0))
        total = float(distance.sum())
        picked.append(int(draw.choice(len(points), p=distance / total if total else None)))
    return picked


def _numbered(labels: Labels) -> Labels:
    """Number the groups in the order of their first rows."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order: Labels = np.argsort(np.argsort(first))[inverse]
    return order
