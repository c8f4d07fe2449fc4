"""Times of several functions against each other: interleaved in one process, warm, as medians.

A machine's speed drifts (clocks, neighbours), so what is to be compared is run in turn, many times, and only ratios
are taken from it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]


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


def interleaved(
    calls: Mapping[str, Call],
    device: torch.device | str = "cpu",
    samples: int = 15,
    slot: float = 0.05,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times functions in turn; every second turn in the opposite order, so that no one always follows another.

    Args:
        calls: by name; each does its work and returns when it is submitted.
        device: that the work runs on; on CUDA a sample ends when the device is done.
        samples: turns.
        slot: seconds that the calls of one sample take at least, unless a single one takes longer.
        warm_up: calls before anything is timed, for compilation, caches and autotuning.
        clock: seconds; `time.process_time` for one thread on a machine that others use too.

    >>> timing = interleaved({"nothing": lambda: None}, samples=3, slot=0.001)["nothing"]
    >>> timing.p5 <= timing.median <= timing.p95
    True
    """
    wait = _waiter(torch.device(device))
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        for _ in range(warm_up):
            call()
        repeats[name] = max(1, int(slot / max(_seconds(call, 1, wait, clock), 1e-9)))
        repeats[name] = min(repeats[name], 10_000)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(samples):
        for name in order:
            seconds[name].append(_seconds(calls[name], repeats[name], wait, clock))
        order.reverse()
    return {name: _timing(values) for name, values in seconds.items()}


def _seconds(call: Call, repeats: int, wait: Call, clock: Callable[[], float]) -> float:
    wait()
    start = clock()
    for _ in range(repeats):
        call()
    wait()
    return (clock() - start) / repeats


def _waiter(device: torch.device) -> Call:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _timing(seconds: list[float]) -> Timing:
    if len(seconds) < 2:
        return Timing(seconds[0], seconds[0], seconds[0], len(seconds))
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return Timing(statistics.median(seconds), cuts[0], cuts[-1], len(seconds))
