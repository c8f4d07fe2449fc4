"""Ending a job that was asked to end, by SIGTERM or Ctrl-C, so that the same command goes on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lt_lightning.training.processes import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal asked the job to end; what is needed to go on is on disk. The exit code is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class Wish:
    """Whether a signal asked for the end, noted instead of dying of it; a second signal ends at once.

    Attributes:
        number: of the signal that came; None if none did.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def listen(self) -> None:
        """From now on SIGTERM and Ctrl-C are noted, in place of what Lightning does; see `stoppable` for others."""
        if threading.current_thread() is threading.main_thread():  # no other may
            for number, before in self._before.items():
                signal.signal(number, self._note if _is_ours(before) else before)

    def check(self) -> None:
        """Ends the job, if that was asked for.

        Raises:
            Stopped: if a signal came.
        """
        if self.number is not None:
            raise Stopped(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Stopped(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM and Ctrl-C raise `Stopped`, and one line says so at the end.

    What someone else has installed for SIGTERM (submitit, which puts a preempted job back into the queue) stays.

    Raises:
        Stopped: if a signal came.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if _is_ours(before[number])]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    except Stopped as stopped:
        if processes() == 1:  # of several, the one that watches them says so
            print(f"stopped by {stopped.name}: the same command goes on from here", file=sys.stderr)
        raise
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _is_ours(handler: Any) -> bool:
    """Whether nobody else has installed it."""
    return handler in (signal.SIG_DFL, signal.default_int_handler, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
