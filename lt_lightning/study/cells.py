"""The cells of a study: tickets structured and retrained alone, or found again if they are finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import nn

from lt_lightning.callback import UNSTRUCTURED
from lt_lightning.distributed.rank import processes, together
from lt_lightning.pruning.rewind import Restart
from lt_lightning.retrain import TicketTraining, decide
from lt_lightning.structuring import structure_ticket
from lt_lightning.study.checkpoints import Checkpoints, checkpoints_in
from lt_lightning.study.loggers import closing_wandb, make_loggers, record
from lt_lightning.study.outcome import evaluate, make_result
from lt_lightning.study.progress import JobProgress, ReportProgress
from lt_lightning.study.results import Result
from lt_lightning.study.study import TICKET, Study
from lt_lightning.ticket import Ticket


def run_cell(study: Study, number: int, structure: str, dense_accuracy: float, job: JobProgress) -> Result:
    """Structures one round's ticket and trains it alone, unless that is done, and returns its result."""
    folder = study.cell_folder(number, structure)
    if (done := Result.load(folder)) is not None:
        return done
    ticket = _prepared(study, number, structure, folder / TICKET)
    with closing_wandb():
        name = f"{study.search_folder.name}-round_{number:02d}-{folder.name}"
        loggers = make_loggers(study.config, folder, study.root, name, "retrain")
        if ticket.trained is None:
            ticket = _train(study, number, structure, job, loggers)
        accuracy = evaluate(study, study.classifier(), ticket)  # of full size again
        result = make_result(study, ticket, accuracy, dense_accuracy, folder)
        record(loggers, [result], {name: (folder / TICKET, ticket)})
    result.save(folder)
    return result


def _prepared(study: Study, number: int, structure: str, path: Path) -> Ticket:
    """The cell's ticket, with what computes its layers decided; what a killed job left is taken, perhaps trained."""
    if path.with_name(f"{path.name}.safetensors").is_file():
        return Ticket.load(path)
    network = study.classifier().network
    ticket = _structured(study, number, structure, network)
    if study.config.execution == "shrunk":
        device = str(study.trainer([], []).strategy.root_device)
        ticket = decide(ticket, network, study.example, study.data.batch_size // processes(), device)
    ticket.save(path)
    return ticket


def _train(study: Study, number: int, structure: str, job: JobProgress, loggers: Sequence[Logger]) -> Ticket:
    """The ticket, trained; it is on disk then."""
    path = study.cell_folder(number, structure) / TICKET
    callback = ticket_training(study, path)
    checkpoints = checkpoints_in(path.parent, study.config)
    assert callback.restart is not None
    epochs = callback.restart.epochs
    label = f"{structure}, round {number} of {study.rounds}"
    report = ReportProgress(job, study.expected_lengths()[number], lambda: [epochs], lambda _: label)
    together(train_ticket, study, str(path), callback=callback, checkpoints=checkpoints, own=[report], loggers=loggers)
    assert callback.trained is not None
    callback.trained.save(path)
    checkpoints.finish()
    return callback.trained


def ticket_training(study: Study, path: Path) -> TicketTraining:
    """The callback that trains a ticket of this study."""
    config = study.config
    return TicketTraining(
        Ticket.load(path),
        Restart.load(study.search_folder / "restart.pt"),
        config.execution,
        study.data.batch_size // processes(),
        config.pruning.monitor,
        config.pruning.monitor_mode,
    )


def train_ticket(
    study: Study,
    path: str,
    callback: TicketTraining | None = None,
    checkpoints: Checkpoints | None = None,
    own: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> None:
    """The fit of one ticket, from the last checkpoint on, in every process; process 0 alone has what it is given."""
    callback = callback or ticket_training(study, Path(path))
    checkpoints = checkpoints or checkpoints_in(Path(path).parent, study.config)
    trainer = study.trainer([callback, *own, checkpoints], list(loggers))
    trainer.fit(study.classifier(), study.data, ckpt_path=checkpoints.latest(), weights_only=True)


def _structured(study: Study, number: int, structure: str, network: nn.Module) -> Ticket:
    ticket = Ticket.load(study.search_folder / f"round_{number:02d}" / UNSTRUCTURED / TICKET)
    path = study.search_folder / f"round_{number:02d}" / "gradients.pt"
    gradients = torch.load(path, weights_only=True) if path.is_file() else None
    return structure_ticket(ticket, structure, study.structures[structure], network, study.example, gradients)
