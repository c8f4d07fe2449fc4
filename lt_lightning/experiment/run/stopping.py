"""How SIGTERM and Ctrl-C end a job, so that the same command goes on."""

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
    """A signal ends the job; what is needed to go on is on disk. The exit code is 128 + the signal's number.

    Attributes:
        name: name of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class StopSignals:
    """Notes a signal instead of ending by it; a second signal ends the job at once.

    Attributes:
        number: number of the signal that came; None if none did.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def listen(self) -> None:
        """From now on note SIGTERM and Ctrl-C, instead of what Lightning does; handlers of others are put back."""
        if threading.current_thread() is threading.main_thread():  # no other thread may install handlers
            for number, before in self._before.items():
                signal.signal(number, self._note if _is_ours(before) else before)

    def check(self) -> None:
        """End the job if a signal came.

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
    """Let SIGTERM and Ctrl-C raise `Stopped` within the context, and print one line when they do.

    A handler that someone else has installed for SIGTERM stays, such as that of submitit, which puts a preempted job
    back into the queue.

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
        if processes() == 1:  # the process that watches several prints the line for them
            print(f"stopped by {stopped.name}: the same command goes on from here", file=sys.stderr)
        raise
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _is_ours(handler: Any) -> bool:
    """Return whether a handler is Python's own or ours."""
    return handler in (signal.SIG_DFL, signal.default_int_handler, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
