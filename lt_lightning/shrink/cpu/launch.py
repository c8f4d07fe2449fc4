"""Calls the compiled kernel: tensors to pointers, shapes to numbers.

Tensors of values are on the CPU and all of one type that `computes` names; the gradient of the weight is float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

_SUFFIXES = {torch.float32: "", torch.bfloat16: "_bfloat16"}


def computes(library: ctypes.CDLL, dtype: torch.dtype) -> bool:
    """Whether the kernel takes tensors of this type; of bfloat16 only with a processor that multiplies it."""
    return dtype in _SUFFIXES and hasattr(library, "block_conv_forward" + _SUFFIXES[dtype])


def forward(
    library: ctypes.CDLL,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    columns: tuple[Tensor, Tensor, Tensor],
    windows: Sequence[Sequence[int]],
) -> None:
    """Writes the convolution of `x` into `y`.

    Args:
        library: see `build.library`.
        x: (n, c, h, w).
        y: (n, K, oh, ow), channels_last.
        weight: (columns, R).
        columns: tap_start, channels, rows of the format.
        windows: kernel, stride, padding, dilation.

    Raises:
        ValueError: if the indices in `columns` do not fit the shapes.
    """
    _call(library, "forward", x.shape, y.shape, weight.shape, columns, windows, (weight, _nhwc(x), y))


def input_gradient(
    library: ctypes.CDLL,
    dy: Tensor,
    dx: Tensor,
    weight: Tensor,
    columns: tuple[Tensor, Tensor, Tensor],
    windows: Sequence[Sequence[int]],
) -> None:
    """Writes the gradient of the input into `dx`, channels_last. Otherwise as `forward`."""
    shapes = (dx.shape, dy.shape, weight.shape)
    _call(library, "input_gradient", *shapes, columns, windows, (weight, _nhwc(dy), dx))


def weight_gradient(
    library: ctypes.CDLL,
    x: Tensor,
    dy: Tensor,
    dw: Tensor,
    columns: tuple[Tensor, Tensor, Tensor],
    windows: Sequence[Sequence[int]],
) -> None:
    """Writes the gradient of the packed weight into `dw`. Otherwise as `forward`."""
    shapes = (x.shape, dy.shape, dw.shape)
    _call(library, "weight_gradient", *shapes, columns, windows, (_nhwc(x), _nhwc(dy), dw))


def _call(
    library: ctypes.CDLL,
    name: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    weights: Sequence[int],
    columns: tuple[Tensor, Tensor, Tensor],
    windows: Sequence[Sequence[int]],
    tensors: tuple[Tensor, Tensor, Tensor],
) -> None:
    n, c, h, w = inputs
    count, filters = weights
    groups = outputs[1] // filters
    kept = [tensor.contiguous() for tensor in columns]
    numbers = [n, h, w, c, *outputs[2:], *(size for pair in windows for size in pair), groups, filters, count]
    geometry = (ctypes.c_int64 * (len(numbers) + 1))(*numbers, torch.get_num_threads())
    function = getattr(library, f"block_conv_{name}{_SUFFIXES[tensors[0].dtype]}")
    function.restype = ctypes.c_bool
    if not function(geometry, *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (*kept, *tensors))):
        raise ValueError("block_conv2d: tap_start, channels or rows do not fit the input and the weight")


def _nhwc(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
