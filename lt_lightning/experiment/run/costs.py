"""The costs of a job: what is still to be trained, and how long that takes at the speed of this machine."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf, open_dict

from lt_lightning.experiment.config.fingerprint import hash_of
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job
from lt_lightning.results.job_record import Cost
from lt_lightning.results.records import results_of
from lt_lightning.storage.layout import trained_rounds

STEPS = 16  # number of training steps that are timed, and of validation batches
WARM_UP = 3  # number of first steps that are left out
LIMIT = 20.0  # seconds after which no further step is timed

_measured: dict[str, float] = {}


def costs_of(job: Job) -> list[Cost]:
    """Return what the tasks of a job that are not finished will cost, at most."""
    experiment = Experiment.from_config(job.config)
    experiment.use_threads()
    lengths = experiment.search_lengths()
    fixed = len(job.asked()) == len(job.tasks)  # nothing of the job depends on what comes out
    costs = []
    for task in job.asked(at_most=True):
        if results_of(task) is None:
            if task.kind is None:
                done = trained_rounds(task.folder)
                epochs = [length for i, each in enumerate(lengths) if i not in done for length in each]
            else:
                epochs = [experiment.epochs_of(task)] * experiment.options.retraining.copies
            at_most = task.kind is not None and not fixed
            costs.append(Cost(str(task.folder), len(epochs), sum(epochs), seconds_per_epoch(experiment), at_most))
    return costs


def seconds_per_epoch(experiment: Experiment) -> float:
    """Return the seconds of an epoch of the dense network, from a few steps and validation batches by the real trainer.

    Of several devices one is measured, with its part of a batch. Jobs that train alike are measured once.
    """
    keys = ("dataset", "data", "model", "classifier", "trainer", "threads")
    whole: Any = OmegaConf.to_container(experiment.config, resolve=True)
    whole["data"].pop("seed", None)
    whole["trainer"].pop("max_epochs")
    key = hash_of({key: whole[key] for key in keys})
    if key not in _measured:
        _measured[key] = _measure(experiment)
    return _measured[key]


def _measure(experiment: Experiment) -> float:
    devices = len(experiment.devices)
    config = experiment.config.copy()
    with open_dict(config):
        config.trainer.update(devices=1, limit_train_batches=STEPS, limit_val_batches=STEPS)
    experiment.data.setup("fit")
    steps, checks = len(experiment.data.train_dataloader()), len(experiment.data.val_dataloader())
    batch_size = experiment.data.batch_size
    watch = _Watch()
    try:
        experiment.data.batch_size = max(1, batch_size // devices)
        replace(experiment, config=config).trainer([watch], []).fit(experiment.classifier(), experiment.data)
    finally:
        experiment.data.batch_size = batch_size
    return steps * watch.seconds("train") + checks * watch.seconds("validation")


class _Watch(pl.Callback):
    """Times the steps of a fit."""

    def __init__(self) -> None:
        self._ticks: dict[str, list[float]] = {"train": [], "validation": []}

    def seconds(self, part: str) -> float:
        """Return the median seconds of a step."""
        steps = [after - before for before, after in pairwise(self._ticks[part])]
        return median(steps[min(WARM_UP, len(steps) - 1) :]) if steps else 0.0

    def _tick(self, part: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ticks[part].append(time.perf_counter())

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tick("train")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._tick("train")
        if self._ticks["train"][-1] - self._ticks["train"][0] > LIMIT:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True  # the schedule is that of the whole training

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tick("validation")

    def on_validation_batch_end(self, *_: Any) -> None:
        self._tick("validation")
