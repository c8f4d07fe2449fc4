"""What a network costs besides time: parameters, operations, memory, bytes on disk."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from math import nan
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations of one forward pass, two for a multiply-add, counted on the network that runs.

    >>> flops(nn.Conv2d(2, 4, 3), torch.zeros(1, 2, 5, 5)) == 2 * 4 * 2 * 9 * 9
    True
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return int(counter.get_total_flops())


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Bytes of activations that a forward pass in training keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    # Held until counted, so that no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(images)
        total = sum(storages.values())
    del output
    return total


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes that a call holds at once beyond what was there before it.

    On CUDA as its allocator counts. On the CPU the tensors that are alive, so that neither another network's memory
    nor an allocator that keeps what was freed is counted (as it would be in the size of the process); what a kernel
    takes for itself is not seen, nor what compiled code allocates.

    >>> peak_bytes(lambda: torch.zeros(1000) + 1)
    8000
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    live = _LiveTensors()
    with live:
        call()
    return live.peak


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _has_storage(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _has_storage(leaf) and _address(leaf) not in given:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        size = storage.nbytes()
        self.known.add(storage)
        weakref.finalize(storage, self._remove, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _remove(self, size: int) -> None:
        self.now -= size


def _has_storage(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def file_bytes(network: nn.Module) -> int:
    """Bytes of the network's parameters and buffers in a safetensors file.

    >>> file_bytes(nn.Linear(1000, 1000, bias=False)) - 4 * 1000 * 1000 < 200
    True
    """
    return len(safetensors.torch.save({name: value.contiguous() for name, value in network.state_dict().items()}))


def share_of_ideal(speedup: float, ideal: float) -> float:
    """Part of the ideal saving of time that is reached: (1 - 1/speedup) / (1 - 1/ideal); NaN if nothing is to save.

    >>> share_of_ideal(2.0, 4.0)
    0.6666666666666666
    """
    return (1 - 1 / speedup) / (1 - 1 / ideal) if ideal > 1 else nan
