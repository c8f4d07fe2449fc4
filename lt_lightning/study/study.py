"""What a job was asked for, built and checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lt_lightning.callback import UNSTRUCTURED, LotteryTicketPruning
from lt_lightning.classifier import ImageClassifier
from lt_lightning.data.module import ImageData
from lt_lightning.retrain import Execution
from lt_lightning.structures.base import Structure
from lt_lightning.study.places import hash_of

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
        if config.threads is not None:
            if not (isinstance(config.threads, int) and config.threads > 0):
                raise ValueError(f"threads={config.threads!r} is not a positive number of CPU threads")
            torch.set_num_threads(config.threads)
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

    def expected_lengths(self) -> list[int]:
        """Epochs of each round; too many where the rewind point is given in steps, since no data is loaded yet."""
        total = int(self.config.trainer.max_epochs)
        rewind = self.pruning().rewind
        return [total] + [total - (rewind.count if rewind.unit == "ep" else 0)] * self.rounds

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
