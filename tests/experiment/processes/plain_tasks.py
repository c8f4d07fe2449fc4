"""What processes do that need nothing but PyTorch: those that import everything take seconds to start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lt_lightning.training.processes import grouped, invite, rank

CPU = torch.device("cpu")


def add_ranks(job: dict[str, Any]) -> dict[str, Any]:
    """The sum of ranks, and what the process is told by its environment."""
    invite(_add_ranks)
    environment = {key: os.environ[key] for key in ("LOCAL_RANK", "WORLD_SIZE")}
    ignored = [each.name for each in signal.Signals if signal.getsignal(each) == signal.SIG_IGN]
    return {"sum": _add_ranks(), "job": job, "threads": torch.get_num_threads(), "ignored": ignored, **environment}


def _add_ranks(_: None = None) -> float:
    with grouped(CPU):
        total = torch.tensor([float(dist.get_rank())])
        dist.all_reduce(total)
    return float(total)


def fail_on_one(how: str) -> None:
    """Process 1 fails as the job says; process 0 is busy, and notices nothing, or waits for it."""
    invite(_fail_on_one, how)
    _fail_on_one(None, how)


def _fail_on_one(_: None, how: str) -> None:
    with grouped(CPU):
        dist.barrier()
        if rank() == 1:
            if "killed" in how:
                os.kill(os.getpid(), signal.SIGKILL)
            raise FloatingPointError("train/loss=nan: told by process 1")
        if "waiting" in how:
            dist.barrier()
        time.sleep(600)


def wait_long(folder: str) -> None:
    """Every process writes its process id; all but the last wait for it in a collective, and it for nobody."""
    invite(_wait_long, folder)
    _wait_long(None, folder)


def _wait_long(_: None, folder: str) -> None:
    with grouped(CPU):
        Path(folder, str(rank())).write_text(str(os.getpid()))
        if rank() == 0:
            dist.barrier()
        time.sleep(600)
