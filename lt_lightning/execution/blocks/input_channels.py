"""Layers regrouped by whole input channels: every group of filters reads its own channels, and only those.

Runs as a gather of input channels, one grouped convolution (or a loop of small ones) and a permutation of the output,
in plain PyTorch: it trains, compiles and exports everywhere. It is for plans of granularity `input_channel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_lightning.execution.blocks.gathering import ChannelGroups, Columns, along, is_identity, pick_channels
from lt_lightning.structures.base import Block

Form = Literal["grouped", "loop"]


class GroupedChannelConv2d(nn.Module):
    """A convolution whose groups of filters read their own input channels.

    Both memory formats are taken as they come; channels_last is faster up to a few hundred channels. The gradient of
    the input is summed in a fixed order, so it is deterministic on every device.

    Attributes:
        weight: (filters in group order, channels of a group, *kernel).
        bias: in group order, or None.
        form: `grouped` or `loop`.

    >>> conv = nn.Conv2d(4, 4, 3, bias=False)
    >>> blocks = [Block(torch.tensor([0, 2]), torch.tensor([1])), Block(torch.tensor([1, 3]), torch.tensor([3]))]
    >>> grouped = GroupedChannelConv2d.from_conv(conv, blocks)
    >>> grouped.weight.shape
    torch.Size([4, 1, 3, 3])
    >>> x = torch.randn(2, 4, 5, 5)
    >>> torch.allclose(grouped(x), F.conv2d(x, grouped.to_dense_weight()), atol=1e-5)
    True
    """

    used: Tensor | None

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
        """Args:
        groups: the blocks.
        weight: dense, (filters, input channels, *kernel); what lies outside the groups is not looked at.
        bias: one per filter, in their own order, or None.
        stride: as in `torch.nn.functional.conv2d`, like `padding` and `dilation`.
        form: `grouped` is one grouped convolution, `loop` one small convolution per group. Neither was faster in
            general on the CPUs that we measured (`loop` takes 0.8 to 1.3 times as long): measure at your shapes.

        Raises:
            ValueError: if `form` is unknown.
        """
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"form={form!r}: must be one of {', '.join(get_args(Form))}")
        self.groups = len(groups.rows)
        self.form = form
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.plan = groups
        self.weight = nn.Parameter(_like(groups.pack(weight.detach()).flatten(0, 1), weight))
        rows = groups.rows.reshape(-1)
        self.bias = None if bias is None else nn.Parameter(bias.detach()[rows].clone())
        used = None if groups.used is None else along(groups.used, groups.rows[:, :, None, None, None])
        self.register_buffer("used", used, persistent=False)
        self.gather = _gather(groups)
        self.permutation = None if is_identity(rows) else Columns(rows.argsort(), len(rows))
        self.to(weight.device)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, blocks: Sequence[Block], *, form: Form = "grouped") -> Self:
        """The layer that computes `conv` with its weight masked by `blocks` (granularity `input_channel`).

        Raises:
            ValueError: if the convolution is grouped or does not pad with zeros, or as `ChannelGroups.of`.
        """
        if conv.groups != 1:
            raise ValueError(f"a convolution of {conv.groups} groups cannot be regrouped: its filters share no inputs")
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding_mode={conv.padding_mode!r}: only 'zeros' can be regrouped")
        return cls(
            ChannelGroups.of(blocks, conv.out_channels, conv.in_channels),
            conv.weight,
            conv.bias,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            form=form,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, input channels, height, width) -> (batch, filters, output height, output width)."""
        weight = self._masked()
        if self.form == "grouped":
            (gathered,) = pick_channels(x, self.gather, 1)
            y = self._convolve(gathered, weight, self.bias, self.groups)
        else:
            parts = pick_channels(x, self.gather, self.groups)
            biases = [None] * self.groups if self.bias is None else self.bias.chunk(self.groups)
            y = torch.cat(
                [
                    self._convolve(part, own, bias, 1)
                    for part, own, bias in zip(parts, weight.chunk(self.groups), biases, strict=True)
                ],
                dim=1,
            )
        if self.permutation is None:
            return y
        (y,) = pick_channels(y, self.permutation, 1)
        return y

    def to_dense_weight(self) -> Tensor:
        """The weight of the dense convolution that computes the same: (filters, input channels, *kernel)."""
        packed = self.weight.detach().cpu().reshape(*self.plan.rows.shape, *self.weight.shape[1:])
        return self.plan.unpack(packed).to(self.weight.device)

    def to_dense_bias(self) -> Tensor | None:
        """The bias in the filters' own order, None without one."""
        return None if self.bias is None else self.bias.detach()[self.plan.rows.reshape(-1).argsort()]

    def extra_repr(self) -> str:
        """Shapes, for `print`."""
        rows, channels = self.plan.rows.shape[1], self.plan.channels.shape[1]
        blocks = f"{self.groups} x ({rows} filters x {channels} of {self.plan.inputs} channels)"
        return f"{blocks}, kernel_size={tuple(self.weight.shape[2:])}, form={self.form}"

    def _masked(self) -> Tensor:
        """The weight with its padding at zero, whatever an optimizer has done to it."""
        if self.used is None:
            return self.weight
        return (self.weight.view(self.groups, -1, *self.weight.shape[1:]) * self.used).flatten(0, 1)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)


