"""What a job was asked for, built and checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor, nn

from lt_lightning.data.module import ImageData
from lt_lightning.experiment.config.checks import check_options
from lt_lightning.experiment.config.tasks import retraining_folder, retrainings_of, rounds_of, search_folder
from lt_lightning.experiment.protocols.layer_densities import magnitude_search_of
from lt_lightning.experiment.protocols.transfers import check_transfers
from lt_lightning.experiment.run.checkpoints import checkpoints_in
from lt_lightning.experiment.run.device_processes import needs_processes
from lt_lightning.structures.base import Structure
from lt_lightning.ticket_names import UNSTRUCTURED
from lt_lightning.training.agreement import SyncBatchNormOnCpu
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.classifier import ImageClassifier
from lt_lightning.training.processes import processes
from lt_lightning.training.retraining import Execution

TICKET = "ticket"


@dataclass(frozen=True)
class Experiment:
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
    def from_config(cls, config: DictConfig) -> Experiment:
        """Builds and checks all parts.

        Raises:
            ValueError: if the configuration asks for something impossible; the message names the key.
        """
        check_options(config)
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
        experiment = cls(config, root, data, structures, search_folder(config))
        experiment.check()
        return experiment

    def check(self) -> None:
        """Builds what the trainings build, so that a mistake shows before the first of them."""
        source = self.config.pruning.next_round_from
        if source != UNSTRUCTURED and set(self.structures) - {source}:
            raise ValueError(
                f"pruning.next_round_from={source!r} trains that structure alone: leave out the others "
                f"({', '.join(sorted(set(self.structures) - {source}))})"
            )
        if wrong := [number for number in self.config.retrain_rounds or () if not 1 <= number <= self.rounds]:
            raise ValueError(f"retrain_rounds names round {wrong[0]}, but there are pruning.rounds={self.rounds}")
        if self.config.execution not in get_args(Execution):
            allowed = ", ".join(get_args(Execution))
            raise ValueError(f"execution={self.config.execution!r} is not one of {allowed}")
        classifier = self.classifier()
        network = classifier.network
        classifier.check_device(self.trainer([checkpoints_in(self.search_folder, self.config)], []))
        needs = self.pruning().options
        for name, structure in self.structures.items():
            if structure.needs_gradients and not needs.gradient_batches:
                raise ValueError(f"structure.{name} needs gradients: set pruning.gradient_batches, to 32 for instance")
            structure.check(network, self.example)
        check_transfers(self, network)
        if "small_dense" in self.config.controls and not isinstance(self.config.model.get("width"), int):
            raise ValueError("controls=small_dense needs a network with an option model.width, a whole number")

    # Parts, made anew for every training

    @property
    def example(self) -> Tensor:
        """An input of the true shape."""
        return torch.zeros(1, *self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        return self.data.channels, self.data.size, self.data.size

    def network(self, seed: int, width: int | None = None) -> nn.Module:
        """The dense network at its initial values, which are a function of the seed.

        Args:
            seed: of them.
            width: in place of the model's own.
        """
        pl.seed_everything(seed, verbose=False)
        network: nn.Module = instantiate(self.config.model, **({} if width is None else {"width": width}))
        return network

    def classifier(self, width: int | None = None) -> ImageClassifier:
        """Hosts the dense network of the job's seed, or a narrower one."""
        network = self.network(self.config.seed, width)
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
            **({} if (search := magnitude_search_of(self.config)) is None else {"imp": str(search_folder(search))}),
        )
        return callback

    def trainer(self, callbacks: list[pl.Callback], loggers: list[Any]) -> pl.Trainer:
        """A trainer for one training, or one test, in all processes of the job."""
        plugins: list[Any] = [LightningEnvironment()]  # the processes are our own, in SLURM too
        synchronised = processes() > 1 and self.config.trainer.sync_batchnorm
        if on_cpu := synchronised and torch.distributed.get_backend() == "gloo":
            plugins.append(SyncBatchNormOnCpu())
        devices = self.config.trainer.devices
        benchmark = self.config.trainer.get("benchmark")
        trainer: pl.Trainer = instantiate(
            self.config.trainer,
            benchmark=not self.config.trainer.get("deterministic") if benchmark is None else benchmark,
            devices=1 if needs_processes(self.config) else devices,  # outside of them: to check, or to measure
            callbacks=callbacks,
            logger=loggers,
            strategy="ddp" if processes() > 1 else "auto",
            plugins=plugins,
            sync_batchnorm=synchronised and not on_cpu,
            use_distributed_sampler=False,  # each loader serves its process's part
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        )
        return trainer

    @property
    def labels(self) -> dict[str, Any]:
        """Names for tables: data, model, seed."""
        return {"data": self.config.labels.data, "model": self.config.labels.model, "seed": self.config.seed}

    # What is to be done

    def expected_length(self, number: int) -> int:
        """Epochs that a round's ticket is trained; of round 0 it is the dense network.

        Too many where the rewind point is given in steps, since no data is loaded yet.
        """
        total = int(self.config.trainer.max_epochs)
        rewind = self.pruning().rewind.within(total)
        return total - (rewind.count if number and rewind.unit == "ep" else 0)

    def search_lengths(self) -> list[list[int]]:
        """Epochs of the trainings of each round of the search, likewise: with a sparsifier there are two in a round."""
        trainings = 1 if self.pruning().options.sparsifier is None else 2
        return [[self.expected_length(0)]] + [[self.expected_length(1)] * trainings] * self.rounds

    @property
    def rounds(self) -> int:
        """Pruning rounds."""
        return rounds_of(self.config)

    def cells(self) -> list[tuple[int, str]]:
        """Tickets that are retrained alone, as (round, structure)."""
        return retrainings_of(self.config)

    def retraining_folder(self, number: int, structure: str) -> Path:
        """Folder of a retrained ticket, named by a hash of what determines it besides the search."""
        return retraining_folder(self.config, number, structure)
