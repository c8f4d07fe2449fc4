"""What a fit trains on: an example of its input, its first batches, the length of its epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from lt_lightning.data.module import ImageData
from lt_lightning.pruning.criteria import Batch


def example_input(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Tensor:
    """One input batch of the true shape: `example_input_array`, else the first training batch."""
    example: Any = pl_module.example_input_array
    if example is None:
        example = next(iter(trainer.train_dataloader))  # type: ignore[arg-type]
        example = example[0] if isinstance(example, (tuple, list)) else example
    if not isinstance(example, Tensor):
        raise ValueError(
            "the network's input could not be told from the first batch: set example_input_array on the LightningModule"
        )
    converted: Tensor = trainer.precision_plugin.convert_input(example[:1].to(pl_module.device))
    return converted


def first_batches(trainer: pl.Trainer, count: int) -> list[Batch]:
    """That many training batches (inputs, targets), or as many as there are, on the device.

    They are those of epoch 0, whenever it is. The training's own loader is left as it was.
    """
    loader = trainer.fit_loop._data_source.dataloader()
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
            "what scores weights or channels by data needs training batches of (inputs, targets), not "
            f"{type(batches[0]).__name__}: use another pruning.criterion or score of a structure, or a loader of pairs"
        )
    return _on_device(trainer, batches)


def plain_batches(trainer: pl.Trainer, count: int) -> list[Batch]:
    """That many batches to look at feature maps on, or as many as there are, on the device: the same at every call.

    An `ImageData` gives them without augmentation, whatever the processes; of other data they are the first training
    batches of a fixed random state.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, ImageData):
        return _on_device(trainer, data.plain_batches(count))
    with isolate_rng():
        torch.manual_seed(0)
        return first_batches(trainer, count)


def _on_device(trainer: pl.Trainer, batches: Sequence[Any]) -> list[Batch]:
    moved = [trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch)) for batch in batches]
    return [(inputs, targets) for inputs, targets in moved]


def steps_per_epoch(trainer: pl.Trainer) -> int:
    """Optimizer steps of an epoch; the last may be of fewer batches than are accumulated."""
    if math.isinf(trainer.num_training_batches):
        raise ValueError("the training data have no length: set trainer.limit_train_batches to the batches of an epoch")
    return max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
