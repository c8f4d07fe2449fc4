"""The trainings of a study: one search, and tickets that are retrained alone. Each is found again if it is finished."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lt_lightning.callback import DENSE, UNSTRUCTURED, LotteryTicketPruning
from lt_lightning.classifier import ImageClassifier
from lt_lightning.data.module import ImageData
from lt_lightning.files import replacing
from lt_lightning.measure.networks import Setting, largest_difference, time_ratio
from lt_lightning.pruning.rewind import Restart
from lt_lightning.retrain import Execution, TicketTraining
from lt_lightning.shrink.execute import execute
from lt_lightning.structures.base import Structure
from lt_lightning.structuring import structure_ticket
from lt_lightning.study.loggers import LogRounds, closing_wandb, make_loggers, record
from lt_lightning.study.places import hash_of
from lt_lightning.study.progress import JobProgress, ReportProgress
from lt_lightning.study.results import Result
from lt_lightning.ticket import Ticket

TICKET = "ticket"


@dataclass(frozen=True)
class Study:
    """Everything that a job was asked for, built and checked before anything is trained.

    Attributes:
        config: composed configuration.
        root: folder that everything is written under.
        data: serves all trainings.
        structures: by name.
        search_folder: of the search.
    """

    config: DictConfig
    root: Path
    data: ImageData
    structures: Mapping[str, Structure]
    search_folder: Path

    @classmethod
    def from_config(cls, config: DictConfig) -> Study:
        """Builds and checks all parts.

        Raises:
            ValueError: if the configuration asks for something impossible; the message names the key.
        """
        data: ImageData = instantiate(config.data)
        for key in ("classes", "channels", "size"):
            if config.dataset[key] != (true := getattr(data, key)):
                raise ValueError(
                    f"dataset.{key}={config.dataset[key]}, but the data set {config.labels.data} has {true}"
                )
        structures = {name: instantiate(node) for name, node in config.structure.items()}
        root = Path(config.paths.root)
        study = cls(config, root, data, structures, root / _search_name(config))
        study.check()
        return study

    def check(self) -> None:
        """Builds what the trainings build, so that a mistake shows before the first of them."""
        source = self.config.pruning.next_round_from
        if source != UNSTRUCTURED and set(self.structures) - {source}:
            raise ValueError(
                f"pruning.next_round_from={source!r} trains that structure alone: leave out the others "
                f"({', '.join(sorted(set(self.structures) - {source}))})"
            )
        if wrong := [number for number in self.config.retrain_rounds or () if not 1 <= number <= self.rounds]:
            raise ValueError(f"retrain_rounds names round {wrong[0]}, but pruning.rounds={self.rounds}")
        if self.config.execution not in get_args(Execution):
            allowed = ", ".join(get_args(Execution))
            raise ValueError(f"execution={self.config.execution!r} is not one of {allowed}")
        network = self.classifier().network
        self.trainer([], [])
        needs = self.pruning()
        for name, structure in self.structures.items():
            if structure.needs_gradients and not needs.gradient_batches:
                raise ValueError(f"structure.{name} needs gradients: set pruning.gradient_batches, to 32 for instance")
            structure.check(network, self.example)

    # Parts, made anew for every training

    @property
    def example(self) -> Tensor:
        """An input of the true shape."""
        return torch.zeros(1, *self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        return self.data.channels, self.data.size, self.data.size

    def classifier(self) -> ImageClassifier:
        """The dense network at its initial values, which are a function of the seed."""
        pl.seed_everything(self.config.seed, verbose=False)
        network: nn.Module = instantiate(self.config.model)
        classifier: ImageClassifier = instantiate(self.config.classifier, network=network)
        classifier.example_input_array = self.example
        return classifier

    def pruning(self) -> LotteryTicketPruning:
        """The search's callback."""
        source = self.config.pruning.next_round_from
        # Not handed to `instantiate`, which would turn the structures' dataclasses into configuration nodes.
        callback: LotteryTicketPruning = instantiate(self.config.pruning, _partial_=True)(
            directory=str(self.search_folder),
            structures={} if source == UNSTRUCTURED else {source: self.structures[source]},
            facts={key: self.labels[key] for key in ("data", "model", "seed")},
        )
        return callback

    def trainer(self, callbacks: list[pl.Callback], loggers: list[Any]) -> pl.Trainer:
        """A trainer for one training."""
        trainer: pl.Trainer = instantiate(
            self.config.trainer,
            callbacks=callbacks,
            logger=loggers,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        return trainer

    @property
    def labels(self) -> dict[str, Any]:
        """Names for tables: data, model, seed."""
        return {"data": self.config.labels.data, "model": self.config.labels.model, "seed": self.config.seed}

    # What is to be done

    @property
    def rounds(self) -> int:
        """Pruning rounds."""
        return int(self.config.pruning.rounds)

    def cells(self) -> list[tuple[int, str]]:
        """Tickets that are retrained alone, as (round, structure)."""
        if self.config.pruning.next_round_from != UNSTRUCTURED:
            return []
        chosen = self.config.retrain_rounds
        numbers = range(1, self.rounds + 1) if chosen is None else sorted(chosen)
        return [(number, name) for number in numbers for name in self.structures]

    def cell_folder(self, number: int, structure: str) -> Path:
        """Folder of a retrained ticket, named by a hash of what determines it besides the search."""
        options = OmegaConf.to_container(self.config.structure[structure], resolve=True)
        what = {"structure": options, "execution": self.config.execution}
        return self.search_folder / f"round_{number:02d}" / f"{structure}-{hash_of(what)}"


def _search_name(config: DictConfig) -> str:
    keys = ["dataset", "data", "model", "classifier", "pruning", "trainer", "seed"]
    if config.pruning.next_round_from != UNSTRUCTURED:
        keys.append("structure")
    whole: Any = OmegaConf.to_container(config, resolve=True)
    what = {key: whole[key] for key in keys}
    what["data"].pop("root", None)  # where the files are does not matter
    return f"{config.labels.data}-{config.labels.model}-s{config.seed}-{hash_of(what)}"


# The search


def run_search(study: Study, job: JobProgress) -> list[Result]:
    """Runs all rounds, unless they are there, and returns the results of the dense network and every round's ticket."""
    folder = study.search_folder
    done = search_results(study)
    if done is not None:
        return done
    callback = study.pruning()
    _write_config(study, folder)
    with closing_wandb():
        loggers = make_loggers(study.config, folder, study.root, folder.name, "search")
        classifier = study.classifier()
        expected = sum(expected_lengths(study))
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


def expected_lengths(study: Study) -> list[int]:
    """Epochs of each round; too many where the rewind point is given in steps, since the data is not loaded yet."""
    total = int(study.config.trainer.max_epochs)
    callback = study.pruning()
    rewound = total - (callback.rewind.count if callback.rewind.unit == "ep" else 0)
    return [total] + [rewound] * study.rounds


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


# Retraining


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
        report = ReportProgress(job, expected_lengths(study)[number], lambda: [restart.epochs], lambda _: label)
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


# Both


def evaluate(study: Study, classifier: ImageClassifier, ticket: Ticket) -> float:
    """Accuracy of a trained ticket on the test set."""
    ticket.apply(classifier.network, "trained")
    (metrics,) = study.trainer([], []).test(classifier, study.data, verbose=False)
    return float(metrics["test/accuracy"])


def measure(study: Study, ticket: Ticket) -> tuple[float, float]:
    """Time of the network that executes a ticket over the dense one's, in inference and in a training step."""
    options = study.config.measure
    if ticket.plan is None:
        return 1.0, 1.0
    if options is None:
        return math.nan, math.nan
    dense = study.classifier().network
    network = ticket.apply(study.classifier().network, "trained")
    device = str(study.trainer([], []).strategy.root_device)
    ratios = []
    for training in (False, True):
        small = execute(network, ticket.plan, ticket.masks, study.example, options.batch_size, training, device)
        assert small is not None
        _check_same(network, small.network, study)
        setting = Setting(options.batch_size, training)
        ratios.append(time_ratio(dense, small.network, study.shape, setting, device, options.samples, options.slot))
    return ratios[0], ratios[1]


def _check_same(network: nn.Module, small: nn.Module, study: Study) -> None:
    """A time counts only if it is that of the same function."""
    images = torch.randn(4, *study.shape, generator=torch.Generator().manual_seed(0))
    if (difference := largest_difference(network, small, images)) > 1e-3:
        raise RuntimeError(f"the network that executes the ticket differs from the masked one by {difference:.1e}")


def make_result(study: Study, ticket: Ticket, accuracy: float, dense_accuracy: float, folder: Path) -> Result:
    """The row of a trained and tested ticket."""
    inference, training = measure(study, ticket)
    card = ticket.card
    asked = {name: ticket.layers[name] for name in card["prunable"]}
    weights = sum(report.asked for report in asked.values())
    return Result(
        **study.labels,
        round=card["round"],
        structure=card["structure"],
        **{key: card[key] for key in ("density_asked", "density", "params_ratio", "flops_ratio", "best_epoch")},
        accuracy=accuracy,
        dense_accuracy=dense_accuracy,
        train_seconds=card["train_seconds"],
        val_accuracy=card["metrics"].get("val/accuracy", float("nan")),
        held=sum(report.held * report.asked for report in asked.values()) / weights,
        time_ratio_inference=inference,
        time_ratio_training=training,
        search=study.search_folder.name,
        place=str(folder.relative_to(study.root)),
    )


def _write_config(study: Study, folder: Path) -> None:
    with replacing(folder / "config.yaml") as partial:
        partial.write_text(OmegaConf.to_yaml(study.config, resolve=True), encoding="utf-8")
