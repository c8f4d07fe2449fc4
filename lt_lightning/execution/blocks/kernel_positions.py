"""Layers regrouped by kernel positions: convolution and linear layers that compute only such blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lt_lightning.execution.blocks.block_formats import BlockFormat
from lt_lightning.execution.blocks.operators import block_conv2d
from lt_lightning.structures.plan import Block


class RegroupedConv2d(nn.Module):
    """A convolution that computes its blocks: the same function as the dense one with zeros outside of them.

    Attributes:
        weight: parameter (columns, R), see `BlockFormat`.
        bias: parameter in the order of the output, or None.
        rows: buffer of the filters in the order of the groups.
    """

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
        self.weight = nn.Parameter(weight)
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
        if conv.groups != 1:
            raise ValueError(f"groups={conv.groups}: a regrouped convolution needs groups=1")
        layout = BlockFormat.from_blocks(blocks, conv.weight.shape)
        weight, bias = _copied(layout, conv)
        return cls(
            layout,
            weight,
            bias,
            stride=_pair(conv.stride),
            padding=_padding(conv),
            dilation=_pair(conv.dilation),
        )

    @property
    def layout(self) -> BlockFormat:
        """The blocks."""
        return BlockFormat(self.shape, self.rows, self.tap_start, self.channels)

    def to_dense_weight(self) -> Tensor:
        """Return the dense weight, filters in their own order, zero outside the blocks."""
        return self.layout.unpack(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, filters, oh, ow), channels_last."""
        windows = (self.shape[2:], self.stride, self.padding, self.dilation)
        y: Tensor = block_conv2d(_autocast(x), self.weight, self.channels, self.tap_start, *windows, self.rows)
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

    Attributes:
        conv: convolution that has the parameters.
    """

    def __init__(self, conv: RegroupedConv2d) -> None:
        super().__init__()
        self.conv = conv

    @classmethod
    def from_linear(cls, linear: nn.Linear, blocks: Sequence[Block]) -> RegroupedLinear:
        """Return the blocks of a dense linear layer, with copies of its weights and bias.

        Raises:
            ValueError: if the format cannot hold the blocks (`BlockFormat.from_blocks`).
        """
        layout = BlockFormat.from_blocks(blocks, linear.weight.shape)
        return cls(RegroupedConv2d(layout, *_copied(layout, linear)))

    def to_dense_weight(self) -> Tensor:
        """Return the dense weight (outputs, inputs), zero outside the blocks."""
        return self.conv.to_dense_weight().flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        y: Tensor = self.conv(x.reshape(-1, x.shape[-1], 1, 1))
        return y.reshape(*x.shape[:-1], y.shape[1])


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
    if conv.padding_mode != "zeros":
        raise ValueError(f"padding_mode={conv.padding_mode!r}: a regrouped convolution needs 'zeros'")
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        total = [distance * (size - 1) for distance, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(both % 2 for both in total):
            raise ValueError(f"padding='same' with kernel_size={conv.kernel_size} pads unevenly: needs odd sizes")
        return (total[0] // 2, total[1] // 2)
    assert not isinstance(conv.padding, str)
    return _pair(conv.padding)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]
