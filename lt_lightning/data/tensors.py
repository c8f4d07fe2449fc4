"""Data sets in memory, from their tensors over augmentation to batches: on the training device, without host syncs.

`InMemoryData`   reads a set once, divides it, and keeps its parts as tensors: images (`TensorData`) or token sequences
                 (`TokenData`)
`TensorLoader`   goes through a part in the epoch's order
`Augment`        crops and flips a batch of images at random, all at once, and `normalise` makes it float
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from lt_lightning.data.module import ImageData, LabelledData, Options, Part
from lt_lightning.data.order import AUGMENTATION, Order, generator

Transform = Callable[[Tensor, torch.Generator], Tensor]


def crop(images: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Pad every image with zeros and cut a window of the old size out of it, at a position of its own.

    All rows of all windows are copied by a single `index_select` from an overlapping view in which every entry
    is the start of a row: on a CPU three to fifteen times faster than gathering or indexing pixels.

    Args:
        images: images (N, C, H, W) of any type.
        top: first row of the window in the padded image, (N,) int64 in [0, 2 * pad].
        left: first column of the window, likewise.
        pad: number of zeros on each side.

    Returns:
        Images (N, C, H, W).

    >>> image = torch.tensor([[[[1, 2], [3, 4]]]])
    >>> crop(image, top=torch.tensor([2]), left=torch.tensor([1]), pad=1)
    tensor([[[[3, 4],
              [0, 0]]]])
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    line = width + 2 * pad
    plane = line * (height + 2 * pad)
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1) * plane
    rows = torch.arange(height, device=images.device) + top[:, None]
    starts = planes + (rows * line + left[:, None])[:, None]
    windows = padded.reshape(-1).unfold(0, width, 1)
    return windows.index_select(0, starts.view(-1)).view_as(images)


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right.

    Args:
        images: images (N, C, H, W) of any type.
        chosen: whether to mirror each image, (N,) bool.

    >>> flip(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), torch.tensor([False, True])).flatten()
    tensor([1, 2, 4, 3])
    """
    count = len(images)
    both = torch.cat([images, images.flip(3)])
    return both.index_select(0, torch.arange(count, device=images.device) + count * chosen)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 images as float32: (pixel / 255 - mean) / std, by channel.

    Args:
        images: images (N, C, H, W) uint8.
        mean: mean of the pixels scaled to [0, 1], (C,), on the same device.
        std: their standard deviation, likewise.
    """
    scale = 1 / (255 * std)
    return images.float().mul_(scale[:, None, None]).sub_((mean / std)[:, None, None])


@dataclass(frozen=True)
class Augment:
    """Random augmentation of training images.

    Attributes:
        pad: zeros around an image before a window of the old size is cut at random; 0 for no cropping.
        flip: mirror half of the images, chosen at random.

    Raises:
        ValueError: if `pad` is negative.
    """

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"pad={self.pad}: must be at least 0")

    def __call__(self, images: Tensor, generator: torch.Generator, rank: int = 0, world_size: int = 1) -> Tensor:
        """Augment a batch.

        Args:
            images: images (N, C, H, W): part `rank` of `world_size` equal parts of the batch of a step.
            generator: generator on their device. Every process draws for the whole batch of the step and takes what
                is for its part, so that an image becomes the same however many processes there are.
            rank: number of this process.
            world_size: number of processes.
        """
        count, device = len(images), images.device
        part = slice(rank * count, (rank + 1) * count)
        if self.pad:
            corners = torch.randint(2 * self.pad + 1, (2, count * world_size), generator=generator, device=device)
            images = crop(images, corners[0, part], corners[1, part], self.pad)
        if self.flip:
            drawn = torch.rand(count * world_size, generator=generator, device=device)
            images = flip(images, drawn[part] < 0.5)
        return images


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
        device = self.device
        for part, (inputs, labels) in self.parts.items():
            self.parts[part] = Pairs(inputs.to(device), labels.to(device))

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
        if augment.pad > self.size:
            raise ValueError(f"augment.pad={augment.pad}: must be at most the height of an image, {self.size}")
        self.augment = augment

    def _transform(self, part: Part, order: Order) -> Transform:
        augment = self.augment if part == "train" else NO_AUGMENTATION
        mean, std = torch.tensor([self.mean, self.std], device=self.device)

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
        self._length = len(order)
        self._random = torch.Generator(inputs.device)
        self._given = 0
        self._resume: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch, or the rest of one; which epoch it is, is read when the first batch is taken."""
        order = self.sampler
        random = generator(order.seed, AUGMENTATION, order.drawn_epoch, device=self.inputs.device)
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
