"""Which samples are seen when: the division, the order of an epoch and each process's part of it, all from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

SPLIT: Final = 0
ORDER: Final = 1
AUGMENTATION: Final = 2


def random_state(*key: int) -> int:
    """Return a 63-bit seed that depends on every number of the key (none negative); other keys have unrelated seeds.

    >>> random_state(1, 2) == random_state(1, 2), random_state(1, 2) == random_state(2, 1)
    (True, False)
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on the device whose stream is a function of the key (see `random_state`)."""
    return torch.Generator(device).manual_seed(random_state(*key))


def split(count: int, validation: int | float, seed: int, limit: float = 1.0) -> tuple[Tensor, Tensor]:
    """Divide `count` samples at random into training and validation; the result depends on the arguments alone.

    Args:
        count: number of samples.
        validation: number of samples to hold out (int), or their share (float).
        seed: seed of the division.
        limit: share of the training part to use, or a count above 1; the smaller part lies within the larger one.

    Returns:
        The indices of both parts, int64, ascending.

    Raises:
        ValueError: if a part would be empty.

    >>> train, held_out = split(10, 0.3, seed=0)
    >>> len(train), len(held_out), sorted((train.tolist() + held_out.tolist()))
    (7, 3, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    held_out = validation if isinstance(validation, int) else round(validation * count)
    if not 0 < held_out < count:
        raise ValueError(f"validation={validation}: must hold out 1 to {count - 1} of {count} samples, not {held_out}")
    shuffled = torch.randperm(count, generator=generator(seed, SPLIT))
    train = shuffled[held_out:]
    kept = int(limit) if limit > 1 else max(1, round(limit * len(train)))
    return train[:kept].sort().values, shuffled[:held_out].sort().values


@dataclass
class Order:
    """Makes the batches of one process, as a function of (seed, epoch, rank, world size).

    Every process gets the same number of batches, so that none waits for another. With `drop_last` all of them are
    full, and the few samples left over change with the epoch. Without it the processes together see each sample
    exactly once, in batches that differ by at most one sample. Lightning sets the epoch of a loader's
    `sampler`.

    Attributes:
        count: number of samples.
        batch_size: number of samples of a batch of one process; without `drop_last` the largest number.
        shuffle: whether the order is random and new every epoch, or ascending.
        drop_last: whether only full batches are made.
        seed: seed of the order, at least 0.
        rank: number of this process, below `world_size`.
        world_size: number of processes.
        epoch: number of the epoch, from 0.
        first_epoch: number of epochs that came before, in trainings that this one goes on from.

    Raises:
        ValueError: if a batch would be empty, or if there is no full one.

    >>> order = Order(count=10, batch_size=4, shuffle=False, drop_last=False, seed=0)
    >>> [len(batch) for batch in order.batches()]
    [4, 3, 3]
    """

    count: int
    batch_size: int
    shuffle: bool
    drop_last: bool
    seed: int
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    first_epoch: int = 0

    def __post_init__(self) -> None:
        if not self.drop_last and self.count < len(self) * self.world_size:
            raise ValueError(
                f"eval_batch_size={self.batch_size}: {self.count} samples cannot be shared by {self.world_size} "
                f"processes in {len(self)} batches each; choose a larger one or fewer processes"
            )
        if len(self) == 0:
            raise ValueError(
                f"batch_size={self.batch_size * self.world_size}: {self.count} training samples make no full "
                f"batch; at most {self.count // self.world_size * self.world_size} is possible"
            )

    def __len__(self) -> int:
        """Return the number of batches of this (and of every other) process."""
        together = self.batch_size * self.world_size
        return self.count // together if self.drop_last else -(-self.count // together)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each."""
        self.epoch = epoch

    @property
    def drawn_epoch(self) -> int:
        """The epoch whose order and augmentation are drawn, counted through all trainings."""
        return self.first_epoch + self.epoch

    def batches(self, device: torch.device | str = "cpu") -> Sequence[Tensor]:
        """Return the sample indices of each of this epoch's batches, int64, on the device.

        The order is drawn on the CPU, so that it is the same for every device, and moved at once.
        """
        if self.shuffle:
            indices = torch.randperm(self.count, generator=generator(self.seed, ORDER, self.drawn_epoch))
        else:
            indices = torch.arange(self.count)
        parts = len(self) * self.world_size
        if self.drop_last:
            indices = indices[: parts * self.batch_size]
        return indices.to(device).tensor_split(parts)[self.rank :: self.world_size]
