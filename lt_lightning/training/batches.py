"""What a fit trains on: an example of its input, its first batches, the length of its epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lt_lightning.pruning.criteria import Batch
from lt_lightning.pruning.examples import Example, map_tensors
from lt_lightning.structures.base import Batches
from lt_lightning.training.lightning_internals import isolate_rng, pl, training_loader


@runtime_checkable
class GivesPlainBatches(Protocol):
    """A data module that can give training batches without augmentation."""

    def plain_batches(self, count: int) -> Sequence[Batch]:
        """Return the first `count` batches of a fixed order, or as many as there are: the same at every call."""


def example_input(trainer: pl.Trainer, pl_module: pl.LightningModule, network: nn.Module) -> Example:
    """Return one sample of the network's true input: of `example_input_array`, else of the first training batch.

    It has the device and the type of the network's parameters. The random generators and the training's own loader are
    left as they were.

    Raises:
        ValueError: if there is no `example_input_array`, and the batch is neither a tensor nor starts with one.
    """
    example: Any = pl_module.example_input_array
    if example is None:
        with isolate_rng():
            batch = next(iter(training_loader(trainer)))
        example = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(example, Tensor):
            raise ValueError(
                f"example_input_array=None: the first batch is a {type(example).__name__}, which does not show the "
                "network's input; set example_input_array on the LightningModule, to a tensor, a tuple of arguments or "
                "a dict of named ones"
            )
    parameter = next(network.parameters())

    def one(tensor: Tensor) -> Tensor:
        return tensor[:1].to(parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype)

    sample: Example = map_tensors(example, one)
    return sample


def first_batches(trainer: pl.Trainer, count: int) -> list[Batch]:
    """Return the first `count` training batches (inputs, targets) of epoch 0 on the device, or as many as there are.

    The training's own loader is left as it was.

    Raises:
        ValueError: if a batch is not a pair.
    """
    loader = training_loader(trainer)
    sampler: Any = getattr(loader, "sampler", None)
    epoch = getattr(sampler, "epoch", None)
    if epoch is not None:
        sampler.set_epoch(0)
    try:
        batches: list[Any] = list(islice(loader, count))
    finally:
        if epoch is not None:
            sampler.set_epoch(epoch)
    if not all(isinstance(batch, (tuple, list)) and len(batch) == 2 for batch in batches):
        raise ValueError(
            f"a training batch is a {type(batches[0]).__name__}, and what scores weights or channels by data needs "
            "pairs (inputs, targets): use another criterion or score, or a loader of pairs"
        )
    moved = [trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch)) for batch in batches]
    return [(inputs, targets) for inputs, targets in moved]


def structure_batches(trainer: pl.Trainer) -> Batches:
    """Return what gives a structure batches during a fit: without augmentation where the data module can, else as is.

    They are the same at every call, and those of a `GivesPlainBatches` in every process, too.
    """
    data: object = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, GivesPlainBatches):
        return plain_batches(data, trainer.strategy.root_device)
    return partial(_seeded_batches, trainer)


def plain_batches(data: GivesPlainBatches, device: torch.device) -> Batches:
    """Return what gives a structure the data's plain batches on a device, within a fit or outside of one."""

    def batches(count: int) -> list[Batch]:
        return [(inputs.to(device), targets.to(device)) for inputs, targets in data.plain_batches(count)]

    return batches


def _seeded_batches(trainer: pl.Trainer, count: int) -> list[Batch]:
    with isolate_rng():
        torch.manual_seed(0)
        return first_batches(trainer, count)


def steps_per_epoch(trainer: pl.Trainer) -> int:
    """Return the number of optimizer steps of an epoch; the last may be of fewer batches than are accumulated."""
    return math.ceil(batches_per_epoch(trainer) / trainer.accumulate_grad_batches)


def batches_per_epoch(trainer: pl.Trainer) -> int:
    """Return the number of batches of an epoch.

    Raises:
        ValueError: if it has none, or no end.
    """
    count = trainer.num_training_batches
    if not count or not trainer.limit_train_batches:
        raise ValueError(f"Trainer(limit_train_batches={trainer.limit_train_batches}): leaves no batch to train on")
    if math.isinf(count):
        raise ValueError(
            "the training data have no length: set limit_train_batches of the Trainer to the batches of an epoch"
        )
    return int(count)