class GroupedChannelLinear(nn.Module):
    """A linear layer whose groups of outputs read their own inputs: a gather and one batched product.

    Attributes:
        weight: (groups, inputs of a group, outputs of a group).
        bias: in group order, or None.

    >>> linear = nn.Linear(4, 2)
    >>> blocks = [Block(torch.tensor([1]), torch.tensor([0, 3])), Block(torch.tensor([0]), torch.tensor([1, 2]))]
    >>> grouped = GroupedChannelLinear.from_linear(linear, blocks)
    >>> x = torch.randn(3, 4)
    >>> torch.allclose(grouped(x), F.linear(x, grouped.to_dense_weight(), linear.bias), atol=1e-6)
    True
    """

    used: Tensor | None

    def __init__(
        self,
        groups: ChannelGroups,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> None:
        """Args as of `GroupedChannelConv2d`; `weight` is (outputs, inputs)."""
        super().__init__()
        self.plan = groups
        self.weight = nn.Parameter(groups.pack(weight.detach()).transpose(1, 2).contiguous())
        rows = groups.rows.reshape(-1)
        self.bias = None if bias is None else nn.Parameter(bias.detach()[rows].clone())
        self.register_buffer("used", None if groups.used is None else groups.used[:, :, None], persistent=False)
        self.gather = _gather(groups)
        self.permutation = None if is_identity(rows) else Columns(rows.argsort(), len(rows))
        self.to(weight.device)

    @classmethod
    def from_linear(cls, linear: nn.Linear, blocks: Sequence[Block]) -> Self:
        """The layer that computes `linear` with its weight masked by `blocks`.

        Raises:
            ValueError: as `ChannelGroups.of`.
        """
        groups = ChannelGroups.of(blocks, linear.out_features, linear.in_features)
        return cls(groups, linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        weight = self.weight if self.used is None else self.weight * self.used
        groups, columns, _ = weight.shape
        matrix = x.reshape(-1, x.shape[-1])
        if self.gather is not None:
            (matrix,) = self.gather(matrix)
        parts = matrix.view(-1, groups, columns).transpose(0, 1)
        y = torch.bmm(parts, weight).transpose(0, 1).flatten(1)
        if self.bias is not None:
            y = y + self.bias
        if self.permutation is not None:
            (y,) = self.permutation(y)
        return y.reshape(*x.shape[:-1], -1)

    def to_dense_weight(self) -> Tensor:
        """The weight of the dense layer that computes the same: (outputs, inputs)."""
        return self.plan.unpack(self.weight.detach().cpu().transpose(1, 2)).to(self.weight.device)

    def to_dense_bias(self) -> Tensor | None:
        """The bias in the order of the dense layer's outputs, None without one."""
        return None if self.bias is None else self.bias.detach()[self.plan.rows.reshape(-1).argsort()]

    def extra_repr(self) -> str:
        """Shapes, for `print`."""
        groups, columns, rows = self.weight.shape
        return f"{groups} x ({rows} outputs x {columns} of {self.plan.inputs} inputs)"


def _gather(groups: ChannelGroups) -> Columns | None:
    """The gather of the groups' channels, None if the input already holds them one after the other."""
    index = groups.channels.reshape(-1)
    if is_identity(index) and len(index) == groups.inputs:
        return None
    return Columns(index, groups.inputs)


def _like(packed: Tensor, weight: Tensor) -> Tensor:
    """`packed` in the memory format of the weight that it was taken from."""
    channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return packed.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
