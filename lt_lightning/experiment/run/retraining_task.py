"""The retraining of one ticket: made, trained alone from its rewound values, and tested."""

from __future__ import annotations

from lt_lightning.execution.machine import is_bfloat16
from lt_lightning.experiment import protocols
from lt_lightning.experiment.config.checks import naming
from lt_lightning.experiment.logging.loggers import closing_wandb, make_loggers, record
from lt_lightning.experiment.logging.wandb_record import Entry
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.fitting import fit_ticket, ticket_training
from lt_lightning.experiment.run.outcome import evaluate, make_result
from lt_lightning.experiment.run.progress import JobProgress, ReportProgress
from lt_lightning.network_graph.graph import TracedNetwork
from lt_lightning.results.job_record import Task
from lt_lightning.storage.layout import TICKET, is_ticket
from lt_lightning.tickets.making import load_gradients, structure_ticket
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.batches import plain_batches
from lt_lightning.training.processes import invite, processes
from lt_lightning.training.retraining import TicketTraining, decide


def run_retraining(experiment: Experiment, task: Task, dense_accuracy: float, progress: JobProgress) -> None:
    """Make the ticket of a task, train it alone, test it, and save its result.

    What a killed job left of it, trained or not, is taken as it is.
    """
    path = task.folder / TICKET
    if is_ticket(task.folder):
        ticket = Ticket.load(path)
    else:
        ticket = _made(experiment, task)
        ticket.save(path)
    with closing_wandb():
        name = f"{experiment.search_folder.name}-round_{task.round:02d}-{task.folder.name}"
        facts = {"round": task.round, "structure": ticket.card["structure"], "control": ticket.card.get("control", "")}
        loggers = make_loggers(experiment.config, task.folder, experiment.root, name, "retrain", facts)
        if ticket.trained is None:
            callback = ticket_training(experiment, ticket)
            report = _report(experiment, task, callback, progress)
            invite(fit_ticket, str(path))
            checkpoints = fit_ticket(experiment, str(path), callback, [report], loggers)
            assert callback.trained is not None
            ticket = callback.trained
            ticket.save(path)
            checkpoints.finish()
        accuracy = evaluate(experiment, experiment.classifier(ticket.card.get("width")), ticket)  # of full size again
        result = make_result(experiment, ticket, accuracy, dense_accuracy, task.folder)
        assert task.source is not None
        record(loggers, [Entry(result, ticket, task.folder, task.source)])
    result.save(task.folder)


def _made(experiment: Experiment, task: Task) -> Ticket:
    """Make the ticket, and decide by measurement what computes its layers."""
    makers = {protocol.name: protocol.ticket for protocol in protocols.PROTOCOLS}
    ticket = makers[task.protocol](experiment, task) if task.protocol else _structured(experiment, task)
    if experiment.config.execution == "shrunk":
        trainer = experiment.trainer([], [])
        with_width = experiment.classifier(ticket.card.get("width")).network
        batch_size, device = experiment.data.batch_size // processes(), str(trainer.strategy.root_device)
        ticket = decide(ticket, with_width, experiment.example, batch_size, device, is_bfloat16(trainer.precision))
    return ticket


def _structured(experiment: Experiment, task: Task) -> Ticket:
    """Apply a structure of the job to the unstructured ticket of a round."""
    assert task.source is not None
    assert task.kind is not None
    name = task.kind.structure
    with naming(f"structure.{name}"):
        return structure_ticket(
            Ticket.load(task.source / TICKET),
            name,
            experiment.structures[name],
            TracedNetwork(experiment.network_to_look_at(), experiment.example),
            load_gradients(task.source.parent),
            plain_batches(experiment.data, experiment.trainer([], []).strategy.root_device),
        )


def _report(experiment: Experiment, task: Task, callback: TicketTraining, progress: JobProgress) -> ReportProgress:
    epochs = experiment.expected_length(0) if callback.restart is None else callback.restart.epochs
    expected = experiment.expected_length(0 if task.whole_schedule else task.round)
    return ReportProgress(progress, expected, lambda: [epochs], lambda _: task.label)
