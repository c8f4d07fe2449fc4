"""Locks of folders: a folder has one owner at a time, and its lock ends with the owner's process.

The lock is the operating system's (`flock` on a file in the folder), so that a killed process owns nothing any more.
NFS, and cluster file systems mounted with `flock`, keep it across machines; some are mounted so that a machine sees
only its own locks. Therefore the file names its owner, whose heartbeat renews the file's time: an owner on another
machine counts as alive until its heart has not beaten for `STALE` seconds. Two weaknesses remain on such a file
system: two machines that take a free folder in the same instant both get it, and a process that sleeps longer than
`STALE` loses its folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FILE = ".lock"
BEAT = 15.0  # seconds between heartbeats
STALE = 120.0  # seconds without a heartbeat after which an owner on another machine is taken for dead


@dataclass(frozen=True)
class Owner:
    """The process that owns a folder.

    Attributes:
        host: name of the machine.
        pid: number of the process.
        since: Unix time when it took the lock.
        activity: text for people that says what the process does.
    """

    host: str
    pid: int
    since: float
    activity: str = ""

    def __str__(self) -> str:
        since = time.strftime("%b %d %H:%M", time.localtime(self.since))
        activity = f": {self.activity}" if self.activity else ""
        return f"process {self.pid} on {self.host} since {since}{activity}"


class Lock:
    """A lock on a folder; `take` does not wait.

    Args:
        folder: folder to lock; it is made when the lock is taken, if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._handle: int | None = None
        self._owner = Owner("", 0, 0.0)
        self._released = threading.Event()
        self._last_beat = (0.0, 0.0)  # time of the file, and of our clock when it was first seen

    def take(self) -> bool:
        """Take the lock if nobody has it, and return whether that succeeded.

        Raises:
            OSError: if the file system has no locks, or the folder cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        if not (self._lock(handle) and self._is_current(handle) and not self._alive_elsewhere(handle)):
            os.close(handle)
            return False
        self._handle = handle
        self._owner = Owner(socket.gethostname(), os.getpid(), time.time())
        self.write("")
        self._released = threading.Event()
        threading.Thread(target=_beat, args=(handle, self._released), daemon=True).start()
        return True

    def write(self, activity: str) -> None:
        """Write into the file what the owner does."""
        assert self._handle is not None
        self._owner = replace(self._owner, activity=activity)
        content = json.dumps(asdict(self._owner)).encode()
        with suppress(OSError):  # a full disk must not end a training that writes nothing just now
            os.pwrite(self._handle, content, 0)
            os.ftruncate(self._handle, len(content))

    def release(self) -> None:
        """Release the lock and remove its file."""
        assert self._handle is not None
        self._released.set()
        self._path.unlink(
            missing_ok=True
        )  # while the lock is ours; another process that waits for it notices in `take`
        fcntl.flock(self._handle, fcntl.LOCK_UN)  # forked workers may still have the file open
        os.close(self._handle)
        self._handle = None

    def _lock(self, handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            os.close(handle)
            raise OSError(
                f"{self._path} cannot be locked ({error.strerror}): the folder must be on a file system with flock"
            ) from None
        return True

    def _is_current(self, handle: int) -> bool:
        """Return whether the file is still there, not removed by its last owner between our opening and locking it."""
        try:
            return os.path.samestat(os.fstat(handle), self._path.stat())
        except FileNotFoundError:
            return False

    def _alive_elsewhere(self, handle: int) -> bool:
        """Return whether an owner on another machine is alive, by its heartbeat."""
        owner = _read(handle)
        if owner is None or owner.host == socket.gethostname():
            return False
        beat = os.fstat(handle).st_mtime
        if beat != self._last_beat[0]:
            self._last_beat = beat, time.monotonic()
        return time.monotonic() - self._last_beat[1] < STALE


def tidy(folder: Path) -> None:
    """Remove the lock file of a killed owner, since nobody may ever take the folder again.

    Raises:
        OSError: if the file system has no locks, or the folder cannot be written.
    """
    if (folder / FILE).exists() and (lock := Lock(folder)).take():
        lock.release()


def owner_of(folder: Path) -> Owner | None:
    """Return the owner of a folder; None if it has none, or its owner is dead."""
    try:
        handle = os.open(folder / FILE, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        owner = _read(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return owner or Owner("this machine", 0, os.fstat(handle).st_mtime)
        fresh = time.time() - os.fstat(handle).st_mtime < STALE
        return owner if owner is not None and owner.host != socket.gethostname() and fresh else None
    finally:
        os.close(handle)


def _read(handle: int) -> Owner | None:
    try:
        return Owner(**json.loads(os.pread(handle, 10_000, 0)))
    except (ValueError, TypeError):  # not written yet, or not whole
        return None


def _beat(handle: int, released: threading.Event) -> None:
    while not released.wait(BEAT):
        with suppress(OSError):
            os.utime(handle)
