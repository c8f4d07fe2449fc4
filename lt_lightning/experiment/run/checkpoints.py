"""Checkpoints of a running training, from which the same command goes on; and ending a job that was asked to end."""

from __future__ import annotations

import math
import shutil
import signal
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_warn

from lt_lightning.experiment.logging.loggers import MetricsFile
from lt_lightning.storage.files import write_tensors
from lt_lightning.training.lightning_internals import (
    batch_in_fit,
    begin_counting,
    between_steps,
    log_step,
    logged_step,
    restore_running,
    running_state,
    set_logged_step,
    steps_in_epoch,
)
from lt_lightning.training.processes import is_watched, rank

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LIMIT = 30  # seconds after which the system ends a job that was asked to end and has not


class Stopped(SystemExit):
    """A signal ends the job; what is needed to go on is on disk. The exit code is 128 + the signal's number.

    Attributes:
        name: name of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class StopSignals:
    """Notes a signal instead of ending by it; a second signal ends the job at once.

    Attributes:
        number: number of the signal that came; None if none did.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def listen(self) -> None:
        """From now on note SIGTERM and Ctrl-C, instead of what Lightning does; handlers of others are put back."""
        if threading.current_thread() is threading.main_thread():  # no other thread may install handlers
            for number, before in self._before.items():
                signal.signal(number, self._note if _is_ours(before) else before)

    def check(self) -> None:
        """End the job if a signal came.

        Raises:
            Stopped: if a signal came.
        """
        if self.number is not None:
            raise Stopped(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Stopped(number)
        self.number = number
        signal.alarm(LIMIT)  # kills, also where nothing in Python runs any more
        name = signal.Signals(number).name
        _answer(f"{name}: the step is finished and saved, in {LIMIT} s at most; a second signal ends the job at once")


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C raise `Stopped` within the context, and print one line when they do.

    A handler that someone else has installed for SIGTERM stays, such as that of submitit, which puts a preempted job
    back into the queue.

    Raises:
        Stopped: if a signal came.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if _is_ours(before[number])]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    except Stopped as stopped:
        _answer(f"stopped by {stopped.name}: the same command goes on from here")
        raise
    finally:
        signal.alarm(0)
        for number in ours:
            signal.signal(number, before[number])


