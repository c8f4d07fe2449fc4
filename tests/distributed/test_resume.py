"""A job in two processes that is killed goes on with two, bit for bit, and says that it cannot with one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from lt_lightning.distributed.launch import ProcessDiedError
from lt_lightning.study.run import run
from lt_lightning.ticket import Ticket

Compose = Callable[..., DictConfig]
JOB = ("trainer=ddp_sim", "checkpoint.share=1", "checkpoint.seconds=0", "pruning.rounds=2", "retrain_rounds=[2]")


def children() -> list[int]:
    """Processes of this one."""
    told = [path.read_text() for path in Path(f"/proc/{os.getpid()}/task").glob("*/children")]
    return [int(number) for text in told for number in text.split()]


def kill_after(folder: Path, checkpoints: int) -> threading.Thread:
    """Kills both processes once as many checkpoints were seen under the folder."""

    def watch() -> None:
        seen: set[tuple[str, int]] = set()
        while len(seen) < checkpoints:
            for path in folder.rglob("checkpoint*"):
                try:
                    seen.add((str(path.parent), path.stat().st_mtime_ns))
                except FileNotFoundError:
                    continue
            time.sleep(0.002)
        for number in children():
            os.kill(number, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def values(folder: Path) -> dict[str, Tensor]:
    """Masks and trained values of every ticket under a folder."""
    found: dict[str, Tensor] = {}
    for path in folder.rglob("ticket.safetensors"):
        ticket = Ticket.load(path)
        assert ticket.trained is not None
        for part, tensors in (("mask", ticket.masks), ("trained", ticket.trained)):
            found |= {f"{path.relative_to(folder)}/{part}/{name}": value for name, value in tensors.items()}
    return found


@pytest.mark.slow
def test_killed_job_goes_on_with_as_many_processes_bit_for_bit(small: Compose, tmp_path: Path) -> None:
    expected = run(small("whole", *JOB))
    for count in (2, 5):  # twice in a row
        thread = kill_after(tmp_path / "killed", count)
        with pytest.raises(ProcessDiedError, match="SIGKILL"):
            run(small("killed", *JOB))
        thread.join(60)
    with pytest.raises(ValueError, match=r"2 processes and cannot be continued with 1: use trainer\.devices=2, or"):
        run(small("killed", *JOB, "trainer.devices=1"))
    results = run(small("killed", *JOB))
    assert [(r.place, r.accuracy, r.val_accuracy) for r in results] == [
        (r.place, r.accuracy, r.val_accuracy) for r in expected
    ]
    first, second = values(tmp_path / "whole"), values(tmp_path / "killed")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    search = expected[0].search
    assert (tmp_path / "whole" / search / "metrics.csv").read_bytes() == (
        tmp_path / "killed" / search / "metrics.csv"
    ).read_bytes()
