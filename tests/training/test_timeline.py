"""Trainers that cannot host many rounds."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl

from lt_lightning.training.timeline import check_trainer


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_that_give_no_history_back_are_refused(strategy: str) -> None:
    trainer = pl.Trainer(strategy=strategy, accelerator="cpu", devices=2, max_epochs=1, logger=False)
    with pytest.raises(ValueError, match=rf"{strategy}.*history"):
        check_trainer(trainer)


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_processes_of_which_this_is_the_first_are_not(strategy: str) -> None:
    check_trainer(pl.Trainer(strategy=strategy, accelerator="cpu", devices=2, max_epochs=1, logger=False))
