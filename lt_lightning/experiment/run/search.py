"""The search of a study: run, or found again if it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger

from lt_lightning.execution.machine import environment
from lt_lightning.experiment.logging.loggers import LogRounds, closing_wandb, make_loggers, record
from lt_lightning.experiment.logging.wandb_record import Entry
from lt_lightning.experiment.run.checkpoints import Checkpoints, checkpoints_in
from lt_lightning.experiment.run.experiment import TICKET, Experiment
from lt_lightning.experiment.run.outcome import evaluate, make_result
from lt_lightning.experiment.run.progress import JobProgress, ReportProgress
from lt_lightning.files import replacing, write_json
from lt_lightning.results.records import Result
from lt_lightning.ticket_names import DENSE
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.processes import together

TRAINED = "trained.json"  # written when all rounds are trained; they may not be tested yet


def run_search(experiment: Experiment, job: JobProgress) -> list[Result]:
    """Runs all rounds, unless they are there, and returns the results of the dense network and every round's ticket."""
    folder = experiment.search_folder
    done = search_results(experiment)
    if done is not None:
        return done
    with replacing(folder / "config.yaml") as partial:
        partial.write_text(OmegaConf.to_yaml(experiment.config, resolve=True), encoding="utf-8")
    versions = {name.replace("-", "_"): version(name) for name in ("pytorch-lightning", "hydra-core")}
    write_json(folder / "environment.json", environment("cuda" if torch.cuda.is_available() else "cpu", **versions))
    with closing_wandb():
        ticket = {"round": experiment.rounds, "structure": experiment.config.pruning.next_round_from, "control": ""}
        loggers = make_loggers(experiment.config, folder, experiment.root, folder.name, "search", ticket)
        if not (folder / TRAINED).is_file():
            _train(experiment, job, loggers)
        results = _evaluate_search(experiment)
        places = [experiment.root / result.place for result in results]
        origins = [None, *places[:-1]]
        record(
            loggers,
            [
                Entry(result, Ticket.load(place / TICKET), place, origin)
                for result, place, origin in zip(results, places, origins, strict=True)
            ],
        )
    for result in results:
        result.save(experiment.root / result.place)
    return results


def _train(experiment: Experiment, job: JobProgress, loggers: Sequence[Logger]) -> None:
    callback = experiment.pruning()
    checkpoints = checkpoints_in(experiment.search_folder, experiment.config)
    expected = sum(map(sum, experiment.search_lengths()))
    report = ReportProgress(
        job, expected, lambda: callback.timeline.round_lengths, lambda index: _search_label(index, experiment.rounds)
    )
    together(train_rounds, experiment, callback=callback, checkpoints=checkpoints, own=[report], loggers=loggers)
    write_json(experiment.search_folder / TRAINED, {"rounds": callback.history})
    checkpoints.finish()


def train_rounds(
    experiment: Experiment,
    callback: LotteryTicketPruning | None = None,
    checkpoints: Checkpoints | None = None,
    own: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> None:
    """The fit of all rounds, from the last checkpoint on, in every process; process 0 alone has what it is given."""
    callback = callback or experiment.pruning()
    checkpoints = checkpoints or checkpoints_in(experiment.search_folder, experiment.config)
    trainer = experiment.trainer([callback, LogRounds(callback), *own, checkpoints], list(loggers))
    trainer.fit(experiment.classifier(), experiment.data, ckpt_path=checkpoints.latest(), weights_only=True)


def _search_label(index: int, rounds: int) -> str:
    return "dense network (round 0)" if index == 0 else f"search, round {index} of {rounds}"


def search_results(experiment: Experiment) -> list[Result] | None:
    """Results of the dense network and of every round's ticket; None if the search is not finished."""
    trained = [(0, DENSE)] + [(n, experiment.config.pruning.next_round_from) for n in range(1, experiment.rounds + 1)]
    results = [Result.load(experiment.search_folder / f"round_{number:02d}" / name) for number, name in trained]
    return [result for result in results if result is not None] if all(results) else None


def _evaluate_search(experiment: Experiment) -> list[Result]:
    """Tests every round's trained ticket."""
    classifier = experiment.classifier()
    results: list[Result] = []
    for number in range(experiment.rounds + 1):
        name = DENSE if number == 0 else experiment.config.pruning.next_round_from
        folder = experiment.search_folder / f"round_{number:02d}" / name
        ticket = Ticket.load(folder / TICKET)
        accuracy = evaluate(experiment, classifier, ticket)
        dense = results[0].accuracy if results else accuracy
        result = make_result(experiment, ticket, accuracy, dense, folder)
        results.append(result)
    return results
