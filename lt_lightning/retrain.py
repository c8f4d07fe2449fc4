"""Training one ticket alone, from its rewound values."""

from __future__ import annotations

from typing import Any, Literal

import pytorch_lightning as pl

from lt_lightning.masked_training import MaskedTraining, extend_to, schedules_of
from lt_lightning.pruning.rewind import Restart
from lt_lightning.ticket import Ticket


class TicketTraining(MaskedTraining):
    """Starts a fit from a ticket and trains it as a round of the search would have.

    `Trainer(max_epochs=E)` is the length of the dense training, for which schedules are set up; the fit is as long
    as what lies behind the rewind point. After the fit `trained` is the ticket with its trained weights.

    Args:
        ticket: to train.
        restart: how its search rewinds (`restart.pt` in the search's folder); None trains from the start of the
            schedule for all of `max_epochs`.
        monitor: see `MaskedTraining`.
        monitor_mode: likewise.
        network: likewise.
    """

    def __init__(
        self,
        ticket: Ticket,
        restart: Restart | None = None,
        monitor: str | None = "val/accuracy",
        monitor_mode: Literal["max", "min"] = "max",
        network: str | None = None,
    ) -> None:
        super().__init__(monitor, monitor_mode, network)
        self.ticket = ticket
        self.restart = restart
        self.trained: Ticket | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.restart is not None:
            extend_to(trainer, self.restart.epochs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = self.network_of(pl_module)
        if trainer.global_step > 0:  # resumed
            self.start_clock()
        else:
            self.start_training()
            self.ticket.apply(network)
            if self.restart is not None:
                self.restart.restore(trainer.optimizers, schedules_of(trainer))
        self.hold(trainer, network, self.ticket.masks)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.restart is not None:
            self.restart.fix_rates(trainer.optimizers)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        best = self.finish_training(self.network_of(pl_module), trainer.current_epoch - 1)
        self.trained = self.ticket.with_training(
            {name: value.cpu() for name, value in best["state"].items()},
            best_epoch=best["epoch"],
            metrics=dict(best["metrics"]),
            train_seconds=self.seconds(),
        )
