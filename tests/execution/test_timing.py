"""Times are medians of interleaved samples, whatever tells the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lt_lightning.execution.timing import by_clock, by_events, compare_times, interleaved, stopwatch


class Clock:
    """Advances only when a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, *seconds: float) -> Callable[[], None]:
        durations = iter(seconds * 10_000)

        def run() -> None:
            self.log.append(name)
            self.now += next(durations)

        return run


class Device:
    """Does what is submitted later, in order; its events tell its own time, as CUDA's do."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.now = 0.0

    def submit(self, seconds: float) -> None:
        self.queue.append(lambda: self._advance(seconds))

    def _advance(self, seconds: float) -> None:
        self.now += seconds

    def event(self) -> DeviceEvent:
        return DeviceEvent(self)


class DeviceEvent:
    """A mark in the device's queue."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.passed_at: float | None = None

    def record(self) -> None:
        self.device.queue.append(self._pass)

    def _pass(self) -> None:
        self.passed_at = self.device.now

    def synchronize(self) -> None:
        while self.passed_at is None:
            self.device.queue.pop(0)()

    def elapsed_time(self, end_event: DeviceEvent) -> float:
        assert self.passed_at is not None
        assert end_event.passed_at is not None
        return 1e3 * (end_event.passed_at - self.passed_at)


def test_medians_and_percentiles_of_known_durations() -> None:
    clock = Clock()
    calls = {"slow": clock.call("slow", 2.0), "fast": clock.call("fast", 0.25)}
    timings = interleaved(calls, by_clock(lambda: clock.now), samples=5, slot=1.0)
    assert (timings["slow"].median, timings["fast"].median) == (2.0, 0.25)
    assert timings["fast"].p5 == timings["fast"].p95 == 0.25
    assert timings["slow"].samples == 5


def test_calls_are_interleaved_in_turns_of_alternating_order() -> None:
    clock = Clock()
    calls = {name: clock.call(name, 1.0) for name in ("a", "b")}
    interleaved(calls, by_clock(lambda: clock.now), samples=4, slot=0.5, warm_up=1)
    assert clock.log[4:] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_an_outlier_does_not_move_the_median() -> None:
    clock = Clock()
    durations = [1.0] * 3 + [1.0, 1.0, 50.0, 1.0, 1.0]  # two to warm up, one to size the slot
    timing = interleaved({"a": clock.call("a", *durations)}, by_clock(lambda: clock.now), samples=5, slot=0.5)["a"]
    assert timing.median == 1.0
    assert timing.p95 > 10


@pytest.mark.parametrize(("limit", "turns"), [(1000.0, 9), (25.0, 5), (1.0, 3)])
def test_turns_end_at_the_limit_but_not_before_the_third(limit: float, turns: int) -> None:
    clock = Clock()
    calls = {"a": clock.call("a", 2.0), "b": clock.call("b", 1.0)}  # slots of 2 + 3 x 1 seconds
    timings = interleaved(calls, by_clock(lambda: clock.now), samples=9, slot=3.0, limit=limit)
    expected = {"a": turns, "b": turns}
    assert {name: timing.samples for name, timing in timings.items()} == expected


def test_device_time_counts_not_the_time_of_submission() -> None:
    device = Device()
    measure = by_events(device.event)
    device.submit(100.0)  # what was there before does not count
    assert measure(lambda: device.submit(0.5), 4) == pytest.approx(0.5)
    calls = {"slow": lambda: device.submit(3.0), "fast": lambda: device.submit(1.0)}
    timings = interleaved(calls, measure, samples=3, slot=0.1)
    assert timings["slow"].median == pytest.approx(3.0)
    assert timings["fast"].median == pytest.approx(1.0)


def test_the_wall_clock_times_what_runs_on_the_cpu() -> None:
    measure = stopwatch("cpu")
    assert measure(lambda: sum(range(20_000)), 2) > measure(lambda: None, 2) > 0


def compared(slow: list[float], fast: list[float], wide: float, attempts: int = 3) -> tuple[Any, ...]:
    """The ratio of two functions whose turns take these seconds, and the number of turns of all attempts."""
    clock = Clock()
    ready = [1.0] * 3  # two to warm up, one to size the slot
    turns = len(slow) // attempts
    durations = [
        [second for start in range(0, len(each), turns) for second in ready + each[start : start + turns]]
        for each in (slow, fast)
    ]
    calls = [clock.call(name, *each) for name, each in zip(("slow", "fast"), durations, strict=True)]
    made = compare_times(calls[0], calls[1], by_clock(lambda: clock.now), turns, 1.0, wide, attempts)
    return made.ratio, made.spread, made.samples, clock.log.count("slow") - 3 * (clock.log.count("slow") // (turns + 3))


def test_a_ratio_keeps_the_spread_of_its_turns() -> None:
    """By hand: ratios 1, 2, 3, 4, 5, whose quartiles are 2 and 4."""
    assert compared([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5, wide=0.7, attempts=1) == (3.0, pytest.approx(2 / 3), 5, 5)
    assert compared([2.0, 2.0, 2.0, 2.0, 90.0], [4.0] * 5, wide=0.1, attempts=1) == (0.5, 0.0, 5, 5)  # one burst


def test_a_wide_ratio_is_measured_again_and_the_best_attempt_counts() -> None:
    wide, narrow = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 2.0, 2.2, 2.2, 2.0]
    assert compared([*wide, *narrow, *wide], [1.0] * 15, wide=0.2)[2:] == (5, 10)  # the second one is good enough
    ratio, spread, _, turns = compared([*wide, *narrow, *wide], [1.0] * 15, wide=0.01)
    assert (ratio, spread, turns) == (2.0, pytest.approx(0.1), 15)
