"""The processes of one job, one a device: started together, watched and ended together; and what each does.

On one machine `launch` starts them by `torch.distributed.elastic.multiprocessing`, the part of torch's elastic launcher
that starts, asks and ends processes. On several, torchrun or SLURM has started them (`started`, `led`). All of them
know one another as processes of torchrun do, by Lightning's own environments.

`torch.distributed.launcher.elastic_launch` as a whole was tried, and does not keep what a job promises:

- It names the process whose failure it sees first. That is often one that only lost its partner, with the partner's
  `kill -9` or exception unnamed. So `launch` waits until the others have reported, too.
- It asks processes to end by SIGTERM, which SLURM sends to all of them, and with submitit means nothing. `launch` asks
  by SIGINT; the processes leave other signals to the caller.
- It replaces the caller's signal handlers, for ever; submitit's is one. `launch` puts them back at once.
- The processes of a caller that is killed live on, where one hangs or SIGINT is ignored. So they watch it.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from itertools import count
from logging import CRITICAL, getLogger
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, PContext, Std, start_processes
from torch.distributed.rendezvous import rendezvous

from lt_lightning.storage.litter import scratch_folder

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments import ClusterEnvironment  # type: ignore[attr-defined]

HOST = "127.0.0.1"
START = "spawn"  # method of multiprocessing
PAUSE = 0.02  # seconds between two looks
GRACE = 5.0  # seconds for the other processes to report their own error, once one has ended with one
LAST_WORDS = 25  # seconds for the processes to end, once they are asked to; SLURM kills after 30
# SLURM sends these to every process of a job. In what `launch` starts they are for the caller, which passes on what
# they mean; a second handler would start a collective in the middle of another, and where there is none they kill.
FOR_THE_CALLER = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Signals whose handlers `start_processes` replaces.
REPLACED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class ProcessDiedError(ChildProcessError):
    """Raised when a process of the job was killed from outside, for lack of memory for instance."""


def launch(lead: Callable[[Any], Any], job: Any, size: int) -> Any:
    """Run a function in the first of several new processes, and return what it returned.

    The others take part in what it invites them to. The calling process only watches: its environment, its devices,
    its signal handlers and its `torch.distributed` stay as they are, so that any launcher of Hydra can run one such job
    after the other, or several at once. The new processes get the job itself and not the command line, so what started
    the caller does not matter. They end with the caller, even if it is killed; where a signal ends it by an exception,
    they are asked to end first, and are killed `LAST_WORDS` seconds later.

    Args:
        lead: function of a module, called as `lead(job)` in the process of rank 0.
        job: value that can be pickled.
        size: number of the processes; each has its share of the CPU's cores.

    Raises:
        ProcessDiedError: if a process was killed; all others were ended.
        BaseException: what the first process to fail has raised; all others were ended.
    """
    with scratch_folder("lt-lightning-") as folder:
        store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
        context = _start(_take_part, (lead, job), size, store.port, str(folder))
        pids = context.pids()
        started = {process.pid: process for process in multiprocessing.active_children()}
        processes = [started[pids[rank]] for rank in range(size) if pids[rank] in started]
        try:
            return _result(context, processes, store)
        except (SystemExit, KeyboardInterrupt) as stop:
            if any(process.exitcode is None for process in processes):
                how = getattr(stop, "name", "asked to end")
                print(f"{how}: {size} processes finish their step and save, in {LAST_WORDS} s at most", file=sys.stderr)
                context.close(signal.SIGINT, LAST_WORDS)
            raise
        finally:
            context.close(signal.SIGKILL)  # one that hangs in a collective heeds nothing less


def _start(function: Callable[..., Any], arguments: tuple[Any, ...], size: int, port: int, folder: str) -> PContext:
    """Start processes with torchrun's environment; only the first writes to the standard output."""
    getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(CRITICAL)  # a failure is told by its error
    common = {
        "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0, "MASTER_ADDR": HOST, "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": Path(folder).name, "TORCHELASTIC_USE_AGENT_STORE": True,
    }  # fmt: skip
    environments = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]
    before = {number: signal.getsignal(number) for number in REPLACED}
    method = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(START, force=True)  # new processes take it over, and do not know joblib's own
    try:
        return start_processes(
            "lt-lightning",
            function,
            dict.fromkeys(range(size), arguments),
            {rank: {key: str(value) for key, value in each.items()} for rank, each in enumerate(environments)},
            DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, size), Std.OUT)),
            start_method=START,
        )
    finally:
        multiprocessing.set_start_method(method, force=True)
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _result(context: PContext, processes: Sequence[BaseProcess], store: Store) -> Any:
    """Return what the first process returned when all have ended, or raise what the first to fail raised."""
    while not any(process.exitcode for process in processes):
        result = context.wait(timeout=0)
        if result is not None and not result.is_failed():
            return result.return_values[0]
        time.sleep(PAUSE)
    end = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for rank, process in enumerate(processes):
        if (code := process.exitcode) and not store.check([f"{ERROR}/{rank}"]):
            how = signal.Signals(-code).name if code < 0 else f"exit {code}"
            raise ProcessDiedError(
                f"process {rank} of {len(processes)} was ended from outside ({how}); all others, too"
            )
    error: BaseException = pickle.loads(bytes.fromhex(store.get(ERROR).decode()))
    raise error


