"""Clustering of rows into groups of equal size that share columns.

What is maximised is the sum of the values in the chosen (group, column) pairs. Random groups are led there by
`graduated`, which assigns all rows at once, and the connectivity cut of a hypergraph (the paper's view, section 3.3) is
another start; from either `exchanged` climbs to a local maximum. All of it is deterministic for a seed.
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

from lt_lightning.structures.matrices import Chosen, ColumnRule, Labels, Values, chosen_sum, column_sums

Floats = NDArray[np.float64]
Singles = NDArray[Any]  # float32
Integers = NDArray[np.int64]

_STEPS = 100
_DECAY = 0.95
_ROUNDING = 1e-12  # of the largest gain: smaller differences count for nothing


def assign(gains: Floats, size: int) -> Integers:
    """Assign rows to groups of `size` rows so that the sum of their `gains` (rows x groups) is largest.

    Give every group a price, and let every row go where its gain less the price is largest. No other assignment with
    as many rows in each group has a larger sum (linear programming duality). So prices are searched at which hardly
    any group has too many rows. Rows that are still too many move on one by one, each time along the cheapest way to a
    group with room, so that the assignment stays the best of its sizes (successive shortest paths). With few groups
    that takes a small part of the time of `scipy.optimize.linear_sum_assignment`, which knows nothing of groups: 2 ms
    instead of 60 for 512 rows in 16 groups.

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

Method = Literal["best", "hypergraph", "random"]

# The limit on pins bounds the time of the partitioner (512 x 4608: about half a second).
_PINS = 5_000
_IMBALANCE = 0.03

# Small matrices get many starts, large ones many steps of one start: so in layers of trained ResNets of 8 and 18 layers
# `best` keeps as much as a long annealing, give or take 0.1 %, and at most 0.9 % less.
_START_WORK = 2**25  # rows x values of all starts together, but there is always one start
_MOST_STARTS = 20
_ALL_STEPS = 20  # of all starts together, but each has one at least
_WIDEST, _NARROWEST = 1.0, 0.12  # ramps, times the mean of values that are not zero and the root of a group's size
_SWEEPS = 6
_LEAST_GAIN = 2e-4
_ROUNDING_OF_SINGLES = 1e-6
_AT_ONCE = 2**16  # values of rows that stay in the cache


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


