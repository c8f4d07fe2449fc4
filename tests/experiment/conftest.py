"""A reader of W&B's files, and the script in processes of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from tests.runs import timed_in_no_time


class Scripted:
    """The script at work in a process of its own, that was started in no time."""

    def __init__(self, context: ForkServerContext, log: Path, options: tuple[str, ...], delay: float) -> None:
        self._log = log
        if log.is_file():  # not a terminal
            log.unlink()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run: Any = import_module("children").run_script
        self._process = context.Process(target=run, args=(options, environment, str(log), delay))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def printed(self) -> str:
        """All that it has written by now."""
        return self._log.read_text() if self._log.exists() else ""

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code: negative for a signal."""
        self._process.join(240)
        assert self._process.exitcode is not None
        return self._process.exitcode

    def end(self) -> None:
        """Kills it, if it is still there."""
        if self._process.is_alive():
            self.send_signal(signal.SIGKILL)
        self._process.join()


@pytest.fixture(scope="module")
def start(forkserver: ForkServerContext) -> Iterator[Callable[..., Scripted]]:
    """Starts the script: `start(LOG, *OPTIONS, delay=0.0)`, see `children.run_script`."""
    started: list[Scripted] = []

    def start(log: Path, *options: str, delay: float = 0.0) -> Scripted:
        started.append(Scripted(forkserver, log, options, delay))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))  # so that the processes find `children.py`
        yield start
    for each in started:
        each.end()


@pytest.fixture(scope="module", autouse=True)
def _forms_are_timed_in_no_time() -> Iterator[None]:
    """Which form of a regrouped layer is the fastest does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lt_lightning.execution.form_choice.time_layers", timed_in_no_time)
        yield


@pytest.fixture(scope="session")
def wandb_records() -> Callable[[Path], list[Any]]:
    """Reads a W&B record: LevelDB's log format, blocks of 32 KiB with parts of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    def read(path: Path) -> list[Any]:
        content, parts, position = path.read_bytes(), [b""], 7
        while position + 7 <= len(content):
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
            size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
            parts[-1] += content[position + 7 : position + 7 + size]
            if kind in (1, 4):
                parts.append(b"")
            position += 7 + size
        records = []
        for data in parts:
            records.append(Record())
            records[-1].ParseFromString(data)
        return records

    return read
