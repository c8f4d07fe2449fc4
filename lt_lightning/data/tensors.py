"""A loader for a set that lives in memory, on the training device: no workers, no copies, no host syncs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lt_lightning.data.order import AUGMENTATION, Order, generator

Transform = Callable[[Tensor, torch.Generator], Tensor]


class TensorLoader:
    """Yields (images, labels) of a set held as tensors. Lightning takes it as it is: it is no `DataLoader`.

    What it yields is a function of the data, the transform and the order. The order is the same on every device;
    random augmentation is the same on every device of one kind. All processes have the same generator, so that each
    can draw for the whole batch of a step and take its part. It has state, so that a training goes on within an epoch.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, on the same device.
        order: of the N samples; its `set_epoch` chooses the epoch.
        transform: from a batch of uint8 images and a generator on their device to float32 images.
    """

    batch_sampler = None  # Lightning reads it of every loader that has a sampler

    def __init__(self, images: Tensor, labels: Tensor, order: Order, transform: Transform) -> None:
        self.images = images
        self.labels = labels
        self.sampler = order
        self.transform = transform
        self._random = generator(0, device=images.device)
        self._given = 0
        self._resume: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch, or the rest of one; which one is read when the first batch is asked for."""
        order = self.sampler
        random = generator(order.seed, AUGMENTATION, order.epoch, device=self.images.device)
        first = 0
        if self._resume is not None and self._resume["epoch"] == order.epoch:
            first = self._resume["batches"]
            random.set_state(self._resume["random"])
        self._resume = None
        self._random = random
        for number, chosen in enumerate(order.batches(self.images.device)[first:], first + 1):
            images = self.transform(self.images.index_select(0, chosen), random)
            self._given = number
            yield images, self.labels.index_select(0, chosen)

    def state_dict(self) -> dict[str, Any]:
        """What has been yielded: the epoch, the number of its batches, and the state of the augmentation after them."""
        return {"epoch": self.sampler.epoch, "batches": self._given, "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration yields what comes then, if it is of that epoch."""
        self._resume = state
