"""The mean of several trainings of one ticket, and the error on the line between two trained networks.

Trainings of a ticket in other data orders keep the same masks, and so does the mean of their weights. Where no error
barrier parts them it is often better than each of them (SWAMP, arXiv 2305.14852; sparse model soups, arXiv 2306.16788;
lottery pools, arXiv 2208.10842).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations, islice
from typing import Any, Literal

import torch
from torch import Tensor

from lt_lightning.data.order import random_state
from lt_lightning.experiment.parts import Experiment
from lt_lightning.pruning.evaluation import barrier, error, interpolate, reestimate
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.lightning_internals import isolate_rng

POINTS = 5  # on the line between two copies, its ends included
BATCHES = 50  # of the training set, that estimate BatchNorm statistics; fewer if an epoch has fewer


@contextmanager
def in_order(experiment: Experiment, number: int) -> Iterator[None]:
    """Let training images come in the order of a copy within the context: the job's own for copy 0."""
    data = experiment.data
    data.order_seed = random_state(data.seed, number) if number else data.seed
    try:
        yield
    finally:
        data.order_seed = data.seed


class Errors:
    """Measures the error of networks that are no end of a training, with BatchNorm statistics estimated for each.

    Args:
        experiment: parts of the job, which runs in one process.
        part: images that errors are measured on.
        batches: number of training batches that estimate the statistics; fewer if an epoch has fewer.
        width: width of the network, if it is another than the job's.
    """

    def __init__(
        self, experiment: Experiment, part: Literal["validation", "test"], batches: int, width: int | None = None
    ) -> None:
        self._data = experiment.data
        self._data.order_seed, self._data.first_epoch = self._data.seed, 0
        self._data.trainer = experiment.trainer([], [])  # the data are moved to its device
        self._data.setup()
        self._part = part
        self._count = batches
        with isolate_rng():
            self._classifier = experiment.classifier(width).to(self._data.device)

    def of(self, state: Mapping[str, Tensor]) -> float:
        """Return the share of the images that the network of a state classifies wrongly."""
        self._classifier.network.load_state_dict(dict(state))
        reestimate(self._classifier, self._batches(self._data.train_dataloader(), self._count))
        loaders = {"validation": self._data.val_dataloader, "test": self._data.test_dataloader}
        return error(self._classifier, self._batches(loaders[self._part]()))

    def on_line(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor], points: int) -> list[float]:
        """Return the errors at evenly spaced points on the line between two networks, its ends included."""
        positions = torch.linspace(0, 1, points, dtype=torch.float64).tolist()
        return [self.of(interpolate(first, second, alpha)) for alpha in positions]

    @property
    def state(self) -> dict[str, Tensor]:
        """The network that was measured last, on the CPU, with its statistics."""
        return {name: value.detach().cpu().clone() for name, value in self._classifier.network.state_dict().items()}

    def _batches(self, loader: Any, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        loader.sampler.set_epoch(0)
        for inputs, labels in islice(loader, most):
            yield inputs.to(self._data.device), labels.to(self._data.device)


def averaged(experiment: Experiment, copies: Sequence[Ticket]) -> tuple[Ticket, str]:
    """Return the mean of trained copies of a ticket, or the best of them, and what there is to say about it in a line.

    The mean is taken where the highest error barrier between two copies, on the validation images, is below
    `retraining.barrier`.

    Args:
        experiment: parts of the job.
        copies: the ticket, trained in one data order after the other.
    """
    states = [trained_values(copy) for copy in copies]
    errors = Errors(experiment, "validation", BATCHES, copies[0].card.get("width"))
    highest = max(barrier(errors.on_line(*pair, POINTS)) for pair in combinations(states, 2))
    allowed = experiment.options.retraining.barrier
    total = {
        "epochs": sum(copy.card["epochs"] for copy in copies),
        "total_epochs": copies[0].epochs_before + sum(copy.card["epochs"] for copy in copies),
        "train_seconds": sum(copy.card["train_seconds"] for copy in copies),
    }
    if highest >= allowed:
        best = _best(experiment, copies)
        text = f"error barrier {highest:.2%}, not below {allowed:.2%}: the best of {len(copies)} copies is kept"
        return best.with_facts(**total, copies=len(copies), barrier=highest, averaged=False), text
    metrics = {"val/accuracy": 1 - errors.of(mean_of(states))}
    made = copies[0].with_training(errors.state, **total, metrics=metrics, copies=len(copies), barrier=highest)
    return made.with_facts(averaged=True), f"error barrier {highest:.2%}: the mean of {len(copies)} copies is taken"


def trained_values(ticket: Ticket) -> dict[str, Tensor]:
    """Return the values of a trained ticket, pruned ones zero."""
    assert ticket.trained is not None
    masks = ticket.masks
    return {name: value * masks[name] if name in masks else value for name, value in ticket.trained.items()}


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each value over networks; counters (whole numbers) are those of the first.

    >>> mean_of([{"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([0.0, 2.0])}])
    {'w': tensor([0.0000, 1.5000])}
    """
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def _best(experiment: Experiment, copies: Sequence[Ticket]) -> Ticket:
    """Return the copy of the best validation."""
    pruning = experiment.pruning_options
    metric, mode = (pruning.monitor, pruning.monitor_mode) if pruning.monitor else ("val/accuracy", "max")
    return (max if mode == "max" else min)(copies, key=lambda copy: copy.card["metrics"][metric])
