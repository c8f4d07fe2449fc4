"""Rewind points of a training, written while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lt_lightning.masked_training import schedules_of
from lt_lightning.pruning.rewind import Restart, RewindPoint, Step
from lt_lightning.training_data import steps_per_epoch


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
