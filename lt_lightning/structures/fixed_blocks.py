"""Fixed blocks: keep whole tiles of consecutive filters and inputs, with nothing permuted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import get_args

import numpy as np

from lt_lightning.structures.base import Structure, StructureInput, StructureResult
from lt_lightning.structures.matrices import (
    LEAST,
    Chosen,
    Matrix,
    Values,
    assembled,
    blocks_of,
    group_count,
    largest_in_each,
    largest_pairs,
    matrices_of,
    shared_out,
)
from lt_lightning.structures.plan import Block, Granularity


@dataclass(frozen=True)
class FixedBlocks(Structure):
    """Keeps the tiles of consecutive filters x consecutive input channels in which most magnitude survives.

    Block-sparse libraries execute such tiles (Gray et al., "GPU kernels for block-sparse weights", 2017). They are the
    control of `Regroup`: there the filters of a block are chosen, and each of its columns on its own; here nothing is
    permuted.

    The ticket keeps as many weights as the unstructured masks do: every layer its share, over all layers never more
    than the masks, and less than one step below. A step is one tile for `kernel_position`; for `input_channel` one
    tile in every group of a layer's filters, so that a grouped convolution computes them without padding. A layer
    keeps at least one step. Layers that nothing can compute in blocks stay dense, as with `Regroup`.

    Attributes:
        granularity: whether a tile holds its input channels at all kernel positions (`input_channel`) or at one
            (`kernel_position`, which needs the block kernel).
        filters: least number of filters of a tile. A layer's tiles have equally many: the smallest divisor of its
            number of filters that is at least so large. A layer with fewer than twice as many has one row of tiles.
        channels: number of input channels of a tile, as far as it divides the layer's inputs and a fourth of them.

    Raises:
        ValueError: on construction, for a value out of range; on the call, for weights that are not finite.
    """

    granularity: Granularity = "input_channel"
    filters: int = 32
    channels: int = 16

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            raise ValueError(f"granularity={self.granularity!r}: must be one of {', '.join(get_args(Granularity))}")
        for name in ("filters", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structure one round's mask."""
        matrices = matrices_of(given, self.granularity)
        return assembled(given, self.granularity, zip(matrices, self._chosen(given, matrices), strict=True))

    def _chosen(self, given: StructureInput, matrices: Sequence[Matrix]) -> Iterator[tuple[list[Block], str]]:
        """Yield blocks and a note for every layer."""
        in_each = self.granularity == "input_channel"
        tiles = [_Tiles.of(matrix, self) for matrix in matrices]
        steps = [each.size * (each.groups if in_each else 1) for each in tiles]
        counts = shared_out(given, matrices, steps)
        for matrix, each, step, count in zip(matrices, tiles, steps, counts, strict=True):
            sums = each.sums(matrix)
            chosen = largest_in_each(sums, count) if in_each else largest_pairs(sums, count)
            labels = np.repeat(np.arange(each.groups), matrix.rows // each.groups)
            yield blocks_of(labels, each.columns(chosen)), LEAST if step > matrix.target else ""


@dataclass(frozen=True)
class _Tiles:
    """How a matrix is divided.

    Attributes:
        groups: number of groups of rows.
        inputs: number of the layer's inputs.
        channels: number of input channels of a tile.
        positions: number of positions with tiles of their own: those of the kernel, or one for all of them.
        size: number of weights of a tile.
    """

    groups: int
    inputs: int
    channels: int
    positions: int
    size: int

    @classmethod
    def of(cls, matrix: Matrix, options: FixedBlocks) -> _Tiles:
        inputs = matrix.layer.shape[1]
        groups = group_count(matrix.rows, options.filters)
        channels = gcd(options.channels, inputs, max(inputs // 4, 1))
        size = matrix.rows // groups * channels * matrix.taps
        return cls(groups, inputs, channels, matrix.columns // inputs, size)

    def sums(self, matrix: Matrix) -> Values:
        """Sum the surviving magnitude of every tile: (groups x tiles)."""
        values = matrix.by_column(matrix.magnitude)
        shape = (self.groups, -1, self.inputs // self.channels, self.channels, self.positions)
        summed: Values = values.reshape(shape).sum(axis=(1, 3)).reshape(self.groups, -1)
        return summed

    def columns(self, chosen: Chosen) -> Chosen:
        """Return the columns of the chosen tiles: (groups x tiles) to (groups x columns)."""
        spread = chosen.reshape(self.groups, -1, self.positions).repeat(self.channels, axis=1)
        columns: Chosen = spread.reshape(self.groups, -1)
        return columns
