"""Sets that are kept in memory, as images (`TensorData`) or sequences of tokens (`TokenData`), and their loader."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Unpack

import torch
from torch import Tensor

from lt_lightning.data.augment import Augment, normalise
from lt_lightning.data.module import ImageData, LabelledData, Options, Part
from lt_lightning.data.order import AUGMENTATION, Order, generator

Transform = Callable[[Tensor, torch.Generator], Tensor]

NO_AUGMENTATION: Final = Augment()


class Pairs(NamedTuple):
    """A part of a data set.

    Attributes:
        inputs: images (N, channels, size, size) uint8, or token ids (N, length) uint8 or wider.
        labels: (N,) int64.
    """

    inputs: Tensor
    labels: Tensor


class InMemoryData(LabelledData):
    """A set that is kept as tensors on the training device.

    Attributes:
        parts: the inputs and labels of each part, on the device; empty before `setup`.

    Args:
        root: see `LabelledData`.
        batch_size: see `LabelledData`.
        options: see `LabelledData`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, root: str | Path, batch_size: int, **options: Unpack[Options]) -> None:
        super().__init__(root, batch_size, **options)
        self.parts: dict[Part, Pairs] = {}

    def digest(self) -> str:
        """Return hexadecimal digits that another input or label changes, of those that this division uses."""
        self.setup()
        digest = hashlib.sha256()
        for part in self.parts.values():
            for values in part:
                digest.update(values.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def _load(self) -> None:
        if not self.parts:
            (inputs, labels), test = self._read()
            train, held_out = self._split(len(inputs))
            self.parts = {
                "train": Pairs(inputs[train], labels[train]),
                "validation": Pairs(inputs[held_out], labels[held_out]),
                "test": test,
            }
        for part, (inputs, labels) in self.parts.items():
            self.parts[part] = Pairs(inputs.to(self.device), labels.to(self.device))

    def _loader(self, part: Part) -> TensorLoader:
        inputs, labels = self.parts["train" if part == "plain" else part]
        order = self._order(part, len(inputs))
        return TensorLoader(inputs, labels, order, self._transform(part, order))

    @abstractmethod
    def _transform(self, part: Part, order: Order) -> Transform:
        """Return the function that makes what the network is given of the inputs of a batch."""

    @abstractmethod
    def _read(self) -> tuple[Pairs, Pairs]:
        """Return the samples for training and validation, and those for test."""


class TensorData(InMemoryData, ImageData):
    """A set of images that is kept as uint8 tensors on the training device, and augmented there.

    Args:
        root: see `LabelledData`.
        batch_size: see `LabelledData`.
        augment: augmentation of the training images.
        options: see `LabelledData`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, root: str | Path, batch_size: int, *, augment: Augment = NO_AUGMENTATION, **options: Unpack[Options]
    ) -> None:
        super().__init__(root, batch_size, **options)
        self.augment = augment

    def _transform(self, part: Part, order: Order) -> Transform:
        augment = self.augment if part == "train" else NO_AUGMENTATION
        mean, std = self._statistics()

        def transform(images: Tensor, generator: torch.Generator) -> Tensor:
            return normalise(augment(images, generator, order.rank, order.world_size), mean, std)

        return transform


class TokenData(InMemoryData):
    """A set of token sequences of one length that is kept on the training device; the network is given int64 ids.

    Attributes:
        vocabulary: number of different tokens; ids are 0 to `vocabulary - 1`.
        length: number of tokens of a sequence.

    Raises:
        ValueError: in `setup`, if an id is not below `vocabulary`.
    """

    vocabulary: int
    length: int

    @property
    def example(self) -> Tensor:
        """Zeros of shape (1, length), int64."""
        return torch.zeros(1, self.length, dtype=torch.int64)

    def random_inputs(self, count: int) -> Tensor:
        """Return random token ids (count, length), the same at every call."""
        return torch.randint(self.vocabulary, (count, self.length), generator=generator(0))

    def _load(self) -> None:
        super()._load()
        largest = max(int(ids.max()) for ids, _ in self.parts.values())
        if largest >= self.vocabulary:
            raise ValueError(f"vocabulary={self.vocabulary}: must be above all token ids, and one is {largest}")

    def _transform(self, part: Part, order: Order) -> Transform:
        return lambda ids, generator: ids.long()


class TensorLoader:
    """Yields (inputs, labels) of a set kept as tensors, without workers, copies or waiting for the device.

    Lightning takes it as it is: it is no `DataLoader`.

    What it yields is a function of the data, the transform and the order. The order is the same on every device;
    random augmentation is the same on every device of one kind. All processes have the same generator, so that each
    can draw for the whole batch of a step and take its part. It has state, so that a training goes on within an epoch.

    Args:
        inputs: inputs as they are kept, (N, ...).
        labels: labels (N,) int64, on the same device.
        order: order of the N samples; its `set_epoch` chooses the epoch.
        transform: function from the kept inputs of a batch and a generator on their device to those of the network.
    """

    batch_sampler = None  # Lightning reads it of every loader that has a sampler

    def __init__(self, inputs: Tensor, labels: Tensor, order: Order, transform: Transform) -> None:
        self.inputs = inputs
        self.labels = labels
        self.sampler = order
        self.transform = transform
        self._random = generator(0, device=inputs.device)
        self._given = 0
        self._resume: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch, or the rest of one; which epoch it is, is read when the first batch is taken."""
        order = self.sampler
        random = generator(order.seed, AUGMENTATION, order.epoch, device=self.inputs.device)
        first = 0
        if self._resume is not None and self._resume["epoch"] == order.epoch:
            first = self._resume["batches"]
            random.set_state(self._resume["random"])
        self._resume = None
        self._random = random
        for number, chosen in enumerate(order.batches(self.inputs.device)[first:], first + 1):
            inputs = self.transform(self.inputs.index_select(0, chosen), random)
            self._given = number
            yield inputs, self.labels.index_select(0, chosen)

    def state_dict(self) -> dict[str, Any]:
        """Return what has been yielded: epoch, number of its batches, and the state of the augmentation after them."""
        return {"epoch": self.sampler.epoch, "batches": self._given, "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on there, if it is of that epoch."""
        self._resume = state
