"""Regroup by the rule of the released code of the paper: eight clusters, each with the densest columns it accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np

from lt_lightning.structures.base import Structure, StructureInput, StructureResult
from lt_lightning.structures.clustering import Method, cluster
from lt_lightning.structures.matrices import (
    Chosen,
    ColumnRule,
    Matrix,
    assembled,
    blocks_of,
    column_sums,
    largest_in_each,
    matrices_of,
)
from lt_lightning.structures.plan import Block


@dataclass(frozen=True)
class RegroupPaper(Structure):
    """Makes of each cluster of filters one block of as many of its densest columns as the released code accepts.

    Source: VITA-Group/Structure-LTH, the code of Chen et al., ICML 2022 (arXiv 2202.04736), section 3.3. A column is an
    input at a kernel position; weights inside of blocks are refilled, weights outside are pruned. The number of weights
    is what comes of it: 1.5 to 2 times as many as the mask keeps, see `accepted_columns`. Clusters of `least_rows`
    filters or fewer, and those of which no number of columns is accepted, form no block. Where others of the layer do,
    their filters are pruned.

    Three things differ, so that what is counted is executed. Clusters have equal size; the code's are equal to about a
    tenth. A filter without any weight belongs to a cluster. A layer without any block is executed dense, and reported
    so; the code leaves its mask unstructured.

    Attributes:
        clusters: largest number of clusters of a layer. It has the largest number up to that which divides
            its filters equally.
        ratio: see `accepted_columns`.
        least_rows: number of filters that a block must have more of.
        clustering: method that finds the clusters; see `clustering.cluster`.
        seed: seed of the clustering.

    Raises:
        ValueError: on construction, for a value out of range; on the call, for weights that are not finite.
    """

    clusters: int = 8
    ratio: float = 1.5
    least_rows: int = 16
    clustering: Method = "hypergraph"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clustering not in get_args(Method):
            raise ValueError(f"clustering={self.clustering!r}: must be one of {', '.join(get_args(Method))}")
        if self.clusters < 1:
            raise ValueError(f"clusters={self.clusters}: must be at least 1")
        if self.ratio <= 0:
            raise ValueError(f"ratio={self.ratio}: must be above 0")
        if self.least_rows < 0:
            raise ValueError(f"least_rows={self.least_rows}: must be at least 0")

    needs_batches: ClassVar[bool] = False

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structure one round's mask."""
        matrices = matrices_of(given, "kernel_position")
        return assembled(given, "kernel_position", zip(matrices, map(self._blocks, matrices), strict=True))

    def _blocks(self, matrix: Matrix) -> tuple[list[Block], str]:
        """Return the blocks of a layer, and a note."""
        groups = max(number for number in range(1, self.clusters + 1) if matrix.rows % number == 0)
        size = matrix.rows // groups
        if size <= self.least_rows:
            return [], f"clusters of {size} filters form no block: executed dense"
        pattern = matrix.by_column(matrix.survives)
        pairs = max(round(float(pattern.sum()) / size), 1)
        clustering = cluster(pattern, groups, ColumnRule(pairs), self.clustering, self.seed)
        sums = column_sums(pattern, clustering.labels)
        chosen = np.zeros(sums.shape, dtype=np.bool_)
        for group in range(groups):
            if count := accepted_columns(pattern[clustering.labels == group] > 0, self.ratio):
                chosen[group] = largest_in_each(sums[group : group + 1], count)
        blocks = [block for block in blocks_of(clustering.labels, chosen) if len(block.columns)]
        without = groups - len(blocks)
        note = f"{without} of {groups} clusters form no block" if without else ""
        return blocks, "; ".join(filter(None, [clustering.note, note, "" if blocks else "executed dense"]))


def accepted_columns(pattern: Chosen, ratio: float) -> int | None:
    """Return the number of columns that the released code accepts for a cluster; None if it accepts none.

    That is the first number i, below that of all columns, with i > `ratio` x (non-zeros left) for every row. Two things
    are as in that code, since its densities come of them. Non-zeros are counted down along the columns as they are
    numbered, the first left out, while the block takes the densest ones. And the code looks at a row only once all rows
    before it have passed, and does not count down what came before: so i has to exceed nearly `ratio` times all
    non-zeros of a row.

    Args:
        pattern: whether a weight survives, rows of the cluster x columns.
        ratio: number of columns for each non-zero weight that is left.

    >>> accepted_columns(np.array([[True, True, False, False, False, False]]), 1.5)
    2
    >>> accepted_columns(np.array([[True, False]]), 1.5) is None
    True
    """
    count = 1
    for row in pattern:
        left = row.sum() - np.cumsum(row[count:])
        passed = np.arange(count, len(row)) > ratio * left
        if not passed.any():
            return None
        count += int(passed.argmax())
    return count
