"""The search: all rounds in one fit, tested when they are trained."""

from __future__ import annotations

from importlib.metadata import version

import torch
from omegaconf import OmegaConf

from lt_lightning.execution.machine import environment
from lt_lightning.experiment.config.data_digest import record_data
from lt_lightning.experiment.config.fingerprint import operational_keys
from lt_lightning.experiment.logging.loggers import closing_wandb, make_loggers, record
from lt_lightning.experiment.logging.wandb_record import Entry
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.fitting import fit_rounds
from lt_lightning.experiment.run.outcome import evaluate, make_result
from lt_lightning.experiment.run.progress import JobProgress, ReportProgress
from lt_lightning.results.job_record import Task
from lt_lightning.results.records import Result
from lt_lightning.storage.files import replacing, write_json
from lt_lightning.storage.layout import TICKET
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.processes import invite

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
    with closing_wandb():
        last = {"round": experiment.rounds, "structure": experiment.config.pruning.next_round_from, "control": ""}
        loggers = make_loggers(experiment.config, folder, experiment.root, folder.name, "search", last)
        if not (folder / TRAINED).is_file():
            callback = experiment.pruning()
            report = _report(experiment, callback, progress)
            invite(fit_rounds)
            checkpoints = fit_rounds(experiment, callback, [report], loggers)
            write_json(folder / TRAINED, {"rounds": callback.history})
            checkpoints.finish()
        results = _test(experiment, task)
        origins = [None, *task.parts[:-1]]
        record(
            loggers,
            [
                Entry(result, Ticket.load(place / TICKET), place, origin)
                for result, place, origin in zip(results, task.parts, origins, strict=True)
            ],
        )
    for result, place in zip(results, task.parts, strict=True):
        result.save(place)


def _report(experiment: Experiment, callback: LotteryTicketPruning, progress: JobProgress) -> ReportProgress:
    expected = sum(map(sum, experiment.search_lengths()))
    return ReportProgress(
        progress, expected, lambda: callback.timeline.round_lengths, lambda index: _label(index, experiment.rounds)
    )


def _label(index: int, rounds: int) -> str:
    return "dense network (round 0)" if index == 0 else f"search, round {index} of {rounds}"


def _test(experiment: Experiment, task: Task) -> list[Result]:
    """Test every round's trained ticket."""
    classifier = experiment.classifier()
    results: list[Result] = []
    for folder in task.parts:
        ticket = Ticket.load(folder / TICKET)
        accuracy = evaluate(experiment, classifier, ticket)
        dense = results[0].accuracy if results else accuracy
        results.append(make_result(experiment, ticket, accuracy, dense, folder))
    return results
