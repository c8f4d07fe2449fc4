"""Groups of filters that read their own input channels, in equal, padded form: what a grouped convolution can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lt_lightning.structures.base import Block


@dataclass(frozen=True)
class ChannelGroups:
    """Blocks of equal row number, their channels padded to equal number.

    Attributes:
        inputs: input channels of the layer.
        rows: filters of every group, int64 (groups, rows of a group).
        channels: input channels of every group, int64 (groups, largest number of channels of a group), distinct
            within a group; padding at the end names channels that the group does not read.
        used: whether a channel is read, bool, as `channels`; None if there is no padding.
    """

    inputs: int
    rows: Tensor
    channels: Tensor
    used: Tensor | None

    @classmethod
    def of(cls, blocks: Sequence[Block], outputs: int, inputs: int) -> Self:
        """The groups of a layer with `outputs` filters and `inputs` input channels.

        Raises:
            ValueError: if the blocks do not have equally many rows, do not hold every filter exactly once, name
                an input channel that is not there, or no block has a column.

        >>> blocks = [Block(torch.tensor([0, 2]), torch.tensor([1])), Block(torch.tensor([1, 3]), torch.tensor([0, 1]))]
        >>> ChannelGroups.of(blocks, outputs=4, inputs=2).channels
        tensor([[1, 0],
                [0, 1]])
        """
        lengths = sorted({len(block.rows) for block in blocks})
        if len(lengths) != 1:
            raise ValueError(f"blocks of {lengths} rows: a grouped convolution needs blocks of equally many rows")
        rows = torch.stack([block.rows for block in blocks])
        if not torch.equal(rows.reshape(-1).sort().values, torch.arange(outputs)):
            raise ValueError(f"the blocks' rows must be each of the {outputs} filters exactly once")
        counts = torch.tensor([len(block.columns) for block in blocks])
        most = int(counts.max())
        if most == 0:
            raise ValueError("no block has a column: nothing is left to compute")
        channels = torch.stack([_padded(block.columns, most, inputs) for block in blocks])
        used = torch.arange(most) < counts[:, None]
        return cls(inputs, rows, channels, None if bool(used.all()) else used)

    def pack(self, weight: Tensor) -> Tensor:
        """The weights of the groups: (outputs, inputs, ...) -> (groups, rows, channels, ...), zero where padded."""
        packed = weight[self.rows[:, :, None], self.channels[:, None, :]]
        return packed if self.used is None else packed * along(self.used, packed)

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of `pack`: the dense weight, zero outside the groups."""
        values = packed if self.used is None else packed * along(self.used, packed)
        dense = packed.new_zeros(self.rows.numel(), self.inputs, *packed.shape[3:])
        dense[self.rows[:, :, None], self.channels[:, None, :]] = values
        return dense


def _padded(columns: Tensor, length: int, inputs: int) -> Tensor:
    """Columns filled up to `length` by channels that are not among them."""
    named = torch.bincount(columns, minlength=inputs)
    if len(named) > inputs or int(named.max()) > 1:
        raise ValueError(f"columns {columns.tolist()}: must be distinct input channels, 0 to {inputs - 1}")
    free = named == 0
    return torch.cat([columns, free.nonzero().flatten()[: length - len(columns)]])


def along(used: Tensor, packed: Tensor) -> Tensor:
    """`used` shaped to multiply (groups, rows, channels, *kernel)."""
    return used.to(packed.device).reshape(used.shape[0], 1, used.shape[1], *[1] * (packed.ndim - 3))
