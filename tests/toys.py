"""What tests of trainings and of their results start from."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.run import run
from lt_lightning.results.records import Result

DENSE = Result(
    data="digits", model="resnet8", seed=0, round=0, structure="dense", target_density=1.0, density=1.0, accuracy=0.98,
    dense_accuracy=0.98, params_ratio=1.0, flops_ratio=1.0, train_seconds=4.0, val_accuracy=0.99, best_epoch=3,
    retained_magnitude=1.0, time_ratio_inference=1.0, time_ratio_training=1.0, search="search-0",
    place="search-0/round_00/dense",
)  # fmt: skip


def batches(
    steps: int, shuffled: bool = True, first: int = 0, dtype: torch.dtype = torch.float32
) -> DataLoader[tuple[Tensor, ...]]:
    """The same samples of three classes in batches of 8, in an order that is a function of the epoch after `first`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (8 * steps,), generator=generator)
    images = torch.randn(8 * steps, 1, 6, 6, generator=generator, dtype=dtype) + labels.view(-1, 1, 1, 1)
    data = TensorDataset(images, labels)
    return DataLoader(data, 8, sampler=DistributedSampler(data, 1, 0, shuffled, seed=first))


def run_job(config: DictConfig) -> list[Result]:
    """Run the job of a configuration, and return its results."""
    return run(Job.of(config), Console())
