"""Processes that are started, watched and ended together; real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed as dist

from lt_lightning.training.processes import REPLACED, ProcessDiedError, launch


@pytest.fixture
def plain() -> ModuleType:
    return import_module("plain_tasks")


@pytest.fixture
def rich() -> ModuleType:
    return import_module("tasks")


def test_returns_what_process_0_returned_and_leaves_the_caller_as_it_was(plain: ModuleType) -> None:
    environment, path = dict(os.environ), list(sys.path)
    handlers = [signal.getsignal(number) for number in REPLACED]
    returned = launch(plain.add_ranks, {"key": [1, None]}, 2)
    assert returned == {
        "sum": 1.0, "job": {"key": [1, None]}, "LOCAL_RANK": "0", "WORLD_SIZE": "2", "threads": 1,
        "ignored": ["SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGTERM", "SIGXFSZ"],  # those for the caller, and Python's own
    }  # fmt: skip
    assert (dict(os.environ), list(sys.path)) == (environment, path)
    assert [signal.getsignal(number) for number in REPLACED] == handlers
    assert not dist.is_initialized()


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("how", ["raises", "raises, waiting"])
def test_error_of_one_process_ends_all_and_is_raised(
    how: str, plain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt_lightning.training.processes.GRACE", 0.1)
    with pytest.raises(FloatingPointError, match="told by process 1") as caught:
        launch(plain.fail_on_one, how, 2)
    (note,) = caught.value.__notes__
    assert note.startswith("in process 1:")
    assert "plain_tasks.py" in note


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("how", ["killed", "killed, waiting"])
def test_killed_process_ends_all_and_is_named(how: str, plain: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lt_lightning.training.processes.GRACE", 0.1)
    with pytest.raises(ProcessDiedError, match=r"process 1 of 2 .*\(SIGKILL\)"):
        launch(plain.fail_on_one, how, 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    """Also those that hang."""
    program = (
        "import plain_tasks\n"
        "from lt_lightning.training import processes\n"
        "processes.LAST_WORDS = 1\n"
        f"if __name__ == '__main__': processes.launch(plain_tasks.wait_long, {str(tmp_path)!r}, 2)"
    )
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen([sys.executable, str(path)], env=environment, stderr=subprocess.DEVNULL)
    files = [tmp_path / "0", tmp_path / "1"]
    _wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
    parent.send_signal(number)
    _wait_until(lambda: not any(_alive(int(file.read_text())) for file in files))
    parent.wait(60)


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


@pytest.mark.usefixtures("started")
def test_disagreement_is_found_bit_for_bit_and_by_all(rich: ModuleType) -> None:
    alike, different = launch(rich.disagree, None, 2)
    assert alike == ""
    assert different.startswith("masks in round 2 differ between processes 0 and 1: b is the first of 1")


@pytest.mark.usefixtures("started")
def test_batches_are_normalised_over_all_processes(rich: ModuleType) -> None:
    assert max(launch(rich.normalise, None, 2)) < 2e-5
