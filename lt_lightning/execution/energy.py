"""Energy of a call on an NVIDIA GPU, where its driver counts it (NVML, package `nvidia-ml-py`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from lt_lightning.execution.timing import Call

Counter = Callable[[], float]
"""Joules since some moment."""


def nvml_counter(device: torch.device | str) -> Counter | None:
    """The energy counter of a CUDA device; None for another device, without the package, or where NVML has none."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    try:
        pynvml = import_module("pynvml")
    except ImportError:
        return None
    return counter_of(pynvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def counter_of(nvml: Any, uuid: str) -> Counter | None:
    """The energy counter of the GPU with this UUID (its index may differ between NVML and CUDA)."""
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
    """Joules of one call, the device's idle power included: the mean over at least `seconds` of repeated calls.

    Args:
        call: warm.
        counter: of the device.
        wait: returns when the device has done what was submitted.
        seconds: the counter is refreshed some ten times a second, so less than half a second tells little.
        clock: seconds.
    """
    wait()
    start, before, calls = clock(), counter(), 0
    while clock() - start < seconds:
        call()
        wait()
        calls += 1
    return (counter() - before) / calls
