"""`torch.compile` for networks of which many are trained in one process."""

from __future__ import annotations

import inspect
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

Compile = bool | Literal["graphs"]

ISOLATED: Final[dict[str, Any]] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
)
"""Option of `torch.compile` from PyTorch 2.12 on; before, it shares one limit of variants among networks of a class."""

_options: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


def compile_network(network: nn.Module, how: Compile = True, **options: Any) -> None:
    """Compiles a network in place, at its first call; its parameters keep their names.

    Isolated from others: networks of one class share the code of `forward`, and with it PyTorch's limit of compiled
    variants (8), beyond which a further ticket's smaller network would silently run uncompiled. What the compiler
    makes of equal shapes is found again in its cache on disk.

    Args:
        network: to compile.
        how: False leaves it as it is. `graphs` also replays its kernels from CUDA graphs, which saves the time of
            launching them: worth it where they are short, in small networks and batches.
        options: of `torch.compile`, further ones.
    """
    if not how:
        return
    if how == "graphs":
        options = {"mode": "reduce-overhead", "dynamic": False, **options}
    _options[network] = options
    network.compile(**ISOLATED, **options)


def compile_like(network: nn.Module, other: nn.Module) -> None:
    """Compiles a network if another one is compiled, and as that is.

    Args:
        network: to compile, in place of the other one.
        other: compiled by `compile_network`, by its own `compile`, or not at all.
    """
    if other._compiled_call_impl is not None:
        compile_network(network, **_options.get(other, {}))
