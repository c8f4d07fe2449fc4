"""What a search adds to its training steps: logging, checkpoints and bars, and what is done between two rounds."""

from __future__ import annotations

import copy
import io
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.training.contenders import classifier_of, lottery_of, trainer_of
from benchmarks.training.task import Task
from lt_lightning.experiment.logging.loggers import MetricsFile
from lt_lightning.experiment.run.checkpoints import Checkpoints
from lt_lightning.experiment.run.progress import JobProgress, ReportProgress
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.criteria import Magnitude
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import full_masks, prunable_layers
from lt_lightning.pruning.rewinding import RewindPoint
from lt_lightning.pruning.selection import prune
from lt_lightning.storage.layout import UNSTRUCTURED
from lt_lightning.structures.base import Structure, StructureInput, Unstructured
from lt_lightning.tickets.making import make_ticket

STEP_HOOKS = ("on_train_batch_start", "on_train_batch_end")


@dataclass(frozen=True)
class Overhead:
    """What an epoch of a search spends on looking on, as `lt-lightning run` runs it on a terminal.

    Attributes:
        steps: number of steps of the epoch.
        step: milliseconds of a step with everything, median.
        per_step: milliseconds of a step that progress and checkpoints take, without saving.
        per_epoch: milliseconds of an epoch that their other hooks and the metrics file take.
        checkpoint: milliseconds of saving a checkpoint.
        checkpoints: share of the time that checkpoints take, by the pause between two of them.
        bars: share of the time in which the bars are drawn, beside the training.
        share: share of an epoch that all of these take.
    """

    steps: int
    step: float
    per_step: float
    per_epoch: float
    checkpoint: float
    checkpoints: float
    bars: float
    share: float


def measure_overhead(task: Task, steps: int) -> Overhead:
    """Train a task as a search does, and time everything that only looks on.

    Args:
        task: task whose steps run; they are fewer than an epoch has.
        steps: number of steps of a true epoch.
    """
    watch, ticks = _Watch(), _Ticks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lottery = lottery_of(task, str(folder / "tickets"))
        file = MetricsFile(folder / "metrics.csv")
        checkpoints = Checkpoints(folder / "checkpoints")
        with JobProgress(2, Console(file=io.StringIO(), force_terminal=True, force_interactive=True)) as job:
            report = ReportProgress(job, 2, lambda: lottery.timeline.round_lengths, str)
            watched = [report, checkpoints]
            for one in watched:
                watch.hooks_of(one, pl.Callback)
            watch.hooks_of(file, pl.loggers.Logger)
            drawing = _Drawing()
            trainer = trainer_of(
                task, [lottery, *watched[:2], ticks, checkpoints], logger=[file], enable_checkpointing=True
            )
            trainer.fit(classifier_of(task), task.data())
            bars = drawing.share()
    step = statistics.median(after - before for before, after in pairwise(ticks.seconds))
    per_step = sum(statistics.median(watch.seconds[hook]) for hook in watch.seconds if hook[1] in STEP_HOOKS)
    once = sum(sum(seconds) for hook, seconds in watch.seconds.items() if hook[1] not in STEP_HOOKS)
    per_epoch = once / 2  # of two
    checkpoint = _saving(task, checkpoints)
    pause = max(checkpoints.seconds, checkpoint * (1 / checkpoints.share - 1))
    spent = (per_step + per_epoch / steps) / step
    saving = checkpoint / (checkpoint + pause)
    return Overhead(
        steps, step * 1e3, per_step * 1e3, per_epoch * 1e3, checkpoint * 1e3, saving, bars, spent + saving + bars
    )


def _saving(task: Task, checkpoints: Checkpoints) -> float:
    """Return the seconds of the third checkpoint of a round, when nothing happens for the first time any more."""
    seconds: list[float] = []

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1 and len(seconds) < 3 and not trainer.is_last_batch:
                start = time.perf_counter()
                own.save(trainer)
                seconds.append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as name:
        own = Checkpoints(Path(name) / "checkpoints", checkpoints.share, float(1 << 30))
        lottery = lottery_of(task, str(Path(name) / "tickets"))
        trainer_of(task, [lottery, Save(), own], enable_checkpointing=True).fit(classifier_of(task), task.data())
    return seconds[-1]


