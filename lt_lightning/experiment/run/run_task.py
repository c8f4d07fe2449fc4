"""One task: the search, all of whose rounds are one fit, or the retraining of one ticket; trained, tested and timed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger

from lt_lightning.execution.machine import environment
from lt_lightning.experiment import protocols
from lt_lightning.experiment.config.checks import naming
from lt_lightning.experiment.config.fingerprint import operational_keys, record_data
from lt_lightning.experiment.logging.loggers import closing_wandb, make_loggers, record
from lt_lightning.experiment.logging.wandb_record import Entry
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.averaging import averaged, in_order
from lt_lightning.experiment.run.checkpoints import Checkpoints
from lt_lightning.experiment.run.environments import environments_of, take_part_in, together
from lt_lightning.experiment.run.measuring import measure
from lt_lightning.experiment.run.progress import JobProgress, ReportProgress
from lt_lightning.pruning.examples import copied
from lt_lightning.pruning.layers import weight_of
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.results.job_record import Task
from lt_lightning.results.published_figures import filters_density
from lt_lightning.results.records import Result, finish
from lt_lightning.storage.files import replacing, write_json
from lt_lightning.storage.layout import DENSE, TICKET, is_ticket, round_folder
from lt_lightning.tickets.making import load_gradients, structure_ticket
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.batches import plain_batches
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.classifier import ImageClassifier
from lt_lightning.training.distillation import Distillation
from lt_lightning.training.processes import invite, processes
from lt_lightning.training.retraining import Execution, TicketTraining, decide, restart_for

# The search: all rounds in one fit, tested when they are trained.

OPERATIONAL = "operational.json"  # keys of options that tell no two searches apart, for whoever compares them
TRAINED = "trained.json"  # written when all rounds are trained; they may not be tested yet


def run_search(experiment: Experiment, task: Task, progress: JobProgress) -> None:
    """Train all rounds, unless they are trained, test them, and save the result of every round."""
    folder = task.folder
    with replacing(folder / "config.yaml") as partial:
        partial.write_text(OmegaConf.to_yaml(experiment.config, resolve=True), encoding="utf-8")
    write_json(folder / OPERATIONAL, operational_keys(experiment.config))
    versions = {name.replace("-", "_"): version(name) for name in ("pytorch-lightning", "hydra-core")}
    record_data(folder, experiment.config, experiment.data)
    write_json(folder / "environment.json", environment("cuda" if torch.cuda.is_available() else "cpu", **versions))
    take_part_in(folder)
    with closing_wandb():
        last = {"round": experiment.rounds, "structure": experiment.pruning_options.next_round_from, "control": ""}
        loggers = make_loggers(experiment.config, folder, experiment.root, folder.name, "search", last)
        if not (folder / TRAINED).is_file():
            callback = experiment.pruning(environments_of(folder))
            report = ReportProgress(
                progress,
                sum(map(sum, experiment.search_lengths())),
                lambda: callback.timeline.round_lengths,
                lambda index: f"search, round {index} of {experiment.rounds}" if index else "dense network (round 0)",
            )
            invite(fit_rounds)
            checkpoints = fit_rounds(experiment, callback, [report], loggers)
            write_json(folder / TRAINED, {"rounds": callback.history})
            checkpoints.finish()
        results = _test(experiment, task)
        origins = [None, *task.parts[:-1]]
        entries = (
            Entry(result, Ticket.load(place / TICKET), place, origin)
            for result, place, origin in zip(results, task.parts, origins, strict=True)
        )
        record(loggers, entries)
    finish(experiment.root, results)


def _test(experiment: Experiment, task: Task) -> list[Result]:
    """Test every round's trained ticket."""
    results: list[Result] = []
    for folder in task.parts:
        ticket = Ticket.load(folder / TICKET)
        accuracy = evaluate(experiment, ticket)
        dense = results[0].accuracy if results else accuracy
        results.append(make_result(experiment, ticket, accuracy, dense, folder))
    return results


