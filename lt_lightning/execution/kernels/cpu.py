"""The kernel of block convolutions on the CPU: compiled at first use by the system's compiler, and kept in a cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lt_lightning.execution.kernels.reference import BlockConvolution
from lt_lightning.storage.files import cache_folder, replacing

SOURCE = Path(__file__).with_name("cpp") / "block_conv.cpp"

_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
_AVX512 = ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma")
_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    "avx512": _AVX512,
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}


class BuildError(RuntimeError):
    """Says why the kernel cannot be compiled or loaded here."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernel for this machine, or None, with one warning that says why there is none.

    The environment variable `LT_LIGHTNING_CPU` forces a set of instructions (`avx512_bf16`, `avx512`, `avx2`,
    `portable`), `CXX` the compiler, `LT_LIGHTNING_CACHE` the folder (see `cache_folder`).
    """
    try:
        *wider, last = instructions()
        for instruction_set in wider:
            with contextlib.suppress(BuildError):
                return ctypes.CDLL(str(compile_kernel(instruction_set)))
        return ctypes.CDLL(str(compile_kernel(last)))
    except (BuildError, OSError) as error:
        warnings.warn(f"block convolutions run dense on this CPU: {error}", stacklevel=2)
        return None


def instructions() -> tuple[str, ...]:
    """Return the sets of instructions to compile for, the best first; the others are for compilers that do not know it.

    Raises:
        BuildError: if `LT_LIGHTNING_CPU` names an unknown set.
    """
    forced = os.environ.get("LT_LIGHTNING_CPU", "")
    if forced:
        if forced not in _INSTRUCTIONS:
            raise BuildError(f"LT_LIGHTNING_CPU={forced}: must be one of {', '.join(_INSTRUCTIONS)}")
        return (forced,)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("portable",)
    best = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "portable")
    return ("avx512_bf16", best) if best == "avx512" and _multiplies_bfloat16() else (best,)


def _multiplies_bfloat16() -> bool:
    """Return whether the processor knows AVX512-BF16, as far as Linux says."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def compile_kernel(instruction_set: str) -> Path:
    """Compile the kernel, unless the same source, compiler and flags have been used before, and return its path.

    Any number of processes may do so at once: each renames a whole file into place.

    Raises:
        BuildError: if there is no compiler, or it fails on the source.
        OSError: if the folder cannot be written.
    """
    compiler = _compiler()
    version = _run([compiler, "--version"])
    sources = [path.read_text(encoding="utf-8") for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    errors = ""
    for threads in (("-fopenmp",), ()):  # a compiler without OpenMP makes a kernel of one thread
        command = [compiler, *_FLAGS, *_INSTRUCTIONS[instruction_set], *threads, str(SOURCE), "-o"]
        key = hashlib.sha256("\0".join([*sources, version, *command]).encode()).hexdigest()
        target = cache_folder() / "kernels" / f"block_conv-{instruction_set}-{key[:24]}.so"
        if target.exists():
            return target
        try:
            with replacing(target) as partial:
                _run([*command, str(partial)])
            return target
        except BuildError as error:
            errors = errors or str(error)
    raise BuildError(errors)


def _compiler() -> str:
    """Return the full path of the C++ compiler."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise BuildError("no C++ compiler found (g++, clang++ or c++ in PATH, or CXX)")


def _run(command: list[str]) -> str:
    """Return the standard output of a command.

    Raises:
        BuildError: if the command cannot be run or fails, with its first line about an error.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run ({error})") from None
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()[:200]]
        raise BuildError(f"{command[0]} fails on {SOURCE.name}: {complaints[0]}")
    return done.stdout


# Calls of the compiled kernel: tensors to pointers, shapes to numbers.

_SUFFIXES = {torch.float32: "", torch.bfloat16: "_bfloat16"}


class CpuKernels:
    """Block convolution by the compiled kernel; see `BlockKernels`. Takes float32, bfloat16 and float16.

    Numbers narrower than float32 go through float32, but for bfloat16 on a processor that multiplies it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def computes(self, dtype: torch.dtype) -> bool:
        """Return whether the kernel itself takes tensors of this type."""
        return dtype in _SUFFIXES and hasattr(self.library, "block_conv_forward" + _SUFFIXES[dtype])

    def forward(self, x: Tensor, weight: Tensor, convolution: BlockConvolution) -> Tensor:
        """See `BlockKernels`."""
        dtype = x.dtype
        x = self._taken(x)
        weight = weight.to(x.dtype).contiguous()
        y = _images([len(x), len(convolution.rows), *convolution.output_size(*x.shape[2:])], x.dtype)
        self._call("forward", x.shape, y.shape, weight, convolution, (weight, _nhwc(x), y))
        return y.to(dtype)

    def input_gradient(
        self, dy: Tensor, weight: Tensor, input_shape: Sequence[int], convolution: BlockConvolution
    ) -> Tensor:
        """See `BlockKernels`."""
        dtype = dy.dtype
        dy = self._taken(dy)
        weight = weight.to(dy.dtype).contiguous()
        dx = _images(input_shape, dy.dtype)
        self._call("input_gradient", input_shape, dy.shape, weight, convolution, (weight, _nhwc(dy), dx))
        return dx.to(dtype)

    def weight_gradient(self, x: Tensor, dy: Tensor, filters: int, convolution: BlockConvolution) -> Tensor:
        """See `BlockKernels`; in float32."""
        x = self._taken(x)
        dy = dy.to(x.dtype)
        dw = torch.empty(len(convolution.channels), filters)
        self._call("weight_gradient", x.shape, dy.shape, dw, convolution, (_nhwc(x), _nhwc(dy), dw))
        return dw

    def _taken(self, values: Tensor) -> Tensor:
        """Return the values in a type that the kernel takes."""
        return values if self.computes(values.dtype) else values.float()

    def _call(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        weight: Tensor,
        convolution: BlockConvolution,
        tensors: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Call one of the kernel's functions on two tensors to read and one to write.

        Raises:
            ValueError: if the indices of the columns do not fit the shapes.
        """
        n, c, h, w = inputs
        count, filters = weight.shape
        indices = [each.contiguous() for each in (convolution.tap_start, convolution.channels, convolution.rows)]
        numbers = [n, h, w, c, *outputs[2:], *(size for pair in convolution.windows for size in pair)]
        numbers += [outputs[1] // filters, filters, count, torch.get_num_threads()]
        geometry = (ctypes.c_int64 * len(numbers))(*numbers)
        function = getattr(self.library, f"block_conv_{name}{_SUFFIXES[tensors[0].dtype]}")
        function.restype = ctypes.c_bool
        if not function(geometry, *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (*indices, *tensors))):
            raise ValueError("block_conv2d: tap_start, channels or rows do not fit the input and the weight")


def _images(size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, memory_format=torch.channels_last)


def _nhwc(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