def cluster(values: Values, groups: int, rule: ColumnRule, method: Method = "best", seed: int = 0) -> Clustering:
    """Cluster the rows of `values` into groups of equal size.

    Args:
        values: values to maximise, rows x columns, not negative; zero where nothing survives.
        groups: number of groups, a divisor of the number of rows.
        rule: which columns every group keeps.
        method: `best` takes the groups with the largest sum that it finds from random ones (one draw at least, the
            smaller the matrix the more), never less than the control of the same seed; `hypergraph` improves those of
            the partitioner; `random` is the control.
        seed: seed of everything that is drawn.

    Raises:
        ValueError: if the rows do not divide into the groups.

    >>> values = np.array([[1.0, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> cluster(values, 2, ColumnRule(3)).labels
    array([0, 1, 0, 1])
    """
    rows = len(values)
    if groups < 1 or rows % groups:
        raise ValueError(f"groups={groups}: {rows} rows cannot be divided into that many equal groups")
    if groups == 1:
        return Clustering(np.zeros(rows, dtype=np.int64))
    if method == "random":
        return Clustering(_numbered(random_groups(rows, groups, seed)))
    note = ""
    if method == "hypergraph":
        try:
            cut = hypergraph_groups(values > 0, groups, seed)
            return Clustering(_numbered(exchanged(values, cut, rule, seed)))
        except PartitionerError as error:
            note = f"{error}; groups as by clustering='best'"
    starts = min(max(_START_WORK // (rows * values.size), 1), _MOST_STARTS)
    steps = max(_ALL_STEPS // starts, 1)
    found = []
    for start in range(seed, seed + starts):
        labels = graduated(values, random_groups(rows, groups, start), rule, steps)
        found.append(exchanged(values, labels, rule, start))
    return Clustering(_numbered(max(found, key=lambda labels: chosen_sum(values, labels, rule))), note)


def random_groups(rows: int, groups: int, seed: int) -> Labels:
    """Draw groups of equal size without looking at the values."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(groups), rows // groups))


def graduated(values: Values, labels: Labels, rule: ColumnRule, steps: int = _ALL_STEPS) -> Labels:
    """Return groups with at least the sum that those of `labels` have, and mostly far more.

    All rows are assigned anew, best for the columns that the groups keep, and again for those that they keep then. Done
    plainly that ends at once, since the columns of a group suit the rows that chose them. So a column is not kept
    or dropped: it is kept by a share that rises with its sum, over a ramp round the least sum that the rule keeps, and
    the ramp becomes narrower from step to step (graduated optimisation). A row's gain in its own group is that of
    joining the others in it; in another group it is that of joining all but an average row, to second order.
    """
    size = len(labels) // (int(labels.max()) + 1)
    scaled = _scaled(values)
    if not scaled.any():
        return labels
    both = np.concatenate([scaled, scaled * scaled / 2], axis=1)
    ramps = np.geomspace(_WIDEST, _NARROWEST, steps) * float(scaled[scaled > 0].mean()) * size**0.5
    best, most = labels, chosen_sum(values, labels, rule)
    for ramp in ramps.astype(np.float32):
        labels = assign(_gains(scaled, both, labels, rule, ramp), size)
        if (now := chosen_sum(values, labels, rule)) > most:
            best, most = labels, now
    return best


def _gains(scaled: Singles, both: Singles, labels: Labels, rule: ColumnRule, ramp: np.float32) -> Floats:
    """Return what every row gains in every group (rows x groups), with columns kept by shares; see `graduated`.

    Args:
        scaled: values, rows x columns.
        both: values and halves of their squares side by side.
        labels: group of every row.
        rule: which columns every group keeps.
        ramp: range of a column's sum in which its share rises from 0 to 1.
    """
    sums = column_sums(scaled, labels)
    size = np.float32(len(labels) / len(sums))
    least = rule.least(sums)
    height = (sums - sums / size - least) / ramp + np.float32(0.5)
    shares = np.concatenate([height.clip(0, 1), ((height > 0) & (height < 1)) / ramp], axis=1)
    gains: Floats = (both @ shares.T).astype(np.float64)
    for group, over in enumerate((sums - least) / ramp + np.float32(0.5)):
        members = np.flatnonzero(labels == group)
        rows = scaled[members]
        gains[members, group] = ((over - rows / (2 * ramp)).clip(0, 1) * rows).sum(axis=1)
    return gains


def exchanged(values: Values, labels: Labels, rule: ColumnRule, seed: int) -> Labels:
    """Return groups with at least the sum that those of `labels` have: rows change places while that gains."""
    draw = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    rows = _scaled(values)[order]
    best, most = labels, chosen_sum(values, labels, rule)
    for _ in range(_SWEEPS):
        _sweep(rows, order, len(rows) // (int(labels.max()) + 1), rule, draw)
        labels = np.empty_like(labels)
        labels[order] = np.sort(best)
        now = chosen_sum(values, labels, rule)
        if now <= most:
            break
        gain, best, most = now / most - 1 if most else 1.0, labels, now
        if gain < _LEAST_GAIN:
            break
    return best


def _sweep(rows: Singles, order: Integers, size: int, rule: ColumnRule, draw: np.random.Generator) -> None:
    """Let every row in turn, as they are drawn, change places with the one with which that gains most.

    What is gained is what both groups then hold more, their columns chosen anew. A row looks for its partner among all
    rows, or in a large matrix among those of some groups that are drawn. Where groups compete for columns, the least
    sum that is kept stays what it is during the sweep.

    Args:
        rows: values, rows x columns, group by group; changed in place.
        order: number of each of these rows; changed in place.
        size: number of rows of a group.
        rule: which columns every group keeps.
        draw: generator of what is drawn.
    """
    parts = rows.reshape(-1, size, rows.shape[1])
    groups = np.arange(len(parts))
    together = min(max(_AT_ONCE // parts[0].size, 1), len(groups))
    sums = parts.sum(axis=1)
    if not rule.in_each:
        sums -= rule.least(sums)
    held = _held(sums.copy(), rule)
    firsts = draw.integers(-(-len(groups) // together), size=len(rows)) * together
    for row, first in zip(draw.permutation(len(rows)), firsts, strict=True):
        own, some = row // size, slice(first, first + together)
        gains = _held(parts[some] + (sums[own] - rows[row]), rule)
        gains += _held((sums[some] + rows[row])[:, None] - parts[some], rule)
        gains -= held[some, None] + held[own]
        gains[groups[some] == own] = 0.0
        partner = first * size + int(gains.argmax())
        if gains.max() <= _ROUNDING_OF_SINGLES * held[own]:
            continue
        other = partner // size
        change = rows[partner] - rows[row]
        sums[own] += change
        sums[other] -= change
        rows[[row, partner]] = rows[[partner, row]]
        order[[row, partner]] = order[[partner, row]]
        held[[own, other]] = _held(sums[[own, other]], rule)


def _held(sums: Singles, rule: ColumnRule) -> Singles:
    """Return what groups with such sums hold, (..., columns) to (...); the sums are overwritten.

    Where groups compete for columns the least sum that is kept has been subtracted, and half of all is left out, which
    is the same however rows change places: max(x, 0) = (|x| + x) / 2.
    """
    if not rule.in_each:
        held: Singles = np.abs(sums, out=sums) @ np.full(sums.shape[-1], 0.5, dtype=np.float32)
    elif rule.count < sums.shape[-1]:
        held = np.partition(sums, -rule.count, axis=-1)[..., -rule.count :].sum(axis=-1)
    else:
        held = sums.sum(axis=-1)
    return held


def _scaled(values: Values) -> Singles:
    """Return the values as shares of the largest."""
    most = float(values.max(initial=0.0))
    return (values / most if most else values).astype(np.float32)


def hypergraph_groups(pattern: Chosen, groups: int, seed: int) -> Labels:
    """Return groups that cut few columns apart (mtkahypar, objective km1: over columns, the groups touched less one).

    Rows are vertices; every column joins its non-zero rows. Columns with one row or none, and columns with all rows,
    cost the same in any partition and are left out. Where very many are left, the partitioner sees a random part.

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
        warnings.warn(f"mtkahypar cannot be imported ({error}): rows are clustered without it", stacklevel=2)
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


def _numbered(labels: Labels) -> Labels:
    """Number the groups in the order of their first rows."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order: Labels = np.argsort(np.argsort(first))[inverse]
    return order
