"""`torch.compile` for networks of which many are trained in one process."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

Compile = bool | Literal["graphs"]

_options: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


def compile_network(network: nn.Module, how: Compile = True, **options: Any) -> None:
    """Compiles a network in place, at its first call; its parameters keep their names.

    Isolated from others (see `isolating`). What the compiler makes of equal shapes is found again in its cache on disk.

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
    network.compile(**isolating(), **options)


def isolating() -> dict[str, Any]:
    """Options of `torch.compile` that let every one of many networks be compiled.

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
    """Compiles a network if another one is compiled, and as that is.

    Args:
        network: to compile, in place of the other one.
        other: compiled by `compile_network`, by its own `compile`, or not at all.
    """
    if other._compiled_call_impl is not None:
        compile_network(network, **_options.get(other, {}))
