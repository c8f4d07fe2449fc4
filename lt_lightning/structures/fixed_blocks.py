"""Fixed blocks: a layer's weights in tiles of equal size, in their own order, each kept or dropped whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import get_args

import numpy as np
from torch import Tensor, nn

from lt_lightning.structures.base import Block, Granularity, StructureInput, StructureResult
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


@dataclass(frozen=True)
class FixedBlocks:
    """Keeps whole tiles of consecutive filters x consecutive input channels: those that hold most magnitude.

    What block-sparse libraries execute (Gray et al., "GPU kernels for block-sparse weights", 2017), and the control of
    `Regroup`: there the filters of a block are chosen, and each of its columns on its own; here nothing is permuted.

    The ticket keeps as many weights as the unstructured masks do: every layer its share, over all layers never more
    than the masks, and less than one step below. A step is one tile for `kernel_position`; for `input_channel` one
    tile in every group of a layer's filters, so that a grouped convolution computes them without padding. A layer
    keeps at least one step. A grouped (depthwise) convolution stays dense, and so does a layer of one row or column.

    Attributes:
        columns: whether a tile holds its input channels at all kernel positions (`input_channel`) or at one
            (`kernel_position`, which needs the block kernel). The inputs of a linear layer are both.
        filters: the least number of filters of a tile. A layer's tiles have equally many: the smallest divisor of
            their number that is at least so large; a layer with fewer than twice as many has one row of tiles.
        channels: input channels of a tile, as far as it divides the layer's inputs and a fourth of them.

    Raises:
        ValueError: on construction, for a value out of range; on the call, for weights that are not finite.
    """

    columns: Granularity = "input_channel"
    filters: int = 32
    channels: int = 16

    def __post_init__(self) -> None:
        if self.columns not in get_args(Granularity):
            raise ValueError(f"columns={self.columns!r}: must be one of {', '.join(get_args(Granularity))}")
        for name in ("filters", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    @property
    def needs_gradients(self) -> bool:
        """False: tiles are chosen by magnitude."""
        return False

    def check(self, network: nn.Module, example: Tensor) -> None:
        """Any network will do: a layer that cannot be divided is reported dense."""

    def __call__(self, given: StructureInput) -> StructureResult:
        """The ticket of `subject`."""
        matrices = matrices_of(given, self.columns)
        return assembled(given, self.columns, zip(matrices, self._chosen(given, matrices), strict=True))

    def _chosen(self, given: StructureInput, matrices: Sequence[Matrix]) -> Iterator[tuple[list[Block], str]]:
        """Blocks and a note for every layer."""
        in_each = self.columns == "input_channel"
        tiles = [_Tiles.of(matrix, self) for matrix in matrices]
        steps = [each.size * (each.groups if in_each else 1) for each in tiles]
        counts = shared_out(given, matrices, steps)
        for matrix, each, step, count in zip(matrices, tiles, steps, counts, strict=True):
            sums = each.sums(matrix)
            chosen = largest_in_each(sums, count) if in_each else largest_pairs(sums, count)
            labels = np.repeat(np.arange(each.groups), matrix.rows // each.groups)
            yield blocks_of(labels, each.columns(chosen)), LEAST if step > matrix.asked else ""


@dataclass(frozen=True)
class _Tiles:
    """How a matrix is divided.

    Attributes:
        groups: of rows.
        inputs: of the layer.
        channels: of a tile.
        positions: that have tiles of their own: those of the kernel, or one for all of them.
        size: weights of a tile.
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
        """Surviving magnitude: (groups x tiles)."""
        values = matrix.by_column(matrix.magnitude)
        shape = (self.groups, -1, self.inputs // self.channels, self.channels, self.positions)
        summed: Values = values.reshape(shape).sum(axis=(1, 3)).reshape(self.groups, -1)
        return summed

    def columns(self, chosen: Chosen) -> Chosen:
        """Columns of the chosen tiles: (groups x tiles) to (groups x columns)."""
        spread = chosen.reshape(self.groups, -1, self.positions).repeat(self.channels, axis=1)
        columns: Chosen = spread.reshape(self.groups, -1)
        return columns
