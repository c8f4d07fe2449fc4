"""Block convolution by a dense one: on any device and in any floating type, and no faster than dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_lightning.execution.blocks.block_format import dense_weight, places


def forward(
    x: Tensor,
    weight: Tensor,
    channels: Tensor,
    tap_start: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    rows: Tensor,
) -> Tensor:
    """The convolution of `x`; arguments as `block_ops.block_conv2d`."""
    dense = _dense(weight.to(x.dtype), channels, tap_start, x.shape[1], kernel, rows)
    return F.conv2d(x, dense, None, list(stride), list(padding), list(dilation))


def input_gradient(
    dy: Tensor,
    weight: Tensor,
    channels: Tensor,
    tap_start: Tensor,
    input_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    rows: Tensor,
) -> Tensor:
    """Gradient of the input, in `input_shape`."""
    dense = _dense(weight.to(dy.dtype), channels, tap_start, input_shape[1], kernel, rows)
    return _backward(dy, dy.new_empty(1).expand(input_shape), dense, stride, padding, dilation, 0)


def weight_gradient(
    x: Tensor,
    dy: Tensor,
    channels: Tensor,
    tap_start: Tensor,
    filters: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    rows: Tensor,
) -> Tensor:
    """Gradient of the packed weight: (columns, R)."""
    dense = dy.new_empty(1).expand(dy.shape[1], x.shape[1], *kernel)
    gradient = _backward(dy, x, dense, stride, padding, dilation, 1)
    group, column = places(channels, tap_start, kernel[0] * kernel[1])
    return gradient[rows].reshape(-1, filters, dense[0].numel()).transpose(1, 2)[group, column]


def _dense(
    weight: Tensor, channels: Tensor, tap_start: Tensor, inputs: int, kernel: Sequence[int], rows: Tensor
) -> Tensor:
    groups = len(tap_start) // (kernel[0] * kernel[1] + 1)
    return dense_weight(weight, channels, tap_start, (groups * weight.shape[1], inputs, *kernel), rows)


def _backward(
    dy: Tensor,
    x: Tensor,
    dense: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: int,
) -> Tensor:
    """Gradient of the input (`wanted` 0) or of the dense weight (1)."""
    mask = [wanted == 0, wanted == 1, False]
    gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        dy, x, dense, None, list(stride), list(padding), list(dilation), False, [0, 0], 1, mask
    )
    return gradients[wanted]
