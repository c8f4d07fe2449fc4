"""The kernels of block convolutions on CUDA, launched from PyTorch: see `triton_kernels`.

Images go in and come out as (batch, channels, height, width), but lie in memory as (height, width, channels, batch). An
input that lies otherwise is copied; what comes out lies so already, and PyTorch's pointwise operations and BatchNorm in
eager mode keep the strides, so a chain of such layers could be converted once at its beginning. The operators give
channels_last, as all others do, so that each layer is converted both ways.

The input gradient multiplies by the dense weight. A product over gathered columns would have to add each column's row
into memory, which moves (columns x positions x batch) values twice: at 75 % and groups of 32 filters tens of times
what the dense product moves. Zeros cost the tensor cores less than that.

Nothing here waits for the device and sizes depend on shapes only, so all of it can be captured in a CUDA graph, once
a first call has chosen the tiles for its shapes (autotuning, which does wait; where PyTorch is to be deterministic the
shapes alone choose).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton.testing import do_bench

from lt_lightning.execution.kernels import triton_kernels as kernels
from lt_lightning.execution.kernels.reference import BlockConvolution
from lt_lightning.execution.machine import tensor_float32

_BLOCK = 64
_PROGRAMS = 512
"""Number of programs that fills a large GPU a few times over; the weight gradient is split to reach it. It is a
constant, so that the order of summation, hence the result, is the same on every device."""


_SHAPE = ("N", "C", "H", "W", "OH", "OW", "KH", "KW", "G", "R", "K", "PRECISION")
_LARGEST = 128  # tile of filters or channels


def _tuned(
    kernel: Any, size: str, names: tuple[str, str, str], tiles: Sequence[tuple[int, int, int]]
) -> Mapping[bool, Any]:
    """Return two kernels, by whether PyTorch is to be deterministic.

    One (False) tries the few tiles that suit a shape; in the interpreter, which cannot time, there is one tile only.
    Tiles sum in different orders, so the other one (True) takes the first such tile.

    Args:
        kernel: kernel to launch.
        size: name of the argument (filters of a group, or channels) along which the first side of a tile lies.
        names: names of the tile's sides.
        tiles: sides of each tile.
    """
    configs = [
        triton.Config(dict(zip(names, tile, strict=True)), num_warps=8 if tile[0] * tile[1] >= 8192 else 4)
        for tile in tiles
    ]
    if triton.knobs.runtime.interpret:
        configs = [triton.Config(dict.fromkeys(names, 16))]

    def suitable(configs: Sequence[Any], arguments: Mapping[str, Any], **_: Any) -> list[Any]:
        sides = [(config.kwargs[names[0]], config.kwargs[names[1]]) for config in configs]
        chosen = suiting(sides, arguments[size], arguments["N"] if names[1] == "BN" else None)
        return [config for config, side in zip(configs, sides, strict=True) if side in chosen]

    def first(*arguments: Any, **options: Any) -> list[Any]:
        return suitable(*arguments, **options)[:1]

    return {
        deterministic: triton.autotune(
            configs,
            [name for name in _SHAPE if name in kernel.arg_names],
            prune_configs_by={"early_config_prune": first if deterministic else suitable},
            do_bench=partial(do_bench, warmup=5, rep=20),
            cache_results=True,
        )(kernel)
        for deterministic in (False, True)
    }


def suiting(sides: Sequence[tuple[int, int]], size: int, batch: int | None) -> list[tuple[int, int]]:
    """Return the tiles that a size and a batch fill without leaving much of them empty, but one at least.

    >>> suiting([(32, 64), (32, 256), (64, 64), (128, 64)], size=48, batch=128)
    [(32, 64), (64, 64)]
    >>> suiting([(32, 64), (64, 64)], size=64, batch=8)
    [(32, 64)]
    """
    wanted = min(triton.next_power_of_2(size), _LARGEST)
    fitting = [side for side in sides if side[0] <= wanted <= 2 * side[0]] or [min(sides)]
    if batch is None:
        return fitting
    if batch < 32:  # a check, not a training: anything will do
        return fitting[:1]
    return [side for side in fitting if side[1] <= triton.next_power_of_2(batch)] or fitting[:1]


_forward = _tuned(
    kernels.forward_kernel,
    "R",
    ("BR", "BN", "BK"),
    [
        (32, 64, 32), (32, 128, 64), (32, 256, 32), (64, 64, 64), (64, 128, 32), (64, 128, 64), (128, 128, 32),
        (128, 128, 64),
    ],
)  # fmt: skip
_input_gradient = _tuned(
    kernels.input_gradient_kernel,
    "C",
    ("BC", "BN", "BK"),
    [(64, 64, 32), (64, 128, 32), (64, 128, 64), (128, 64, 64), (128, 128, 32), (128, 128, 64), (64, 256, 32)],
)
_weight_gradient = _tuned(
    kernels.weight_gradient_kernel,
    "R",
    ("BR", "BM", "BK"),
    [(32, 64, 32), (32, 64, 64), (32, 128, 64), (64, 64, 64), (64, 128, 64), (128, 64, 64), (128, 128, 32)],
)


class CudaKernels:
    """Block convolution by Triton; see `BlockKernels`. Takes float32, bfloat16 and float16 in any strides."""

    def forward(self, x: Tensor, weight: Tensor, convolution: BlockConvolution) -> Tensor:
        """See `BlockKernels`; the batch is innermost in memory, and sums are in float32."""
        geometry = _Geometry(x.shape, convolution)
        filters = weight.shape[1]
        y = _empty(geometry.batch, geometry.groups * filters, geometry.output, x)
        rows, _ = geometry.columns()

        def grid(tile: dict[str, int]) -> tuple[int]:
            tiles = geometry.groups * triton.cdiv(filters, tile["BR"])
            return (tiles * geometry.positions * triton.cdiv(geometry.batch, tile["BN"]),)

        if y.numel():
            _forward[_deterministic()][grid](
                to_batch_innermost(x),
                weight.contiguous(),
                rows,
                convolution.tap_start,
                convolution.rows,
                y,
                *geometry.sizes,
                geometry.groups,
                filters,
                **geometry.constants,
                PRECISION=_precision(),
            )
        return y

    def input_gradient(
        self, dy: Tensor, weight: Tensor, input_shape: Sequence[int], convolution: BlockConvolution
    ) -> Tensor:
        """See `BlockKernels`; the batch is innermost in memory."""
        geometry = _Geometry(input_shape, convolution)
        outputs = len(convolution.rows)
        dense = weight.new_zeros(geometry.taps, geometry.channels, outputs)
        kernels.dense_kernel[(geometry.groups * geometry.taps,)](
            weight.contiguous(),
            convolution.channels,
            convolution.tap_start,
            convolution.rows,
            dense,
            geometry.channels,
            outputs,
            weight.shape[1],
            T=geometry.taps,
            BR=32,
            BLOCK=_BLOCK,
        )
        dx = _empty(geometry.batch, geometry.channels, geometry.input, dy)

        def grid(tile: dict[str, int]) -> tuple[int]:
            tiles = triton.cdiv(geometry.channels, tile["BC"]) * triton.cdiv(geometry.batch, tile["BN"])
            return (tiles * geometry.input[0] * geometry.input[1],)

        if dx.numel():
            _input_gradient[_deterministic()][grid](
                to_batch_innermost(dy),
                dense,
                dx,
                *geometry.sizes,
                outputs,
                **geometry.constants,
                PRECISION=_precision(),
            )
        return dx

    def weight_gradient(self, x: Tensor, dy: Tensor, filters: int, convolution: BlockConvolution) -> Tensor:
        """See `BlockKernels`; in float32.

        Parts of the output positions are summed apart and then added up in their order: no atomics.
        """
        geometry = _Geometry(x.shape, convolution)
        columns = len(convolution.channels)
        rows, taps = geometry.columns()
        programs = (triton.cdiv(columns, 64) + geometry.groups) * triton.cdiv(filters, 64)
        splits = min(triton.cdiv(_PROGRAMS, programs), max(geometry.positions, 1))
        partial = torch.empty(splits, columns, filters, dtype=torch.float32, device=x.device)

        def grid(tile: dict[str, int]) -> tuple[int]:
            blocks = triton.cdiv(columns, tile["BM"]) + geometry.groups
            return (blocks * triton.cdiv(filters, tile["BR"]) * splits,)

        if partial.numel():
            _weight_gradient[_deterministic()][grid](
                to_batch_innermost(x),
                to_batch_innermost(dy),
                rows,
                taps,
                convolution.tap_start,
                convolution.rows,
                partial,
                *geometry.sizes,
                geometry.groups,
                filters,
                columns,
                splits,
                **geometry.constants,
                PRECISION=_precision(),
            )
        return partial.sum(dim=0)


def to_batch_innermost(x: Tensor) -> Tensor:
    """Return the same values with (height, width, channels, batch) in memory; `x` itself if it lies so already.

    >>> x = torch.randn(8, 3, 5, 5)
    >>> y = to_batch_innermost(x)
    >>> y.stride(), torch.equal(x, y), to_batch_innermost(y) is y
    ((1, 8, 120, 24), True, True)
    """
    lying = x.permute(2, 3, 1, 0)
    return x if lying.is_contiguous() else lying.contiguous().permute(3, 2, 0, 1)


class _Geometry:
    """Sizes of one convolution, as the kernels take them."""

    def __init__(self, shape: Sequence[int], convolution: BlockConvolution) -> None:
        """Take the shape of the input."""
        self.batch, self.channels, *self.input = shape
        self.output = convolution.output_size(*self.input)
        self.convolution = convolution
        self.groups, self.taps = convolution.groups, convolution.taps

    @property
    def positions(self) -> int:
        """Number of output positions of one image."""
        return self.output[0] * self.output[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """N, C, H, W, OH, OW."""
        return self.batch, self.channels, *self.input, *self.output

    @property
    def constants(self) -> dict[str, int]:
        """What the kernels are specialised for."""
        kernel, stride, padding, dilation = self.convolution.windows
        values = (*stride, *padding, *dilation, *kernel)
        return dict(zip(("SH", "SW", "PH", "PW", "DH", "DW", "KH", "KW"), values, strict=True))

    def columns(self) -> tuple[Tensor, Tensor]:
        """Return for every packed column the image row relative to the window's corner, and the kernel position."""
        channels = self.convolution.channels
        rows, taps = torch.empty_like(channels), torch.empty_like(channels)
        kernels.column_kernel[(self.groups * self.taps,)](
            channels,
            self.convolution.tap_start,
            rows,
            taps,
            self.channels,
            self.input[1],
            DH=self.convolution.dilation[0],
            DW=self.convolution.dilation[1],
            KW=self.convolution.kernel[1],
            T=self.taps,
            BLOCK=_BLOCK,
        )
        return rows, taps


def _empty(batch: int, channels: int, size: Sequence[int], like: Tensor) -> Tensor:
    """Return uninitialised images, batch innermost."""
    return like.new_empty(*size, channels, batch).permute(3, 2, 0, 1)


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _precision() -> str:
    """Products of float32 in TF32 where PyTorch's own convolutions may use it."""
    return "tf32" if tensor_float32("cuda") else "ieee"
