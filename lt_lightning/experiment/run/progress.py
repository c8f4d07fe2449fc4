"""Progress of a whole job: which training of how many, which round, and how long is left."""

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

Label = Callable[[int], str]


class JobProgress:
    """Bars for the sweep, the job and the current training on a terminal; a line for each training elsewhere.

    The time left is that of all epochs still to come, at the mean speed of those done in this process.

    Args:
        epochs: of all trainings of the job that are still to be run.
        console: to write to.
        sweep: that the job is of.
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
        self._all: TaskID | None = None
        if self._sweep is not None:
            self._all = self._bars.add_task("whole sweep", total=self._sweep.jobs, counts="", left="")
            self._show_sweep()
        self._job: TaskID = self._bars.add_task("whole job", total=epochs, counts="", left="")
        self._watcher: Callable[[str], None] | None = None
        self._label = ""
        self._open = 0.0  # epochs of the current training
        self._told = ""
        self._stage: TaskID = self._bars.add_task("", total=1, counts="", left="", visible=False)

    def __enter__(self) -> JobProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, label: str, epochs: int, done: int = 0) -> None:
        """A training, or a round of the search, begins, or goes on after some epochs."""
        self._label, self._open = label, float(epochs - done)
        if self._sweep is not None:
            self._ended = self._sweep.ended()  # other processes may be at it
        self._bars.reset(
            self._stage, description=label, total=epochs, completed=done, visible=True,
            counts=f"epoch {done + 1}/{epochs}", left="",
        )  # fmt: skip

    def advance(self, epoch: int, epochs: int, share: float) -> None:
        """A share of an epoch is done; `epoch` counts from 0 within the training."""
        self._done += share
        self._open -= share
        counts = f"epoch {min(epoch + 1, epochs)}/{epochs}"
        self._tell(f"{self._label}, {counts}")
        self._bars.update(self._stage, advance=share, counts=counts, left=self._time_for(self._open))
        self._bars.update(
            self._job, completed=self._done, counts=f"{self._done:.0f}/{self._epochs} epochs", left=self.time_left()
        )
        self._show_sweep()

    def skip(self, epochs: int) -> None:
        """Epochs that turned out not to be needed."""
        self._epochs -= epochs
        self._bars.update(self._job, total=self._epochs)

    def expect(self, epochs: int) -> None:
        """So many epochs are still to come."""
        self._epochs = round(self._done) + epochs
        self._bars.update(self._job, total=self._epochs)

    def watched_by(self, watcher: Callable[[str], None] | None) -> None:
        """From now on it is told which epoch of which training runs, whenever that changes."""
        self._watcher = watcher

    def _tell(self, what: str) -> None:
        if self._watcher is not None and what != self._told:
            self._watcher(what)
        self._told = what

    def note(self, text: str) -> None:
        """Something to know, printed above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self, text: str) -> None:
        """A training has ended: says so where there are no bars."""
        if not self.console.is_interactive:
            sweep = "" if self._sweep is None else f"; {self._job_number()}, {self.sweep_time_left()}"
            told = f"[{self._done:.0f}/{self._epochs} epochs, {self.time_left()}{sweep}] {text}"
            self.console.print(told, markup=False, highlight=False, soft_wrap=True)

    def time_left(self) -> str:
        """For people: `1:05 left`."""
        return self._time_for(self._epochs - self._done)

    def _time_for(self, epochs: float) -> str:
        if self._done < 0.5:
            return _left(math.nan)
        return _left((time.perf_counter() - self._start) / self._done * max(0.0, epochs))

    def sweep_time_left(self) -> str:
        """Likewise, of the whole sweep."""
        if self._sweep is None or (self._done < 0.5 and not self._ended[1]):
            return _left(math.nan)
        return _left(self._sweep.seconds_left(self._share(), self._ended))

    def _share(self) -> float:
        """Of the job that is done."""
        return min(1.0, self._done / self._epochs) if self._epochs else 0.0

    def _job_number(self) -> str:
        assert self._sweep is not None
        return f"job {self._ended[0] + 1} of {self._sweep.jobs}"

    def _show_sweep(self) -> None:
        if self._all is not None:
            done = self._ended[0] + self._share()
            self._bars.update(self._all, completed=done, counts=self._job_number(), left=self.sweep_time_left())


def _left(seconds: float) -> str:
    if math.isnan(seconds):
        return "time left unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"


class ReportProgress(pl.Callback):
    """Reports a fit to the job's progress.

    Args:
        job: to report to.
        expected: epochs that the job counts with for this fit.
        lengths: of the fit's parts in epochs, asked for when it starts: one for a single training, one a round
            for a search.
        label: of a part, by its index.
    """

    def __init__(self, job: JobProgress, expected: int, lengths: Callable[[], list[int]], label: Label) -> None:
        self._job = job
        self._expected = expected
        self._lengths = lengths
        self._stages: list[int] = []
        self._label = label

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stages = self._lengths()
        self._job.skip(self._expected - sum(self._stages) + trainer.current_epoch)
        if trainer.global_step > 0:  # resumed
            index, epoch = self._locate(trainer.current_epoch)
            self._job.start(self._label(index), self._stages[index], epoch)
            self._job.note(f"{self._label(index)} goes on in epoch {epoch + 1} of {self._stages[index]}")

    def _locate(self, epoch: int) -> tuple[int, int]:
        """Part of the fit, and epoch within it."""
        for index, length in enumerate(self._stages):
            if epoch < length:
                return index, epoch
            epoch -= length
        raise ValueError(f"the fit is longer than its stages {self._stages}")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        index, epoch = self._locate(trainer.current_epoch)
        if epoch == 0:
            self._job.start(self._label(index), self._stages[index])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        index, epoch = self._locate(trainer.current_epoch)
        self._job.advance(epoch, self._stages[index], 1 / float(trainer.num_training_batches))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        index, epoch = self._locate(trainer.current_epoch)
        if epoch + 1 == self._stages[index]:
            best = trainer.callback_metrics.get("val/accuracy")
            told = "" if best is None else f", validation accuracy {float(best):.4f}"
            self._job.finish(f"{self._label(index)}{told}")
