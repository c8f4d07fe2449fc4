"""Block convolution as operations that PyTorch knows: autograd, `torch.compile` and `torch.export` see through them.

Every operation picks what computes it (`kernels_for`): the compiled kernel on the CPU, Triton on CUDA, else a dense
convolution (float64, no compiler, no Triton). Results are channels_last.
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

from lt_lightning.execution.kernels import cpu
from lt_lightning.execution.kernels.reference import BlockConvolution, BlockKernels, ReferenceKernels

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
    """Convolve `x` with a weight in the block format (`BlockFormat`), without a bias.

    Args:
        x: (n, c, h, w); fastest in channels_last.
        weight: packed (columns, R); rounded to `x`'s type; sums are float32 where that is narrower.
        channels: as `BlockConvolution` explains, like all that follow.
        tap_start: likewise.
        kernel: likewise.
        stride: likewise.
        padding: likewise.
        dilation: likewise.
        rows: likewise.

    Returns:
        (n, G * R, oh, ow), channels in the order of the filters, of `x`'s type, channels_last.

    Raises:
        ValueError: if the shapes or indices do not fit each other.
    """
    convolution = BlockConvolution(channels, tap_start, rows, kernel, stride, padding, dilation)
    _output_shape(x, weight, convolution)  # checks
    return _laid_out(kernels_for(x).forward(x, weight.to(x.dtype), convolution))


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
    """Return the gradient of the input of `block_conv2d`, of `dy`'s type, channels_last."""
    convolution = BlockConvolution(channels, tap_start, rows, kernel, stride, padding, dilation)
    return _laid_out(kernels_for(dy).input_gradient(dy, weight.to(dy.dtype), input_shape, convolution))


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
    """Return the gradient of the packed weight (columns, `filters`) of `block_conv2d`; float32 for narrower types."""
    convolution = BlockConvolution(channels, tap_start, rows, kernel, stride, padding, dilation)
    return kernels_for(x).weight_gradient(x, dy, filters, convolution).to(_wide(x.dtype)).contiguous()


@block_conv2d.register_fake
def _(
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
    convolution = BlockConvolution(channels, tap_start, rows, kernel, stride, padding, dilation)
    return _empty(_output_shape(x, weight, convolution), x.dtype, x.device)


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


def _output_shape(x: Tensor, weight: Tensor, convolution: BlockConvolution) -> list[int]:
    """Return the shape of the output, after checking that the arguments fit each other."""
    channels, tap_start, rows = convolution.channels, convolution.tap_start, convolution.rows
    starts = convolution.taps + 1
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
    size = convolution.output_size(*x.shape[2:])
    if min(size) < 1:
        kernel = tuple(convolution.kernel)
        raise ValueError(f"block_conv2d: an input of {tuple(x.shape[2:])} is smaller than the kernel {kernel}")
    return [x.shape[0], outputs, *size]


def kernels_for(tensor: Tensor) -> BlockKernels:
    """Return the fastest kernels that take a tensor's type on its device."""
    if tensor.dtype in (torch.float32, *_NARROW):
        if tensor.device.type == "cpu" and (library := cpu.library()) is not None:
            return cpu.CpuKernels(library)
        if tensor.device.type == "cuda" and (kernels := _cuda_kernels()) is not None:
            return kernels
    return ReferenceKernels()


@functools.cache
def _cuda_kernels() -> BlockKernels | None:
    try:
        cuda = importlib.import_module("lt_lightning.execution.kernels.cuda")
    except ImportError as error:
        warnings.warn(f"block convolutions run dense on this GPU: {error}", stacklevel=2)
        return None
    kernels: BlockKernels = cuda.CudaKernels()
    return kernels


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _NARROW else dtype


def _empty(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)


def _laid_out(images: Tensor) -> Tensor:
    """Return the images with exactly the strides that the fake kernels promise."""
    result = _empty(images.shape, images.dtype, images.device)
    return images if images.stride() == result.stride() else result.copy_(images)


@register_flop_formula(torch.ops.lt_lightning.block_conv2d)
def _flops(
    x_shape: Sequence[int], weight_shape: Sequence[int], *_: object, out_shape: Sequence[int], **__: object
) -> int:
    """Two operations for every stored weight at every position of the output."""
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * math.prod(weight_shape)
