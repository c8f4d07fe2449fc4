"""Processes that are started, watched and ended together; real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from lt_lightning.training.processes import JobError, ProcessDiedError, launch

TWO = ("cpu", "cpu")
GRACE = "lt_lightning.training.processes.GRACE"


def test_returns_what_process_0_returned_and_leaves_the_caller_as_it_was() -> None:
    environment, path = dict(os.environ), list(sys.path)
    returned = launch("plain_tasks:add_ranks", {"key": [1, None]}, ("cpu",) * 3, threads=2)
    assert returned == {
        "sum": 3.0, "size": 3, "job": {"key": [1, None]}, "LOCAL_RANK": "0", "WORLD_SIZE": "3", "OMP_NUM_THREADS": "2",
        "blocked": ["SIGTERM", "SIGUSR1", "SIGUSR2"],  # which SLURM sends to all
    }  # fmt: skip
    assert (dict(os.environ), list(sys.path)) == (environment, path)
    assert not dist.is_initialized()


@pytest.mark.usefixtures("started")
def test_error_of_one_process_ends_all_and_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRACE, 0.1)
    with pytest.raises(JobError) as caught:
        launch("tasks:fail_on_one", {"how": "raise"}, TWO, 1)
    error = caught.value.error
    assert isinstance(error, FloatingPointError)
    assert "told by process 1" in str(error)
    assert caught.value.at == "the task in hand"
    (note,) = error.__notes__
    assert note.startswith("in process 1:")
    assert "tasks.py" in note


@pytest.mark.usefixtures("started")
def test_killed_process_ends_all_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRACE, 0.1)
    with pytest.raises(JobError) as caught:
        launch("tasks:fail_on_one", {"how": "killed"}, TWO, 1)
    assert isinstance(caught.value.error, ProcessDiedError)
    assert "process 1 of 2 was ended from outside (SIGKILL)" in str(caught.value.error)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "from lt_lightning.training.processes import launch\n"
        f"launch('plain_tasks:wait_long', {{'folder': {str(tmp_path)!r}}}, ['cpu', 'cpu'], 1)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    files = [tmp_path / "0", tmp_path / "1"]
    _wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
    parent.send_signal(number)
    parent.wait(60)
    _wait_until(lambda: not any(_alive(int(file.read_text())) for file in files))


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def _wait_until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 300  # the processes import what they need first
    while not condition():
        assert time.monotonic() < end, "not within five minutes"
        time.sleep(0.05)


@pytest.mark.parametrize(("key", "value"), [("LOCAL_RANK", "0"), ("SLURM_NTASKS", "2")])
def test_refuses_to_be_started_several_times(key: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=f"{key}={value} "):
        launch("plain_tasks:add_ranks", {}, TWO, 1)


@pytest.mark.usefixtures("started")
def test_disagreement_is_found_bit_for_bit_and_by_all() -> None:
    alike, different = launch("tasks:disagree", {}, TWO, 1)
    assert alike == ""
    assert different.startswith("masks in round 2 differ between processes 0 and 1: b is the first of 1")


@pytest.mark.usefixtures("started")
def test_batches_are_normalised_over_all_processes() -> None:
    assert max(launch("tasks:normalise", {}, TWO, 1)) < 2e-5
