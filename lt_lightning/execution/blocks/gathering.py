"""Channels picked by index, for groups of filters that read their own input channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lt_lightning.structures.base import Block

_IN_CACHE = 1 << 18
"""Elements that the CPU handles at a time when gradients are summed: temporaries that stay in its second-level cache
cost neither memory traffic nor page faults (up to four times faster for large images)."""


class Columns(nn.Module):
    """Picks columns of a matrix; its gradient sums what the places of every column received.

    The derivative of `index_select`, `index_add`, takes as long as the convolution itself when the columns are the
    innermost dimension. Here it is again made of `index_select`: columns are sorted by the number of places where
    they occur, so that the second place of every column that has one, the third, ... are added to a prefix.

    Attributes:
        index: which column stands at which place, int64 (places,).
        places: for k = 1, 2, ... the k-th place of every column that has one, in sorted order, int64.
        levels: how many columns have a k-th place.
        back: the position of every column in the sorted order; None if that is its own.
    """

    index: Tensor
    places: Tensor
    back: Tensor | None

    def __init__(self, index: Tensor, columns: int) -> None:
        super().__init__()
        counts = torch.bincount(index, minlength=columns)
        order = torch.arange(columns) if bool((counts == 1).all()) else counts.argsort(descending=True, stable=True)
        where = index.argsort(stable=True)
        first = counts.cumsum(0) - counts
        self.levels = tuple(int((counts > k).sum()) for k in range(int(counts.max())))
        self.columns = columns
        places = [where[first[order[:size]] + k] for k, size in enumerate(self.levels)]
        back = order.argsort()
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("places", torch.cat(places), persistent=False)
        self.register_buffer("back", None if is_identity(back) else back, persistent=False)

    def forward(self, matrix: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """The places in `parts` equal parts, each (rows, places / parts), of a matrix (rows, columns)."""
        picked: tuple[Tensor, ...] = _Pick.apply(  # type: ignore[no-untyped-call]
            matrix, self.index, self.places, self.back, self.levels, self.columns, parts
        )
        return picked


class _Pick(torch.autograd.Function):
    """See `Columns`."""

    @staticmethod
    def forward(
        ctx: Any,
        matrix: Tensor,
        index: Tensor,
        places: Tensor,
        back: Tensor | None,
        levels: tuple[int, ...],
        columns: int,
        parts: int,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(places, back)
        ctx.levels, ctx.columns = levels, columns
        return tuple(matrix.index_select(1, part) for part in index.view(parts, -1).unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        places, back = ctx.saved_tensors
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients, dim=1)
        return _summed(gradient, places, back, ctx.levels, ctx.columns), *[None] * 6


@torch.library.custom_op("lt_lightning::sum_places", mutates_args=())
def _summed(gradient: Tensor, places: Tensor, back: Tensor | None, levels: Sequence[int], columns: int) -> Tensor:
    """The sum over the places of every column: (rows, places) -> (rows, columns).

    An operation of its own, so that `torch.compile` does not take it apart: its loops over single elements are slower.
    """

    def summed(rows: Tensor) -> Tensor:
        first, *others = torch.split_with_sizes(rows.index_select(1, places), list(levels), dim=1)
        total = F.pad(first, (0, columns - levels[0])) if levels[0] < columns else first
        for level in others:
            total[:, : level.shape[1]] += level
        return total

    if back is None:
        return summed(gradient)
    if gradient.device.type != "cpu":
        return summed(gradient).index_select(1, back)
    at_once = max(_IN_CACHE // max(len(places), columns), 1)
    result = gradient.new_empty(gradient.shape[0], columns)
    for start in range(0, len(gradient), at_once):
        rows = slice(start, start + at_once)
        torch.index_select(summed(gradient[rows]), 1, back, out=result[rows])
    return result


@_summed.register_fake
def _(gradient: Tensor, places: Tensor, back: Tensor | None, levels: Sequence[int], columns: int) -> Tensor:
    return gradient.new_empty(gradient.shape[0], columns)


def pick_channels(x: Tensor, columns: Columns | None, parts: int) -> tuple[Tensor, ...]:
    """Channels picked from a batch of images, in its memory format, in equal parts.

    In channels_last an image is a matrix of pixels x channels, and `index_select` on that is two to three times
    faster than on the image. In the standard format a channel is one piece, and PyTorch's own gradient is fast too.
    """
    if columns is None:
        return x.chunk(parts, dim=1)
    if not x.is_contiguous(memory_format=torch.channels_last):
        return tuple(x.index_select(1, part) for part in columns.index.view(parts, -1).unbind())
    batch, channels, height, width = x.shape
    picked = columns(x.permute(0, 2, 3, 1).reshape(-1, channels), parts)
    return tuple(part.view(batch, height, width, -1).permute(0, 3, 1, 2) for part in picked)


def is_identity(order: Tensor) -> bool:
    """Whether an order leaves everything in its place."""
    return torch.equal(order, torch.arange(len(order)))


# Groups of filters that read their own input channels, in equal, padded form: what a grouped convolution can run.


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
