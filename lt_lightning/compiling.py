"""`torch.compile` for networks of which many are trained in one process."""

from __future__ import annotations

from typing import Any

from torch import nn


def compile_network(network: nn.Module, **options: Any) -> None:
    """Compiles a network in place, at its first call; its parameters keep their names.

    Isolated from others: networks of one class share the code of `forward`, and with it PyTorch's limit of compiled
    variants (8), beyond which a further ticket's smaller network would silently run uncompiled. What the compiler
    makes of equal shapes is found again in its cache on disk.

    Args:
        network: to compile.
        options: of `torch.compile`.
    """
    network.compile(isolate_recompiles=True, **options)
