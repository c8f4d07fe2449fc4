"""Temporary files and folders, and the removal of those that a killed process has left.

Whoever writes to a temporary file or folder holds the operating system's lock on it, which ends with the process. What
nobody holds is litter. Some file systems let a machine see only its own locks. Therefore every name tells the machine
that it was made on, and what another machine has made counts as litter only a day after its last change.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"  # end of the names of temporary files
DAY = 86_400.0  # seconds


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Make an empty file beside a path, under a hidden name, and hold it; it is removed if it is still there."""
    handle, partial = _held_file(path)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
        os.close(handle)


def _held_file(path: Path) -> tuple[int, Path]:
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.{_machine()}-", suffix=PARTIAL, dir=path.parent)
        _hold(handle)
        if Path(name).exists():  # another process may have taken it for litter before it was held
            return handle, Path(name)
        os.close(handle)


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder and hold it; it is removed at the end. What killed processes have left of the same name goes first.

    Args:
        prefix: how its name begins.
        parent: folder to make it in; the system's folder for temporary files if None.
    """
    parent = parent or Path(tempfile.gettempdir())
    clear_litter(parent, prefix, "")
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{_machine()}-", dir=parent, ignore_cleanup_errors=True) as name:
        handle = os.open(name, os.O_RDONLY)
        try:
            _hold(handle)
            yield Path(name)
        finally:
            os.close(handle)


def clear_litter(folder: Path, prefix: str = ".", suffix: str = PARTIAL) -> None:
    """Remove what killed processes have left in a folder, as far as that is allowed.

    Args:
        folder: folder to look into, but not into those in it.
        prefix: how the names begin.
        suffix: how they end.
    """
    ours = re.compile(rf"{re.escape(prefix)}(?:.*\.)?([0-9a-f]{{8}})-\w{{8}}{re.escape(suffix)}")
    for path in folder.glob(f"{glob.escape(prefix)}*{suffix}"):
        if (name := ours.fullmatch(path.name)) is None:
            continue
        with suppress(OSError):  # it is gone, somebody holds it, or it is somebody else's
            handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if name[1] == _machine() or time.time() - os.fstat(handle).st_mtime > DAY:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


def _hold(handle: int) -> None:
    with suppress(OSError):  # on a file system without locks nothing is ever taken for litter
        fcntl.flock(handle, fcntl.LOCK_EX)


def _machine() -> str:
    """Return a few digits that name this machine."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
