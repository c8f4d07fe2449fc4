"""Progress of a job and its sweep: which training of how many, which round, and how much time is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from lt_lightning.experiment.sweep.multirun import Multirun


class JobProgress:
    """Shows a bar each for the sweep, the job and the current training; where there is no terminal, prints a line.

    The time left is that of all epochs still to come, at the mean speed of those done in this process.

    Args:
        epochs: number of epochs that the job still has to train.
        console: console to write to.
        sweep: sweep that the job belongs to; None for a single job.
    """

    def __init__(self, epochs: int, console: Console, sweep: Multirun | None = None) -> None:
        self.console = console
        self._epochs = epochs
        self._done = 0.0
        self._start = time.perf_counter()
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what is left of the line: the rest must be seen
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_interactive,
            expand=True,
            refresh_per_second=4,  # drawing takes from the training: at 10, a sixtieth of two cores
        )
        self._sweep = sweep if sweep is not None and sweep.jobs is not None else None
        self._ended = (0, 0) if self._sweep is None else self._sweep.ended()
        self._sweep_bar: TaskID | None = None
        if self._sweep is not None:
            self._sweep_bar = self._bars.add_task("whole sweep", total=self._sweep.jobs, counts="", left="")
            self._show_sweep()
        self._job_bar: TaskID = self._bars.add_task("whole job", total=epochs, counts="", left="")
        self._training_bar: TaskID = self._bars.add_task("", total=1, counts="", left="", visible=False)
        self._watcher: Callable[[str], None] | None = None
        self._label = ""
        self._remaining = 0.0  # epochs of the current training
        self._activity = ""

    def __enter__(self) -> JobProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, label: str, epochs: int, done: int = 0) -> None:
        """Show that a training, or a round of the search, begins, or goes on after some epochs."""
        self._label, self._remaining = label, float(epochs - done)
        if self._sweep is not None:
            self._ended = self._sweep.ended()  # other processes may run jobs of it, too
        self._bars.reset(
            self._training_bar, description=label, total=epochs, completed=done, visible=True,
            counts=f"epoch {done + 1}/{epochs}", left="",
        )  # fmt: skip

    def advance(self, epoch: int, epochs: int, share: float) -> None:
        """Show that a share of an epoch is done; `epoch` counts from 0 within the training."""
        self._done += share
        self._remaining -= share
        counts = f"epoch {min(epoch + 1, epochs)}/{epochs}"
        self._notify(f"{self._label}, {counts}")
        self._bars.update(self._training_bar, advance=share, counts=counts, left=self._time_for(self._remaining))
        self._bars.update(
            self._job_bar, completed=self._done, counts=f"{self._done:.0f}/{self._epochs} epochs", left=self.time_left()
        )
        self._show_sweep()

    def skip(self, epochs: int) -> None:
        """Take epochs that turned out not to be needed off the job's."""
        self._epochs -= epochs
        self._bars.update(self._job_bar, total=self._epochs)

    def expect(self, epochs: int) -> None:
        """Set how many epochs are still to come."""
        self._epochs = round(self._done) + epochs
        self._bars.update(self._job_bar, total=self._epochs)

    def notify(self, watcher: Callable[[str], None] | None) -> None:
        """From now on call a watcher with the epoch and the training that run, whenever they change; None: nobody."""
        self._watcher = watcher

    def _notify(self, activity: str) -> None:
        if self._watcher is not None and activity != self._activity:
            self._watcher(activity)
        self._activity = activity

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self, text: str) -> None:
        """Print that a training has ended, where there are no bars."""
        if not self.console.is_interactive:
            sweep = "" if self._sweep is None else f"; {self._job_number()}, {self.sweep_time_left()}"
            self.note(f"[{self._done:.0f}/{self._epochs} epochs, {self.time_left()}{sweep}] {text}")

    def time_left(self) -> str:
        """Return the time that the job still takes, as people write it: `1:05 left`."""
        return self._time_for(self._epochs - self._done)

    def _time_for(self, epochs: float) -> str:
        if self._done < 0.5:
            return _format_time_left(math.nan)
        return _format_time_left((time.perf_counter() - self._start) / self._done * max(0.0, epochs))

    def sweep_time_left(self) -> str:
        """Return the time that the whole sweep still takes, as people write it."""
        if self._sweep is None or (self._done < 0.5 and not self._ended[1]):
            return _format_time_left(math.nan)
        return _format_time_left(self._sweep.seconds_left(self._share(), self._ended))

    def _share(self) -> float:
        """Return the share of the job that is done."""
        return min(1.0, self._done / self._epochs) if self._epochs else 0.0

    def _job_number(self) -> str:
        assert self._sweep is not None
        return f"job {self._ended[0] + 1} of {self._sweep.jobs}"

    def _show_sweep(self) -> None:
        if self._sweep_bar is not None:
            done = self._ended[0] + self._share()
            self._bars.update(self._sweep_bar, completed=done, counts=self._job_number(), left=self.sweep_time_left())


def _format_time_left(seconds: float) -> str:
    if math.isnan(seconds):
        return "time left unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"


class ReportProgress(pl.Callback):
    """Lightning's callback that reports a fit to the job's progress.

    Args:
        progress: progress of the job.
        expected: number of epochs that the job's total contains for this fit.
        make_lengths: function that returns, when the fit starts, the lengths of its parts in epochs: one for a single
            training, one for each round of a search.
        label: function from the index of a part to its label.
    """

    def __init__(
        self,
        progress: JobProgress,
        expected: int,
        make_lengths: Callable[[], list[int]],
        label: Callable[[int], str],
    ) -> None:
        self._progress = progress
        self._expected = expected
        self._make_lengths = make_lengths
        self._lengths: list[int] = []
        self._label = label

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lengths = self._make_lengths()
        self._progress.skip(self._expected - sum(self._lengths) + trainer.current_epoch)
        if trainer.global_step > 0:  # resumed
            index, epoch = self._locate(trainer.current_epoch)
            self._progress.start(self._label(index), self._lengths[index], epoch)
            self._progress.note(f"{self._label(index)} goes on in epoch {epoch + 1} of {self._lengths[index]}")

    def _locate(self, epoch: int) -> tuple[int, int]:
        """Return the index of the part that an epoch of the fit belongs to, and the epoch within that part."""
        for index, length in enumerate(self._lengths):
            if epoch < length:
                return index, epoch
            epoch -= length
        raise ValueError(f"the fit is longer than its parts, which take {self._lengths} epochs")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        index, epoch = self._locate(trainer.current_epoch)
        if epoch == 0:
            self._progress.start(self._label(index), self._lengths[index])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        index, epoch = self._locate(trainer.current_epoch)
        self._progress.advance(epoch, self._lengths[index], 1 / float(trainer.num_training_batches))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        index, epoch = self._locate(trainer.current_epoch)
        if epoch + 1 == self._lengths[index]:
            accuracy = trainer.callback_metrics.get("val/accuracy")
            text = "" if accuracy is None else f", validation accuracy {float(accuracy):.4f}"
            self._progress.finish(f"{self._label(index)}{text}")
