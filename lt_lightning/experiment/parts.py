"""The parts of an experiment: data, network, structures, callback and trainer, checked before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from lt_lightning.data.module import LabelledData
from lt_lightning.execution.machine import is_bfloat16
from lt_lightning.experiment.config.checks import check_options, naming, shown
from lt_lightning.experiment.config.options import JobOptions, options_of
from lt_lightning.experiment.config.tasks import rounds_of, search_folder
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.results.job_record import Task
from lt_lightning.storage.layout import UNSTRUCTURED
from lt_lightning.structures.base import Structure
from lt_lightning.training.agreement import SyncBatchNormOnCpu
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.classifier import ImageClassifier
from lt_lightning.training.lightning_internals import quieten, starts_by_multiprocessing
from lt_lightning.training.processes import processes, started
from lt_lightning.training.pruning_options import PruningOptions


@dataclass(frozen=True)
class Experiment:
    """Everything that a job was asked for, built and checked before anything is trained.

    Attributes:
        config: composed configuration.
        options: its options, checked; those of the groups are in the configuration.
        root: folder that everything is written under.
        data: data module of all trainings.
        structures: structures by name.
        rounds: number of pruning rounds.
        search_folder: folder of the search.
        devices: devices that the job is to use on this machine, one process each.
        size: number of processes of the job, on all machines.
    """

    config: DictConfig
    options: JobOptions
    root: Path
    data: LabelledData
    structures: Mapping[str, Structure]
    rounds: int
    search_folder: Path
    devices: tuple[str, ...]
    size: int

    @classmethod
    def from_config(cls, config: DictConfig) -> Experiment:
        """Build and check all parts.

        Raises:
            ValueError: if the configuration asks for something impossible; the message names the key.
        """
        options = options_of(config)
        check_options(config)
        quieten()
        data: LabelledData = instantiate(config.data)
        for key, asked in asdict(options.dataset).items():
            if asked != (true := getattr(data, key, None)):
                raise ValueError(
                    f"dataset.{key}={shown(asked)}, but the data set {options.labels.data} has {shown(true)}"
                )
        structures = {name: _structure(str(name), node) for name, node in config.structure.items()}
        root, folder, trainer = Path(options.paths.root), search_folder(config), plain_trainer(config)
        devices = devices_of(trainer)
        size = len(devices) * trainer.num_nodes
        experiment = cls(config, options, root, data, structures, rounds_of(config), folder, devices, size)
        experiment._check(trainer)
        return experiment

    def _check(self, trainer: pl.Trainer) -> None:
        """Build what the trainings build, so that a mistake shows before the first of them."""
        self._check_processes(trainer.num_nodes)
        if self.data.batch_size % self.size:
            raise ValueError(
                f"data.batch_size={self.data.batch_size}: must be a multiple of the {self.size} processes that "
                "trainer.devices and trainer.num_nodes make"
            )
        source = self.options.pruning["next_round_from"]
        if source != UNSTRUCTURED and set(self.structures) - {source}:
            raise ValueError(
                f"pruning.next_round_from={source!r} trains that structure alone: leave out the others "
                f"({', '.join(sorted(set(self.structures) - {source}))})"
            )
        if wrong := [number for number in self.options.retrain_rounds or () if not 1 <= number <= self.rounds]:
            raise ValueError(f"retrain_rounds names round {wrong[0]}, but there are pruning.rounds={self.rounds}")
        self._check_retraining()
        precision = self.config.trainer.get("precision")
        if trainer.strategy.root_device.type == "cpu" and precision in ("16-mixed", "16", 16):
            raise ValueError(f"trainer.precision={shown(precision)}: a CPU computes that in bfloat16; write bf16-mixed")
        classifier = self.spare_classifier()
        with naming("classifier"):
            classifier.check_device(trainer)
        self.own_callbacks()
        pruning = self.pruning_options
        with naming("model"):
            traced = self.traced
            next(iter(traced.layers))  # which runs the network
        for name, structure in self.structures.items():
            if structure.needs_gradients and not pruning.gradient_batches:
                raise ValueError(f"structure.{name} needs gradients: set pruning.gradient_batches, to 32 for instance")
            with naming(f"structure.{name}"):
                structure.check(traced)

    def _check_retraining(self) -> None:
        length, mode = self.options.retraining.length, self.options.pruning.get("mode")
        if (copies := self.options.retraining.copies) > 1 and self.size > 1:
            raise ValueError(
                f"retraining.copies={copies}: copies are averaged on one device, and the job has {self.size}"
            )
        if self.stretched_epochs == 0:
            raise ValueError(f"retraining.length={length}: leaves no epoch of trainer.max_epochs")
        if self.stretched_epochs is not None and mode == "none":
            raise ValueError(
                f"retraining.length={length}: stretches the schedule, and pruning.mode=none trains tickets at its last "
                "rates; set 1, or another mode"
            )

    def _check_processes(self, nodes: int) -> None:
        if (environment := started()) is not None:
            with naming("trainer"):
                environment.validate_settings(num_devices=len(self.devices), num_nodes=nodes)
        elif nodes > 1:
            raise ValueError(
                f"trainer.num_nodes={nodes}: a job itself starts processes on one machine alone; start it by "
                "hydra/launcher=slurm_nodes, srun, or torchrun on every machine"
            )

    def use_threads(self) -> None:
        """Let this process use as many CPU threads as the configuration says."""
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)

    @property
    def needs_processes(self) -> bool:
        """Whether the job is still to be handed to several processes."""
        return processes() == 1 and self.size > 1

    @property
    def device(self) -> str:
        """The device of this process."""
        environment = started()
        return self.devices[0 if environment is None else environment.local_rank()]

    @property
    def computes_in_bfloat16(self) -> bool:
        """Whether the trainer's precision is bfloat16."""
        return is_bfloat16(self.config.trainer.get("precision"))

    # Parts, made anew for every training

    @cached_property
    def example(self) -> Tensor:
        """An input of the true shape and type: zeros, for a batch of one sample."""
        return self.data.example

    @cached_property
    def traced(self) -> TracedNetwork:
        """The layers and channels of the dense network, whose values do not matter."""
        return TracedNetwork(self.spare_classifier().network, self.example)

    def network(self, seed: int, width: int | None = None) -> nn.Module:
        """Return the dense network at its initial values, and leave the random generators where these values end.

        Args:
            seed: seed of the initial values.
            width: width in place of the model's own.
        """
        pl.seed_everything(seed, verbose=False)
        network: nn.Module = instantiate(self.config.model, **({} if width is None else {"width": width}))
        return network

    def classifier(self, width: int | None = None) -> ImageClassifier:
        """Return the module that trains the dense network of the job's seed, or a narrower one."""
        network = self.network(self.options.seed, width)
        classifier: ImageClassifier = instantiate(self.config.classifier, network=network)
        classifier.example_input_array = self.example
        return classifier

    def spare_classifier(self, width: int | None = None) -> ImageClassifier:
        """Return a module to look at, or to test a ticket in, whose values do not matter.

        That of the dense network is the same at every call. The random generators stay as they are.
        """
        if width is None:
            return self._spare_classifier
        with isolate_rng():
            return self.classifier(width)

    @cached_property
    def _spare_classifier(self) -> ImageClassifier:
        with isolate_rng():
            return self.classifier()

    def pruning(self, environments: Sequence[Mapping[str, str]] = ()) -> LotteryTicketPruning:
        """Return the search's callback.

        Args:
            environments: environments that take part, for the cards of its tickets.
        """
        source = self.options.pruning["next_round_from"]
        # Not handed to `instantiate`, which would turn the structures' dataclasses into configuration nodes.
        make = instantiate(self.config.pruning, _partial_=True)
        with naming("pruning"):
            callback: LotteryTicketPruning = make(
                directory=str(self.search_folder),
                structures={} if source == UNSTRUCTURED else {source: self.structures[source]},
                facts={**self.labels, **({"environments": list(environments)} if environments else {})},
            )
        return callback

    @cached_property
    def pruning_options(self) -> PruningOptions:
        """The options of the search's callback, checked."""
        return self.pruning().options

    def own_callbacks(self) -> list[pl.Callback]:
        """Return the user's own callbacks, new ones for every training.

        Raises:
            ValueError: if one is no callback of Lightning; the message names the key.
        """
        made: list[pl.Callback] = []
        for name, node in self.config.callbacks.items():
            with naming(f"callbacks.{name}"):
                made.append(instantiate(node))
            if not isinstance(made[-1], pl.Callback):
                raise ValueError(
                    f"callbacks.{name}={shown(OmegaConf.to_container(node))}: makes a {type(made[-1]).__name__}, which "
                    "is no callback of pytorch_lightning"
                )
        return made

    def trainer(self, callbacks: list[pl.Callback], loggers: list[Any], epochs: int | None = None) -> pl.Trainer:
        """Return a trainer for one training, or one test, in all processes of the job.

        Args:
            callbacks: its callbacks.
            loggers: its loggers.
            epochs: length of the training; None: trainer.max_epochs.
        """
        together = self.size > 1 and processes() == self.size  # outside of them a trainer only measures
        plugins: list[Any] = [(started() if together else None) or LightningEnvironment()]
        synchronised = together and self.config.trainer.sync_batchnorm
        if on_cpu := synchronised and torch.distributed.get_backend() == "gloo":
            plugins.append(SyncBatchNormOnCpu())
        benchmark, strategy = (self.config.trainer.get(key) for key in ("benchmark", "strategy"))
        trainer: pl.Trainer = instantiate(
            self.config.trainer,
            benchmark=not self.config.trainer.get("deterministic") if benchmark is None else benchmark,
            devices=self.config.trainer.devices if together or self.size == 1 else 1,
            num_nodes=self.size // len(self.devices) if together else 1,
            max_epochs=epochs or self.config.trainer.max_epochs,
            callbacks=callbacks,
            logger=loggers,
            strategy=("ddp" if strategy in (None, "auto") else strategy) if together else "auto",
            plugins=plugins,
            sync_batchnorm=synchronised and not on_cpu,
            use_distributed_sampler=False,  # each loader serves its process's part
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        )
        if not loggers:
            trainer.loggers = [_Dropping(trainer.default_root_dir)]
        return trainer

    @property
    def labels(self) -> dict[str, Any]:
        """The names in tables: data, model, seed."""
        return {**asdict(self.options.labels), "seed": self.options.seed}

    # What is to be done

    def retraining_epochs(self, whole_schedule: bool) -> int:
        """Return the epochs that a ticket is trained alone, in each of its copies.

        They are too many where the rewind point is given in steps, since no data is loaded yet.

        Args:
            whole_schedule: whether it is trained for as long as the dense network, whatever the rewind point.
        """
        dense, ticket = self._lengths
        if self.stretched_epochs is not None:
            return self.stretched_epochs
        return dense if whole_schedule else ticket

    def epochs_of(self, task: Task) -> int:
        """Return the epochs of a task that trains a ticket alone, in each of its copies."""
        return self.retraining_epochs(task.whole_schedule) + (task.cycles - 1) * self.retraining_epochs(False)

    @property
    def stretched_epochs(self) -> int | None:
        """The epochs that the schedule of a ticket's training is stretched over; None where it is the search's own."""
        length = self.options.retraining.length
        return None if length == 1 else round(length * self.options.trainer["max_epochs"])

    @cached_property
    def _lengths(self) -> tuple[int, int]:
        """The epochs that the dense network is trained, and those of a ticket."""
        total = int(self.options.trainer["max_epochs"])
        rewind = self.pruning_options.step.within(total)
        if rewind.unit == "ep" and rewind.count >= total > 0:
            raise ValueError(f"pruning.rewind={rewind}: must lie before the end of a training of {total} epochs")
        whole = self.pruning_options.mode == "weights_only" or rewind.unit != "ep"
        return total, total if whole else total - rewind.count

    def search_lengths(self) -> list[list[int]]:
        """Return the epochs of the trainings of each round of the search: with a sparsifier a round has two."""
        dense, ticket = self._lengths
        return [[dense]] + [[ticket] * (1 if self.pruning_options.sparsifier is None else 2)] * self.rounds


