"""Block convolution as operations that PyTorch knows: autograd, `torch.compile` and `torch.export` see through them.

An operation picks what computes it: the compiled kernel on the CPU (float32; bfloat16 where the processor multiplies
it, else narrower types go through float32), Triton on CUDA, else a dense convolution (float64, no compiler, no Triton).
Results are channels_last.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lt_lightning.execution.kernels import cpu as build
from lt_lightning.execution.kernels import cpu as launch
from lt_lightning.execution.kernels import reference

_NARROW = (torch.bfloat16, torch.float16)


@torch.library.custom_op("lt_lightning::block_conv2d", mutates_args=())
def block_conv2d(
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
    """Convolves `x` with a weight in the block format (`format.BlockFormat`), without a bias.

    Args:
        x: (n, c, h, w); fastest in channels_last.
        weight: packed (columns, R); rounded to `x`'s type; sums are float32 where that is narrower.
        channels: of the format, int32.
        tap_start: of the format, int32.
        kernel: height and width; as all that follow.
        stride: see `torch.nn.functional.conv2d`, as `padding` and `dilation`.
        padding: zeros at every side.
        dilation: between kernel positions.
        rows: of the format, int64.

    Returns:
        (n, G * R, oh, ow), channels in the order of the filters, of `x`'s type, channels_last.

    Raises:
        ValueError: if the shapes or indices do not fit each other.
    """
    size = _output_shape(x, weight, channels, tap_start, kernel, stride, padding, dilation, rows)
    windows = (kernel, stride, padding, dilation)
    library = _library(x)
    if library is not None:
        computed = _computed(library, x.dtype)
        y = _empty(size, computed, x.device)
        packed = weight.to(x.dtype).to(computed).contiguous()
        launch.forward(library, x.to(computed), y, packed, (tap_start, channels, rows), windows)
        return y.to(x.dtype)
    triton = _triton(x)
    if triton is not None:
        return _laid_out(triton.forward(x, weight.to(x.dtype), channels, tap_start, rows, *windows))
    return _laid_out(reference.forward(x, weight, channels, tap_start, *windows, rows))


@torch.library.custom_op("lt_lightning::block_conv2d_input_gradient", mutates_args=())
def block_conv2d_input_gradient(
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
    """Gradient of the input of `block_conv2d`, of `dy`'s type, channels_last."""
    windows = (kernel, stride, padding, dilation)
    library = _library(dy)
    if library is not None:
        computed = _computed(library, dy.dtype)
        dx = _empty(input_shape, computed, dy.device)
        columns = (tap_start, channels, rows)
        packed = weight.to(dy.dtype).to(computed).contiguous()
        launch.input_gradient(library, dy.to(computed), dx, packed, columns, windows)
        return dx.to(dy.dtype)
    triton = _triton(dy)
    if triton is not None:
        packed = weight.to(dy.dtype)
        return _laid_out(triton.input_gradient(dy, packed, channels, tap_start, rows, input_shape, *windows))
    return _laid_out(reference.input_gradient(dy, weight, channels, tap_start, input_shape, *windows, rows))


