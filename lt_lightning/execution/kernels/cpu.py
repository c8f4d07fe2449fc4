"""The compiled kernel of block convolutions on the CPU.

The system's compiler compiles it at first use, and it is kept in a folder of the user's.
"""

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

from lt_lightning.files import replacing

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
    """The kernel cannot be compiled or loaded here."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel for this machine, or None, with one warning that says why there is none.

    The environment variable `LT_LIGHTNING_CPU` forces a set of instructions (`avx512_bf16`, `avx512`, `avx2`,
    `portable`), `CXX` the compiler, `LT_LIGHTNING_CACHE` the folder.
    """
    try:
        *wider, last = instructions()
        for instruction_set in wider:
            with contextlib.suppress(BuildError):
                return ctypes.CDLL(str(build(instruction_set)))
        return ctypes.CDLL(str(build(last)))
    except (BuildError, OSError) as error:
        warnings.warn(f"block convolutions run dense on this CPU: {error}", stacklevel=2)
        return None


def instructions() -> tuple[str, ...]:
    """The sets of instructions to compile for, the best first; the others are for compilers that do not know it.

    Raises:
        BuildError: if `LT_LIGHTNING_CPU` names one that is not known.
    """
    forced = os.environ.get("LT_LIGHTNING_CPU", "")
    if forced:
        if forced not in _INSTRUCTIONS:
            raise BuildError(f"LT_LIGHTNING_CPU={forced}: must be one of {', '.join(_INSTRUCTIONS)}")
        return (forced,)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("portable",)
    found = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "portable")
    return ("avx512_bf16", found) if found == "avx512" and _multiplies_bfloat16() else (found,)


def _multiplies_bfloat16() -> bool:
    """Whether the processor knows AVX512-BF16, as far as Linux says."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def build(instruction_set: str) -> Path:
    """Path of the compiled kernel; compiles it unless the same source, compiler and flags have been before.

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
        target = _folder() / f"block_conv-{instruction_set}-{key[:24]}.so"
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
    """Full path of the C++ compiler."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise BuildError("no C++ compiler found (g++, clang++ or c++ in PATH, or CXX)")


def _folder() -> Path:
    """Where compiled kernels are kept."""
    named = os.environ.get("LT_LIGHTNING_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lt-lightning"


def _run(command: list[str]) -> str:
    """Standard output of a command.

    Raises:
        BuildError: if it cannot be run or fails, with the first line it complains in.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run ({error})") from None
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()[:200]]
        raise BuildError(f"{command[0]} fails on {SOURCE.name}: {complaints[0]}")
    return done.stdout


# Calls the compiled kernel: tensors to pointers, shapes to numbers.
#
# Tensors of values are on the CPU and all of one type that `computes` names; the gradient of the weight is float32.

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
