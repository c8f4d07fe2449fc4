"""The cells of a study: tickets structured and retrained alone, or found again if they are finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import nn

from lt_lightning.execution.machine import is_bfloat16
from lt_lightning.experiment.config.tasks import hash_of, retraining_label, screened_folder
from lt_lightning.experiment.logging.loggers import closing_wandb, make_loggers, record
from lt_lightning.experiment.logging.wandb_record import Entry
from lt_lightning.experiment.protocols.controls import randomly_masked, reinitialised, shuffled, small_dense
from lt_lightning.experiment.protocols.sources import sources_of
from lt_lightning.experiment.protocols.transfers import confirmed_ticket, restart_for, transferred_ticket
from lt_lightning.experiment.run.checkpoints import Checkpoints, checkpoints_in
from lt_lightning.experiment.run.experiment import TICKET, Experiment
from lt_lightning.experiment.run.outcome import evaluate, make_result
from lt_lightning.experiment.run.progress import JobProgress, ReportProgress
from lt_lightning.network_graph.graph import TracedNetwork
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.results.paths import FROM_START, Task, is_confirmed, parted, round_folder, unconfirmed
from lt_lightning.results.records import Result
from lt_lightning.ticket_names import UNSTRUCTURED
from lt_lightning.tickets.making import load_gradients, structure_ticket
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.batches import plain_batches
from lt_lightning.training.processes import processes, together
from lt_lightning.training.retraining import TicketTraining, decide


def run_retraining(
    experiment: Experiment, number: int, structure: str, dense_accuracy: float, job: JobProgress
) -> Result:
    """Structures one round's ticket and trains it alone, unless that is done, and returns its result."""
    folder = experiment.retraining_folder(number, structure)
    label = retraining_label(experiment.config, number, structure)
    if is_confirmed(structure):
        made_from = _confirmed_from(experiment, number, structure)
    else:
        theirs = (search for search in sources_of(experiment.config, [number]) if search.name == parted(structure)[1])
        made_from = round_folder(next(theirs, experiment.search_folder), number) / UNSTRUCTURED
    return _run(
        experiment,
        number,
        folder,
        label,
        lambda: _ticket(experiment, number, structure),
        made_from,
        dense_accuracy,
        job,
    )


def run_control(experiment: Experiment, task: Task, dense_accuracy: float, job: JobProgress) -> Result:
    """Makes a ticket's control and trains it, unless that is done, and returns its result."""
    assert task.source is not None
    make = partial(_control, experiment, task)
    return _run(experiment, task.number, task.folder, task.label, make, task.source, dense_accuracy, job)


def _run(
    experiment: Experiment,
    number: int,
    folder: Path,
    label: str,
    make: Callable[[], Ticket],
    made_from: Path,
    dense_accuracy: float,
    job: JobProgress,
) -> Result:
    if (done := Result.load(folder)) is not None:
        return done
    ticket = _prepared(experiment, folder / TICKET, make)
    with closing_wandb():
        name = f"{experiment.search_folder.name}-round_{number:02d}-{folder.name}"
        told = {"round": number, "structure": ticket.card["structure"], "control": ticket.card.get("control", "")}
        loggers = make_loggers(experiment.config, folder, experiment.root, name, "retrain", told)
        if ticket.trained is None:
            ticket = _train(experiment, number, folder / TICKET, label, job, loggers)
        accuracy = evaluate(experiment, experiment.classifier(ticket.card.get("width")), ticket)  # of full size again
        result = make_result(experiment, ticket, accuracy, dense_accuracy, folder)
        record(loggers, [Entry(result, ticket, folder, made_from)])
    result.save(folder)
    return result


def _prepared(experiment: Experiment, path: Path, make: Callable[[], Ticket]) -> Ticket:
    """The cell's ticket, with what computes its layers decided; what a killed job left is taken, perhaps trained."""
    if path.with_name(f"{path.name}.safetensors").is_file():
        return Ticket.load(path)
    ticket = make()
    if experiment.config.execution == "shrunk":
        trainer = experiment.trainer([], [])
        network = experiment.classifier(ticket.card.get("width")).network
        batch_size, device = experiment.data.batch_size // processes(), str(trainer.strategy.root_device)
        ticket = decide(ticket, network, experiment.example, batch_size, device, is_bfloat16(trainer.precision))
    ticket.save(path)
    return ticket


