"""A loader for a set that lives in memory, on the training device: no workers, no copies, no host syncs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lt_lightning.data.order import AUGMENTATION, Order, generator

Transform = Callable[[Tensor, torch.Generator], Tensor]


class TensorLoader:
    """Yields (images, labels) of a set held as tensors. Lightning takes it as it is: it is no `DataLoader`.

    What it yields is a function of the data, the transform and the order. The order is the same on every device;
    random augmentation is the same on every device of one kind, and differs between processes.

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

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch; which one is read when the first batch is asked for."""
        order = self.sampler
        random = generator(order.seed, AUGMENTATION, order.epoch, order.rank, device=self.images.device)
        for chosen in order.batches(self.images.device):
            images = self.transform(self.images.index_select(0, chosen), random)
            yield images, self.labels.index_select(0, chosen)
