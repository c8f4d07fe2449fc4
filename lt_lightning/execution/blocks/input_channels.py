"""Layers regrouped by whole input channels: every group of filters reads its own channels, and only those.

They run as a gather of input channels, one grouped convolution (or a loop of small ones) and a permutation of the
output, in plain PyTorch: they train, compile and export everywhere. They are for plans of granularity `input_channel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lt_lightning.execution.blocks.block_formats import ChannelGroups, along, freeze_alike, in_format_of
from lt_lightning.structures.executable import why_not_in_blocks
from lt_lightning.structures.plan import Block

Form = Literal["grouped", "loop"]


class GroupedChannelConv2d(nn.Module):
    """A convolution whose groups of filters read their own input channels.

    It has the attributes of the convolution that it stands for, and gives back the memory format that it is given;
    channels_last is faster up to a few hundred channels. The gradient of the input is summed in a fixed order, so it
    is deterministic on every device.

    Attributes:
        packed: parameter (filters in group order, channels of a group, *kernel).
        bias: parameter in the order of the output, or None.
        form: `grouped` or `loop`.

    >>> conv = nn.Conv2d(4, 4, 3, bias=False)
    >>> blocks = [Block(torch.tensor([0, 2]), torch.tensor([1])), Block(torch.tensor([1, 3]), torch.tensor([3]))]
    >>> grouped = GroupedChannelConv2d.from_conv(conv, blocks)
    >>> grouped.packed.shape, grouped.weight.shape
    (torch.Size([4, 1, 3, 3]), torch.Size([4, 4, 3, 3]))
    >>> x = torch.randn(2, 4, 5, 5)
    >>> torch.allclose(grouped(x), F.conv2d(x, grouped.weight), atol=1e-5)
    True
    """

    groups: Final = 1
    padding_mode: Final = "zeros"
    used: Tensor | None
    rows: Tensor | None

    def __init__(
        self,
        groups: ChannelGroups,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] | str = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
        form: Form = "grouped",
    ) -> None:
        """Make the layer.

        Args:
            groups: the blocks.
            weight: dense weight (filters, input channels, *kernel), of which only the blocks count.
            bias: one number per filter, in their own order, or None.
            stride: as in `torch.nn.functional.conv2d`, like `padding` and `dilation`.
            padding: likewise.
            dilation: likewise.
            form: `grouped` is one grouped convolution, `loop` one small convolution per group. Neither was faster in
                general on the CPUs that we measured (`loop` takes 0.8 to 1.3 times as long): measure at your shapes.

        Raises:
            ValueError: if `form` is unknown.
        """
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"form={form!r}: must be one of {', '.join(get_args(Form))}")
        self.out_channels, self.in_channels = groups.rows.numel(), groups.inputs
        self.kernel_size = tuple(weight.shape[2:])
        self.form = form
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.plan = groups
        self.packed = nn.Parameter(_like(groups.pack(weight.detach()).flatten(0, 1), weight))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        rows = groups.rows.reshape(-1)
        self.register_buffer("rows", None if is_identity(rows) else rows, persistent=False)
        used = None if groups.used is None else along(groups.used, groups.rows[:, :, None, None, None])
        self.register_buffer("used", used, persistent=False)
        self.gather = _gather(groups)
        self.permutation = None if is_identity(rows) else Columns(rows.argsort(), len(rows))
        self.to(weight.device)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, blocks: Sequence[Block], *, form: Form = "grouped") -> Self:
        """Return the layer that computes `conv` with its weight masked by `blocks` (granularity `input_channel`).

        Raises:
            ValueError: if the convolution is grouped or does not pad with zeros evenly, or as in `ChannelGroups.of`.
        """
        if why := why_not_in_blocks(conv):
            raise ValueError(why)
        made = cls(
            ChannelGroups.of(blocks, conv.out_channels, conv.in_channels),
            conv.weight,
            conv.bias,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            form=form,
        )
        freeze_alike(made, conv)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, input channels, height, width) to (batch, filters, output height, output width)."""
        weight, bias, groups = self._masked(), _in_group_order(self.bias, self.rows), len(self.plan.rows)
        if self.form == "grouped":
            (gathered,) = pick_channels(input, self.gather, 1)
            y = self._convolve(gathered, weight, bias, groups)
        else:
            parts = pick_channels(input, self.gather, groups)
            biases = [None] * groups if bias is None else bias.chunk(groups)
            y = torch.cat(
                [
                    self._convolve(part, own, of_part, 1)
                    for part, own, of_part in zip(parts, weight.chunk(groups), biases, strict=True)
                ],
                dim=1,
            )
        if self.permutation is not None:
            (y,) = pick_channels(y, self.permutation, 1)
        return in_format_of(input, y)

    @property
    def weight(self) -> Tensor:
        """The weight of the dense convolution that computes the same, a function of `packed`."""
        return self.plan.unpack(self.packed.reshape(*self.plan.rows.shape, *self.packed.shape[1:]))

    def extra_repr(self) -> str:
        """Return the shapes, for `print`."""
        rows, channels = self.plan.rows.shape[1], self.plan.channels.shape[1]
        blocks = f"{len(self.plan.rows)} x ({rows} filters x {channels} of {self.plan.inputs} channels)"
        return f"{blocks}, kernel_size={self.kernel_size}, form={self.form}"

    def _masked(self) -> Tensor:
        """Return the weight with its padding at zero, whatever an optimizer has done to it."""
        if self.used is None:
            return self.packed
        return (self.packed.view(len(self.plan.rows), -1, *self.packed.shape[1:]) * self.used).flatten(0, 1)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)


