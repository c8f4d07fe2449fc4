"""What all data modules share (`LabelledData`), and those of images (`ImageData`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sized
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypedDict

import pytorch_lightning as pl
import torch
from torch import Tensor

from lt_lightning.data.dataset_files import Files, digest_of, fetch
from lt_lightning.data.order import Order, generator, split

Part = Literal["train", "validation", "test", "plain"]  # plain: train without augmentation
Batch = tuple[Tensor, Tensor]


class Loader(Iterable[Batch], Sized, Protocol):
    """Yields (inputs, int64 labels) and has a length; `sampler.set_epoch` sets the epoch.

    With its state (builtins and tensors) another one goes on after the batch that this one yielded last.
    """

    sampler: Order

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands: builtins and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


class Options(TypedDict, total=False):
    """The arguments of `LabelledData` that have a default, for the constructors of its subclasses."""

    eval_batch_size: int
    seed: int
    validation: int | float
    limit: float


class LabelledData(pl.LightningDataModule, ABC):
    """Samples with class labels, divided into training, validation and test part.

    One module can serve many trainers after each other; it reads its files once.

    Attributes:
        order_seed: seed of the order and the augmentation; `seed`, unless it is set, for another order of the same
            division.
        first_epoch: epoch whose order and augmentation a training's first epoch has; 0 unless it is set, for one that
            goes on from others.
        name: name of the data set, as in `conf/data`.
        classes: number of classes; labels are 0 to `classes - 1`.
        files: files that are read below `root`; None if none are.
        operational: arguments that do not change what is computed.

    Args:
        root: folder of the data sets.
        batch_size: number of training samples of one step, shared evenly by all processes.
        eval_batch_size: largest number of samples of one validation or test step of one process.
        seed: seed of the division, the order and the augmentation.
        validation: number of training samples to hold out for validation, or their share (float).
        limit: share of the remaining training samples to use, in (0, 1], or their number above 1, for quick trials.

    Raises:
        ValueError: if an argument is out of its range.
    """

    name: str
    classes: int
    files: ClassVar[Files | None]
    operational: ClassVar[tuple[str, ...]] = ("root", "eval_batch_size")

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        *,
        eval_batch_size: int = 500,
        seed: int = 0,
        validation: int | float = 0.1,
        limit: float = 1.0,
    ) -> None:
        super().__init__()
        for key, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{key}={value}: must be at least 1")
        if seed < 0:
            raise ValueError(f"seed={seed}: must be at least 0")
        if validation < 1 if isinstance(validation, int) else not 0 < validation < 1:
            raise ValueError(f"validation={validation}: must be a count of at least 1 or a share in (0, 1)")
        if not 0 < limit <= 1 and not (isinstance(limit, int) and limit > 1):
            raise ValueError(f"limit={limit}: must be a share in (0, 1], or a whole number of samples above 1")
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.order_seed = seed
        self.first_epoch = 0
        self.validation = validation
        self.limit = limit

    def prepare_data(self) -> None:
        """Download what is missing (Lightning calls this in one process a machine).

        Raises:
            FileNotFoundError: if that is impossible; says what to put where.
        """
        if self.files is not None:
            fetch(self.root, self.files)

    def setup(self, stage: str | None = None) -> None:
        """Read the data, the first time it is called; without a trainer it downloads before, if need be.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is short or corrupt; names it. If `validation` leaves nothing to train on.
        """
        if self.trainer is None:
            self.prepare_data()
        self._load()

    def train_dataloader(self) -> Loader:
        """Return the loader of training samples: shuffled and augmented, full batches only."""
        return self._loader("train")

    def val_dataloader(self) -> Loader:
        """Return the loader of each held-out training sample once."""
        return self._loader("validation")

    def test_dataloader(self) -> Loader:
        """Return the loader of each test sample once."""
        return self._loader("test")

    def plain_batches(self, count: int) -> list[Batch]:
        """Return training samples without augmentation, in whole batches of a step, shuffled; at most all there are.

        They are the same at every call, in every process, however many there are, and without a trainer, too.
        """
        self.setup()
        return list(islice(self._loader("plain"), count))

    def digest(self) -> str:
        """Return hexadecimal digits that other samples or labels change; see `digest_of` for what counts.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is corrupt.
        """
        self.setup()
        return "" if self.files is None else digest_of(self.root, self.files)

    @property
    @abstractmethod
    def example(self) -> Tensor:
        """An input of the network, of the true shape and type: zeros, for a batch of one sample."""

    @abstractmethod
    def random_inputs(self, count: int) -> Tensor:
        """Return random inputs of the network for so many samples, the same at every call."""

    @property
    def device(self) -> torch.device:
        """The device of the trainer; the CPU without one."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _split(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the indices of the training and the validation part of `count` samples."""
        return split(count, self.validation, self.seed, self.limit)

    def _order(self, part: Part, count: int) -> Order:
        """Return the order in which this process goes through a part of `count` samples."""
        train = part in ("train", "plain")
        trainer = None if part == "plain" else self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        if train and self.batch_size % world_size:
            raise ValueError(f"batch_size={self.batch_size}: must be a multiple of the {world_size} processes")
        size = self.batch_size // world_size if train else self.eval_batch_size
        first = self.first_epoch if part == "train" else 0
        return Order(count, size, train, train, self.order_seed, rank, world_size, first_epoch=first)

    @abstractmethod
    def _load(self) -> None:
        """Read what `_loader` needs; do nothing if it is there."""

    @abstractmethod
    def _loader(self, part: Part) -> Loader:
        """Return a loader of one part for this process."""


class ImageData(LabelledData):
    """Images with class labels.

    Attributes:
        channels: number of channels of an image.
        size: height and width of an image, in pixels.
        mean: mean of the training pixels scaled to [0, 1], by channel.
        std: their standard deviation, likewise.
    """

    channels: int
    size: int
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    @property
    def example(self) -> Tensor:
        """Zeros of shape (1, channels, size, size)."""
        return torch.zeros(1, self.channels, self.size, self.size)

    def random_inputs(self, count: int) -> Tensor:
        """Return random images (count, channels, size, size), the same at every call."""
        return torch.randn(count, *self.example.shape[1:], generator=generator(0))