class _Dropping(DummyLogger):
    """The logger of a training that has no other: callbacks of the user may ask for one. It drops what it is given.

    Args:
        folder: folder in which Lightning's profilers write.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    @property
    def save_dir(self) -> str:
        """The folder."""
        return self._folder


def _structure(name: str, node: DictConfig) -> Structure:
    structure: Structure = instantiate(node)
    if Structure not in type(structure).__mro__:
        raise ValueError(
            f"structure.{name}={shown(OmegaConf.to_container(node))}: makes a {type(structure).__name__}, which is no "
            "structure"
        )
    return structure


def plain_trainer(config: DictConfig) -> pl.Trainer:
    """Return the trainer that the configuration asks for, to be asked about its devices and never to train.

    Raises:
        ValueError: if it asks for a way of using several devices that keeps no whole network in every process.
    """
    plain = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer: pl.Trainer = instantiate(config.trainer, **plain, plugins=[LightningEnvironment()])
    whole = isinstance(trainer.strategy, (DDPStrategy, SingleDeviceStrategy))
    if not whole or starts_by_multiprocessing(trainer):
        raise ValueError(
            f"trainer.strategy={shown(config.trainer.get('strategy'))}: must be auto, ddp or another form of DDP whose "
            "processes are started by the job, torchrun or SLURM"
        )
    return trainer


def devices_of(trainer: pl.Trainer) -> tuple[str, ...]:
    """Return the devices that a trainer asks for and this machine has: `cpu`, or `cuda:0`, `cuda:1`, ..."""
    if isinstance(trainer.strategy, ParallelStrategy):
        return tuple(str(device) for device in trainer.strategy.parallel_devices or ())
    return (str(trainer.strategy.root_device),)
