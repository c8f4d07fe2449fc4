"""The search of a study: run, or found again if it is finished."""

from __future__ import annotations

from omegaconf import OmegaConf

from lt_lightning.callback import DENSE
from lt_lightning.classifier import ImageClassifier
from lt_lightning.files import replacing
from lt_lightning.study.loggers import LogRounds, closing_wandb, make_loggers, record
from lt_lightning.study.outcome import evaluate, make_result
from lt_lightning.study.progress import JobProgress, ReportProgress
from lt_lightning.study.results import Result
from lt_lightning.study.study import TICKET, Study
from lt_lightning.ticket import Ticket


def run_search(study: Study, job: JobProgress) -> list[Result]:
    """Runs all rounds, unless they are there, and returns the results of the dense network and every round's ticket."""
    folder = study.search_folder
    done = search_results(study)
    if done is not None:
        return done
    callback = study.pruning()
    with replacing(folder / "config.yaml") as partial:
        partial.write_text(OmegaConf.to_yaml(study.config, resolve=True), encoding="utf-8")
    with closing_wandb():
        loggers = make_loggers(study.config, folder, study.root, folder.name, "search")
        classifier = study.classifier()
        expected = sum(study.expected_lengths())
        report = ReportProgress(
            job, expected, lambda: callback.round_lengths, lambda index: _search_label(index, study.rounds)
        )
        study.trainer([callback, LogRounds(callback), report], loggers).fit(classifier, study.data)
        results = _evaluate_search(study, classifier)
        tickets = {
            f"{folder.name}-round_{result.round:02d}-{result.structure}": study.root / result.place / TICKET
            for result in results
        }
        record(loggers, results, {name: (path, Ticket.load(path)) for name, path in tickets.items()})
    return results


def _search_label(index: int, rounds: int) -> str:
    return "dense network (round 0)" if index == 0 else f"search, round {index} of {rounds}"


def search_results(study: Study) -> list[Result] | None:
    """Results of the dense network and of every round's ticket; None if the search is not finished."""
    trained = [(0, DENSE)] + [(n, study.config.pruning.next_round_from) for n in range(1, study.rounds + 1)]
    results = [Result.load(study.search_folder / f"round_{number:02d}" / name) for number, name in trained]
    return [result for result in results if result is not None] if all(results) else None


def _evaluate_search(study: Study, classifier: ImageClassifier) -> list[Result]:
    """Tests every round's trained ticket."""
    results: list[Result] = []
    for number in range(study.rounds + 1):
        name = DENSE if number == 0 else study.config.pruning.next_round_from
        folder = study.search_folder / f"round_{number:02d}" / name
        ticket = Ticket.load(folder / TICKET)
        accuracy = evaluate(study, classifier, ticket)
        dense = results[0].accuracy if results else accuracy
        result = make_result(study, ticket, accuracy, dense, folder)
        result.save(folder)
        results.append(result)
    return results
