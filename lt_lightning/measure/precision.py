"""In what precision a device computes."""

from __future__ import annotations

from typing import Any

import torch


def is_bfloat16(precision: object) -> bool:
    """Whether a trainer of that precision (`bf16-mixed`, `32-true`, ...) computes in bfloat16."""
    return str(precision).startswith("bf16")


def tensor_float32(device: torch.device | str) -> bool:
    """Whether the device's convolutions round the factors of float32 to TF32's ten bits, PyTorch's default on CUDA."""
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # absent from its types
    return torch.device(device).type == "cuda" and bool(conv.fp32_precision == "tf32")
