"""The processes of one job, one a device: started from any launcher, watched and ended together; and what each does."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    Store,
    TCPStore,
)

from lt_lightning.storage.files import replacing

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


# One process of a job: it joins the group, runs a function, and leaves the outcome for the watching process.

# Process 0 may structure a large network, or wait for another job, while the others wait in a collective. One that
# dies is noticed by the watching process.
TIMEOUT = timedelta(hours=12)
AT = "at"  # key in the store of what process 0 is doing

_store: Store | None = None
_tasks = 0


def processes() -> int:
    """Return the number of processes of this job."""
    return dist.get_world_size() if _store is not None else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _store is not None else 0


def invite(task: Callable[..., object], *shared: Any) -> None:
    """Let every other process call a task that process 0, which calls this function alone, is about to call.

    So the course of a job (what is done already, what comes next, what is written) is decided in one process, and
    the others only take part in what needs them all: trainings and tests.

    Args:
        task: function of a module, called as `task(subject, *shared)` in the others, with what `follow` was given.
        shared: JSON values.
    """
    if _store is not None:
        global _tasks
        message = {"task": f"{task.__module__}:{task.__qualname__}", "shared": shared}
        _store.set(f"task/{_tasks}", json.dumps(message))
        _tasks += 1


def announce(what: str) -> None:
    """Say what process 0, which calls this, does from now on; `launch` reports it if the job fails."""
    if _store is not None:
        _store.set(AT, what)


def follow(subject: Any) -> None:
    """Take part in every task until process 0 has returned; all other processes call this."""
    assert _store is not None
    for number in range(sys.maxsize):
        while not _store.check([f"task/{number}"]):
            time.sleep(PAUSE)
        message = json.loads(_store.get(f"task/{number}"))
        if message is None:
            return
        _resolve(message["task"])(subject, *message["shared"])


def _resolve(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    resolved: Callable[..., Any] = getattr(import_module(module), function)
    return resolved


def _join(device: torch.device) -> None:
    global _store
    number, size = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    _store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    backend, own = "gloo", None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend, own = "nccl", device
    store = PrefixStore("group", _store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT, device_id=own)


def _end_with_parent(pipe: int) -> None:
    """Wait for the parent's end of a pipe to close, as it does however the parent dies, and exit."""
    os.read(pipe, 1)
    os._exit(1)


def main() -> None:
    """Run `python -m lt_lightning.training.processes`; `launch` starts it and writes the job to its standard input."""
    line = bytearray()
    while not line.endswith(b"\n"):
        line += os.read(0, 1 << 16)
    take_part(json.loads(line), 0)


def take_part(message: Mapping[str, Any], parent: int) -> None:
    """Take part in a job, and end this process.

    Args:
        message: function to run, its job and its device, and a folder for what comes of it.
        parent: pipe that is open as long as the watching process lives.
    """
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    folder, number = Path(message["folder"]), int(os.environ["LOCAL_RANK"])
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # `launch` has blocked it and others
        _join(torch.device(message["device"]))
        returned = _resolve(message["entry"])(message["job"])
        if number == 0:
            _write(folder / "returned", returned)
            assert _store is not None
            _store.set(f"task/{_tasks}", json.dumps(None))
    except BaseException as error:
        _write(folder / f"error-{number}", _portable(error, number))
        sys.stdout.flush()
        os._exit(1)  # at once: others may wait in a collective
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written, and PyTorch's threads now and then abort the interpreter's own way out


def _portable(error: BaseException, number: int) -> BaseException:
    """Return the error, with its trace as a note, if it survives pickling; else one with the same message."""
    trace = "".join(traceback.format_exception(error))
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"in process {number}:\n{trace}")
    return copy


def _write(path: Path, value: Any) -> None:
    with replacing(path) as partial:
        partial.write_bytes(pickle.dumps(value))


if __name__ == "__main__":
    # Under its own name, so that there is one copy of the module's state.
    import_module("lt_lightning.training.processes").main()
