"""A search whose masks come to be within trainings, stopped between any two steps, ends as if nothing had happened."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lt_lightning.callback import LotteryTicketPruning
from lt_lightning.classifier import ImageClassifier
from lt_lightning.data.augment import Augment
from lt_lightning.data.module import Pairs, TensorData
from lt_lightning.pruning.admm import ADMM
from lt_lightning.pruning.gradual import Gradual
from lt_lightning.pruning.movement import Movement
from lt_lightning.pruning.sparsifier import Sparsifier
from lt_lightning.study.checkpoints import Checkpoints
from lt_lightning.study.loggers import LogRounds
from lt_lightning.study.metrics_file import MetricsFile
from lt_lightning.ticket import Ticket

STEPS = 3  # of an epoch
EPOCHS, REWIND = 3, 1
MADE = range(EPOCHS * STEPS, (2 * EPOCHS - REWIND) * STEPS)  # steps of the fit in which masks come to be


class Small(TensorData):
    """Two classes of noise, one of them brighter, cropped and mirrored at random."""

    name, classes, channels, size = "small", 2, 1, 6
    mean, std, files = (0.5,), (0.25,), None

    def _read(self) -> tuple[Pairs, Pairs]:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(2, (36,), generator=generator)
        images = torch.randint(200, (36, 1, 6, 6), generator=generator) + 40 * labels.view(-1, 1, 1, 1)
        both = Pairs(images.to(torch.uint8), labels)
        return both, both


class Crash(pl.Callback):
    """Raises before a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            raise ConnectionAbortedError("crashed")


def fit(place: Path, sparsifier: Sparsifier, *extra: pl.Callback, seconds: float = 0) -> LotteryTicketPruning:
    """One attempt at the same search in the same place."""
    pl.seed_everything(3, verbose=False)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    pruning = LotteryTicketPruning(
        1, place, density=0.25, sparsifier=sparsifier, scores_from="dense", rewind=f"{REWIND}ep"
    )
    checkpoints = Checkpoints(place / "checkpoints", share=1, seconds=seconds)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=EPOCHS, deterministic=True, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, logger=[MetricsFile(place / "metrics.csv")],
        callbacks=[pruning, LogRounds(pruning), *extra, checkpoints],
    )  # fmt: skip
    data = Small(".", batch_size=8, validation=12, augment=Augment(pad=1, flip=True))
    trainer.fit(ImageClassifier(network, classes=2), data, ckpt_path=checkpoints.latest(), weights_only=True)
    return pruning


def left_by(place: Path) -> dict[str, Any]:
    left: dict[str, Any] = {"metrics": (place / "metrics.csv").read_text()}
    for path in sorted(place.rglob("ticket.safetensors")):
        ticket = Ticket.load(path)
        for part in ("masks", "rewind", "trained"):
            values = getattr(ticket, part) or {}
            left[f"{path.relative_to(place)} {part}"] = {name: v.numpy().tobytes() for name, v in values.items()}
    return left


def densities(place: Path) -> list[float]:
    """By epoch, as they were logged."""
    with (place / "metrics.csv").open() as file:
        return [float(row["density"]) for row in csv.DictReader(file) if row["density"]]


@pytest.mark.parametrize("sparsifier", [Gradual(6, end=1.0), Movement(6, end=0.5), ADMM(0.1, 3)], ids=str)
def test_crashed_again_and_again_while_masks_come_to_be_it_ends_the_same(
    sparsifier: Sparsifier, tmp_path: Path
) -> None:
    pruning = fit(tmp_path / "whole", sparsifier, seconds=1e9)
    assert pruning.history[1]["sparsify_seconds"] > 0
    for step in MADE[1:]:
        with pytest.raises(ConnectionAbortedError):
            fit(tmp_path / "crashed", sparsifier, Crash(step))
    fit(tmp_path / "crashed", sparsifier)
    assert left_by(tmp_path / "crashed") == left_by(tmp_path / "whole")
    assert len(left_by(tmp_path / "whole")) == 1 + 2 * 3
    logged = densities(tmp_path / "whole")
    assert logged[:3] == [1.0] * 3  # the dense network
    assert logged[-2:] == [0.25] * 2  # the ticket
    middle = {Gradual: 0.25 + 0.75 / 8, Movement: 0.25, ADMM: 1.0}[type(sparsifier)]
    assert logged[3:5] == [1.0, pytest.approx(round(middle * 216) / 216)]  # on the way
