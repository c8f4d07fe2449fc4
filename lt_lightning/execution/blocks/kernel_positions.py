"""Layers regrouped by kernel positions: convolution and linear layers that compute only such blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from lt_lightning.execution.blocks.block_formats import BlockFormat, freeze_alike, in_format_of
from lt_lightning.execution.blocks.operators import block_conv2d
from lt_lightning.structures.executable import why_not_in_blocks
from lt_lightning.structures.plan import Block


class RegroupedConv2d(nn.Module):
    """A convolution that computes its blocks: the same function as the dense one with zeros outside of them.

    It has the attributes of the convolution that it stands for, and gives back the memory format that it is given;
    channels_last is faster.

    Attributes:
        packed: parameter (columns, R), see `BlockFormat`.
        bias: parameter in the order of the output, or None.
        rows: buffer of the filters in the order of the groups.
    """

    groups: Final = 1
    padding_mode: Final = "zeros"

    rows: Tensor
    tap_start: Tensor
    channels: Tensor

    def __init__(
        self,
        layout: BlockFormat,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        """Make the layer.

        Args:
            layout: the blocks.
            weight: packed weight (columns, R).
            bias: bias in the order of the filters.
            stride: as in `torch.nn.Conv2d`.
            padding: zeros at every side.
            dilation: distance of kernel positions.
        """
        super().__init__()
        self.shape = layout.shape
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.out_channels, self.in_channels = self.shape[:2]
        self.kernel_size = self.shape[2:]
        self.packed = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        for name in ("rows", "tap_start", "channels"):
            self.register_buffer(name, getattr(layout, name).to(weight.device))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, blocks: Sequence[Block]) -> RegroupedConv2d:
        """Return the blocks of a dense convolution, with copies of its weights and bias.

        Raises:
            ValueError: if the convolution is grouped or does not pad with zeros evenly, or if the format cannot hold
                the blocks (`BlockFormat.from_blocks`).
        """
        if why := why_not_in_blocks(conv):
            raise ValueError(why)
        layout = BlockFormat.from_blocks(blocks, conv.weight.shape)
        weight, bias = _copied(layout, conv)
        made = cls(
            layout,
            weight,
            bias,
            stride=_pair(conv.stride),
            padding=_padding(conv),
            dilation=_pair(conv.dilation),
        )
        freeze_alike(made, conv)
        return made

    @property
    def layout(self) -> BlockFormat:
        """The blocks."""
        return BlockFormat(self.shape, self.rows, self.tap_start, self.channels)

    @property
    def weight(self) -> Tensor:
        """The dense weight, filters in their own order, zero outside the blocks, a function of `packed`."""
        return self.layout.unpack(self.packed)

    def forward(self, input: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, filters, oh, ow)."""
        windows = (self.shape[2:], self.stride, self.padding, self.dilation)
        y: Tensor = block_conv2d(_autocast(input), self.packed, self.channels, self.tap_start, *windows, self.rows)
        y = in_format_of(input, y)
        return y if self.bias is None else y + self.bias.to(y.dtype).reshape(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """Return the shapes, for `print`."""
        layout = self.layout
        filters, inputs, *kernel = self.shape
        return (
            f"{inputs}, {filters}, kernel_size={tuple(kernel)}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, groups={layout.groups} x {layout.filters}, "
            f"columns={layout.columns}, bias={self.bias is not None}"
        )


class RegroupedLinear(nn.Module):
    """A linear layer that computes its blocks: a 1 x 1 convolution of images of one pixel.

    It has the attributes of the linear layer that it stands for.

    Attributes:
        conv: convolution that has the parameters.
    """

    def __init__(self, conv: RegroupedConv2d) -> None:
        super().__init__()
        self.conv = conv
        self.out_features, self.in_features = conv.shape[:2]

    @classmethod
    def from_linear(cls, linear: nn.Linear, blocks: Sequence[Block]) -> RegroupedLinear:
        """Return the blocks of a dense linear layer, with copies of its weights and bias.

        Raises:
            ValueError: if the format cannot hold the blocks (`BlockFormat.from_blocks`).
        """
        layout = BlockFormat.from_blocks(blocks, linear.weight.shape)
        made = cls(RegroupedConv2d(layout, *_copied(layout, linear)))
        freeze_alike(made, linear)
        return made

    @property
    def weight(self) -> Tensor:
        """The dense weight (outputs, inputs), zero outside the blocks, a function of the packed one."""
        return self.conv.weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """The bias, None without one."""
        return self.conv.bias

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        y: Tensor = self.conv(input.reshape(-1, input.shape[-1], 1, 1))
        return y.reshape(*input.shape[:-1], y.shape[1])


def _copied(layout: BlockFormat, layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return copies of a dense layer's weights inside the blocks and of its bias."""
    packed = layout.pack(layer.weight.detach().to(layout.rows.device)).to(layer.weight.device)
    return packed, None if layer.bias is None else layer.bias.detach().clone()


def _autocast(x: Tensor) -> Tensor:
    """Return the input as `torch.autocast` would give it to a convolution."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Return the number of zeros at every side, in height and width."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        total = [distance * (size - 1) for distance, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        return (total[0] // 2, total[1] // 2)
    assert not isinstance(conv.padding, str)
    return _pair(conv.padding)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]
