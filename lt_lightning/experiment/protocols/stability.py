"""Stability of a training to the noise of its data order: the measurement that `conf/stability.yaml` describes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lt_lightning.experiment.config.fingerprint import hash_of, record_data
from lt_lightning.experiment.config.options import Stability, options_of, read
from lt_lightning.experiment.config.tasks import search_folder
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.averaging import Errors
from lt_lightning.experiment.run.checkpoints import Checkpoints, stoppable
from lt_lightning.experiment.run.progress import JobProgress, ReportProgress
from lt_lightning.pruning.evaluation import barrier, smallest_stable
from lt_lightning.pruning.masks import Masks, digest
from lt_lightning.pruning.rewinding import Restart, RewindPoint, Step
from lt_lightning.report.figures import write_svg
from lt_lightning.report.plots import stability_figure
from lt_lightning.results.locks import Lock, owner_of
from lt_lightning.storage.files import read_json, write_json, write_tensors
from lt_lightning.storage.layout import TICKET, UNSTRUCTURED
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.batches import steps_per_epoch
from lt_lightning.training.lightning_internals import schedules_of
from lt_lightning.training.retraining import TicketTraining

DENSE = "dense"


class CapturePoints(pl.Callback):
    """A Lightning callback that writes the state of a training at given points, and ends it after the last of them.

    Points that are on disk already are left alone. Each file contains a `Restart` and is named by its point: `3ep.pt`.

    Args:
        folder: folder to write to.
        points: points to capture, all within the training.
    """

    def __init__(self, folder: Path, points: Sequence[Step]) -> None:
        self.folder = folder
        self.points = tuple(points)
        self._open: dict[int, Step] = {}  # points that are still to come, by step

    def missing(self) -> list[Step]:
        """Return the points that are not on disk."""
        return [point for point in self.points if not self.path(point).is_file()]

    def path(self, point: Step) -> Path:
        """Return the path of a point's file."""
        return self.folder / f"{point}.pt"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        per_epoch = steps_per_epoch(trainer)
        for point in self.missing():
            epochs, steps = point.split(per_epoch)
            self._open[epochs * per_epoch + steps] = point
        self._capture(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._capture(trainer, pl_module)

    def _capture(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        point = self._open.pop(trainer.global_step, None)
        if point is not None:
            assert trainer.max_epochs is not None
            network: Any = pl_module.network
            state = RewindPoint.capture(network, trainer.optimizers, schedules_of(trainer))
            epochs = trainer.max_epochs - point.split(steps_per_epoch(trainer))[0]
            Restart("weights", state, epochs, []).save(self.path(point))
        if not self._open:
            trainer.should_stop = True


@dataclass(frozen=True)
class Line:
    """The line between the ends of two trainings that start at one point of the dense training.

    Attributes:
        network: `dense`, or the folder of the ticket whose masks both trainings keep.
        rewind: point where they start.
        errors: errors on the test set, at evenly spaced positions from the first training's end to the second's.
        barrier: height of the error barrier; see `lt_lightning.pruning.evaluation.barrier`.
    """

    network: str
    rewind: str
    errors: list[float]
    barrier: float


def measure_stability(config: DictConfig) -> dict[str, Any]:
    """Measure what is not measured yet, print a table, and write a JSON file and an SVG.

    Returns:
        The contents of the JSON file: the options, every line, and by network the smallest stable rewind point.

    Raises:
        ValueError: before anything is trained, if the configuration asks for something impossible, or if the folder's
            measurements were made on other data.
        RuntimeError: if another process is measuring the same.
    """
    _check(config)
    experiment = Experiment.from_config(config)
    experiment.use_threads()
    if experiment.size > 1:
        raise ValueError(f"trainer.devices={config.trainer.devices}: stability is measured on one device")
    title = f"{config.labels.data}, {config.labels.model}, seed {config.seed}"
    networks = {name: _masks_of(experiment, name) for name in config.stability.networks}
    folder = folder_of(config)
    lock = Lock(folder)
    if not lock.take():
        raise RuntimeError(f"{folder} is in the hands of {owner_of(folder)}: try again later")
    try:
        record_data(folder, config, experiment.data)
        with stoppable(), JobProgress(0, Console()) as progress:
            record = _Measurement(experiment, networks, folder, progress).run()
    finally:
        lock.release()
    path = folder / f"stability-{hash_of(record['options'])}"
    write_json(path.with_suffix(".json"), record)
    lines = record["lines"]
    errors = {f"{each['network']}, {each['rewind']}: barrier {each['barrier']:.1%}": each["errors"] for each in lines}
    write_svg(path.with_suffix(".svg"), stability_figure(title, errors))
    _show(record, path, title)
    return record


def folder_of(config: DictConfig) -> Path:
    """Return the folder of all measurements from the same dense training; a fingerprint of that training names it."""
    dense = config.copy()
    with open_dict(dense):
        dense.pruning = {"next_round_from": UNSTRUCTURED}  # the dense training depends on no other key of `pruning`
    return Path(config.paths.root) / "stability" / search_folder(dense).name


def _check(config: DictConfig) -> None:
    options_of(config)
    read(Stability, OmegaConf.to_container(config.stability, resolve=True), "stability")
    for key in ("plan", "status"):
        if config[key]:
            raise ValueError(f"{key}={config[key]}: lt-lightning stability only measures; use lt-lightning run")


def _masks_of(experiment: Experiment, name: str) -> Masks:
    """Return the masks of a network by its name: those of a ticket, none of the dense network."""
    if name == DENSE:
        return {}
    ticket = Ticket.load(Path(name) / TICKET)
    for key, value in experiment.labels.items():
        if (theirs := ticket.card.get(key)) != value:
            raise ValueError(
                f"stability.networks={name}: the ticket comes from {key}={theirs}, but the training that it is to be "
                f"measured in has {key}={value}"
            )
    ticket.apply(experiment.classifier().network)  # raises an error if it is another network's
    return ticket.masks


class _Measurement:
    """Trains the pairs of networks that are missing, and measures the lines between them."""

    def __init__(self, experiment: Experiment, networks: dict[str, Masks], folder: Path, progress: JobProgress) -> None:
        self._experiment = experiment
        self._networks = networks
        self._folder = folder
        self._progress = progress
        self._options: Any = OmegaConf.to_container(experiment.config.stability, resolve=True)
        self._total = int(experiment.options.trainer["max_epochs"])
        self._lines: dict[tuple[str, str], Line] = {}

    def run(self) -> dict[str, Any]:
        points = self._points()
        smallest: dict[str, str | None] = {}
        self._capture(points)
        for name in self._networks:
            index = smallest_stable(lambda index, name=name: self._is_stable(name, points[index]), len(points))  # type: ignore[misc]
            smallest[name] = None if index is None else str(points[index])
        lines = sorted(
            self._lines.values(),
            key=lambda line: (line.network != DENSE, line.network, Step.parse(line.rewind).count),
        )
        options = {**self._options, "rewind": [str(point) for point in points]}
        return {"options": options, "lines": [asdict(line) for line in lines], "smallest_stable": smallest}

    def _points(self) -> list[Step]:
        """Return the rewind points to choose from: `pruning.rewind` alone, or all multiples of `stability.search`."""
        per_epoch = self._steps_per_epoch()
        if self._options["search"] is None:
            point = Step.parse(self._experiment.config.pruning.rewind).within(self._total)
            if point.split(per_epoch)[0] >= self._total:
                raise ValueError(f"pruning.rewind={point} is not before the end of a training of {self._total} epochs")
            return [point]
        spacing = Step.parse(self._options["search"]).within(self._total)
        end = self._total if spacing.unit == "ep" else self._total * per_epoch
        if not 0 < spacing.count < end:
            raise ValueError(
                f"stability.search={spacing}: must be more than 0 and less than a training of {end}{spacing.unit}"
            )
        return [replace(spacing, count=count) for count in range(0, end, spacing.count)]

    def _steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch as Lightning counts them."""
        trainer = self._experiment.trainer([], [])
        self._experiment.data.prepare_data()
        self._experiment.data.setup("fit")
        batches = len(self._experiment.data.train_dataloader())
        limit = trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, int(limit or batches))
        return math.ceil(batches / trainer.accumulate_grad_batches)

    def _capture(self, points: Sequence[Step]) -> None:
        """Train the dense network to the last point, unless all points are on disk."""
        capture = CapturePoints(self._folder / "points", points)
        if capture.missing():
            epochs, rest = points[-1].split(self._steps_per_epoch())
            label = f"dense network, up to {points[-1]}"
            self._fit(capture, capture.folder, epochs + bool(rest), label, self._experiment.options.seed)

    def _is_stable(self, name: str, point: Step) -> bool:
        line = self._line(name, point)
        self._lines[name, str(point)] = line
        self._progress.note(f"{name}, {point}: barrier {line.barrier:.2%}")
        return bool(line.barrier < self._options["threshold"])

    def _line(self, name: str, point: Step) -> Line:
        """Return the line between two trainings of a network from a point on, measured or read from disk."""
        masks = self._networks[name]
        folder = self._folder / (f"ticket-{digest(masks)[:8]}" if masks else DENSE) / str(point)
        seeds, positions, batches = (self._options[key] for key in ("seeds", "points", "batch_norm_batches"))
        path = folder / f"line-{hash_of({'seeds': seeds, 'points': positions, 'batches': batches})}.json"
        if path.is_file():
            errors: list[float] = read_json(path)["errors"]
        else:
            first, second = (
                self._trained(folder, masks, point, seed, f"{name}, {point}, order {seed}") for seed in seeds
            )
            errors = Errors(self._experiment, "test", batches).on_line(first, second, positions)
            write_json(path, {"errors": errors})
        return Line(name, str(point), errors, barrier(errors))

    def _trained(self, folder: Path, masks: Masks, point: Step, seed: int, label: str) -> dict[str, Tensor]:
        """Return the network at the end of a training from a point on, in the data order of a seed."""
        path = folder / f"seed_{seed}.pt"
        if not path.is_file():
            restart = Restart.load(self._folder / "points" / f"{point}.pt")
            ticket = Ticket(masks, restart.point.network)
            training = TicketTraining(ticket, restart, execution="masked", monitor=None)
            self._fit(training, folder / f"seed_{seed}", restart.epochs, label, seed)
            assert training.trained is not None
            assert training.trained.trained is not None
            write_tensors(path, dict(training.trained.trained))
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state

    def _fit(self, callback: Any, folder: Path, epochs: int, label: str, order_seed: int) -> None:
        """Run a training from its last checkpoint on."""
        experiment = self._experiment
        experiment.data.order_seed = order_seed
        checkpoints = Checkpoints(folder / "checkpoints", **asdict(experiment.options.checkpoint))
        self._progress.expect(epochs)
        report = ReportProgress(self._progress, epochs, lambda: [epochs], lambda _: label)
        trainer = experiment.trainer([callback, report, checkpoints], [])
        trainer.fit(experiment.classifier(), experiment.data, ckpt_path=checkpoints.latest(), weights_only=True)
        checkpoints.finish()


def _show(record: dict[str, Any], path: Path, title: str) -> None:
    threshold = record["options"]["threshold"]
    caption = (
        "The barrier is the largest test error on the line less the mean error of its ends. A point is stable if the "
        f"barrier is below {threshold:.1%} (Frankle et al. 2020). BatchNorm statistics are estimated anew at every "
        "position."
    )
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("network", "rewind", "error at the ends", "largest error", "barrier", "stable"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for line in record["lines"]:
        errors = line["errors"]
        stable = "yes" if line["barrier"] < threshold else "no"
        ends = f"{errors[0]:.2%}, {errors[-1]:.2%}"
        table.add_row(line["network"], line["rewind"], ends, f"{max(errors):.2%}", f"{line['barrier']:.2%}", stable)
    console = Console()
    console.print(table)
    if record["options"]["search"] is not None:
        for name, step in record["smallest_stable"].items():
            text = f"from {step} on" if step else f"at none of {', '.join(record['options']['rewind'])}"
            console.print(f"{name}: stable {text}, by bisection", markup=False, highlight=False, soft_wrap=True)
    for suffix in ("json", "svg"):
        console.print(f"{path}.{suffix}", markup=False, highlight=False, soft_wrap=True)
