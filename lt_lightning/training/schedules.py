"""Learning rates over one training: pure functions of the step that return a factor of the base rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol


class Schedule(Protocol):
    """A function of the step: the factor by which the base learning rate is multiplied."""

    def __call__(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """Return the factor for a step.

        Args:
            step: number of optimizer steps taken before, from the beginning of this training (not of the search).
            total_steps: number of optimizer steps of this training; from there on the factor stays the last one.
            steps_per_epoch: number of optimizer steps of an epoch.

        Raises:
            ValueError: if the schedule does not fit into a training of that length.
        """


@dataclass(frozen=True)
class Constant:
    """The base rate throughout."""

    def __call__(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """See `Schedule`."""
        return 1.0


@dataclass(frozen=True)
class Milestones:
    """The rate is multiplied by `factor` at every milestone. The paper: x0.1 at 80 and 120 of 160 epochs.

    Attributes:
        epochs: milestones in epochs; exactly one of `epochs` and `shares` is given.
        shares: milestones as shares of the training, so that they fit any length.
        factor: factor in (0, 1] by which a milestone multiplies the rate.
        warmup_epochs: number of epochs at the beginning over which the rate rises linearly to the base rate.

    Raises:
        ValueError: if not exactly one of `epochs` and `shares` is given, or a value is out of range.

    >>> schedule = Milestones(shares=(0.5, 0.75))
    >>> [round(schedule(step, 8, 1), 3) for step in range(8)]
    [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """

    epochs: Sequence[float] | None = None
    shares: Sequence[float] | None = None
    factor: float = 0.1
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.shares is None):
            raise ValueError(f"epochs={self.epochs}, shares={self.shares}: give exactly one of them, the other None")
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor={self.factor}: must be in (0, 1]")
        _check_warmup(self.warmup_epochs)
        for name in ("epochs", "shares"):
            milestones = getattr(self, name)
            if milestones is None:
                continue
            object.__setattr__(self, name, tuple(milestones))  # a list would not hash
            limit = 1 if name == "shares" else math.inf
            ascending = all(a < b for a, b in pairwise(milestones))
            if not ascending or not all(0 < milestone < limit for milestone in milestones):
                raise ValueError(f"{name}={list(milestones)}: must ascend and lie in (0, {limit})")

    def __call__(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """See `Schedule`."""
        if self.epochs is not None:
            milestones = [round(epoch * steps_per_epoch) for epoch in self.epochs]
            if any(milestone >= total_steps for milestone in milestones):
                length = f"{total_steps / steps_per_epoch:g}"
                raise ValueError(f"epochs={list(self.epochs)}: must lie within the training of {length} epochs")
        else:
            milestones = [round(share * total_steps) for share in self.shares or ()]
        passed = sum(step >= milestone for milestone in milestones)
        warmup = _warmup(step, self.warmup_epochs, total_steps, steps_per_epoch)
        return warmup * math.pow(self.factor, passed)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the base rate to `final` (Loshchilov and Hutter, ICLR 2017), after a linear warm-up.

    Attributes:
        warmup_epochs: number of epochs at the beginning over which the rate rises linearly to the base rate.
        final: factor at the end, in [0, 1].

    Raises:
        ValueError: if a value is out of range.

    >>> [round(Cosine()(step, 4, 1), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    warmup_epochs: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_epochs)
        _check_share(final=self.final)

    def __call__(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """See `Schedule`."""
        warmup = _warmup(step, self.warmup_epochs, total_steps, steps_per_epoch)
        start = round(self.warmup_epochs * steps_per_epoch)
        return warmup * _half_cosine(1.0, self.final, _progress(step, start, total_steps))


@dataclass(frozen=True)
class OneCycle:
    """Up along half a cosine and down along another (Smith and Topin, 2017): the base rate is the highest.

    Attributes:
        peak: where the base rate is reached, as a share of the training, in (0, 1).
        start: factor at the beginning, in [0, 1].
        final: factor at the end, in [0, 1].

    Raises:
        ValueError: if a value is out of range.

    >>> [round(OneCycle(peak=0.5)(step, 4, 1), 3) for step in range(5)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """

    peak: float = 0.3
    start: float = 0.04
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_share(start=self.start, final=self.final)
        if not 0 < self.peak < 1:
            raise ValueError(f"peak={self.peak}: must be in (0, 1), a share of the training")

    def __call__(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """See `Schedule`."""
        top = self.peak * total_steps
        if step < top:
            return _half_cosine(self.start, 1.0, _progress(step, 0, top))
        return _half_cosine(1.0, self.final, _progress(step, top, total_steps))


def _progress(step: int, start: float, end: float) -> float:
    """Return how far `step` is on the way from `start` to `end`, in [0, 1]."""
    return 1.0 if step >= end else max(0.0, (step - start) / (end - start))


def _half_cosine(start: float, end: float, progress: float) -> float:
    """Go from `start` (progress 0) to `end` (progress 1), level at both."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _warmup(step: int, epochs: float, total_steps: int, steps_per_epoch: float) -> float:
    """Rise linearly to 1, which is reached with the last step of `epochs`."""
    steps = round(epochs * steps_per_epoch)
    if steps and steps >= total_steps:
        length = f"{total_steps / steps_per_epoch:g}"
        raise ValueError(f"warmup_epochs={epochs}: must be shorter than the training of {length} epochs")
    return min(1.0, (step + 1) / steps) if steps else 1.0


def _check_warmup(epochs: float) -> None:
    if not 0 <= epochs < math.inf:
        raise ValueError(f"warmup_epochs={epochs}: must be 0 or more")


def _check_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: must be in [0, 1]")
