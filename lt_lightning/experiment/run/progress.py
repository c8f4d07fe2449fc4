"""Progress of a job and its sweep: which training of how many, which round, and how much time is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType

import pytorch_lightning as pl
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from lt_lightning.experiment.sweep import Multirun
from lt_lightning.results.tables import percent
from lt_lightning.training.lightning_internals import share_of_epoch


class JobProgress:
    """Prints a line for every finished training; on a terminal, below it, bars for the sweep, the job and the training.

    A line under the bars shows the metrics of the training's last epoch.

    The time left is that of all epochs still to come, at the mean speed of those done in this process. Nothing is done
    at a step of the training: the bars ask, when they are drawn, how far the epoch is.

    Attributes:
        epochs: number of epochs that the job trains in this process, as far as is known.
        watcher: function that is called with a line on the training and the epoch that begins; None for none.

    Args:
        epochs: number of epochs that the job still has to train.
        console: console to write to.
        sweep: sweep that the job belongs to; None for a single job.
    """

    def __init__(self, epochs: int, console: Console, sweep: Multirun | None = None) -> None:
        self.epochs = epochs
        self.watcher: Callable[[str], None] | None = None
        self._console = console
        self._done = 0  # epochs
        self._start = time.perf_counter()
        self._sweep = sweep if sweep is not None and sweep.jobs is not None else None
        self._ended = (0, 0) if self._sweep is None else self._sweep.ended()
        self._bars = _Bars(console)
        self._sweep_bar = self._add("whole sweep") if self._sweep is not None else None
        self._job_bar = self._add("whole job")
        self._training_bar = self._add("")
        self._training = ("", 1, 0)  # label, epochs, and the epoch that runs
        self._running: Callable[[], float] = float  # returns the share of that epoch that is done
        self._bars.update_all = self._show

    def __enter__(self) -> JobProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def expect(self, epochs: int) -> None:
        """Set how many epochs are still to come."""
        self.epochs = self._done + epochs

    def start(self, label: str, epochs: int, epoch: int = 0, running: Callable[[], float] = float) -> None:
        """Show that an epoch of a training, or of a round of the search, begins.

        Args:
            label: name of the training.
            epochs: number of its epochs.
            epoch: the epoch that begins, counted from 0.
            running: returns the share of it that is done, as long as it runs.
        """
        began, self._training, self._running = self._training[0], (label, epochs, epoch), running
        if epoch == 0 or label != began:
            self._bars.reset(self._training_bar, description=label)
            self._bars.below = ""
            if self._sweep is not None:
                self._ended = self._sweep.ended()  # other processes may run jobs of it, too
        if self.watcher is not None:
            self.watcher(f"{label}, epoch {epoch + 1}/{epochs}")

    def advance(self, epochs: int = 1) -> None:
        """Count epochs that have ended: the one that ran, and those that it stands for."""
        label, length, epoch = self._training
        self._training, self._running = (label, length, min(epoch + epochs, length)), float
        self._done += epochs

    def reach(self, metrics: Mapping[str, float], best: float | None = None) -> None:
        """Show under the bars what an epoch has come to, in the words of `format_metrics`."""
        self._bars.below = "  ".join(format_metrics(metrics, best))

    def finish(self, text: str) -> None:
        """Print that a training has ended; where there are no bars, also how far the job is."""
        if self._console.is_interactive:
            self.note(text)
        else:
            sweep = "" if self._sweep is None else f"; {self._job_number()}, {self.sweep_time_left()}"
            self.note(f"[{self._done}/{self.epochs} epochs, {self.time_left()}{sweep}] {text}")

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def time_left(self, epochs: float | None = None, running: float = 0.0) -> str:
        """Return the time that epochs still take, as people write it: `1:05 left`.

        Args:
            epochs: number of epochs; None: all that the job has still to train.
            running: share of the running epoch that is done.
        """
        done = self._done + running
        to_come = (self.epochs - self._done if epochs is None else epochs) - running
        seconds = math.nan if done < 0.5 else (time.perf_counter() - self._start) / done * max(0.0, to_come)
        return _format_time_left(seconds)

    def sweep_time_left(self, running: float = 0.0) -> str:
        """Return the time that the whole sweep still takes, as people write it."""
        done = self._done + running
        if self._sweep is None or (done < 0.5 and not self._ended[1]):
            return _format_time_left(math.nan)
        return _format_time_left(self._sweep.seconds_left(min(1.0, done / max(1, self.epochs)), self._ended))

    def _add(self, description: str) -> TaskID:
        return self._bars.add_task(description, counts="", left="")

    def _job_number(self) -> str:
        assert self._sweep is not None
        return f"job {self._ended[0] + 1} of {self._sweep.jobs}"

    def _show(self) -> None:
        """Bring the bars up to date."""
        running = self._running()
        label, epochs, epoch = self._training
        self._bars.update(
            self._training_bar, total=epochs, completed=epoch + running, visible=bool(label),
            counts=f"epoch {min(epoch + 1, epochs)}/{epochs}", left=self.time_left(epochs - epoch, running),
        )  # fmt: skip
        done = self._done + running
        self._bars.update(
            self._job_bar, total=self.epochs, completed=done, counts=f"{done:.0f}/{self.epochs} epochs",
            left=self.time_left(running=running),
        )  # fmt: skip
        if self._sweep_bar is not None:
            assert self._sweep is not None
            jobs = self._ended[0] + min(1.0, done / max(1, self.epochs))
            self._bars.update(
                self._sweep_bar, total=self._sweep.jobs, completed=jobs, counts=self._job_number(),
                left=self.sweep_time_left(running),
            )  # fmt: skip


class _Bars(Progress):
    """Bars that are brought up to date, by `update_all`, whenever they are drawn, and a line of text below them."""

    def __init__(self, console: Console) -> None:
        self.update_all: Callable[[], object] = float  # nothing; Rich draws the bars before there are any
        self.below = ""
        super().__init__(
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

    def get_renderable(self) -> RenderableType:
        self.update_all()
        bars = super().get_renderable()
        return Group(bars, Text(self.below, style="dim", no_wrap=True, overflow="ellipsis")) if self.below else bars


def format_metrics(metrics: Mapping[str, float], best: float | None = None) -> list[str]:
    """Return the metrics of an epoch that are worth seeing, as people write them; those that are missing are left out.

    >>> format_metrics({"pruning/density": 0.512, "val/accuracy": 0.9889, "val/loss": 0.1}, best=0.9944)
    ['density 51.2 %', 'validation accuracy 98.89 % (best 99.44 %)']
    """
    texts = []
    if (density := metrics.get("pruning/density")) is not None:
        texts.append(f"density {percent(float(density), 1)}")
    if (accuracy := metrics.get("val/accuracy")) is not None:
        highest = "" if best is None else f" (best {percent(best, 2)})"
        texts.append(f"validation accuracy {percent(float(accuracy), 2)}{highest}")
    return texts


def _format_time_left(seconds: float) -> str:
    if math.isnan(seconds):
        return "time left unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"


class ReportProgress(pl.Callback):
    """A Lightning callback that reports a fit to the job's progress.

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
        self._best: float | None = None  # validation accuracy of the part that runs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lengths = self._make_lengths()
        self._progress.epochs -= self._expected - sum(self._lengths) + trainer.current_epoch
        if trainer.global_step > 0:  # resumed
            label, length, epoch = self._locate(trainer.current_epoch)
            self._progress.start(label, length, epoch)
            self._progress.note(f"{label} goes on in epoch {epoch + 1} of {length}")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress.start(*self._locate(trainer.current_epoch), partial(share_of_epoch, trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress.advance()
        label, length, epoch = self._locate(trainer.current_epoch)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if (accuracy := metrics.get("val/accuracy")) is not None:
            before = accuracy if self._best is None or epoch == 0 else self._best
            self._best = max(accuracy, before)
        self._progress.reach(metrics, self._best)
        if epoch + 1 == length:
            best = {} if self._best is None else {"val/accuracy": self._best}
            self._progress.finish(", ".join([label, *format_metrics(metrics | best)]))

    def _locate(self, epoch: int) -> tuple[str, int, int]:
        """Return the part that an epoch of the fit belongs to, by label and length, and the epoch within that part."""
        for index, length in enumerate(self._lengths):
            if epoch < length:
                return self._label(index), length, epoch
            epoch -= length
        raise ValueError(f"the fit is longer than its parts, which take {self._lengths} epochs")
