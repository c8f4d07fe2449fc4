"""What the processes do in the tests: they import it by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig

from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.scheduler import lead
from lt_lightning.pruning.masks import Masks
from lt_lightning.training.agreement import DisagreementError, SyncBatchNormOnCpu, check_agreement
from lt_lightning.training.processes import grouped, invite, rank

CPU = torch.device("cpu")

WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.chmod", "os.truncate")


def disagree(job: None) -> list[str]:
    """What `check_agreement` says in process 0 of values that process 1 has altered in one bit; "" where all agree."""
    invite(_disagree)
    return _disagree()


def _disagree(_: None = None) -> list[str]:
    with grouped(CPU):
        return _told()


def _told() -> list[str]:
    told = []
    for name in ("", "b"):
        tensors = {"a": torch.ones(3), "b": torch.tensor([True, False]), "c": torch.tensor(1.0, dtype=torch.bfloat16)}
        if name and dist.get_rank() == 1:
            tensors[name][0] = False
        try:
            check_agreement("masks in round 2", tensors)
            told.append("")
        except DisagreementError as error:
            told.append(str(error))
    both: list[list[str]] = [[], []]
    dist.all_gather_object(both, told)
    assert both[0] == both[1]  # all processes stop
    return told


def normalise(job: None) -> list[float]:
    """Largest differences of a synchronised BatchNorm on halves of a batch from an ordinary one on the whole."""
    invite(_normalise)
    return _normalise()


def _normalise(_: None = None) -> list[float]:
    with grouped(CPU):
        return _differences()


def _differences() -> list[float]:
    generator = torch.Generator().manual_seed(0)
    images = 3 + 2 * torch.randn(6, 4, 5, 5, generator=generator)
    upstream = torch.randn(6, 4, 5, 5, generator=generator)
    whole, part = (torch.nn.Sequential(torch.nn.BatchNorm2d(4, momentum=0.3)) for _ in range(2))
    sync = SyncBatchNormOnCpu()
    sync.apply(part)
    mine = slice(2) if dist.get_rank() == 0 else slice(2, 6)  # of unequal size
    all_images, my_images = images.clone().requires_grad_(), images[mine].clone().requires_grad_()
    (whole(all_images) * upstream).sum().backward()
    (part(my_images) * upstream[mine]).sum().backward()
    assert all_images.grad is not None
    assert my_images.grad is not None
    gradients = []
    for own, reference in zip(part.parameters(), whole.parameters(), strict=True):
        assert own.grad is not None
        assert reference.grad is not None
        dist.all_reduce(own.grad)
        gradients.append(own.grad - reference.grad)
    buffers = [own.float() - other.float() for own, other in zip(part.buffers(), whole.buffers(), strict=True)]
    sync.revert(part)
    assert type(part[0]) is torch.nn.BatchNorm2d
    evaluated = part.eval()(images) - whole.eval()(images)
    different = [my_images.grad - all_images.grad[mine], *gradients, *buffers, evaluated]
    return [float(each.abs().max()) for each in different]


def lead_watched(job: dict[str, Any]) -> Any:
    """A job in which no process makes a list of tasks, and process 0 alone writes anything under the root."""

    def of(config: DictConfig) -> Job:
        raise AssertionError("the tasks are those of the process that started this one")

    Job.of = of  # type: ignore[method-assign]
    invite(_watch, job["config"]["paths"]["root"])
    return lead(job)


def _watch(_: None, root: str) -> None:
    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in WRITES and not reads and str(arguments[0]).startswith(root):
            raise AssertionError(f"process {rank()} may not {event} {arguments}")

    sys.addaudithook(audit)


def lead_stopped(watching: int, job: dict[str, Any]) -> Any:
    """A job in which process 0, in its ninth step, sends the watching process a SIGTERM, and waits until it is told."""
    checkpoints: Any = import_module("lt_lightning.experiment.run.checkpoints").Checkpoints
    step_done = checkpoints.on_train_batch_end

    def wrong(self: Any, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == 9:
            os.kill(watching, signal.SIGTERM)
            while self._signals.number is None:
                time.sleep(0.01)
        step_done(self, trainer, *arguments)

    checkpoints.on_train_batch_end = wrong
    return lead(job)


def lead_hanging(watching: int, job: dict[str, Any]) -> Any:
    """A job in which process 1 hangs in its third step, and process 0 then sends the watching process a SIGTERM."""
    invite(_hang, watching)
    return lead(job)


def _hang(_: None, watching: int) -> None:
    training: Any = import_module("lt_lightning.training.callback").LotteryTicketPruning
    step_done = training.on_train_batch_end

    def wrong(self: Any, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == 3:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            os.kill(watching, signal.SIGTERM)
            time.sleep(600)
        step_done(self, trainer, *arguments)

    training.on_train_batch_end = wrong


def lead_diverging(job: dict[str, Any]) -> Any:
    """A job in which the loss of process 1 alone is NaN, in every retraining of `refill`."""
    invite(_diverge)
    return lead(job)


def _diverge(_: None) -> None:
    training: Any = import_module("lt_lightning.training.retraining").TicketTraining
    start = training.on_train_start

    def wrong(self: Any, *arguments: Any) -> None:
        start(self, *arguments)
        if self.ticket.card["structure"] == "refill":
            raise FloatingPointError("train/loss=nan: told by process 1")

    training.on_train_start = wrong


def lead_corrupted(job: dict[str, Any]) -> Any:
    """A job in which process 1 prunes one weight more than process 0."""
    invite(_corrupt)
    return lead(job)


def _corrupt(_: None) -> None:
    callback: Any = import_module("lt_lightning.training.callback")
    prune = callback.prune

    def wrong(*arguments: Any) -> Masks:
        masks: Masks = prune(*arguments)
        next(iter(masks.values())).view(-1)[0] ^= True
        return masks

    callback.prune = wrong
