"""Jobs small enough for tests, and how to start them in several processes."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tests.runs import REFILL, SMALL

Compose = Callable[..., DictConfig]


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # so that the processes find `tasks.py`


@pytest.fixture
def started(forkserver: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `launch` start its processes in no time, as copies of one that has imported everything already."""
    monkeypatch.setattr("lt_lightning.training.processes.START", "forkserver")


@pytest.fixture
def small(tmp_path: Path, composed: Compose, started: None) -> Compose:
    """Composes a small job, writing under `tmp_path / NAME`; its processes start in no time."""

    def small(name: str, *overrides: str) -> DictConfig:
        return composed(f"paths.root={tmp_path / name}", *SMALL, *REFILL, *overrides)

    return small