# The retraining of one ticket: made, trained alone from its rewound values, and tested.


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
            ticket = _trained(experiment, task, path, progress, loggers)
        for each in task.folder.glob("copy_*"):
            shutil.rmtree(each, ignore_errors=True)
        accuracy = evaluate(experiment, ticket)  # of full size again
        result = make_result(experiment, ticket, accuracy, dense_accuracy, task.folder)
        assert task.source is not None
        record(loggers, [Entry(result, ticket, task.folder, task.source)])
    finish(experiment.root, [result])


def _trained(
    experiment: Experiment, task: Task, path: Path, progress: JobProgress, loggers: Sequence[Logger]
) -> Ticket:
    """Train the ticket at a path, in several orders of the data if the job asks for it, and save it there."""
    copies, ticket = experiment.options.retraining.copies, Ticket.load(path)
    if copies == 1:
        return _trained_once(experiment, task, path, task.label, progress, loggers)
    made = []
    for number in range(copies):
        place = task.folder / f"copy_{number}" / TICKET
        if not is_ticket(place.parent):
            ticket.save(place)
        label = f"{task.label}, copy {number + 1} of {copies}"
        with in_order(experiment, number):
            logged = loggers if number == 0 else ()
            made.append(_trained_once(experiment, task, place, label, progress, logged))
    ticket, told = averaged(experiment, made)
    progress.note(f"{task.label}: {told}")
    ticket.save(path)
    return ticket


def _trained_once(
    experiment: Experiment, task: Task, path: Path, label: str, progress: JobProgress, loggers: Sequence[Logger]
) -> Ticket:
    """Train the ticket at a path, unless it is trained, and save it there."""
    ticket = Ticket.load(path)
    if ticket.trained is not None:
        return ticket
    callback = ticket_training(experiment, ticket)
    length = callback.length(experiment.retraining_epochs(True))
    report = ReportProgress(progress, experiment.epochs_of(task), lambda: [length], lambda _: label)
    take_part_in(task.folder)
    invite(fit_ticket, str(path))
    checkpoints = fit_ticket(experiment, str(path), callback, [report], loggers)
    assert callback.trained is not None
    assert task.source is not None
    before = Ticket.load(task.source / TICKET).card.get("environments", [])
    ticket = callback.trained.with_facts(environments=together(before, environments_of(task.folder)))
    ticket.save(path)
    checkpoints.finish()
    return ticket


def _made(experiment: Experiment, task: Task) -> Ticket:
    """Make the ticket, and decide by measurement what computes its layers."""
    makers = {protocol.name: protocol.ticket for protocol in protocols.PROTOCOLS}
    ticket = makers[task.protocol](experiment, task) if task.protocol else _structured(experiment, task)
    if experiment.options.execution == "shrunk":
        network = experiment.spare_classifier(ticket.card.get("width")).network
        batch_size, bfloat16 = experiment.data.batch_size // processes(), experiment.computes_in_bfloat16
        ticket = decide(ticket, network, experiment.example, batch_size, experiment.device, bfloat16)
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
            experiment.traced,
            load_gradients(task.source.parent),
            plain_batches(experiment.data, torch.device(experiment.device)),
        )


# The fits, in every process of the job.


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
    checkpoints = Checkpoints(experiment.search_folder / "checkpoints", **asdict(experiment.options.checkpoint))
    trainer = experiment.trainer([callback, *experiment.own_callbacks(), *own, checkpoints], list(loggers))
    experiment.data.first_epoch = 0
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
    checkpoints = Checkpoints(Path(path).parent / "checkpoints", **asdict(experiment.options.checkpoint))
    callbacks = [callback, *experiment.own_callbacks(), *own, checkpoints]
    trainer = experiment.trainer(callbacks, list(loggers), experiment.stretched_epochs)
    classifier = experiment.classifier(callback.ticket.card.get("width"))
    experiment.data.first_epoch = callback.ticket.card.get("first_epoch", 0)
    trainer.fit(classifier, experiment.data, ckpt_path=checkpoints.latest(), weights_only=True)
    return checkpoints


