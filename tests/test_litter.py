"""What killed processes leave is removed, and nothing that a live process holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lt_lightning.storage import litter
from lt_lightning.storage.files import replacing
from lt_lightning.storage.litter import clear_litter, scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from lt_lightning.storage.files import replacing
from lt_lightning.storage.litter import scratch_folder
folder = Path(sys.argv[1])
with replacing(folder / "table.csv"), scratch_folder("lt-lightning-", folder):
    print("held", flush=True)
    time.sleep(600)
"""


def left(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith((".table.csv.", "lt-lightning-")))


def clear(folder: Path) -> None:
    clear_litter(folder)
    with scratch_folder("lt-lightning-", folder):
        pass


def test_a_killed_process_s_files_go_and_a_live_one_s_stay(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    clear(tmp_path)
    assert len(left(tmp_path)) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(left(tmp_path)) == 2
    clear(tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
def test_another_machine_s_go_after_a_day(
    hours: int, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may see its own locks alone."""
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "another")
        handle, path = litter._held_file(tmp_path / "table.csv")
        os.close(handle)
    changed = path.stat().st_mtime
    monkeypatch.setattr("time.time", lambda: changed + 3600 * hours)
    clear_litter(tmp_path)
    assert path.exists() == stays


def test_what_others_have_named_alike_stays(tmp_path: Path) -> None:
    names = (".table.csv.abc.partial", "lt-lightning-mine", "lt-lightning-checkout-of-mine", "table.partial")
    for name in names:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_a_file_that_is_taken_before_it_is_held_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold: list[Callable[[int], None]] = [litter._hold]

    def late(handle: int) -> None:
        if hold:
            clear_litter(tmp_path)
            hold.pop()(handle)

    monkeypatch.setattr(litter, "_hold", late)
    with replacing(tmp_path / "file.txt") as partial:
        partial.write_text("whole")
    assert (tmp_path / "file.txt").read_text() == "whole"
