"""One training of a task: the fit of all rounds of a search, or that of one ticket, in every process of the job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from lt_lightning.experiment.logging.loggers import LogRounds
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.checkpoints import Checkpoints
from lt_lightning.experiment.run.progress import ReportProgress
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.processes import processes, together
from lt_lightning.training.retraining import TicketTraining, restart_for

SEARCH = ""  # in place of a ticket's path: the rounds of the search


def train(
    experiment: Experiment,
    path: Path | None,
    callback: LotteryTicketPruning | TicketTraining,
    report: ReportProgress,
    loggers: Sequence[Logger],
) -> Checkpoints:
    """Train the rounds of a search, or one ticket, from the last checkpoint on.

    Args:
        experiment: parts of the job.
        path: path of the ticket; None for the rounds of the search.
        callback: callback that trains them, of `callback_for`.
        report: callback that reports to the job's progress.
        loggers: loggers of the training.

    Returns:
        The checkpoints, to be removed when the result is on disk.
    """
    checkpoints = _checkpoints(experiment, path)
    together(
        fit, experiment, SEARCH if path is None else str(path),
        callback=callback, checkpoints=checkpoints, own=[report], loggers=loggers,
    )  # fmt: skip
    return checkpoints


def fit(
    experiment: Experiment,
    path: str,
    callback: LotteryTicketPruning | TicketTraining | None = None,
    checkpoints: Checkpoints | None = None,
    own: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> None:
    """Run the fit in this process; process 0 alone is given callbacks and loggers."""
    place = None if path == SEARCH else Path(path)
    callback = callback or callback_for(experiment, place)
    checkpoints = checkpoints or _checkpoints(experiment, place)
    width = None
    if isinstance(callback, LotteryTicketPruning):
        own = [LogRounds(callback), *own]
    else:
        width = callback.ticket.card.get("width")
    trainer = experiment.trainer([callback, *own, checkpoints], list(loggers))
    trainer.fit(experiment.classifier(width), experiment.data, ckpt_path=checkpoints.latest(), weights_only=True)


def callback_for(experiment: Experiment, path: Path | None) -> LotteryTicketPruning | TicketTraining:
    """Return the callback that trains the rounds of a search, or the ticket at a path."""
    return experiment.pruning() if path is None else ticket_training(experiment, Ticket.load(path))


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


def _checkpoints(experiment: Experiment, path: Path | None) -> Checkpoints:
    place = experiment.search_folder if path is None else path.parent
    return Checkpoints(place / "checkpoints", **experiment.config.checkpoint)