def ticket_training(experiment: Experiment, ticket: Ticket) -> TicketTraining:
    """Return the callback that trains a ticket as a round of the search would have."""
    pruning = experiment.pruning_options
    of_search = Restart.load(experiment.search_folder / "restart.pt")
    restart, cycles = restart_for(ticket, of_search), ticket.card.get("cycles", 1)
    if experiment.stretched_epochs is not None:
        restart = None  # the schedule begins anew
    return TicketTraining(
        ticket,
        restart,
        cast(Execution, experiment.options.execution),
        experiment.data.batch_size // processes(),
        pruning.monitor,
        pruning.monitor_mode,
        traced=experiment.traced,
        distillation=_distillation(experiment),
        cycles=cycles,
        again=replace(of_search, mode="none" if of_search.mode == "none" else "learning_rate") if cycles > 1 else None,
        group_penalty=ticket.card.get("group_penalty", 0.0),
    )


def _distillation(experiment: Experiment) -> Distillation | None:
    """Return the soft labels of the search's trained dense network, if the job asks for them."""
    options = experiment.options.retraining
    if options.distil == 0:
        return None
    dense = Ticket.load(round_folder(experiment.search_folder, 0) / DENSE / TICKET)
    network = dense.apply(experiment.spare_classifier().network, "trained")
    return Distillation(network, options.distil, options.temperature)


def evaluate(experiment: Experiment, ticket: Ticket) -> float:
    """Return the accuracy of a trained ticket on the test set."""
    width = ticket.card.get("width")
    classifier = experiment.spare_classifier(width)
    ticket.apply(classifier.network, "trained")
    invite(run_test, width)
    return run_test(experiment, width, classifier)


def run_test(experiment: Experiment, width: int | None, classifier: ImageClassifier | None = None) -> float:
    """Return the accuracy on the test set; every process tests its part with process 0's weights.

    A copy is tested, since some precisions convert what a trainer is given (`64-true`, `bf16-true`).
    """
    tested = copied(classifier or experiment.spare_classifier(width))
    (metrics,) = experiment.trainer([], []).test(tested, experiment.data, verbose=False)
    return float(metrics["test/accuracy"])


def make_result(experiment: Experiment, ticket: Ticket, accuracy: float, dense_accuracy: float, folder: Path) -> Result:
    """Return the result of a trained and tested ticket."""
    inference, training = measure(experiment, ticket, folder)
    card = ticket.card
    prunable = [ticket.layers[name] for name in card["prunable"]]
    weights = sum(report.target for report in prunable)
    return Result(
        **experiment.labels,
        round=card["round"],
        structure=card["structure"],
        origin=card.get("origin", ""),
        target_density=card["target_density"],
        density=card["density"],
        params_ratio=card["params_ratio"],
        flops_ratio=card["flops_ratio"],
        best_epoch=card["best_epoch"],
        accuracy=accuracy,
        dense_accuracy=dense_accuracy,
        train_seconds=card["train_seconds"],
        val_accuracy=card["metrics"].get("val/accuracy", math.nan),
        retained_magnitude=sum(report.retained_magnitude * report.target for report in prunable) / weights,
        time_ratio_inference=inference.ratio,
        time_ratio_training=training.ratio,
        time_spread_inference=inference.spread,
        time_spread_training=training.spread,
        time_samples=training.samples,
        search=experiment.search_folder.name,
        place=str(folder.relative_to(experiment.root)),
        executed=sum(report.executed for report in prunable) / sum(report.size for report in prunable),
        filters_density=_filters_density(ticket),
        control=card.get("control", ""),
        total_epochs=card.get("total_epochs", 0),
    )


def _filters_density(ticket: Ticket) -> float:
    """Return what the paper counts of a mask in whole filters; 0 for a small dense network, which has no mask."""
    if not ticket.masks:
        return 0.0
    filters = {name: ticket.masks[weight_of(name, ticket.masks)].shape[0] for name in ticket.card["prunable"]}
    layers = ticket.layers
    return filters_density((layers[name].size, layers[name].target, count) for name, count in filters.items())
