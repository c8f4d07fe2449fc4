"""Locks among real processes: one owner, freed by its death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lt_lightning.results import locks
from lt_lightning.results.locks import FILE, Lock, owner_of

HOLD = """
import sys, time
from pathlib import Path
from lt_lightning.results.locks import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.take()
lock.write("epoch 3/12")
print("held", flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that has taken the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_gets_the_lock_when_its_owner_is_killed(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        lock = Lock(tmp_path)
        assert not lock.take()
        owner = owner_of(tmp_path)
        assert owner is not None
        assert (owner.pid, owner.activity) == (process.pid, "epoch 3/12")
        assert str(process.pid) in str(owner)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / FILE).exists()  # nobody tidied up
    assert owner_of(tmp_path) is None
    assert lock.take()
    owner = owner_of(tmp_path)
    assert owner is not None
    assert owner.pid == os.getpid()
    lock.release()


def test_a_released_lock_leaves_nothing_and_can_be_taken_again(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "place"), Lock(tmp_path / "place")
    for _ in range(3):
        assert first.take()
        assert not second.take()
        first.release()
        assert list((tmp_path / "place").iterdir()) == []
        assert second.take()
        assert not first.take()
        second.release()


def test_a_worker_that_was_forked_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    assert lock.take()
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        lock.release()
        other = Lock(tmp_path)
        assert other.take()
        other.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_among_many_threads_one_owner_at_a_time(tmp_path: Path) -> None:
    inside = 0
    most = 0
    taken: list[int] = []

    def work(number: int) -> None:
        nonlocal inside, most
        lock = Lock(tmp_path)
        for _ in range(20):
            while not lock.take():
                time.sleep(0.0005)
            inside += 1
            most = max(most, inside)
            taken.append(number)
            inside -= 1
            lock.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert sorted(taken) == sorted(list(range(4)) * 20)


def test_an_owner_on_another_machine_counts_until_its_heart_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system where a machine does not see the locks of others: nobody holds one here."""
    (tmp_path / FILE).write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": 0.0, "activity": "epoch 1/2"}))
    lock = Lock(tmp_path)
    assert not lock.take()
    owner = owner_of(tmp_path)
    assert owner is not None
    assert owner.host == "elsewhere"
    monkeypatch.setattr(locks, "STALE", 0.2)
    for _ in range(3):
        time.sleep(0.15)
        os.utime(tmp_path / FILE)  # its heart
        assert not lock.take()
    time.sleep(0.25)
    assert owner_of(tmp_path) is None
    assert lock.take()
    lock.release()


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.05)
    lock = Lock(tmp_path)
    assert lock.take()
    before = (tmp_path / FILE).stat().st_mtime_ns
    time.sleep(0.3)
    assert (tmp_path / FILE).stat().st_mtime_ns > before
    lock.release()


@pytest.mark.parametrize("content", ["", '{"host": ', "[]", "\x00"])
def test_a_torn_note_of_a_dead_owner_is_no_obstacle(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    assert owner_of(tmp_path) is None
    lock = Lock(tmp_path)
    assert lock.take()
    lock.release()
