"""Stability of a training to the noise of its data order: measured, or found again if it is there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lt_lightning.experiment.config.checks import check_basics, fits
from lt_lightning.experiment.config.tasks import hash_of, search_folder
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.protocols.connectivity import barrier, error, interpolate, reestimate, smallest_stable
from lt_lightning.experiment.run.checkpoints import Checkpoints
from lt_lightning.experiment.run.progress import JobProgress, ReportProgress
from lt_lightning.experiment.run.stopping import stoppable
from lt_lightning.files import read_json, replacing, write_json, write_tensors
from lt_lightning.pruning.masks import Masks, digest
from lt_lightning.pruning.rewinding import Restart, RewindPoint, Step
from lt_lightning.report.figures import COLOURS, SYMBOLS
from lt_lightning.results.locks import Lock, owner_of
from lt_lightning.results.paths import TICKET
from lt_lightning.ticket_names import UNSTRUCTURED
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.batches import steps_per_epoch
from lt_lightning.training.lightning_internals import schedules_of
from lt_lightning.training.retraining import TicketTraining


class CapturePoints(pl.Callback):
    """Writes the state of a training at given steps, and ends it after the last of them.

    Those that are on disk are left alone. Each file is a `Restart`, named by its step: `3ep.pt`.

    Args:
        folder: to write to.
        steps: to capture, all within the training.
    """

    def __init__(self, folder: Path, steps: Sequence[Step]) -> None:
        self.folder = folder
        self.steps = tuple(steps)
        self._moments: dict[int, Step] = {}

    def missing(self) -> list[Step]:
        """Steps that are not on disk."""
        return [step for step in self.steps if not self.path(step).is_file()]

    def path(self, step: Step) -> Path:
        """Of a step's file."""
        return self.folder / f"{step}.pt"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        per_epoch = steps_per_epoch(trainer)
        for step in self.missing():
            epochs, steps = step.split(per_epoch)
            self._moments[epochs * per_epoch + steps] = step
        self._capture(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._capture(trainer, pl_module)

    def _capture(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = self._moments.pop(trainer.global_step, None)
        if step is not None:
            assert trainer.max_epochs is not None
            network: Any = pl_module.network
            point = RewindPoint.capture(network, trainer.optimizers, schedules_of(trainer))
            epochs = trainer.max_epochs - step.split(steps_per_epoch(trainer))[0]
            Restart("weights", point, epochs, []).save(self.path(step))
        if not self._moments:
            trainer.should_stop = True


# The errors along lines, drawn.


def plot_lines(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Test error from one training's end (0) to the other's (1), a curve for each line; a PNG.

    Args:
        lines: each with `network`, `rewind`, `errors` and `barrier`.
        path: of the file.
        title: above the axes.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, line in enumerate(lines):
        places = np.linspace(0, 1, len(line["errors"]))
        label = f"{line['network']}, {line['rewind']}: barrier {line['barrier']:.1%}"
        colour, (_, marker) = COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]
        axes.plot(places, line["errors"], color=colour, marker=marker, markersize=4, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("place on the line between the two trained networks")
    axes.set_ylabel("test error")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


# Stability of a training to the noise of its data order: measured, or found again if it is there.

DENSE = "dense"


@dataclass(frozen=True)
class Line:
    """The line between two trainings of one network that part at one point.

    Attributes:
        network: `dense`, or the folder of the ticket whose masks both trainings hold.
        rewind: where they part.
        errors: on the test set, at evenly spaced points from the first training's end to the second's.
        barrier: see `lt_lightning.experiment.protocols.connectivity.barrier`.
    """

    network: str
    rewind: str
    errors: list[float]
    barrier: float


def measure_stability(config: DictConfig) -> dict[str, Any]:
    """Does what `conf/stability.yaml` describes, as far as it is not there yet; prints a table, writes JSON and PNG.

    Returns:
        what the JSON file holds: the options, every line, and by network the smallest stable rewind point.

    Raises:
        ValueError: before anything is trained, if the configuration asks for something impossible.
        RuntimeError: if another process is at the same.
    """
    _check(config)
    experiment = Experiment.from_config(config)
    experiment.use_threads()
    if experiment.needs_processes:
        raise ValueError(f"trainer.devices={config.trainer.devices}: stability is measured on one device")
    title = f"{config.labels.data}, {config.labels.model}, seed {config.seed}"
    networks = {name: _masks_of(experiment, name) for name in config.stability.networks}
    folder = folder_of(config)
    lock = Lock(folder)
    if not lock.take():
        raise RuntimeError(f"{folder} is in the hands of {owner_of(folder)}: try again later")
    try:
        with stoppable(), JobProgress(0, Console()) as job:
            record = _Measurement(experiment, networks, folder, job).run()
    finally:
        lock.release()
    path = folder / f"stability-{hash_of(record['options'])}"
    write_json(path.with_suffix(".json"), record)
    plot_lines(record["lines"], path.with_suffix(".png"), title)
    _show(record, path, title)
    return record


def folder_of(config: DictConfig) -> Path:
    """Folder of everything that starts from the same training, which a hash of what determines that names."""
    alone = config.copy()
    with open_dict(alone):
        alone.pruning = {"next_round_from": UNSTRUCTURED}  # of no other key does it depend
    return Path(config.paths.root) / "stability" / search_folder(alone).name


def _check(config: DictConfig) -> None:
    check_basics(config)
    options = config.stability
    for key in ("plan", "status"):
        if config[key]:
            raise ValueError(f"{key}={config[key]}: stability.py only measures; ask scripts/run.py")
    seeds = OmegaConf.to_container(options.seeds) if OmegaConf.is_list(options.seeds) else None
    if not isinstance(seeds, list) or len(seeds) != 2 or not all(fits(seed, int) and seed >= 0 for seed in seeds):
        raise ValueError(f"stability.seeds={options.seeds}: must be two whole numbers of at least 0")
    if not OmegaConf.is_list(options.networks) or not options.networks:
        raise ValueError(f"stability.networks={options.networks}: must be a list of dense and folders of tickets")
    for key, least in (("points", 3), ("batch_norm_batches", 1)):
        if not fits(options[key], int) or options[key] < least:
            raise ValueError(f"stability.{key}={options[key]}: must be a whole number of at least {least}")
    if not fits(options.threshold, float) or not 0 < options.threshold < 1:
        raise ValueError(f"stability.threshold={options.threshold}: must be a share in (0, 1)")


def _masks_of(experiment: Experiment, name: str) -> Masks:
    """None are held for the dense network."""
    if name == DENSE:
        return {}
    ticket = Ticket.load(Path(name) / TICKET)
    for key, value in experiment.labels.items():
        if (theirs := ticket.card.get(key)) != value:
            raise ValueError(
                f"stability.networks: the ticket {name} is of {key}={theirs}, and the training that it is to be "
                f"measured in of {key}={value}"
            )
    ticket.apply(experiment.classifier().network)  # or it is another network's
    return ticket.masks


class _Measurement:
    """Trains what is missing of the trainings that lines join, and measures the lines."""

    def __init__(self, experiment: Experiment, networks: dict[str, Masks], folder: Path, job: JobProgress) -> None:
        self._experiment = experiment
        self._networks = networks
        self._folder = folder
        self._job = job
        self._options: Any = OmegaConf.to_container(experiment.config.stability, resolve=True)
        self._total = int(experiment.config.trainer.max_epochs)
        self._lines: dict[tuple[str, str], Line] = {}

    def run(self) -> dict[str, Any]:
        steps = self._steps()
        smallest: dict[str, str | None] = {}
        self._capture(steps)
        for name in self._networks:
            found = smallest_stable(lambda index, name=name: self._is_stable(name, steps[index]), len(steps))  # type: ignore[misc]
            smallest[name] = None if found is None else str(steps[found])
        lines = sorted(self._lines.values(), key=lambda line: (line.network != DENSE, line.network, _order(line)))
        options = {**self._options, "rewind": [str(step) for step in steps]}
        return {"options": options, "lines": [asdict(line) for line in lines], "smallest_stable": smallest}

    def _steps(self) -> list[Step]:
        """Points to choose from: `pruning.rewind` alone, or all multiples of `stability.search`."""
        per_epoch = self._steps_per_epoch()
        if self._options["search"] is None:
            step = Step.parse(self._experiment.config.pruning.rewind).within(self._total)
            if step.split(per_epoch)[0] >= self._total:
                raise ValueError(f"pruning.rewind={step} is not before the end of a training of {self._total} epochs")
            return [step]
        granularity = Step.parse(self._options["search"]).within(self._total)
        end = self._total if granularity.unit == "ep" else self._total * per_epoch
        if not 0 < granularity.count < end:
            raise ValueError(
                f"stability.search={granularity}: must be more than 0 and less than a training of "
                f"{end}{granularity.unit}"
            )
        return [replace(granularity, count=count) for count in range(0, end, granularity.count)]

    def _steps_per_epoch(self) -> int:
        """As Lightning counts them."""
        trainer = self._experiment.trainer([], [])
        self._experiment.data.prepare_data()
        self._experiment.data.setup("fit")
        batches = len(self._experiment.data.train_dataloader())
        limit = trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, int(limit or batches))
        return math.ceil(batches / trainer.accumulate_grad_batches)

    def _capture(self, steps: Sequence[Step]) -> None:
        """Trains the dense network to the last point, unless all are there."""
        points = CapturePoints(self._folder / "points", steps)
        if points.missing():
            epochs, rest = steps[-1].split(self._steps_per_epoch())
            label = f"dense network, up to {steps[-1]}"
            self._fit(points, points.folder, epochs + bool(rest), label, self._experiment.config.seed)

    def _is_stable(self, name: str, step: Step) -> bool:
        line = self._measured(name, step)
        self._lines[name, str(step)] = line
        self._job.note(f"{name}, {step}: barrier {line.barrier:.2%}")
        return bool(line.barrier < self._options["threshold"])

    def _measured(self, name: str, step: Step) -> Line:
        masks = self._networks[name]
        place = self._folder / (f"ticket-{digest(masks)[:8]}" if masks else DENSE) / str(step)
        seeds, points, batches = (self._options[key] for key in ("seeds", "points", "batch_norm_batches"))
        path = place / f"line-{hash_of({'seeds': seeds, 'points': points, 'batches': batches})}.json"
        if path.is_file():
            errors: list[float] = read_json(path)["errors"]
        else:
            ends = [self._trained(place, masks, step, seed, f"{name}, {step}, order {seed}") for seed in seeds]
            errors = self._errors(*ends)
            write_json(path, {"errors": errors})
        return Line(name, str(step), errors, barrier(errors))

    def _trained(self, place: Path, masks: Masks, step: Step, seed: int, label: str) -> dict[str, Tensor]:
        """The network at the end of a training from the point on, in the data order of a seed."""
        path = place / f"seed_{seed}.pt"
        if not path.is_file():
            restart = Restart.load(self._folder / "points" / f"{step}.pt")
            ticket = Ticket(masks, restart.point.network)
            training = TicketTraining(ticket, restart, execution="masked", monitor=None)
            self._fit(training, place / f"seed_{seed}", restart.epochs, label, seed)
            assert training.trained is not None
            assert training.trained.trained is not None
            write_tensors(path, dict(training.trained.trained))
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state

    def _fit(self, callback: Any, place: Path, epochs: int, label: str, order_seed: int) -> None:
        """A training that goes on from its last checkpoint."""
        experiment = self._experiment
        experiment.data.order_seed = order_seed
        checkpoints = Checkpoints(place / "checkpoints", **experiment.config.checkpoint)
        self._job.expect(epochs)
        report = ReportProgress(self._job, epochs, lambda: [epochs], lambda _: label)
        trainer = experiment.trainer([callback, report, checkpoints], [])
        trainer.fit(experiment.classifier(), experiment.data, ckpt_path=checkpoints.latest(), weights_only=True)
        checkpoints.finish()

    def _errors(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> list[float]:
        """Test errors along the line, BatchNorm statistics estimated anew at every point, from the same images."""
        experiment = self._experiment
        experiment.data.order_seed = experiment.config.seed
        experiment.data.trainer = experiment.trainer([], [])  # its device is the data's
        experiment.data.setup()
        classifier = experiment.classifier().to(experiment.data.device)
        errors = []
        for alpha in torch.linspace(0, 1, self._options["points"], dtype=torch.float64).tolist():
            classifier.network.load_state_dict(interpolate(first, second, alpha))
            reestimate(
                classifier, self._batches(experiment.data.train_dataloader(), self._options["batch_norm_batches"])
            )
            errors.append(error(classifier, self._batches(experiment.data.test_dataloader())))
        return errors

    def _batches(self, loader: Any, most: int | None = None) -> Any:
        device = self._experiment.data.device
        loader.sampler.set_epoch(0)
        return ((images.to(device), labels.to(device)) for images, labels in islice(loader, most))


def _order(line: Line) -> int:
    return Step.parse(line.rewind).count


def _show(record: dict[str, Any], path: Path, title: str) -> None:
    threshold = record["options"]["threshold"]
    caption = (
        f"Barrier: the largest test error on the line less the mean of its ends; stable below {threshold:.1%} "
        "(Frankle et al. 2020). BatchNorm statistics are estimated anew at every point."
    )
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("network", "rewind", "error at the ends", "largest", "barrier", "stable"):
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
            told = f"from {step} on" if step else f"at none of {', '.join(record['options']['rewind'])}"
            console.print(f"{name}: stable {told}, by bisection", markup=False, highlight=False, soft_wrap=True)
    for suffix in ("json", "png"):
        console.print(f"{path}.{suffix}", markup=False, highlight=False, soft_wrap=True)