class _Watch:
    """Times hooks of callbacks and loggers.

    Attributes:
        seconds: seconds of every call, by class and hook.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], list[float]] = defaultdict(list)

    def hooks_of(self, one: Any, base: type) -> None:
        """Time, from now on, the hooks that the object defines itself."""
        for name in dir(base):
            own = getattr(type(one), name)
            if not name.startswith("_") and callable(own) and own is not getattr(base, name):
                setattr(one, name, self._timed((type(one).__name__, name), getattr(one, name)))

    def _timed(self, key: tuple[str, str], hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return hook(*arguments, **options)
            finally:
                self.seconds[key].append(time.perf_counter() - start)

        return timed


class _Ticks(pl.Callback):
    """Notes when the steps of epoch 1 begin."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter())


class _Drawing:
    """Measures the processor time of the thread that draws the bars."""

    def __init__(self) -> None:
        self._clocks = [
            time.pthread_getcpuclockid(thread.ident)
            for thread in threading.enumerate()
            if type(thread).__module__.startswith("rich") and thread.ident is not None
        ]
        self._start = time.perf_counter(), self._seconds()

    def share(self) -> float:
        """Return its share of the time since it was made."""
        wall, own = self._start
        return (self._seconds() - own) / (time.perf_counter() - wall)

    def _seconds(self) -> float:
        return sum(time.clock_gettime(clock) for clock in self._clocks)


# What lies between two rounds: scores and pruning, rewinding, structuring, tickets on disk.

COMMON = ("prune", "rewind", "ticket to disk")  # whatever the structure


@dataclass(frozen=True)
class Part:
    """One part of the work between two rounds.

    Attributes:
        part: name of the part; a structure has its own name.
        milliseconds: median.
        longest: longest time, in milliseconds.
        samples: number of repetitions.
    """

    part: str
    milliseconds: float
    longest: float
    samples: int


def measure_round(
    network: nn.Module, example: Tensor, structures: Mapping[str, Structure], density: float, samples: int = 3
) -> list[Part]:
    """Time the parts on the network's device, at a density that several rounds have led to.

    The analysis of the network runs once, as in a search: in the first structure that needs it, whose longest time
    shows it.

    Args:
        network: network, of which a copy gets filters and inputs of unequal strength, as a trained one has.
        example: an image.
        structures: structures by name, each applied to the round's mask.
        density: density of the mask.
        samples: number of repetitions of each part.
    """
    network = _uneven(copy.deepcopy(network))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.cat([example, example])).sum().backward()
    optimizer.step()
    point = RewindPoint.capture(network, [optimizer], [])
    weights = {name: parameter.detach().cpu().clone() for name, parameter in network.named_parameters()}
    values = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    trained = copy.deepcopy(values)
    traced = TracedNetwork(network, example)
    full = full_masks(prunable_layers(traced.layers, ("stem", "classifier")))
    masks = prune(full, Magnitude()(weights, full), density)
    given = StructureInput(traced, masks, weights)
    ticket = make_ticket(UNSTRUCTURED, Unstructured(), given, values)

    def rewind() -> None:
        network.load_state_dict(point.network)
        enforced = EnforcedMasks(network, masks)
        enforced.zero_weights()
        enforced.zero_optimizer_state([optimizer])

    with tempfile.TemporaryDirectory() as folder:
        common: tuple[Callable[[], object], ...] = (
            lambda: prune(full, Magnitude()(weights, full), density),
            rewind,
            lambda: ticket.with_training(trained).save(Path(folder) / "ticket"),
        )
        parts = dict(zip(COMMON, common, strict=True))
        for name, structure in structures.items():
            parts[name] = partial(make_ticket, name, structure, given, values)
        return [_timed(name, call, samples) for name, call in parts.items()]


@torch.no_grad()
def _uneven(network: nn.Module) -> nn.Module:
    """Make filters and inputs uneven: among even ones clustering ends sooner than after a training."""
    draw = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            for strength, axis in ((0.35, 0), (0.5, 1)):
                shape = [size if dimension == axis else 1 for dimension, size in enumerate(parameter.shape)]
                parameter.mul_((strength * torch.randn(shape, generator=draw)).exp().to(parameter.device))
    return network


def _timed(name: str, call: Callable[[], object], samples: int) -> Part:
    seconds = []
    for _ in range(samples):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Part(name, statistics.median(seconds) * 1e3, max(seconds) * 1e3, samples)
