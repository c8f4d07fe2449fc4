"""One fit of a task, in every process of the job: the rounds of a search, or the training of one ticket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from lt_lightning.experiment.logging.loggers import LogRounds
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.checkpoints import Checkpoints
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.processes import processes
from lt_lightning.training.retraining import TicketTraining, restart_for


def fit_rounds(
    experiment: Experiment,
    callback: LotteryTicketPruning | None = None,
    own: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Checkpoints:
    """Run the fit of all rounds in this process, from the last checkpoint on.

    Args:
        experiment: parts of the job.
        callback: callback that hosts the rounds, where the caller wants to ask it afterwards.
        own: further callbacks of process 0.
        loggers: loggers of process 0.

    Returns:
        The checkpoints, to be removed when the result is on disk.
    """
    callback = callback or experiment.pruning()
    checkpoints = Checkpoints(experiment.search_folder / "checkpoints", **experiment.config.checkpoint)
    trainer = experiment.trainer([callback, LogRounds(callback), *own, checkpoints], list(loggers))
    trainer.fit(experiment.classifier(), experiment.data, ckpt_path=checkpoints.latest(), weights_only=True)
    return checkpoints


def fit_ticket(
    experiment: Experiment,
    path: str,
    callback: TicketTraining | None = None,
    own: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Checkpoints:
    """Run the fit of the ticket at a path in this process; see `fit_rounds`."""
    callback = callback or ticket_training(experiment, Ticket.load(Path(path)))
    checkpoints = Checkpoints(Path(path).parent / "checkpoints", **experiment.config.checkpoint)
    trainer = experiment.trainer([callback, *own, checkpoints], list(loggers))
    classifier = experiment.classifier(callback.ticket.card.get("width"))
    trainer.fit(classifier, experiment.data, ckpt_path=checkpoints.latest(), weights_only=True)
    return checkpoints


def ticket_training(experiment: Experiment, ticket: Ticket) -> TicketTraining:
    """Return the callback that trains a ticket as a round of the search would have."""
    pruning = experiment.config.pruning
    return TicketTraining(
        ticket,
        restart_for(ticket, Restart.load(experiment.search_folder / "restart.pt")),
        experiment.config.execution,
        experiment.data.batch_size // processes(),
        pruning.monitor,
        pruning.monitor_mode,
    )