def _train(
    experiment: Experiment, number: int, path: Path, label: str, job: JobProgress, loggers: Sequence[Logger]
) -> Ticket:
    """The ticket, trained; it is on disk then."""
    callback = ticket_training(experiment, path)
    checkpoints = checkpoints_in(path.parent, experiment.config)
    epochs = expected = experiment.expected_length(0)
    if callback.restart is not None:
        epochs, expected = callback.restart.epochs, experiment.expected_length(number)
    report = ReportProgress(job, expected, lambda: [epochs], lambda _: label)
    together(
        train_ticket, experiment, str(path), callback=callback, checkpoints=checkpoints, own=[report], loggers=loggers
    )
    assert callback.trained is not None
    callback.trained.save(path)
    checkpoints.finish()
    return callback.trained


def ticket_training(experiment: Experiment, path: Path) -> TicketTraining:
    """The callback that trains a ticket of this study."""
    config, ticket = experiment.config, Ticket.load(path)
    from_start = ticket.card.get("control") in FROM_START
    restart = None if from_start else restart_for(ticket, Restart.load(experiment.search_folder / "restart.pt"))
    return TicketTraining(
        ticket,
        restart,
        config.execution,
        experiment.data.batch_size // processes(),
        config.pruning.monitor,
        config.pruning.monitor_mode,
    )


def train_ticket(
    experiment: Experiment,
    path: str,
    callback: TicketTraining | None = None,
    checkpoints: Checkpoints | None = None,
    own: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> None:
    """The fit of one ticket, from the last checkpoint on, in every process; process 0 alone has what it is given."""
    callback = callback or ticket_training(experiment, Path(path))
    checkpoints = checkpoints or checkpoints_in(Path(path).parent, experiment.config)
    trainer = experiment.trainer([callback, *own, checkpoints], list(loggers))
    classifier = experiment.classifier(callback.ticket.card.get("width"))
    trainer.fit(classifier, experiment.data, ckpt_path=checkpoints.latest(), weights_only=True)


def _ticket(experiment: Experiment, number: int, structure: str) -> Ticket:
    network = experiment.classifier().network
    if is_confirmed(structure):
        place = _confirmed_from(experiment, number, structure)
        made = place.name != UNSTRUCTURED or unconfirmed(structure) == UNSTRUCTURED
        ticket = (
            Ticket.load(place / TICKET) if made else _structured(experiment, place, unconfirmed(structure), network)
        )
        return confirmed_ticket(experiment, ticket, structure)
    if parted(structure)[1]:
        return transferred_ticket(experiment, number, structure, network)
    return _structured(experiment, round_folder(experiment.search_folder, number) / UNSTRUCTURED, structure, network)


def _confirmed_from(experiment: Experiment, number: int, structure: str) -> Path:
    """Folder of the screened ticket, or of the unstructured one where another seed's screening chose the round."""
    screened = screened_folder(experiment.config, number, structure)
    return screened if (screened / f"{TICKET}.safetensors").is_file() else screened.parent / UNSTRUCTURED


def _control(experiment: Experiment, task: Task) -> Ticket:
    assert task.source is not None
    ticket = Ticket.load(task.source / TICKET)
    # Of its own for each control, so that no two share their initial values or their permutations.
    seed = int(hash_of({"seed": experiment.config.seed, "control": [task.number, task.structure, task.control]}), 16)
    generator = torch.Generator().manual_seed(seed)
    match task.control:
        case "reinit":
            control = reinitialised(ticket, experiment.network(seed))
        case "small_dense":
            control = small_dense(
                ticket, lambda width: experiment.network(seed, width), experiment.config.model.width, experiment.example
            )
        case "random":
            control = randomly_masked(ticket, experiment.network(seed), experiment.example, generator)
        case _:
            control = shuffled(ticket, experiment.network(seed), experiment.example, generator)
    return replace(control, card={**control.card, "control": task.control, "control_seed": seed})


def _structured(experiment: Experiment, folder: Path, structure: str, network: nn.Module) -> Ticket:
    """Return the unstructured ticket of a folder, structured."""
    return structure_ticket(
        Ticket.load(folder / TICKET),
        structure,
        experiment.structures[structure],
        TracedNetwork(network, experiment.example),
        load_gradients(folder.parent),
        plain_batches(experiment.data, experiment.trainer([], []).strategy.root_device),
    )
