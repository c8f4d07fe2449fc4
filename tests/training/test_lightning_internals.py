"""What Lightning does not document is still where `lightning_internals` looks for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

import lt_lightning
from lt_lightning.training.lightning_internals import (
    batch_in_fit,
    between_steps,
    extend_to,
    load_data,
    log_step,
    logged_step,
    scales_gradients,
    schedules_of,
    steps_in_epoch,
    training_loader,
)
from tests.toys import Toy

STEPS = 5


class Watch(pl.Callback):
    """Asks everything at every step, and makes the fit an epoch longer."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.batches: list[int] = []
        self.logged: list[int] = []
        self.between: list[bool] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        load_data(trainer)
        assert trainer.num_training_batches == STEPS
        assert len(training_loader(trainer)) == STEPS
        assert training_loader(trainer) is not training_loader(trainer)
        assert [type(each).__name__ for each in schedules_of(trainer)] == ["ConstantLR"]
        assert not scales_gradients(trainer)
        extend_to(trainer, 2)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.steps.append(steps_in_epoch(trainer))
        self.batches.append(batch_in_fit(trainer))
        self.logged.append(logged_step(trainer))
        self.between.append(between_steps(trainer))
        log_step(trainer)


def trainer_of(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


def test_the_loops_of_a_fit(tmp_path: Path) -> None:
    """Five batches by two are three steps, of which the last has one batch."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    toy, watch = Toy(network, schedule=torch.optim.lr_scheduler.ConstantLR, steps=STEPS), Watch()
    trainer_of(tmp_path, callbacks=[watch], accumulate_grad_batches=2).fit(toy)
    assert watch.steps == [0, 1, 1, 2, 2] * 2
    assert watch.batches == list(range(2 * STEPS))
    assert watch.logged == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]
    assert watch.between == [False, True, False, True, False] * 2


def test_gradients_that_are_scaled(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    assert scales_gradients(trainer_of(tmp_path, plugins=[plugin]))


def test_nothing_else_looks_into_lightning() -> None:
    root = Path(lt_lightning.__file__).parent
    private = re.compile(r"\b(trainer|strategy|loop|fetcher|connector)\._[a-z]|fit_loop|epoch_loop")
    looking = [path.name for path in sorted(root.rglob("*.py")) if private.search(path.read_text())]
    assert looking == ["lightning_internals.py"]
