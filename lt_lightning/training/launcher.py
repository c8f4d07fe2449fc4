"""The start of a job's processes, one a device, which are watched and ended together."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lt_lightning.training.processes import AT

HOST = "127.0.0.1"
PAUSE = 0.02  # seconds between two looks
GRACE = 5.0  # seconds for the other processes to report their own error, once one has ended with one
LAST_WORDS = 25.0  # seconds for the other processes to end, once one has that was asked to
# SLURM sends these to every process of a job; they are for the one that watches, which passes on what they mean. A
# second handler would start a collective in the middle of another, and where there is none they kill.
FOR_THE_CALLER = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class ProcessDiedError(ChildProcessError):
    """Raised when a process of the job was killed from outside, for lack of memory for instance."""


class JobError(Exception):
    """Raised when a process failed; all others were ended.

    Attributes:
        error: what the first of them to fail raised; a `ProcessDiedError` if it was killed.
        at: what process 0 was doing (see `announce`); empty if it did not say.
    """

    def __init__(self, error: BaseException, at: str) -> None:
        super().__init__(error, at)
        self.error = error
        self.at = at


def launch(entry: str, job: Any, devices: Sequence[str], threads: int | None = None) -> Any:
    """Run a function in one new process a device, all in one process group, and return what process 0 returned.

    The calling process only watches: its environment, its devices and its `torch.distributed` stay as they are, so
    that any launcher of Hydra can run one such job after the other, or several at once. The new processes
    get the job itself and not the command line, so what started the caller does not matter. They end with
    the caller, even if it is killed; where a signal ends it by an exception, they are asked to end first.

    Args:
        entry: function as `module:function`, called as `function(job)` in every process.
        job: JSON value.
        devices: devices of the processes, in order of their ranks: `cpu`, or `cuda:0`, `cuda:1`, ...
        threads: number of CPU threads of each process; None: its share of the cores.

    Raises:
        ValueError: if this process is itself one of several that something else has started.
        JobError: if a process failed.
    """
    _check_alone(len(devices))
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    with tempfile.TemporaryDirectory(prefix="lt-lightning-") as name:
        folder = Path(name)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, device in enumerate(devices):
                environment = _environment(rank, len(devices), store.port, threads)
                message = {"entry": entry, "job": job, "device": device, "folder": name}
                processes.append(_start(message, environment))
            _wait(processes, GRACE)
            if any(process.returncode for process in processes):
                at = store.get(AT).decode() if store.check([AT]) else ""
                raise JobError(_first_error(processes, folder), at)
        except (SystemExit, KeyboardInterrupt):
            _ask_to_end(processes)
            raise
        finally:
            _end(processes)
        return pickle.loads((folder / "returned").read_bytes())


def _check_alone(size: int) -> None:
    for key in ("LOCAL_RANK", "SLURM_NTASKS"):
        if (value := os.environ.get(key)) is not None and (key == "LOCAL_RANK" or int(value) > 1):
            raise ValueError(
                f"{key}={value} in the environment: a job starts its {size} processes itself, so start it once, "
                "without torchrun, and in SLURM with one task a node"
            )


def _environment(rank: int, size: int, port: int, threads: int | None) -> dict[str, str]:
    share = threads or max(1, (os.cpu_count() or 1) // size)
    own = {
        "LOCAL_RANK": rank,
        "NODE_RANK": 0,
        "WORLD_SIZE": size,
        "MASTER_ADDR": HOST,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": share if threads else os.environ.get("OMP_NUM_THREADS", share),
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),  # the user's own modules
    }
    return {**os.environ, **{key: str(value) for key, value in own.items()}}


def _start(message: Mapping[str, Any], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process; its standard input stays open as long as this one lives."""
    first = environment["LOCAL_RANK"] == "0"
    # It inherits the mask, and unblocks SIGINT, by which the caller passes on that it shall end, when it is ready.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*FOR_THE_CALLER, signal.SIGINT})
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "lt_lightning.training.processes"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=None if first else subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the caller, which ends them
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()
    return process


def _wait(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Return when all have ended, or some seconds after the first has failed."""
    end = math.inf
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < end:
        if any(codes):
            end = min(end, time.monotonic() + grace)
        time.sleep(PAUSE)


def _ask_to_end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all to end: each finishes its step, or a validation first, and saves. A second signal kills them."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    _wait(processes, LAST_WORDS)


def _first_error(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> BaseException:
    """Return what went wrong first: the others only lost their partner."""
    for rank, process in enumerate(processes):
        if process.returncode and not _error_file(folder, rank).is_file():
            how = signal.Signals(-process.returncode).name if process.returncode < 0 else f"exit {process.returncode}"
            message = f"process {rank} of {len(processes)} was ended from outside ({how}); all others, too"
            return ProcessDiedError(message)
    files = [path for rank in range(len(processes)) if (path := _error_file(folder, rank)).is_file()]
    error: BaseException = pickle.loads(min(files, key=lambda path: path.stat().st_mtime_ns).read_bytes())
    return error


def _error_file(folder: Path, rank: int) -> Path:
    return folder / f"error-{rank}"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()  # one that hangs in a collective heeds nothing less
    for process in processes:
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
