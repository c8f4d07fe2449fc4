"""What tests of trainings and of their results start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

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


class Toy(pl.LightningModule):
    """A plain LightningModule, which knows nothing of tickets, trains a network on `batches`.

    Args:
        network: network for images of shape (1, 6, 6) and three classes.
        optimizer: makes the optimizer of the parameters; SGD by default.
        schedule: makes the optimizer's schedule; None: the learning rate is constant.
        interval: what the schedule counts.
        steps: number of batches of an epoch.
        shuffled: whether every epoch has an order of its own.
        first: epoch whose order is that of the first one here.
        scores: values logged as `val/score`, in turn, counted from epoch `first`; None: the negative loss.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Any], Optimizer] = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        interval: Literal["step", "epoch"] = "step",
        steps: int = 3,
        shuffled: bool = True,
        first: int = 0,
        scores: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.interval = interval
        self.steps = steps
        self.shuffled = shuffled
        self.first = first
        self.scores = scores
        self.rates: list[float] = []  # learning rates by step
        self.batch_type = next(network.parameters()).dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.rates.append(float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean())
        self.log("val/loss", loss)
        epoch = self.first + self.current_epoch
        self.log("val/score", -loss if self.scores is None else self.scores[epoch % len(self.scores)])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": self.interval},
        }

    def train_dataloader(self) -> Any:
        return batches(self.steps, self.shuffled, self.first, self.batch_type)

    def val_dataloader(self) -> Any:
        return batches(self.steps, shuffled=False, dtype=self.batch_type)
