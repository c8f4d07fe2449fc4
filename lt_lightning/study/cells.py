"""The cells of a study: tickets structured and retrained alone, or found again if they are finished."""

from __future__ import annotations

import torch
from torch import nn

from lt_lightning.callback import UNSTRUCTURED
from lt_lightning.pruning.rewind import Restart
from lt_lightning.retrain import TicketTraining
from lt_lightning.structuring import structure_ticket
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
    classifier = study.classifier()
    ticket = _structured(study, number, structure, classifier.network)
    ticket.save(folder / TICKET)
    restart = Restart.load(study.search_folder / "restart.pt")
    pruning = study.config.pruning
    callback = TicketTraining(
        ticket, restart, study.config.execution, study.data.batch_size, pruning.monitor, pruning.monitor_mode
    )
    with closing_wandb():
        name = f"{study.search_folder.name}-round_{number:02d}-{folder.name}"
        loggers = make_loggers(study.config, folder, study.root, name, "retrain")
        label = f"{structure}, round {number} of {study.rounds}"
        report = ReportProgress(job, study.expected_lengths()[number], lambda: [restart.epochs], lambda _: label)
        study.trainer([callback, report], loggers).fit(classifier, study.data)
        assert callback.trained is not None
        callback.trained.save(folder / TICKET)
        accuracy = evaluate(study, study.classifier(), callback.trained)  # of full size again
        result = make_result(study, callback.trained, accuracy, dense_accuracy, folder)
        record(loggers, [result], {name: (folder / TICKET, callback.trained)})
    result.save(folder)
    return result


def _structured(study: Study, number: int, structure: str, network: nn.Module) -> Ticket:
    ticket = Ticket.load(study.search_folder / f"round_{number:02d}" / UNSTRUCTURED / TICKET)
    path = study.search_folder / f"round_{number:02d}" / "gradients.pt"
    gradients = torch.load(path, weights_only=True) if path.is_file() else None
    return structure_ticket(ticket, structure, study.structures[structure], network, study.example, gradients)
