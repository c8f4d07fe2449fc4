"""What the kernels of block convolutions compute, and a dense convolution that computes it on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_lightning.execution.blocks.block_formats import dense_weight, packed_positions


@dataclass(frozen=True)
class BlockConvolution:
    """Which weights a block convolution has, and how its windows move.

    Attributes:
        channels: input channel of every column, int32 (columns); like the next two, as in `BlockFormat`.
        tap_start: first column of every group and kernel position, int32.
        rows: filters in the order of the groups, int64.
        kernel: height and width, as for all that follow.
        stride: as in `torch.nn.functional.conv2d`.
        padding: zeros at every side.
        dilation: distance of kernel positions.
    """

    channels: Tensor
    tap_start: Tensor
    rows: Tensor
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return self.kernel[0] * self.kernel[1]

    @property
    def groups(self) -> int:
        """Number of groups of filters."""
        return len(self.tap_start) // (self.taps + 1)

    @property
    def windows(self) -> tuple[Sequence[int], ...]:
        """Kernel, stride, padding and dilation."""
        return self.kernel, self.stride, self.padding, self.dilation

    def output_size(self, height: int, width: int) -> list[int]:
        """Height and width of the output for an input of this height and width."""
        return [
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip((height, width), *self.windows, strict=True)
        ]


class BlockKernels(Protocol):
    """What computes block convolutions on one kind of device. Packed weights are (columns, R)."""

    def forward(self, x: Tensor, weight: Tensor, convolution: BlockConvolution) -> Tensor:
        """Return the convolution of `x` (n, c, h, w), with a weight of its type: (n, G * R, oh, ow)."""

    def input_gradient(
        self, dy: Tensor, weight: Tensor, input_shape: Sequence[int], convolution: BlockConvolution
    ) -> Tensor:
        """Return the gradient of the input, in `input_shape`, from that of the output."""

    def weight_gradient(self, x: Tensor, dy: Tensor, filters: int, convolution: BlockConvolution) -> Tensor:
        """Return the gradient of the packed weight (columns, R = `filters`), perhaps in a wider type."""


class ReferenceKernels:
    """Block convolution by a dense one: in any floating type, and no faster than dense."""

    def forward(self, x: Tensor, weight: Tensor, convolution: BlockConvolution) -> Tensor:
        """See `BlockKernels`."""
        _, stride, padding, dilation = (list(each) for each in convolution.windows)
        return F.conv2d(x, self._dense(weight, x.shape[1], convolution), None, stride, padding, dilation)

    def input_gradient(
        self, dy: Tensor, weight: Tensor, input_shape: Sequence[int], convolution: BlockConvolution
    ) -> Tensor:
        """See `BlockKernels`."""
        dense = self._dense(weight, input_shape[1], convolution)
        return self._backward(dy, dy.new_empty(1).expand(input_shape), dense, convolution, 0)

    def weight_gradient(self, x: Tensor, dy: Tensor, filters: int, convolution: BlockConvolution) -> Tensor:
        """See `BlockKernels`."""
        dense = dy.new_empty(1).expand(dy.shape[1], x.shape[1], *convolution.kernel)
        gradient = self._backward(dy, x, dense, convolution, 1)[convolution.rows]
        group, column = packed_positions(convolution.channels, convolution.tap_start, convolution.taps)
        return gradient.reshape(-1, filters, dense[0].numel()).transpose(1, 2)[group, column]

    @staticmethod
    def _dense(weight: Tensor, inputs: int, convolution: BlockConvolution) -> Tensor:
        shape = (convolution.groups * weight.shape[1], inputs, *convolution.kernel)
        return dense_weight(weight, convolution.channels, convolution.tap_start, shape, convolution.rows)

    @staticmethod
    def _backward(dy: Tensor, x: Tensor, dense: Tensor, convolution: BlockConvolution, wanted: int) -> Tensor:
        """Return the gradient of the input (`wanted` 0) or of the dense weight (1)."""
        mask = [wanted == 0, wanted == 1, False]
        _, *windows = (list(each) for each in convolution.windows)
        gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            dy, x, dense, None, *windows, False, [0, 0], 1, mask
        )
        return gradients[wanted]
