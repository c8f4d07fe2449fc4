"""What is still to be trained, and how long that takes, what jobs share counted once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one task.

    Attributes:
        folder: of the task; what several jobs share has the same.
        trainings: that are still to be run.
        epochs: of them.
        seconds: of an epoch.
        at_most: whether bisection may do without it.
    """

    folder: str
    trainings: int
    epochs: int
    seconds: float
    at_most: bool = False


def told(costs: Iterable[Cost]) -> str:
    """In one line.

    >>> told([Cost("a", 3, 20, 1.5), Cost("b", 1, 10, 1.5), Cost("a", 3, 20, 1.5)]).partition(" (")[0]
    '4 trainings of 30 epochs in all, 1.5 s an epoch: 45 s'
    """
    each = {cost.folder: cost for cost in costs}.values()
    if not each:
        return "nothing to train: everything is there"
    speeds = sorted({round(cost.seconds, 6) for cost in each})
    speed = " to ".join(duration(seconds) for seconds in dict.fromkeys((speeds[0], speeds[-1])))
    seconds = sum(cost.epochs * cost.seconds for cost in each)
    end = time.strftime("%b %d %H:%M", time.localtime(time.time() + seconds))
    trainings, epochs = sum(cost.trainings for cost in each), sum(cost.epochs for cost in each)
    bound = "at most " if any(cost.at_most for cost in each) else ""
    return (
        f"{bound}{trainings} trainings of {epochs} epochs in all, {speed} an epoch: {duration(seconds)} "
        f"(done {end}, if begun now and one after the other)"
    )


def duration(seconds: float) -> str:
    """For people.

    >>> duration(0.1234), duration(59.9), duration(125), duration(3725)
    ('0.12 s', '60 s', '2:05 min', '1:02:05 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h" if minutes >= 60 else f"{minutes}:{rest:02d} min"
