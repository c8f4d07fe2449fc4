"""The time of a training step of all contenders in turn; their losses are compared, waits for the device counted."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import GreenletExit, greenlet  # type: ignore[import-untyped]
from torch.profiler import ProfilerActivity, profile

from benchmarks.training.contenders import CONTENDERS, SAME_AS, Pause, Run
from benchmarks.training.task import Task
from lt_lightning.execution.machine import tensor_float32
from lt_lightning.execution.timing import Timing, interleaved, stopwatch

STOPPING = (signal.SIGTERM, signal.SIGINT)
TOLERANCE = {"exact": 1e-4, "tf32": 1e-2, "bfloat16": 0.05}  # of the first losses, relative; the others by rounding
PROFILED = 2
WAITS = frozenset(
    {
        "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero",  # a value is read
        "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """The step of one contender.

    Attributes:
        contender: name of `CONTENDERS`.
        milliseconds: median of a step.
        p5: 5th percentile, milliseconds.
        p95: 95th percentile, milliseconds.
        samples: number of turns.
        to_bare: median over that of `bare`; None without it.
        to_dense: median over that of `dense`; None without it.
        compared: contender whose losses it must have; empty where the arithmetic or the images differ.
        difference: largest relative difference of a loss to that contender's; None if there is none.
        losses: losses of the first steps.
        waits: number of waits for the device in a step (reading a value counts on a CPU, too); None if not counted.
    """

    contender: str
    milliseconds: float
    p5: float
    p95: float
    samples: int
    to_bare: float | None
    to_dense: float | None
    compared: str
    difference: float | None
    losses: Sequence[float]
    waits: float | None


def contest(
    task: Task, names: Iterable[str], samples: int, repeats: int = 1, limit: float = float("inf")
) -> list[Step]:
    """Time the steps of several trainings of one task, in turn.

    Args:
        task: task with steps for all turns, see `steps_for`.
        names: names of `CONTENDERS`.
        samples: number of turns, of which the median counts.
        repeats: number of steps of a turn; more than one lets a device work ahead, as it does in a training.
        limit: seconds after which no further turn begins.

    Raises:
        ValueError: if a name is unknown.
        RuntimeError: if losses differ that have to agree.
    """
    names = list(names)
    if unknown := sorted(set(names) - set(CONTENDERS)):
        raise ValueError(f"contender={unknown[0]!r} is not one of {', '.join(CONTENDERS)}")
    runs = {name: Run(task, CONTENDERS[name]) for name in names}
    steps = {name: Stepwise(run) for name, run in runs.items()}
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    try:
        for each in steps.values():
            each.advance()  # up to the first step that counts
        calls = {name: _turn(each, repeats) for name, each in steps.items()}
        timings = interleaved(calls, stopwatch(task.setting.device), samples, slot=0, warm_up=0, limit=limit)
        waits = {name: _waits(each) for name, each in steps.items() if name in ("bare", "dense", "pruned")}
    finally:
        for each in steps.values():
            each.close()
        for number, handler in handlers.items():  # each fit restores the handler of the fit before it
            signal.signal(number, handler)
    differences = {name: _difference(runs, name) for name in names}
    for name, difference in differences.items():
        if difference is not None and not difference <= TOLERANCE[_rounding(task)]:
            raise RuntimeError(f"the losses of {name} differ from those of {SAME_AS[name]} by {difference:.1e}")
    return [
        Step(
            name, timing.median / repeats * 1e3, timing.p5 / repeats * 1e3, timing.p95 / repeats * 1e3, timing.samples,
            _ratio(timing, timings.get("bare")), _ratio(timing, timings.get("dense")),
            SAME_AS[name] if differences[name] is not None else "", differences[name],
            runs[name].values()[:_LOSSES], waits.get(name),
        )
        for name, timing in timings.items()
    ]  # fmt: skip


_LOSSES = 8  # later ones differ by more than rounding where a device's order of summation varies


def _rounding(task: Task) -> str:
    return "bfloat16" if task.setting.bfloat16 else "tf32" if tensor_float32(task.setting.device) else "exact"


def steps_for(samples: int, repeats: int = 1) -> int:
    """Return the number of steps that a task needs: turns, warm-up, profile, and one that is never reached."""
    return (samples + 1) * repeats + PROFILED + 2


def _turn(steps: Stepwise, repeats: int) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(repeats):
            steps.advance()

    return turn


def _waits(steps: Stepwise) -> float:
    """Count how often a step makes the host wait for the device, without the profiler's own wait at its end."""
    return (_profiled(steps, PROFILED) - _profiled(steps, 0)) / PROFILED


def _profiled(steps: Stepwise, count: int) -> int:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiled:
        for _ in range(count):
            steps.advance()
    return sum(event.count for event in profiled.key_averages() if event.key in WAITS)


def _difference(runs: dict[str, Run], name: str) -> float | None:
    if (other := SAME_AS.get(name)) not in runs:
        return None
    ours, theirs = (runs[each].values()[:_LOSSES] for each in (name, other))
    pairs = list(zip(ours, theirs, strict=False))
    return max(abs(a - b) / max(abs(b), 1e-9) for a, b in pairs)


def _ratio(timing: Timing, other: Timing | None) -> float | None:
    return None if other is None else timing.median / other.median


class Stepwise:
    """A function that runs from one pause to the next, so that whole trainings can be timed against each other.

    It stays in the caller's thread, as a greenlet, since it calls code such as `Trainer.fit` that knows nothing of
    pauses. In threads of their own, trainings would each have their own pool of OpenMP threads and their own memory
    arena, and would not run as they do alone.

    Args:
        run: function that takes the function by which it pauses.

    >>> def count(pause):
    ...     for number in range(3):
    ...         pause()
    ...         print(number)
    >>> steps = Stepwise(count)
    >>> steps.advance()  # up to the first pause
    >>> steps.advance()
    0
    >>> steps.close()
    """

    def __init__(self, run: Callable[[Pause], object]) -> None:
        self._inner: greenlet = greenlet(run)
        self._begun = False

    def advance(self) -> None:
        """Go on to the next pause.

        Raises:
            RuntimeError: if the function ends instead.
            Exception: if the function raises it.
        """
        begun, self._begun = self._begun, True
        self._inner.parent = greenlet.getcurrent()
        self._inner.switch() if begun else self._inner.switch(self._pause)
        if self._inner.dead:
            raise RuntimeError("it has ended: there are no more steps")

    def close(self) -> None:
        """End the function at its pause; `finally` blocks run."""
        if self._begun and not self._inner.dead:
            self._inner.parent = greenlet.getcurrent()
            self._inner.throw(GreenletExit)

    def _pause(self) -> None:
        parent: Any = self._inner.parent
        parent.switch()
