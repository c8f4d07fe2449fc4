"""What processes do that need nothing but PyTorch: those that import everything take seconds to start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def add_ranks(job: dict[str, Any]) -> dict[str, Any]:
    """The sum of ranks, and what the process is told by its environment."""
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    environment = {key: os.environ[key] for key in ("LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}
    blocked = sorted(signal.Signals(number).name for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return {"sum": float(total), "size": dist.get_world_size(), "job": job, "blocked": blocked, **environment}


def wait_long(job: dict[str, Any]) -> None:
    """Writes its process id, and waits."""
    Path(job["folder"], str(dist.get_rank())).write_text(str(os.getpid()))
    time.sleep(600)
