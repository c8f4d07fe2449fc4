"""Functions that go on step by step, in turn, in one thread: whole trainings can so be timed against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, greenlet  # type: ignore[import-untyped]

Pause = Callable[[], None]
"""Called by a training before each of its steps: returns when it is its turn again."""


class Stepwise:
    """A function that is run from one pause to the next, and meanwhile stands still.

    It stays in the caller's thread (a coroutine, as the function may call what knows nothing of that, a `Trainer.fit`
    for instance). In threads of their own, trainings would each have their own pool of OpenMP threads and their own
    memory arena, and would run otherwise than alone.

    Args:
        run: gets the function that pauses it.

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
        """Goes on to the next pause.

        Raises:
            RuntimeError: if the function ends instead.
            Exception: what the function raises.
        """
        begun, self._begun = self._begun, True
        self._inner.parent = greenlet.getcurrent()
        self._inner.switch() if begun else self._inner.switch(self._pause)
        if self._inner.dead:
            raise RuntimeError("it has ended: there are no more steps")

    def close(self) -> None:
        """Ends the function at its pause; `finally` blocks are run."""
        if self._begun and not self._inner.dead:
            self._inner.parent = greenlet.getcurrent()
            self._inner.throw(GreenletExit)

    def _pause(self) -> None:
        parent: Any = self._inner.parent
        parent.switch()