class GroupedChannelLinear(nn.Module):
    """A linear layer whose groups of outputs read their own inputs: a gather and one batched product.

    It has the attributes of the linear layer that it stands for.

    Attributes:
        packed: parameter (groups, inputs of a group, outputs of a group).
        bias: parameter in the order of the outputs, or None.

    >>> linear = nn.Linear(4, 2)
    >>> blocks = [Block(torch.tensor([1]), torch.tensor([0, 3])), Block(torch.tensor([0]), torch.tensor([1, 2]))]
    >>> grouped = GroupedChannelLinear.from_linear(linear, blocks)
    >>> x = torch.randn(3, 4)
    >>> torch.allclose(grouped(x), F.linear(x, grouped.weight, linear.bias), atol=1e-6)
    True
    """

    used: Tensor | None

    def __init__(
        self,
        groups: ChannelGroups,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> None:
        """Make the layer from a dense weight (outputs, inputs) and a bias; see `GroupedChannelConv2d`."""
        super().__init__()
        self.out_features, self.in_features = groups.rows.numel(), groups.inputs
        self.plan = groups
        self.packed = nn.Parameter(groups.pack(weight.detach()).transpose(1, 2).contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        rows = groups.rows.reshape(-1)
        self.register_buffer("used", None if groups.used is None else groups.used[:, :, None], persistent=False)
        self.gather = _gather(groups)
        self.permutation = None if is_identity(rows) else Columns(rows.argsort(), len(rows))
        self.to(weight.device)

    @classmethod
    def from_linear(cls, linear: nn.Linear, blocks: Sequence[Block]) -> Self:
        """Return the layer that computes `linear` with its weight masked by `blocks`.

        Raises:
            ValueError: as in `ChannelGroups.of`.
        """
        made = cls(ChannelGroups.of(blocks, linear.out_features, linear.in_features), linear.weight, linear.bias)
        freeze_alike(made, linear)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        weight = self.packed if self.used is None else self.packed * self.used
        groups, columns, _ = weight.shape
        matrix = input.reshape(-1, input.shape[-1])
        if self.gather is not None:
            (matrix,) = self.gather(matrix)
        parts = matrix.view(-1, groups, columns).transpose(0, 1)
        y = torch.bmm(parts, weight).transpose(0, 1).flatten(1)
        if self.permutation is not None:
            (y,) = self.permutation(y)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.reshape(*input.shape[:-1], y.shape[1])

    @property
    def weight(self) -> Tensor:
        """The weight of the dense layer that computes the same (outputs, inputs), a function of `packed`."""
        return self.plan.unpack(self.packed.transpose(1, 2))

    def extra_repr(self) -> str:
        """Return the shapes, for `print`."""
        groups, columns, rows = self.packed.shape
        return f"{groups} x ({rows} outputs x {columns} of {self.plan.inputs} inputs)"


def _in_group_order(bias: Tensor | None, rows: Tensor | None) -> Tensor | None:
    return bias if bias is None or rows is None else bias[rows]


def _gather(groups: ChannelGroups) -> Columns | None:
    """Return the gather of the groups' channels, None if the input already holds them one after the other."""
    index = groups.channels.reshape(-1)
    if is_identity(index) and len(index) == groups.inputs:
        return None
    return Columns(index, groups.inputs)


def _like(packed: Tensor, weight: Tensor) -> Tensor:
    """Return `packed` in the memory format of the weight that it was taken from."""
    channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return packed.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


# Channels picked by index, with a gradient that is as fast.

_IN_CACHE = 1 << 18
"""Number of elements that the CPU sums at a time: temporaries that stay in its second-level cache cost neither memory
traffic nor page faults (up to four times faster for large images)."""


class Columns(nn.Module):
    """Picks columns of a matrix into slots; its gradient sums what the slots of every column received.

    The derivative of `index_select`, `index_add`, takes as long as the convolution itself when the columns are the
    innermost dimension. Here it is again made of `index_select`: columns are sorted by the number of slots where
    they occur, so that the second slot of every column that has one, the third, ... are added to a prefix.

    Attributes:
        index: column that stands at each slot, int64 (slots,).
        slots: for k = 1, 2, ... the k-th slot of every column that has one, in sorted order, int64.
        levels: number of columns that have a k-th slot.
        back: position of every column in the sorted order; None if that is its own.
    """

    index: Tensor
    slots: Tensor
    back: Tensor | None

    def __init__(self, index: Tensor, columns: int) -> None:
        super().__init__()
        counts = torch.bincount(index, minlength=columns)
        order = torch.arange(columns) if bool((counts == 1).all()) else counts.argsort(descending=True, stable=True)
        where = index.argsort(stable=True)
        first = counts.cumsum(0) - counts
        self.levels = tuple(int((counts > k).sum()) for k in range(int(counts.max())))
        self.columns = columns
        slots = [where[first[order[:size]] + k] for k, size in enumerate(self.levels)]
        back = order.argsort()
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("slots", torch.cat(slots), persistent=False)
        self.register_buffer("back", None if is_identity(back) else back, persistent=False)

    def forward(self, matrix: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """Return the slots of a matrix (rows, columns) in `parts` equal parts, each (rows, slots / parts)."""
        picked: tuple[Tensor, ...] = _Pick.apply(  # type: ignore[no-untyped-call]
            matrix, self.index, self.slots, self.back, self.levels, self.columns, parts
        )
        return picked


class _Pick(torch.autograd.Function):
    """Computes `Columns`, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        matrix: Tensor,
        index: Tensor,
        slots: Tensor,
        back: Tensor | None,
        levels: tuple[int, ...],
        columns: int,
        parts: int,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(slots, back)
        ctx.levels, ctx.columns = levels, columns
        return tuple(matrix.index_select(1, part) for part in index.view(parts, -1).unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slots, back = ctx.saved_tensors
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients, dim=1)
        return _summed(gradient, slots, back, ctx.levels, ctx.columns), *[None] * 6


@torch.library.custom_op("lt_lightning::sum_slots", mutates_args=())
def _summed(gradient: Tensor, slots: Tensor, back: Tensor | None, levels: Sequence[int], columns: int) -> Tensor:
    """Return the sum over the slots of every column: (rows, slots) to (rows, columns).

    It is an operator of its own, so that `torch.compile` does not take it apart: its loops over single elements are
    slower.
    """

    def summed(rows: Tensor) -> Tensor:
        first, *others = torch.split_with_sizes(rows.index_select(1, slots), list(levels), dim=1)
        total = F.pad(first, (0, columns - levels[0])) if levels[0] < columns else first
        for level in others:
            total[:, : level.shape[1]] += level
        return total

    if back is None:
        return summed(gradient)
    if gradient.device.type != "cpu":
        return summed(gradient).index_select(1, back)
    at_once = max(_IN_CACHE // max(len(slots), columns), 1)
    result = gradient.new_empty(gradient.shape[0], columns)
    for start in range(0, len(gradient), at_once):
        rows = slice(start, start + at_once)
        torch.index_select(summed(gradient[rows]), 1, back, out=result[rows])
    return result


@_summed.register_fake
def _(gradient: Tensor, slots: Tensor, back: Tensor | None, levels: Sequence[int], columns: int) -> Tensor:
    return gradient.new_empty(gradient.shape[0], columns)


def pick_channels(x: Tensor, columns: Columns | None, parts: int) -> tuple[Tensor, ...]:
    """Return channels picked from a batch of images, in its memory format, in equal parts.

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
    """Return whether an order changes nothing."""
    return torch.equal(order, torch.arange(len(order)))
