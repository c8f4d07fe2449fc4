"""What a measurement depends on besides the code that is timed: hardware, versions, settings, precision, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "triton", "onnxruntime", "torch-pruning")


def environment(device: torch.device | str, **settings: object) -> dict[str, object]:
    """Hardware, versions, thread settings and commit, as values for JSON.

    Args:
        device: that is measured on.
        settings: of the process, to be told besides.
    """
    device = torch.device(device)
    found: dict[str, object] = {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: number for name in _PACKAGES if (number := version_of(name))},
        "commit": _commit(),
        **settings,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = {
            "runtime": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "tf32": [tensor_float32(device), torch.backends.cuda.matmul.fp32_precision == "tf32"],
        }
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def version_of(package: str) -> str | None:
    """Of an installed package; None if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit of this code, with `-dirty` if it was changed since; `unknown` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


# In what precision a device computes.


def is_bfloat16(precision: object) -> bool:
    """Whether a trainer of that precision (`bf16-mixed`, `32-true`, ...) computes in bfloat16."""
    return str(precision).startswith("bf16")


def tensor_float32(device: torch.device | str) -> bool:
    """Whether the device's convolutions round the factors of float32 to TF32's ten bits, PyTorch's default on CUDA."""
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # absent from its types
    return torch.device(device).type == "cuda" and bool(conv.fp32_precision == "tf32")
