"""The machine that networks run on: hardware and versions, and how PyTorch computes there (precision, compilation)."""

from __future__ import annotations

import ctypes
import importlib
import inspect
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

_PACKAGES = ("torch", "triton", "onnxruntime", "torch-pruning")


def environment(device: torch.device | str, **settings: object) -> dict[str, object]:
    """Return hardware, versions, thread settings and commit, as values for JSON.

    Args:
        device: device that is used.
        settings: further settings of the process.
    """
    device = torch.device(device)
    facts: dict[str, object] = {
        "cpu": processor("cpu"),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: number for name in _PACKAGES if (number := version_of(name))},
        "commit": _commit(),
        **settings,
    }
    if device.type == "cuda":
        facts["gpu"] = processor(device)
        facts["cuda"] = {
            "runtime": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "tf32": [tensor_float32(device), torch.backends.cuda.matmul.fp32_precision == "tf32"],
        }
    return facts


def processor(device: torch.device | str) -> str:
    """Return the name of the processor that computes for a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def version_of(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Return the commit of this code, with `-dirty` if it was changed since; `unknown` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


# The precision in which a device computes.


def is_bfloat16(precision: object) -> bool:
    """Return whether a trainer of that precision (`bf16-mixed`, `32-true`, ...) computes in bfloat16."""
    return str(precision).startswith("bf16")


def tensor_float32(device: torch.device | str) -> bool:
    """Return whether the device's convolutions round factors to TF32's ten bits, PyTorch's default on CUDA."""
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # absent from its types
    return torch.device(device).type == "cuda" and bool(conv.fp32_precision == "tf32")


# `torch.compile` for networks of which many are trained in one process.

Compile = bool | Literal["graphs"]

_options: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


def compile_network(network: nn.Module, how: Compile = True, **options: Any) -> None:
    """Compile a network in place, at its first call; its parameters keep their names.

    It is isolated from others (see `isolating`). The compiler reuses what its cache on disk has for equal shapes.

    Args:
        network: network to compile.
        how: False leaves it as it is. `graphs` also replays its kernels from CUDA graphs, which saves the time of
            launching them: worth it where they are short, in small networks and batches.
        options: further options of `torch.compile`.
    """
    if not how:
        return
    if how == "graphs":
        options = {"mode": "reduce-overhead", "dynamic": False, **options}
    compiler: Any = importlib.import_module("torch._inductor.config")
    compiler.deterministic = torch.are_deterministic_algorithms_enabled()  # else it takes the kernels that are fastest
    _options[network] = options
    network.compile(**isolating(), **options)


def uncompiled(network: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` was given to make another module of, with its own names; or itself."""
    original = getattr(network, "_orig_mod", None) if type(network).__name__ == "OptimizedModule" else None
    return original if isinstance(original, nn.Module) else network


def compiled_as(wrapper: nn.Module, network: nn.Module) -> nn.Module:
    """Make of a network what `torch.compile` made of another one, in the same way.

    Args:
        wrapper: module that `torch.compile` returned.
        network: network to compile.
    """
    made: nn.Module = type(wrapper)(network, wrapper.dynamo_ctx)
    return made


def isolating() -> dict[str, Any]:
    """Return options of `torch.compile` with which every one of many networks is compiled.

    Networks of one class share the code of `forward`, and with it PyTorch's limit of compiled variants (8), beyond
    which a further ticket's smaller network would silently run uncompiled. PyTorch has an option against it from 2.12
    on; before, the limit is raised.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        return {"isolate_recompiles": True}
    config: Any = importlib.import_module("torch._dynamo.config")
    config.recompile_limit = config.accumulated_recompile_limit = 1 << 10
    return {}


def compile_like(network: nn.Module, other: nn.Module) -> None:
    """Compile a network if another one is compiled, in the same way.

    Args:
        network: network that takes the place of the other one.
        other: network compiled by `compile_network`, by its own `compile`, or not at all.
    """
    if other._compiled_call_impl is not None:
        compile_network(network, **_options.get(other, {}))


# What the CPU's memory allocator does with freed memory, which costs time.

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER = -1
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep freed memory for its next allocations, rather than give it back to the system.

    By default glibc returns every large block when it is freed, so that each activation of each step is mapped anew
    and zeroed page by page. On two cores a training step of ResNet-18 (batch 64) then takes 50 000 page faults,
    but 2 600 after this call, and 7 % less time. The call does as much as the variables MALLOC_MMAP_THRESHOLD_ and
    MALLOC_TRIM_THRESHOLD_ that are read when a process starts, without starting another. The process stays as large
    as it ever was.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