def _is_ours(handler: Any) -> bool:
    """Return whether a handler is Python's own or ours."""
    return handler in (signal.SIG_DFL, signal.default_int_handler, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.alarm(LIMIT)
    raise Stopped(number)


def _answer(line: str) -> None:
    """Print a line, in one of the processes of the job."""
    if rank() == 0 and not is_watched():
        print(line, file=sys.stderr, flush=True)


# Checkpoints of a running training: the same command goes on from the last of them and comes to the same result.

KEY = "lt_lightning"  # key of our part in Lightning's checkpoint
# Several processes decide together whether to save or to end, about LOOK seconds and at most STEPS steps apart.
LOOK, STEPS = 0.5, 16


class Checkpoints(Checkpoint):
    """Saves the training between two steps: from time to time, and before a signal ends the job.

    A checkpoint contains everything: weights, optimizer, schedule, callbacks, random states, the loader's position and
    the epoch's means so far. So a resumed training is bit for bit the uninterrupted one, wherever in an epoch or a
    round it was interrupted. No checkpoint is written after an epoch's last step or before a validation; the next step
    is soon enough. After an epoch in which there was no other moment, as with a single step, one is written when the
    next epoch begins.

    Checkpoints are written as often as `share` of the time allows, given what the last one cost, and at most every
    `seconds`. A `kill -9` loses at most that much work. After SIGTERM or Ctrl-C the step is finished, a checkpoint is
    saved and the job ends; several processes agree on the step.

    Each checkpoint is a file of its own, whole or not there. The last two are kept.

    Args:
        folder: folder of the checkpoints; it is removed when the training's result is complete.
        share: largest share of the training's time that checkpoints may take.
        seconds: shortest time between two checkpoints.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, folder: Path, share: float = 0.01, seconds: float = 10.0) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"checkpoint.share={share}: must be a share of the time in (0, 1]")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"checkpoint.seconds={seconds}: must be 0 or more")
        self.folder = folder
        self.share = share
        self.seconds = seconds
        self._signals = StopSignals()
        self._resumed: dict[str, Any] | None = None
        self._last = self._looked = 0.0
        self._pause = seconds
        self._steps, self._next_look = 0, 1
        self._was_between = True  # whether there was a moment between two steps in the last epoch
        self._first_step: int | None = None  # the logged step of the first one, if it is an epoch's

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint; None if there is none. Damaged ones are left out with a warning."""
        for path in reversed(self._files()):
            if _is_whole(path):
                return path
            rank_zero_warn(f"{path} is damaged; the training goes on from an earlier step")
        return None

    def finish(self) -> None:
        """Remove the checkpoints, since the training's result is on disk; then end the job if a signal came.

        Raises:
            Stopped: if a signal came since the last step.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self._signals.check()

    def _files(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    # Hooks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = _WholeFiles()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = _gathered(running_state(trainer, pl_module))
        checkpoint[KEY] = {"processes": states, "step": logged_step(trainer)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if KEY not in checkpoint:
            raise ValueError(f"{trainer.ckpt_path} is not a checkpoint that LT-Lightning has written")
        state = checkpoint[KEY]
        if (count := len(state["processes"])) != trainer.world_size:
            raise ValueError(
                f"{self.folder} was written by {count} process{'es' * (count > 1)} and cannot be continued with "
                f"{trainer.world_size}: use trainer.devices={count}, or remove it to train from the start"
            )
        self._resumed = state
        checkpoint["callbacks"].pop("Timer", None)  # `trainer.max_time` is the time of one command, not of all

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the state that the training goes on from.

        This is the last callback to be called, so that nothing draws a random number before the first step.
        """
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.drop_after(-1 if self._resumed is None else self._resumed["step"])
        if self._resumed is not None:
            own = self._resumed["processes"][trainer.global_rank]
            restore_running(trainer, pl_module, own)
            self._first_step = None if steps_in_epoch(trainer) else self._resumed["step"]
            self._resumed = None
        # Replaces Lightning's handlers, which would end with exit code 0; Lightning restores all handlers itself.
        self._signals.listen()
        self._last = self._looked = time.monotonic()
        self._steps, self._next_look = 0, 1
        self._was_between = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._was_between and self._steps:
            begin_counting(trainer)
            self._look(trainer)
        self._was_between = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._first_step is not None:
            set_logged_step(trainer, self._first_step)
            self._first_step = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps += 1
        between = between_steps(trainer)
        self._was_between |= between
        if between and (trainer.world_size == 1 or self._steps >= self._next_look):
            self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        """Save if it is time to, and end if a signal came; all processes call it at the same moment."""
        now = time.monotonic()
        due_here = trainer.should_stop or now - self._last >= self._pause
        own = (self._signals.number or 0, due_here, (now - self._looked) / self._steps)
        signal, due, seconds = _largest(trainer, *own)
        self._looked, self._steps = now, 0
        self._next_look = min(max(1, int(LOOK / max(seconds, 1e-6))), STEPS)
        if signal or due:
            self.save(trainer)
        if signal:  # in all processes, whichever got it
            raise Stopped(int(signal))

    def save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint, between two steps.

        Raises:
            OSError: if that is impossible; the checkpoint before is intact.
        """
        start = time.monotonic()
        if steps_in_epoch(trainer):
            log_step(trainer)  # what is logged belongs to the step before the checkpoint
        older = self._files()[:-1]
        trainer.save_checkpoint(self.folder / f"step-{batch_in_fit(trainer):09d}.pt")
        if trainer.is_global_zero:
            for path in older:
                path.unlink(missing_ok=True)
        self._last = time.monotonic()
        self._pause = max(self.seconds, (self._last - start) * (1 / self.share - 1))


def _largest(trainer: pl.Trainer, *values: float) -> list[float]:
    """Return each value's maximum over all processes."""
    if trainer.world_size == 1:
        return list(values)
    largest = torch.tensor(values, device=trainer.strategy.root_device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def _gathered(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of all processes, by rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [state]
    states: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(states, state)
    return states


class _WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, by a temporary file in the checkpoint's own folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_tensors(Path(path), checkpoint)


def _is_whole(path: Path) -> bool:
    """Return whether every part of the file has its checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError):
        return False
