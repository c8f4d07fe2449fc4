"""Times of several functions against each other: interleaved in one process, warm, as medians."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], object]
Stopwatch = Callable[[Call, int], float]
"""Seconds that one of so many calls takes."""

_FEWEST = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median: of all samples.
        p5: 5th percentile.
        p95: 95th percentile.
        samples: how many were taken, each the mean over a slot of repeated calls.
    """

    median: float
    p5: float
    p95: float
    samples: int


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        samples: turns, of which the median counts.
        slot: seconds of a turn's calls of one function, at least.
        limit: seconds of one setting's turns, after which no further turn begins (three are taken at least).
    """

    samples: int = 7
    slot: float = 0.05
    limit: float = 60.0


class Event(Protocol):
    """A mark in a device's stream of work, as `torch.cuda.Event`."""

    def record(self) -> None:
        """Puts the mark behind the work that was submitted."""

    def synchronize(self) -> None:
        """Waits until the device has passed the mark."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this mark to another."""


def by_clock(clock: Callable[[], float] = time.perf_counter) -> Stopwatch:
    """Times calls that return when their work is done. `time.process_time` suits one thread on a busy machine."""

    def measure(call: Call, repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats

    return measure


def by_events(make: Callable[[], Event]) -> Stopwatch:
    """Times calls that return when their work is submitted, by marks that the device itself sets before and after."""

    def measure(call: Call, repeats: int) -> float:
        start, end = make(), make()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats

    return measure


def stopwatch(device: torch.device | str) -> Stopwatch:
    """The stopwatch for work on a device: events on CUDA, the wall clock elsewhere."""
    if torch.device(device).type == "cuda":
        return by_events(lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
    return by_clock()


def interleaved(
    calls: Mapping[str, Call],
    measure: Stopwatch | None = None,
    samples: int = 15,
    slot: float = 0.05,
    warm_up: int = 2,
    limit: float = float("inf"),
) -> dict[str, Timing]:
    """Times functions in turn; every second turn in the opposite order, so that no one always follows another.

    Args:
        calls: by name.
        measure: of the device that the work runs on, see `stopwatch`; None is the wall clock.
        samples: turns.
        slot: seconds that the calls of one sample take at least, unless a single one takes longer.
        warm_up: calls before anything is timed, for compilation, caches and autotuning.
        limit: no further turn begins once the turns took so many seconds, but there are three at least.

    >>> timing = interleaved({"nothing": lambda: None}, samples=3, slot=0.001)["nothing"]
    >>> timing.p5 <= timing.median <= timing.p95
    True
    """
    measure = measure or by_clock()
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        for _ in range(warm_up):
            call()
        repeats[name] = min(max(1, int(slot / max(measure(call, 1), 1e-9))), 10_000)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for turn in range(samples):
        if turn >= _FEWEST and sum(sum(seconds[name]) * repeats[name] for name in order) >= limit:
            break
        for name in order:
            seconds[name].append(measure(calls[name], repeats[name]))
        order.reverse()
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    if len(seconds) < 2:
        return Timing(seconds[0], seconds[0], seconds[0], len(seconds))
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return Timing(statistics.median(seconds), cuts[0], cuts[-1], len(seconds))


# What the CPU's memory allocator does with freed memory, which costs time.

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER = -1
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets the process keep freed memory for its next allocations, rather than give it back to the system.

    By default glibc returns every large block when it is freed, so that each activation of each step is mapped anew
    and zeroed page by page. On two cores a training step of ResNet-18 (batch 64) takes 50 000 page faults so, 2 600
    after this call, and 7 % less time. It does as much as the variables MALLOC_MMAP_THRESHOLD_ and
    MALLOC_TRIM_THRESHOLD_ that are read when a process starts, without starting another. The process stays as large
    as it ever was.

    Returns:
        whether it took effect; False where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