@torch.library.custom_op("lt_lightning::block_conv2d_weight_gradient", mutates_args=())
def block_conv2d_weight_gradient(
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
    """Gradient of the packed weight (columns, R = `filters`) of `block_conv2d`; float32 for narrower types."""
    windows = (kernel, stride, padding, dilation)
    library = _library(x)
    if library is not None:
        dw = torch.empty(len(channels), filters, dtype=torch.float32)
        columns = (tap_start, channels, rows)
        computed = _computed(library, x.dtype)
        launch.weight_gradient(library, x.to(computed), dy.to(computed), dw, columns, windows)
        return dw
    triton = _triton(x)
    if triton is not None:
        dw = triton.weight_gradient(x, dy, channels, tap_start, rows, filters, *windows)
    else:
        dw = reference.weight_gradient(x, dy, channels, tap_start, filters, *windows, rows)
    return dw.to(_wide(x.dtype)).contiguous()


@block_conv2d.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return _empty(_output_shape(x, *others), x.dtype, x.device)


@block_conv2d_input_gradient.register_fake
def _(dy: Tensor, weight: Tensor, channels: Tensor, tap_start: Tensor, input_shape: Sequence[int], *_: Any) -> Tensor:
    return _empty(input_shape, dy.dtype, dy.device)


@block_conv2d_weight_gradient.register_fake
def _(x: Tensor, dy: Tensor, channels: Tensor, tap_start: Tensor, filters: int, *_: Any) -> Tensor:
    return x.new_empty(channels.shape[0], filters, dtype=_wide(x.dtype))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, channels, tap_start, *windows, rows = inputs
    ctx.save_for_backward(x, weight, channels, tap_start, rows)
    ctx.windows = windows


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, channels, tap_start, rows = ctx.saved_tensors
    dx = dw = None
    if ctx.needs_input_grad[0]:
        dx = block_conv2d_input_gradient(dy, weight, channels, tap_start, x.shape, *ctx.windows, rows)
    if ctx.needs_input_grad[1]:
        dw = block_conv2d_weight_gradient(x, dy, channels, tap_start, weight.shape[1], *ctx.windows, rows)
        dw = dw.to(weight.dtype)
    return dx, dw, None, None, None, None, None, None, None


block_conv2d.register_autograd(_backward, setup_context=_save)


def _output_shape(
    x: Tensor,
    weight: Tensor,
    channels: Tensor,
    tap_start: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    rows: Tensor,
) -> list[int]:
    """Shape of the output, after checking that the arguments fit each other."""
    starts = kernel[0] * kernel[1] + 1
    if x.dim() != 4 or weight.dim() != 2 or tap_start.shape[0] % starts or channels.shape[0] != weight.shape[0]:
        raise ValueError(
            f"block_conv2d: input {tuple(x.shape)}, weight {tuple(weight.shape)}, channels {tuple(channels.shape)} and "
            f"tap_start {tuple(tap_start.shape)} do not fit: must be 4D, (columns, R), (columns), (groups * {starts})"
        )
    if (channels.dtype, tap_start.dtype) != (torch.int32, torch.int32):
        raise ValueError(f"block_conv2d: channels {channels.dtype}, tap_start {tap_start.dtype}: must be int32")
    outputs = tap_start.shape[0] // starts * weight.shape[1]
    if rows.dtype != torch.int64 or rows.shape[0] != outputs:
        raise ValueError(f"block_conv2d: rows {tuple(rows.shape)} {rows.dtype}: must be ({outputs},) int64")
    size = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    if min(size) < 1:
        raise ValueError(f"block_conv2d: an input of {tuple(x.shape[2:])} is smaller than the kernel {tuple(kernel)}")
    return [x.shape[0], outputs, *size]


def _library(tensor: Tensor) -> Any:
    """The compiled kernel where it computes this tensor, else None."""
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, *_NARROW):
        return build.library()
    return None


def _triton(tensor: Tensor) -> Any:
    """The module of Triton kernels where it computes this tensor, else None."""
    if tensor.device.type == "cuda" and tensor.dtype in (torch.float32, *_NARROW):
        return _triton_kernels()
    return None


@functools.cache
def _triton_kernels() -> Any:
    try:
        return importlib.import_module("lt_lightning.execution.kernels.cuda")
    except ImportError as error:
        warnings.warn(f"block convolutions run dense on this GPU: {error}", stacklevel=2)
        return None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _NARROW else dtype


def _computed(library: Any, dtype: torch.dtype) -> torch.dtype:
    """The type in which the compiled kernel computes tensors of `dtype`."""
    return dtype if launch.computes(library, dtype) else torch.float32


def _empty(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)


def _laid_out(images: Tensor) -> Tensor:
    """The images with exactly the strides that the fake kernels promise."""
    result = _empty(images.shape, images.dtype, images.device)
    return images if images.stride() == result.stride() else result.copy_(images)


@register_flop_formula(torch.ops.lt_lightning.block_conv2d)
def _flops(
    x_shape: Sequence[int], weight_shape: Sequence[int], *_: object, out_shape: Sequence[int], **__: object
) -> int:
    """Two operations for every stored weight at every position of the output."""
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * math.prod(weight_shape)
