"""A layer's blocks packed for execution: groups of filters, each with its own columns, and nothing between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from lt_lightning.structures.executable import why_not_held
from lt_lightning.structures.plan import Block


@dataclass(frozen=True)
class BlockFormat:
    """Blocks of the granularity `kernel_position`, all of one size (R filters), that share no filter.

    A column is one input channel at one kernel position (a tap, of which there are T = kh * kw). These are the blocks
    of Chen et al., ICML 2022 (arXiv 2202.04736), section 3.3.

    Attributes:
        shape: shape of the dense weight: filters, input channels, kernel height and width (1, 1 for a linear layer).
        rows: filters in the order of the groups, int64 (G * R).
        tap_start: first column of every group and tap, int32 (G * (T + 1)); the columns of group g at tap t are those
            from `tap_start[g * (T + 1) + t]` to the entry after it.
        channels: input channel of every column, group by group, tap by tap, ascending, int32 (columns).

    >>> blocks = [Block(torch.tensor([0, 2]), torch.tensor([1])), Block(torch.tensor([1, 3]), torch.tensor([0, 2]))]
    >>> layout = BlockFormat.from_blocks(blocks, (4, 3))
    >>> layout.channels.tolist(), layout.rows.tolist()
    ([1, 0, 2], [0, 2, 1, 3])
    >>> layout.pack(torch.arange(12.0).reshape(4, 3))
    tensor([[ 1.,  7.],
            [ 3.,  9.],
            [ 5., 11.]])
    """

    shape: tuple[int, int, int, int]
    rows: Tensor
    tap_start: Tensor
    channels: Tensor

    @classmethod
    def from_blocks(cls, blocks: Sequence[Block], shape: Sequence[int]) -> BlockFormat:
        """Pack the blocks of a layer whose weight has `shape`. Filters in no block form groups without columns.

        Raises:
            ValueError: if the format cannot hold the blocks: they share filters (more than one pass), have different
                numbers of filters, leave filters that make no whole group, name a column twice, or name filters or
                columns that are not there. Such a layer runs dense.
        """
        filters, inputs, height, width = (*shape, 1, 1)[:4]
        taps = height * width
        if why := why_not_held(blocks, filters):
            raise ValueError(why)
        size = len(blocks[0].rows)
        rows = torch.cat([block.rows for block in blocks])
        _check(rows, filters, "filters")
        rest = (torch.bincount(rows, minlength=filters) == 0).nonzero().reshape(-1)

        columns = [block.columns for block in blocks] + [rows.new_empty(0)] * (len(rest) // size)
        starts, channels = [0], []
        for group in columns:
            _check(group, inputs * taps, "columns")
            if len(group) and int(torch.bincount(group).max()) > 1:
                raise ValueError("a block names a column twice: the block format needs every column once")
            tap, channel = group % taps, group // taps
            channels.append(channel[(tap * inputs + channel).argsort()])
            counts = torch.bincount(tap, minlength=taps)
            starts += [starts[-1], *(starts[-1] + counts.cumsum(0)).tolist()]
        return cls(
            (filters, inputs, height, width),
            torch.cat([rows, rest]).to(torch.int64),
            torch.tensor(starts[1:], dtype=torch.int32),
            torch.cat(channels).to(torch.int32),
        )

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return self.shape[2] * self.shape[3]

    @property
    def groups(self) -> int:
        """Number of groups of filters."""
        return len(self.tap_start) // (self.taps + 1)

    @property
    def filters(self) -> int:
        """Number of filters of a group."""
        return len(self.rows) // self.groups

    @property
    def columns(self) -> int:
        """Number of columns of all groups together."""
        return len(self.channels)

    def pack(self, weight: Tensor) -> Tensor:
        """Return the weights (columns, R) inside the blocks of a dense weight in `shape`, or 2D for a linear layer."""
        matrix = weight.reshape(self.shape[0], -1)[self.rows].reshape(self.groups, self.filters, -1)
        group, column = packed_positions(self.channels, self.tap_start, self.taps)
        return matrix.transpose(1, 2)[group, column]

    def unpack(self, packed: Tensor) -> Tensor:
        """Return the dense weight in `shape`, zero outside the blocks."""
        return dense_weight(packed, self.channels, self.tap_start, self.shape, self.rows)


def packed_positions(channels: Tensor, tap_start: Tensor, taps: int) -> tuple[Tensor, Tensor]:
    """Return the group of every packed column, and its index into the flattened (inputs x kernel) axis."""
    counts = tap_start.reshape(-1, taps + 1).diff(dim=1).reshape(-1).long()
    slot = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(channels))
    return slot // taps, channels.long() * taps + slot % taps


def dense_weight(packed: Tensor, channels: Tensor, tap_start: Tensor, shape: Sequence[int], rows: Tensor) -> Tensor:
    """Return the weight of `shape` that a packed one (columns, R) stands for."""
    filters, inputs, height, width = shape
    taps = height * width
    index = packed_positions(channels, tap_start, taps)
    groups = len(tap_start) // (taps + 1)
    matrix = packed.new_zeros(groups, inputs * taps, filters // groups).index_put(index, packed)
    dense = matrix.transpose(1, 2).reshape(filters, inputs, height, width)
    return torch.zeros_like(dense).index_copy(0, rows, dense)


def _check(indices: Tensor, size: int, what: str) -> None:
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        raise ValueError(f"a block names {what} {int(indices.min())} to {int(indices.max())} of a layer with {size}")


# What stands in the place of a dense layer.


def stands_for(parameter: str) -> str:
    """Return which parameter of the dense layer a parameter of its replacement is made from.

    >>> stands_for("conv.packed"), stands_for("bias")
    ('weight', 'bias')
    """
    name = parameter.rpartition(".")[2]  # a replacement may hold its parameters a level deeper
    return "weight" if name == "packed" else name


def freeze_alike(made: nn.Module, layer: nn.Module) -> None:
    """Freeze the parameters of a replacement whose counterparts in the dense layer are frozen."""
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(layer.get_parameter(stands_for(name)).requires_grad)


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """Return a layer's output in the memory format of its input, which code behind it may rely on (`view`)."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y if channels_last else y.contiguous()


