"""Figures that a paper published, set beside ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lt_lightning.results.aggregate import Row, aggregate
from lt_lightning.results.records import Result
from lt_lightning.results.verdict import not_below

Quantity = Literal["accuracy", "versus_dense", "flops", "time_saved", "extreme_sparsity"]

NEAR = math.sqrt(0.8)  # half a round of pruning a fifth


@dataclass(frozen=True)
class PublishedFigure:
    """A number that a paper published of a kind of ticket.

    Attributes:
        quantity: `accuracy` on the test set and `versus_dense` (its difference to the dense network's) in per cent;
            `flops` executed, over the dense network's, in per cent; `time_saved` in inference in per cent;
            `extreme_sparsity`, the highest in per cent at which a ticket is as accurate as the dense network.
        ticket: kind of ticket: its structure, followed by a space and the control if it is one. Several, joined by
            `|`, stand for the best of them.
        remaining: share of the prunable weights that the ticket keeps in per cent, as the paper counts; None if the
            paper does not say.
        value: value of the quantity.
    """

    quantity: Quantity
    ticket: str
    remaining: float | None
    value: float


@dataclass(frozen=True)
class Comparison:
    """A published figure and ours.

    Attributes:
        figure: the published figure.
        remaining: what our ticket keeps in per cent, counted as the paper does; None where we have no such ticket.
        value: our value, a mean over the seeds.
        seeds: number of seeds.
    """

    figure: PublishedFigure
    remaining: float | None
    value: float
    seeds: int

    @property
    def difference(self) -> float:
        """Our value less the published one, in points."""
        return self.value - self.figure.value


def figures_of(published: Mapping[str, Any]) -> list[PublishedFigure]:
    """Read figures.

    Args:
        published: pairs of what remains in per cent (or None) and the value, by quantity and by ticket.

    Raises:
        ValueError: if the argument holds anything else.
    """
    return [figure for quantity, tickets in published.items() for figure in _figures_of(quantity, tickets)]


def _figures_of(quantity: Any, tickets: Any) -> list[PublishedFigure]:
    name = f"published.{quantity}"
    if quantity not in get_args(Quantity):
        raise ValueError(f"{name}: the quantity must be one of {', '.join(get_args(Quantity))}")
    if not isinstance(tickets, Mapping):
        raise ValueError(f"{name}={tickets!r}: must have a list for each ticket")
    for ticket, pairs in tickets.items():
        if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
            raise ValueError(f"{name}.{ticket}={pairs}: must be a list of [per cent that remain or None, value]")
    figures = [PublishedFigure(quantity, ticket, *pair) for ticket, pairs in tickets.items() for pair in pairs]
    if quantity != "flops":
        return figures
    dense = next((figure.value for figure in figures if figure.ticket == "dense"), 0.0)
    if dense <= 0:
        raise ValueError(f"{name}.dense: must be [[100, what the dense network executes]], which the others relate to")
    return [replace(figure, value=100 * figure.value / dense) for figure in figures if figure.ticket != "dense"]


def _is_pair(pair: Any) -> bool:
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    remaining, value = pair
    return _is_number(value) and (remaining is None or (_is_number(remaining) and 0 < remaining <= 100))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def filters_density(layers: Iterable[tuple[int, int, int]]) -> float:
    """Return the share of the weights in whole filters, of which every layer keeps as many as its density rounds up to.

    Args:
        layers: weights, weights that the mask keeps, and filters of each layer.

    Source: Chen et al., ICML 2022, section 3.2.

    >>> filters_density([(90, 31, 10), (10, 10, 1)])  # 4 of 10 filters, and all
    0.46
    """
    rows = [(size, -(-kept * filters // size) * size / filters) for size, kept, filters in layers]
    return float(sum(kept for _, kept in rows) / sum(size for size, _ in rows))


def counted_density(result: Result, options: Mapping[str, Any] | None) -> float:
    """Return what remains in [0, 1] as the paper counts: for its refill the share of filters, else that of weights.

    Args:
        result: result of the ticket.
        options: options of its structure; None if it has none.

    Source: Chen et al., ICML 2022, section 3.2: as many filters of each layer as its mask has weights for, rounded up,
    and of those that would be dropped the share `extra`.
    """
    if options is None or options.get("match") != "filters":
        return result.density
    share = result.filters_density or result.target_density
    return share + float(options["extra"]) * (1 - share)


def compare(
    figures: Iterable[PublishedFigure], results: Sequence[Result], structures: Mapping[str, Mapping[str, Any]]
) -> list[Comparison]:
    """Set each figure beside our ticket of its kind that is nearest in what remains, if one is within half a round.

    A figure without what remains stands beside our extreme ticket: the sparsest that is on average at least as
    accurate as the dense network. Without any, our extreme sparsity is 0.

    Args:
        figures: published figures.
        results: results of one setting; those of several seeds are averaged.
        structures: options of the structures, by name.
    """
    rows = aggregate(
        ("", replace(result, density=counted_density(result, structures.get(result.structure)))) for result in results
    )
    compared = [_compared(figure, rows) for figure in figures]
    return [comparison for comparison in compared if comparison is not None]


def _compared(figure: PublishedFigure, rows: Sequence[Row]) -> Comparison | None:
    kinds = figure.ticket.split("|")
    mine = [row for row in rows if f"{row.structure} {row.control}".rstrip() in kinds and not row.origin]
    if not mine:
        return None
    row = _extreme(mine) if figure.remaining is None else _nearest(mine, figure.remaining / 100)
    if row is None:
        extreme = figure.quantity == "extreme_sparsity"
        return Comparison(figure, None, 0.0, max(row.seeds for row in mine)) if extreme else None
    value = _value_of(row, figure.quantity)
    return None if math.isnan(value) else Comparison(figure, 100 * row.density, value, row.seeds)


def _extreme(rows: Sequence[Row]) -> Row | None:
    winning = [row for row in rows if not_below(row.difference)]
    return min(winning, key=lambda row: row.density, default=None)


def _nearest(rows: Sequence[Row], density: float) -> Row | None:
    row = min(rows, key=lambda row: abs(math.log(row.density / density)))
    return row if NEAR <= row.density / density <= 1 / NEAR else None


def _value_of(row: Row, quantity: Quantity) -> float:
    """Return the value in per cent."""
    values: dict[Quantity, float] = {
        "accuracy": row.accuracy,
        "versus_dense": row.difference,
        "flops": row.flops_ratio,
        "time_saved": 1 - row.time_ratio_inference,
        "extreme_sparsity": 1 - row.density,
    }
    return 100 * values[quantity]
