"""What a network costs besides time, in memory, on disk and in energy, and how far its results are from another's."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from math import nan
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lt_lightning.execution.cost import Setting, network_call, training_precision
from lt_lightning.execution.timing import Call
from lt_lightning.pruning.evaluation import relative_difference
from lt_lightning.pruning.masks import Masks


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Return the bytes of activations that a forward pass in training keeps for the backward pass."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    # The output lives until all is counted, so that no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(images)
        total = sum(storages.values())
    del output
    return total


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Return the most bytes that a call has at once beyond what was there before it.

    On CUDA its allocator counts. On the CPU these are the tensors that are alive, so that neither another network's
    memory nor an allocator that keeps what was freed is counted (as it would be in the size of the process); what a
    kernel takes for itself is not seen, nor what compiled code allocates.

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
    """Return the bytes of the network's parameters and buffers in a safetensors file.

    >>> file_bytes(nn.Linear(1000, 1000, bias=False)) - 4 * 1000 * 1000 < 200
    True
    """
    return len(safetensors.torch.save({name: value.contiguous() for name, value in network.state_dict().items()}))


def share_of_ideal(speedup: float, ideal: float) -> float:
    """Return the part of the ideal saving that is reached, (1 - 1/speedup) / (1 - 1/ideal); NaN if none is possible.

    >>> share_of_ideal(2.0, 4.0)
    0.6666666666666666
    """
    return (1 - 1 / speedup) / (1 - 1 / ideal) if ideal > 1 else nan


# Energy of a call on an NVIDIA GPU, where its driver counts it (NVML, package `nvidia-ml-py`).

Counter = Callable[[], float]
"""Returns the joules since some moment."""


def nvml_counter(device: torch.device | str) -> Counter | None:
    """Return the energy counter of a CUDA device; None elsewhere, without the package, or where NVML has none."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    try:
        pynvml = import_module("pynvml")
    except ImportError:
        return None
    return counter_of(pynvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def counter_of(nvml: Any, uuid: str) -> Counter | None:
    """Return the energy counter of the GPU with this UUID (its index may differ between NVML and CUDA)."""
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:  # no driver, or a GPU older than Volta
        return None
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3  # from millijoules


def joules(
    call: Call,
    counter: Counter,
    wait: Call = lambda: None,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the joules of one call, idle power included: the mean over at least `seconds` of repeated calls.

    Args:
        call: function that has run before.
        counter: counter of the device.
        wait: function that returns when the device has done what was submitted.
        seconds: shortest time to measure; the counter is refreshed some ten times a second.
        clock: function that returns seconds.
    """
    wait()
    start, before, calls = clock(), counter(), 0
    while clock() - start < seconds:
        call()
        wait()
        calls += 1
    return (counter() - before) / calls


def training_difference(
    masked: nn.Module,
    masks: Masks,
    small: nn.Module,
    small_masks: Masks,
    images: Tensor,
    setting: Setting,
) -> float:
    """Return the largest relative difference of two networks' logits after two training steps.

    Forward, backward and the optimizer's step have all to agree for the third forward pass to.

    Args:
        masked: full network with pruned weights at zero; both are left as they were.
        masks: masks that its training enforces.
        small: network that executes the same.
        small_masks: masks that its training enforces.
        images: images for both.
        setting: precision and memory format; the engine is eager.
    """
    logits = []
    for network, enforced in ((masked, masks), (small, small_masks)):
        trained = copy.deepcopy(network)
        # Steps large enough for a wrong gradient to be seen.
        step = network_call(
            trained, images, replace(setting, engine="eager", training=True), enforced, learning_rate=0.02
        )
        step()
        step()
        with torch.no_grad(), training_precision(images, setting):
            logits.append(trained(images))
    return relative_difference(logits[1], logits[0])