# Blocks of whole input channels, padded to equal size: what a grouped convolution can run.


@dataclass(frozen=True)
class ChannelGroups:
    """Blocks of equally many filters, with their input channels padded to equal number.

    Attributes:
        inputs: number of input channels of the layer.
        rows: filters of every group, int64 (groups, filters of a group).
        channels: input channels of every group, int64 (groups, largest number of channels of a group), distinct
            within a group; padding at the end names channels that the group does not read.
        used: whether a channel is read, bool, shaped as `channels`; None if there is no padding.
    """

    inputs: int
    rows: Tensor
    channels: Tensor
    used: Tensor | None

    @classmethod
    def of(cls, blocks: Sequence[Block], outputs: int, inputs: int) -> Self:
        """Return the groups of a layer with `outputs` filters and `inputs` input channels.

        Raises:
            ValueError: if the blocks do not have equally many rows, do not hold every filter exactly once, name an
                input channel twice or one that is not there, or no block has a column.

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
        """Pack the weights: (outputs, inputs, ...) to (groups, filters, channels, ...), zero where padded."""
        packed = weight[self.rows[:, :, None], self.channels[:, None, :]]
        return packed if self.used is None else packed * along(self.used, packed)

    def unpack(self, packed: Tensor) -> Tensor:
        """Return the dense weight, zero outside the groups: the inverse of `pack`."""
        values = packed if self.used is None else packed * along(self.used, packed)
        dense = packed.new_zeros(self.rows.numel(), self.inputs, *packed.shape[3:])
        dense[self.rows[:, :, None], self.channels[:, None, :]] = values
        return dense


def _padded(columns: Tensor, length: int, inputs: int) -> Tensor:
    """Fill columns up to `length` with channels that are not among them."""
    named = torch.bincount(columns, minlength=inputs)
    if len(named) > inputs or int(named.max()) > 1:
        raise ValueError(f"columns {columns.tolist()}: must be distinct input channels, 0 to {inputs - 1}")
    free = named == 0
    return torch.cat([columns, free.nonzero().flatten()[: length - len(columns)]])


def along(used: Tensor, packed: Tensor) -> Tensor:
    """Return `used` in a shape that multiplies (groups, filters, channels, *kernel)."""
    return used.to(packed.device).reshape(used.shape[0], 1, used.shape[1], *[1] * (packed.ndim - 3))