def _take_part(lead: Callable[[Any], Any], job: Any) -> Any:
    """Be one of the processes that `launch` starts."""
    global _watched
    os.setsid()  # Ctrl-C is for the caller, which asks them to end
    for number in FOR_THE_CALLER:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the caller ignores it
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    _watched = True
    returned = None
    _join()
    try:
        if rank() == 0:
            returned = lead(job)
            dismiss()
        else:
            follow()
    except BaseException as error:
        assert _store is not None
        _store.set(f"{ERROR}/{rank()}", "")
        _store.compare_set(ERROR, "", pickle.dumps(_portable(error)).hex())  # the first, and no other, is kept
        sys.stdout.flush()
        os._exit(1)  # at once: others may wait in a collective
    atexit.register(os._exit, 0)  # PyTorch's threads now and then abort the interpreter's own way out
    return returned


def _portable(error: BaseException) -> BaseException:
    """Return the error, with its trace as a note, if it survives pickling; else one with the same message."""
    trace = "".join(traceback.format_exception(error))
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"in process {rank()}:\n{trace}")
    return copy


# One of several processes, whatever started it. What is decided is decided in the first, and the others follow.

# Process 0 may structure a large network, or wait for another job, while the others wait in a collective.
TIMEOUT = timedelta(hours=12)
MEETING = timedelta(minutes=10)  # within it all processes must have started
# Keys in the store: what process 0 is doing, and what the first process to fail raised.
AT, ERROR = "at", "error"

_store: Store | None = None
_watched = False  # whether `launch` has started this process
_tasks, _groups = count(), count()


def started() -> ClusterEnvironment | None:
    """Return how this process knows the others that were started with it; None if it is alone."""
    # Slow to import, and needed by few.
    from lightning_fabric.plugins.environments import (  # type: ignore[attr-defined]
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and SLURMEnvironment.detect():
        return SLURMEnvironment(auto_requeue=False)  # that is for the sweep's launcher to do
    return None


def processes() -> int:
    """Return the number of processes of this job."""
    return 1 if _store is None else int(os.environ["WORLD_SIZE"])


def rank() -> int:
    """Return the number of this process, from 0."""
    return 0 if _store is None else int(os.environ["RANK"])


def is_watched() -> bool:
    """Return whether another process watches this one, and speaks for it."""
    return _watched


@contextmanager
def led() -> Iterator[bool]:
    """Say whether this process leads those that torchrun or SLURM has started; the others take part in what it does.

    Yields:
        True in the first process, and where there is but one; False in the others, when they have done their parts.
    """
    if _store is not None or started() is None:
        yield True
        return
    _join()
    if rank() > 0:
        follow()
        yield False
        return
    try:
        yield True
    finally:
        dismiss()


def _join() -> None:
    """Meet the other processes, and end with what has started them."""
    global _store
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if not dist.is_torchelastic_launched():
        environment = started()
        assert environment is not None
        os.environ |= {
            "RANK": str(environment.global_rank()), "WORLD_SIZE": str(environment.world_size()),
            "MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port),
        }  # fmt: skip
    _store, _, _ = next(rendezvous("env://", timeout=MEETING))


def _end_with_parent() -> None:
    """Wait for the parent to die, and exit."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    else:
        own = os.getppid()
        while os.getppid() == own:
            time.sleep(0.5)
    os._exit(1)


@contextmanager
def grouped(device: torch.device) -> Iterator[None]:
    """Make all processes one group within the context, which all must enter; an error leaves it as it is.

    Args:
        device: device of this process.
    """
    if _store is None:
        yield
        return
    backend, own = "gloo", None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend, own = "nccl", device
    store = PrefixStore(f"group/{next(_groups)}", _store)
    dist.init_process_group(backend, store=store, rank=rank(), world_size=processes(), timeout=TIMEOUT, device_id=own)
    yield
    dist.destroy_process_group()


def out_of_step() -> bool:
    """Return whether an error has left this process in a group, whose others it can no longer lead."""
    return _store is not None and dist.is_initialized()


def invite(task: Callable[..., object], *shared: Any) -> None:
    """Let every other process call a task that process 0, which calls this function alone, is about to call.

    So the course of a job (what is done already, what comes next, what is written) is decided in one process, and
    the others only take part in what needs them all: trainings and tests.

    Args:
        task: function of a module, called as `task(subject, *shared)` in the others, with what `follow` was given.
        shared: JSON values.
    """
    _tell({"task": f"{task.__module__}:{task.__qualname__}", "shared": shared})


def dismiss() -> None:
    """Let the others return from `follow`; process 0 calls this."""
    _tell(None)


def _tell(message: Any) -> None:
    if _store is not None:
        _store.set(f"task/{next(_tasks)}", json.dumps(message))


def follow(subject: Any = None) -> None:
    """Take part in every task until process 0 dismisses this one; all other processes call this."""
    assert _store is not None
    for number in _tasks:
        while not _store.check([f"task/{number}"]):
            time.sleep(PAUSE)
        message = json.loads(_store.get(f"task/{number}"))
        if message is None:
            return
        module, _, function = message["task"].partition(":")
        getattr(import_module(module), function)(subject, *message["shared"])


def announce(what: str) -> None:
    """Say what process 0, which calls this, does from now on."""
    if _store is not None:
        _store.set(AT, what)


def announced() -> str:
    """Return what process 0 does; empty if it did not say."""
    assert _store is not None
    return _store.get(AT).decode() if _store.check([AT]) else ""
