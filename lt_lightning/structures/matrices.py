"""Weights as matrices of filters x columns: which columns groups of filters keep, and how layers share a budget.

A column is what all filters of a group keep or drop together: one input at one kernel position, or a whole input
channel (`Granularity`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import count_kept
from lt_lightning.structures.base import Form, LayerReport, StructureInput, StructureResult, retained_magnitude
from lt_lightning.structures.channel_choice import Cost, prices
from lt_lightning.structures.executable import why_no_blocks, why_not_held
from lt_lightning.structures.plan import Block, BlockPlan, Granularity, block_mask

Values = NDArray[np.float64]
Labels = NDArray[np.int64]
Chosen = NDArray[np.bool_]


def column_sums(values: Values, labels: Labels) -> Values:
    """Sum the columns of `values` (rows x columns) within every group: (groups x columns).

    >>> column_sums(np.array([[1.0, 0.0], [2.0, 3.0], [4.0, 0.0]]), np.array([0, 1, 0]))
    array([[5., 0.],
           [2., 3.]])
    """
    sums: Values = (labels == np.arange(labels.max() + 1)[:, None]).astype(values.dtype) @ values
    return sums


def largest_pairs(sums: Values, count: int) -> Chosen:
    """Choose the `count` largest of all sums, wherever they are; of equal ones the first.

    >>> largest_pairs(np.array([[5.0, 4.0, 1.0], [2.0, 4.0, 0.0]]), 2)
    array([[ True,  True, False],
           [False, False, False]])
    """
    if count >= sums.size:
        return np.ones(sums.shape, dtype=np.bool_)
    flat = sums.reshape(-1)
    least = np.partition(flat, flat.size - count)[flat.size - count]
    chosen: Chosen = flat > least
    chosen[np.flatnonzero(flat == least)[: count - int(chosen.sum())]] = True
    return chosen.reshape(sums.shape)


def largest_in_each(sums: Values, count: int) -> Chosen:
    """Choose the `count` largest sums of every group; of equal ones the first.

    >>> largest_in_each(np.array([[5.0, 4.0, 1.0], [2.0, 4.0, 0.0]]), 1)
    array([[ True, False, False],
           [False,  True, False]])
    """
    return np.stack([largest_pairs(group, count) for group in sums])


@dataclass(frozen=True)
class ColumnRule:
    """Rule that chooses the columns which hold most.

    Attributes:
        count: number of (group, column) pairs of all groups together, or with `in_each` of every group; at least 1.
        in_each: whether every group keeps equally many.
    """

    count: int
    in_each: bool = False

    def __call__(self, sums: Values) -> Chosen:
        """Choose among the sums of all columns in all groups (groups x columns)."""
        return (largest_in_each if self.in_each else largest_pairs)(sums, self.count)

    def least(self, sums: Values) -> Values:
        """Return the least sum that is chosen, for every group: (groups x 1).

        It is the least of the group's own with `in_each`, else that of all groups.

        >>> ColumnRule(2).least(np.array([[5.0, 4.0, 1.0], [2.0, 3.0, 0.0]])).tolist()
        [[4.0], [4.0]]
        """
        chosen = self(sums)
        least: Values = np.where(chosen, sums, np.inf).min(axis=1, keepdims=True).astype(sums.dtype)
        return least if self.in_each else np.full_like(least, least.min())


def chosen_sum(values: Values, labels: Labels, rule: ColumnRule) -> float:
    """Sum the values in the pairs that the rule chooses for these groups."""
    sums = column_sums(values, labels)
    return float(sums[rule(sums)].sum())


# A budget of weights, shared out over layers that can only keep whole steps of them

_HALVINGS = 60


def apportion(targets: Sequence[int], steps: Sequence[int], most: Sequence[int], total: int) -> list[int]:
    """Return how many steps every layer keeps, so that all of them together keep `total` weights.

    A layer gets its target, times one common factor if the targets together are more than the total;
    rounded down to whole steps; what is left by the rounding goes, step by step, to the layer that is furthest
    below its share. So the sum is never above `total`, and short of it by less than the smallest step that is
    still free, with one exception: no layer gets less than one step, even if that exceeds `total`.

    Args:
        targets: number of weights that each layer is to keep.
        steps: number of weights of one step of each layer; all positive.
        most: number of steps that each layer has, at least 1.
        total: number of weights to share out.

    Returns:
        the number of steps of each layer, between 1 and `most`.

    >>> apportion(targets=[50, 50], steps=[8, 8], most=[100, 100], total=100)
    [6, 6]
    >>> apportion(targets=[50, 50], steps=[8, 1], most=[100, 100], total=100)
    [6, 52]
    >>> apportion(targets=[100, 100], steps=[10, 10], most=[20, 20], total=60)
    [3, 3]
    """

    def shares(factor: float) -> list[float]:
        return [
            min(max(factor * target / step, 1.0), float(high))
            for target, step, high in zip(targets, steps, most, strict=True)
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


# Layers as matrices, and the ticket of their blocks

LEAST = "keeps more than its target, the least it can"


@dataclass(frozen=True)
class Matrix:
    """A layer's weight as rows x columns.

    Attributes:
        layer: layer that the weight is of.
        rows: number of filters.
        columns: number of columns.
        taps: number of weights that a column has in every row.
        magnitude: magnitude of every surviving weight, zero elsewhere, float64, in the weight's shape.
        survives: unstructured mask of the weight.
    """

    layer: Layer
    rows: int
    columns: int
    taps: int
    magnitude: Tensor
    survives: Tensor

    @classmethod
    def of(cls, layer: Layer, given: StructureInput, granularity: Granularity) -> Matrix:
        """Return the matrix of a layer.

        Raises:
            ValueError: if a weight is not finite.
        """
        rows, columns = _shape(layer, granularity)
        survives = given.masks[layer.weight]
        magnitude = (given.weights[layer.weight].detach() * survives).abs_().double()
        if not bool(magnitude.amax().isfinite()):
            raise ValueError(f"{layer.weight}: holds values that are not finite, so it cannot be regrouped")
        return cls(layer, rows, columns, layer.size // (rows * columns), magnitude, survives)

    @property
    def target(self) -> int:
        """Number of weights that the unstructured mask keeps."""
        return int(self.survives.count_nonzero())

    def by_column(self, weights: Tensor) -> Values:
        """Sum over the weights of each column in each row: (rows x columns)."""
        parts = weights.double().reshape(self.rows, self.columns, self.taps)
        sums: Values = (parts.sum(dim=2) if self.taps > 1 else parts.squeeze(2)).numpy()
        return sums


def matrices_of(given: StructureInput, granularity: Granularity) -> list[Matrix]:
    """Return the matrices of the prunable layers that can be divided into blocks."""
    return [
        Matrix.of(layer, given, granularity) for layer in given.prunable if not _why_dense(layer, given, granularity)
    ]


def shared_out(
    given: StructureInput, matrices: Sequence[Matrix], steps: Sequence[int], cost: Cost = "weights"
) -> list[int]:
    """Return how many steps every layer keeps, so that all together cost as much as the unstructured masks.

    Args:
        given: network and masks.
        matrices: matrices of the layers that are divided; the others are kept whole.
        steps: number of weights of one step of each layer; see `apportion`.
        cost: what is shared out: weights, or the multiply-adds of one sample that are made with them.
    """
    most = [matrix.layer.size // step for matrix, step in zip(matrices, steps, strict=True)]
    divided = {matrix.layer.weight for matrix in matrices}
    priced = prices(given, cost)
    total = sum(price * count_kept(given.masks[layer.weight]) for layer, price in priced)
    dense = sum(price * layer.size for layer, price in priced if layer.weight not in divided)
    price_of = {layer.name: price for layer, price in priced}
    each = [price_of[matrix.layer.name] for matrix in matrices]
    return apportion(
        [price * matrix.target for matrix, price in zip(matrices, each, strict=True)],
        [price * step for step, price in zip(steps, each, strict=True)],
        most,
        total=total - dense,
    )


def assembled(
    given: StructureInput, granularity: Granularity, divided: Iterable[tuple[Matrix, tuple[list[Block], str]]]
) -> StructureResult:
    """Return masks, reports and plan of the layers' blocks.

    Args:
        given: network and masks.
        granularity: what a column of the blocks is.
        divided: matrix of each layer that was divided, with its blocks and a note. A layer without blocks, or with all
            of its weights in blocks, is executed dense; one whose blocks no format can hold keeps them and runs whole.
    """
    masks = {name: torch.ones_like(mask) for name, mask in given.masks.items()}
    reports = {layer.name: _dense(layer, given, granularity) for layer in given.layers.values()}
    blocks: dict[str, Sequence[Block]] = {}
    for matrix, (of_layer, note) in divided:
        layer = matrix.layer
        mask = block_mask(of_layer, layer.shape, granularity)
        count = int(mask.count_nonzero())
        form: Form = "dense"
        if count not in (0, layer.size):
            masks[layer.weight] = mask
            blocks[layer.name] = of_layer
            why = why_not_held(of_layer, matrix.rows)
            form = "unstructured" if why else "blocks"
            note = "; ".join(filter(None, [note, f"runs whole: {why}" if why else ""]))
        weight, before = given.weights[layer.weight], given.masks[layer.weight]
        reports[layer.name] = LayerReport(
            size=layer.size,
            target=matrix.target,
            kept=layer.size if form == "dense" else count,
            executed=count if form == "blocks" else layer.size,
            positions=layer.positions,
            form=form,
            retained_magnitude=1.0 if form == "dense" else retained_magnitude(weight, before, mask),
            note=note,
        )
    return StructureResult(masks, reports, BlockPlan(granularity, blocks) if blocks else None)


def group_count(rows: int, size: int) -> int:
    """Return the largest number of equal groups of at least `size` rows; 1 if the rows do not make two."""
    return max((number for number in range(1, rows // size + 1) if rows % number == 0), default=1)


def blocks_of(labels: Labels, chosen: Chosen) -> list[Block]:
    """Return a block for every group: its rows, and the columns chosen for it (groups x columns)."""
    return [
        Block(torch.from_numpy(np.flatnonzero(labels == group)), torch.from_numpy(np.flatnonzero(columns)))
        for group, columns in enumerate(chosen)
    ]


def _shape(layer: Layer, granularity: Granularity) -> tuple[int, int]:
    """Return the numbers of rows and columns of a layer's matrix."""
    rows, inputs = layer.shape[:2]
    return rows, inputs if granularity == "input_channel" else layer.size // rows


def _why_dense(layer: Layer, given: StructureInput, granularity: Granularity) -> str:
    """Say why a layer cannot be grouped; empty if it can."""
    if why := why_no_blocks(given.network, layer.name):
        return why
    rows, columns = _shape(layer, granularity)
    return f"a matrix of {rows} x {columns} cannot be grouped" if min(rows, columns) < 2 else ""


def _dense(layer: Layer, given: StructureInput, granularity: Granularity) -> LayerReport:
    """Return the report of a layer that is executed whole."""
    prunable = layer.weight in given.masks
    return LayerReport(
        size=layer.size,
        target=int(given.masks[layer.weight].count_nonzero()) if prunable else layer.size,
        kept=layer.size,
        executed=layer.size,
        positions=layer.positions,
        form="dense",
        note=_why_dense(layer, given, granularity) if prunable else "",
    )
