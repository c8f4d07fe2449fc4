"""The times of functions and of layers, measured in turn in one process, warm, as medians."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Call = Callable[[], object]
Stopwatch = Callable[[Call, int], float]
"""Returns the seconds that one of several calls takes, given the function and the number of calls."""

_FEWEST = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median: median of all samples.
        p5: 5th percentile.
        p95: 95th percentile.
        samples: number of samples, each the mean over a slot of repeated calls.
    """

    median: float
    p5: float
    p95: float
    samples: int


class Event(Protocol):
    """A mark in a device's stream of work, as `torch.cuda.Event`."""

    def record(self) -> None:
        """Put the mark behind the work that was submitted."""

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""

    def elapsed_time(self, end_event: Any) -> float:
        """Return the milliseconds from this mark to another."""


def by_clock(clock: Callable[[], float] = time.perf_counter) -> Stopwatch:
    """Return a stopwatch for calls that return when their work is done.

    `time.process_time` suits one thread on a busy machine.
    """

    def measure(call: Call, repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats

    return measure


def by_events(make: Callable[[], Event]) -> Stopwatch:
    """Return a stopwatch for calls that return before their work is done: the device sets marks around it."""

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
    """Return the stopwatch for work on a device: events on CUDA, the wall clock elsewhere."""
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
    """Time functions in turn; every second turn in the opposite order, so that none always follows another.

    Args:
        calls: functions by name.
        measure: stopwatch of the device that the work runs on, see `stopwatch`; None is the wall clock.
        samples: number of turns.
        slot: seconds that the calls of one sample take at least, unless a single one takes longer.
        warm_up: number of calls before anything is timed, for compilation, caches and autotuning.
        limit: seconds after which no further turn begins, but there are three at least.

    >>> timing = interleaved({"nothing": lambda: None}, samples=3, slot=0.001)["nothing"]
    >>> timing.p5 <= timing.median <= timing.p95
    True
    """
    turns = _turns(calls, measure or by_clock(), samples, slot, warm_up, limit)
    return {name: _timing(seconds) for name, seconds in turns.items()}


def _turns(
    calls: Mapping[str, Call], measure: Stopwatch, samples: int, slot: float, warm_up: int = 2, limit: float = math.inf
) -> dict[str, list[float]]:
    """Return the seconds of each turn, by function; see `interleaved`."""
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        for _ in range(warm_up):
            call()
        repeats[name] = min(max(1, int(slot / max(measure(call, 1), 1e-9))), 10_000)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    sequence = list(calls)
    for turn in range(samples):
        if turn >= _FEWEST and sum(sum(seconds[name]) * repeats[name] for name in sequence) >= limit:
            break
        for name in sequence:
            seconds[name].append(measure(calls[name], repeats[name]))
        sequence.reverse()
    return seconds


def _timing(seconds: list[float]) -> Timing:
    if len(seconds) < 2:
        return Timing(seconds[0], seconds[0], seconds[0], len(seconds))
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return Timing(statistics.median(seconds), cuts[0], cuts[-1], len(seconds))


@dataclass(frozen=True)
class TimeRatio:
    """The time of a function over that of another one.

    Attributes:
        ratio: median over median.
        spread: distance of the quartiles of the single turns' ratios, over their median; 0 with a single turn.
        samples: number of turns.
    """

    ratio: float
    spread: float
    samples: int


def compare_times(
    call: Call, base: Call, measure: Stopwatch, samples: int, slot: float, wide: float = math.inf, attempts: int = 3
) -> TimeRatio:
    """Time a function and its base in turn, anew if the turns disagree; the attempt whose turns agree best counts.

    Other work on the machine makes turns disagree.

    Args:
        call: function.
        base: function that it is compared with.
        measure: see `interleaved`, like `samples` and `slot`.
        samples: likewise.
        slot: likewise.
        wide: spread above which the measurement is repeated.
        attempts: number of measurements at most.
    """
    made: list[TimeRatio] = []
    while len(made) < attempts and (not made or made[-1].spread > wide):
        turns = _turns({"base": base, "call": call}, measure, samples, slot)
        made.append(_ratio(turns["call"], turns["base"]))
    return min(made, key=lambda each: each.spread)


def _ratio(seconds: Sequence[float], base: Sequence[float]) -> TimeRatio:
    ratios = [each / other for each, other in zip(seconds, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return TimeRatio(statistics.median(seconds) / statistics.median(base), (high - low) / middle, len(ratios))


# Single layers, at the shapes that they run at.

Shape = tuple[int, ...]


def time_layers(
    layers: Mapping[str, tuple[nn.Module, Shape]],
    batch_size: int,
    training: bool,
    bfloat16: bool = False,
    device: torch.device | str = "cpu",
    samples: int = 7,
    slot: float = 0.02,
    limit: float = float("inf"),
    measure: Stopwatch | None = None,
) -> dict[str, Timing]:
    """Time layers in turn, in channels_last; they are left as they were, and so are the random generators.

    Args:
        layers: module and shape of one sample of its input, by name.
        batch_size: number of samples.
        training: whether forward and backward are timed (gradients of input and parameters), or forward alone.
        bfloat16: whether everything is in bfloat16 (forward alone), or computed by autocast (forward and backward).
        device: device to measure on.
        samples: see `interleaved`, like `slot` and `limit`.
        slot: likewise.
        limit: likewise.
        measure: stopwatch; None is that of the device, see `stopwatch`.
    """
    calls = {}
    random = torch.Generator().manual_seed(0)  # what is trained afterwards is the same, timed or remembered
    for name, (module, shape) in layers.items():
        inputs = _laid_out(torch.randn(batch_size, *shape, generator=random).to(device))
        layer = copy.deepcopy(module).to(device)
        calls[name] = _both(layer, inputs, bfloat16, random) if training else _forward(layer, inputs, bfloat16)
    return interleaved(calls, measure or stopwatch(device), samples, slot, limit=limit)


def _laid_out(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _to_channels_last(layer: nn.Module, inputs: Tensor) -> None:
    if inputs.dim() == 4:
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from its types


def _forward(layer: nn.Module, inputs: Tensor, bfloat16: bool) -> Callable[[], None]:
    _to_channels_last(layer, inputs)
    if bfloat16:
        layer, inputs = layer.bfloat16(), inputs.bfloat16()

    def forward() -> None:
        with torch.inference_mode():
            layer(inputs)

    return forward


def _both(layer: nn.Module, inputs: Tensor, bfloat16: bool, random: torch.Generator) -> Callable[[], None]:
    _to_channels_last(layer, inputs)
    inputs = inputs.requires_grad_()

    def run() -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            outputs: Tensor = layer(inputs)
        return outputs

    like = run()
    gradient = torch.randn(like.shape, generator=random).to(like)

    def both() -> None:
        torch.autograd.grad(run(), (inputs, *layer.parameters()), gradient)

    return both
