"""One process of a job: it joins the group, runs a function, and leaves the outcome for the watching process."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from lt_lightning.storage.files import replacing

# Process 0 may structure a large network, or wait for another job, while the others wait in a collective. One that
# dies is noticed by the watching process.
TIMEOUT = timedelta(hours=12)
PAUSE = 0.02  # seconds between two looks for a task
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
