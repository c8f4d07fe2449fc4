"""A job in two processes that is killed goes on with two, bit for bit, and says that it cannot with one."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from lt_lightning.experiment.run import scheduler
from lt_lightning.experiment.run.checkpoints import KEY, STEPS, Stopped
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.processes import ProcessDiedError
from tests.runs import run_of

Compose = Callable[..., DictConfig]


JOB = ("trainer=ddp_sim", "checkpoint.share=1", "checkpoint.seconds=0", "pruning.rounds=2", "retrain_rounds=[2]")


def kill_after(folder: Path, checkpoints: int) -> threading.Thread:
    """Kills both processes once as many checkpoints were seen under the folder."""

    def watch() -> None:
        seen: set[tuple[str, int]] = set()
        while len(seen) < checkpoints:
            for path in folder.rglob("step-*.pt"):
                try:
                    seen.add((str(path.parent), path.stat().st_mtime_ns))
                except FileNotFoundError:
                    continue
            time.sleep(0.002)
        for process in multiprocessing.active_children():
            process.kill()

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


def equal(folder: Path, other: Path) -> bool:
    """Whether two jobs left the same, bit for bit: masks, weights and the search's metrics of every epoch."""
    first, second = values(folder), values(other)
    metrics = [[path.read_bytes() for path in sorted(root.glob("digits-*/metrics.csv"))] for root in (folder, other)]
    alike = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return alike and metrics[0] == metrics[1] and len(metrics[0]) == 1


def test_sigterm_stops_all_after_the_same_step_and_the_job_goes_on_bit_for_bit(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checkpoint is written but for the signal."""
    job = ("trainer=ddp_sim", "retrain_rounds=[]", "data.batch_size=16", "data.limit=0.15", "checkpoint.seconds=1e9")
    run_of(small("whole", *job))
    lead, tasks = scheduler.lead, import_module("tasks")
    monkeypatch.setattr(scheduler, "lead", partial(tasks.lead_stopped, os.getpid()))
    with pytest.raises(Stopped) as stopped:
        run_of(small("stopped", *job))
    assert stopped.value.code == 143
    first, last = capsys.readouterr().err.splitlines()
    assert "SIGTERM" in first
    assert "stopped by SIGTERM: the same command goes on from here" in last
    (checkpoint,) = (tmp_path / "stopped").rglob("step-*.pt")
    assert 8 <= int(checkpoint.stem.removeprefix("step-")) <= 8 + STEPS  # counted from 0
    monkeypatch.setattr(scheduler, "lead", lead)
    with pytest.raises(ValueError, match=r"\b2 process.*\b1\b.*trainer\.devices=2"):
        run_of(small("stopped", *job, "trainer.devices=1"))
    of_two = torch.load(checkpoint, weights_only=True)
    torch.save({**of_two, KEY: {**of_two[KEY], "processes": of_two[KEY]["processes"][:1]}}, checkpoint)
    with pytest.raises(ValueError, match=r"\b1 process.*\b2\b.*trainer\.devices=1"):
        run_of(small("stopped", *job))
    torch.save(of_two, checkpoint)
    run_of(small("stopped", *job))
    assert not list((tmp_path / "stopped").rglob("step-*.pt"))
    assert equal(tmp_path / "whole", tmp_path / "stopped")


def test_sigterm_ends_processes_of_which_one_hangs(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lt_lightning.training.processes.LAST_WORDS", 1)
    monkeypatch.setattr(scheduler, "lead", partial(import_module("tasks").lead_hanging, os.getpid()))
    with pytest.raises(Stopped) as stopped:
        run_of(small("job", "trainer=ddp_sim"))
    assert stopped.value.code == 143
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_killed_job_goes_on_with_as_many_processes_bit_for_bit(small: Compose, tmp_path: Path) -> None:
    expected = run_of(small("whole", *JOB))
    for count in (2, 5):  # twice in a row
        thread = kill_after(tmp_path / "killed", count)
        with pytest.raises(ProcessDiedError, match="SIGKILL"):
            run_of(small("killed", *JOB))
        thread.join(60)
    results = run_of(small("killed", *JOB))
    assert [(r.place, r.accuracy, r.val_accuracy) for r in results] == [
        (r.place, r.accuracy, r.val_accuracy) for r in expected
    ]
    assert equal(tmp_path / "whole", tmp_path / "killed")
