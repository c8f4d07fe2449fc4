"""Jobs small enough for tests, and how to start them in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from tests.runs import REFILL, SMALL

Compose = Callable[..., DictConfig]


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # so that the processes find `tasks.py`


class Forked:
    """What `subprocess.Popen` is to `launch`, for a copy of a process that has imported everything already."""

    def __init__(self, context: ForkServerContext, message: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        read, write = multiprocessing.Pipe(duplex=False)
        run: Any = import_module("tasks").run_rank
        given = (read, dict(message), dict(environment), str(Path.cwd()))
        self._process = context.Process(target=run, args=given, daemon=True)
        self._process.start()
        read.close()
        self.stdin = write  # closed when this process ends, however it does

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> None:
        self._process.join()


@pytest.fixture
def started(forkserver: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> list[Forked]:
    """Makes `launch` start its processes in no time; the list of them."""
    processes: list[Forked] = []

    def start(message: Mapping[str, Any], environment: Mapping[str, str]) -> Forked:
        processes.append(Forked(forkserver, message, environment))
        return processes[-1]

    monkeypatch.setattr(import_module("lt_lightning.training.processes"), "_start", start)
    return processes


@pytest.fixture
def small(tmp_path: Path, composed: Compose, started: list[Forked]) -> Compose:
    """Composes a small job, writing under `tmp_path / NAME`; its processes start in no time."""

    def small(name: str, *overrides: str) -> DictConfig:
        return composed(f"paths.root={tmp_path / name}", *SMALL, *REFILL, *overrides)

    return small
