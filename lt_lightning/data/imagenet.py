"""ImageNet (ILSVRC 2012): folders of JPEG files, decoded and cropped by worker processes while training."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lt_lightning.data.dataset_files import Files, bad, find, read_image
from lt_lightning.data.module import Batch, ImageData, Options, Part
from lt_lightning.data.order import AUGMENTATION, Order, random_state
from lt_lightning.data.tensors import normalise

Key = tuple[int, int]  # epoch, index
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Example = tuple[Tensor, int]  # (H, W, 3) uint8, label


class ImageNet(ImageData):
    """Pictures in `train/<class>/*.JPEG` and `val/<class>/*.JPEG`, classes numbered in the order of their names.

    The test set is the folder `val`; validation images are held out from `train`. A training image is a random
    part of a picture, 8 % to all of it, stretched and mirrored at random; otherwise it is the middle.

    Args:
        root: see `LabelledData`; the pictures are in `imagenet` below it.
        batch_size: see `LabelledData`.
        classes: number of folders that there must be.
        size: height and width that the pictures are brought to.
        workers: number of processes that decode pictures, for each training process; 0 decodes in that process.
        options: see `LabelledData`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    name = "imagenet"
    channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    files = Files(folder="imagenet", entries=("train", "val"))
    operational = ("workers",)

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        *,
        classes: int = 1000,
        size: int = 224,
        workers: int = 8,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(root, batch_size, **options)
        if workers < 0:
            raise ValueError(f"workers={workers}: must be at least 0")
        self.classes = classes
        self.size = size
        self.workers = workers
        self._parts: dict[Part, Pictures] = {}

    def _load(self) -> None:
        if self._parts:
            return
        folder = find(self.root, self.files)
        paths, labels = list_pictures(folder / "train", self.classes)
        train, held_out = self._split(len(paths))
        test_paths, test_labels = list_pictures(folder / "val", self.classes)
        check_names(folder / "train", folder / "val")

        def pictures(indices: Tensor, *, augment: bool) -> Pictures:
            chosen = indices.tolist()
            return Pictures([paths[i] for i in chosen], [labels[i] for i in chosen], self.size, self.seed, augment)

        self._parts = {
            "train": pictures(train, augment=True),
            "validation": pictures(held_out, augment=False),
            "test": Pictures(test_paths, test_labels, self.size, self.seed, augment=False),
        }

    def _loader(self, part: Part) -> StreamLoader:
        pictures = copy.copy(self._parts["train" if part == "plain" else part])
        pictures.seed = self.order_seed
        pictures.augment &= part != "plain"
        mean, std = torch.tensor([self.mean, self.std], device=self.device)
        return StreamLoader(pictures, self._order(part, len(pictures)), self.workers, mean, std)


def check_names(train: Path, test: Path) -> None:
    """Compare the names of the classes in two folders.

    Raises:
        ValueError: if one has a class that the other lacks, so that equal numbers would be other classes.
    """
    first, second = ({path.name for path in folder.iterdir() if path.is_dir()} for folder in (train, test))
    for missing, there, folder in ((first - second, train, test), (second - first, test, train)):
        if missing:
            raise bad(folder, f"lacks the class {min(missing)!r}, which is in {there}")


def list_pictures(folder: Path, classes: int) -> tuple[list[str], list[int]]:
    """Return the path and the label of every picture.

    Raises:
        ValueError: if there are more or fewer classes, or if one has no picture.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(folders) != classes:
        raise ValueError(f"classes={classes}: {folder} holds {len(folders)} classes")
    paths: list[str] = []
    labels: list[int] = []
    for label, of_class in enumerate(folders):
        with os.scandir(of_class) as entries:
            pictures = sorted(entry.path for entry in entries if entry.name.endswith(".JPEG"))
        if not pictures:
            raise bad(of_class, "holds no *.JPEG")
        paths += pictures
        labels += [label] * len(pictures)
    return paths, labels


class Pictures(Dataset[Example]):
    """Decodes a picture by (epoch, index). The result depends on these and the seed, not on the process.

    Args:
        paths: paths of the pictures.
        labels: label of each picture.
        size: height and width of the result.
        seed: seed of the augmentation.
        augment: whether to take a random part, mirrored half of the time, or the middle.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int], size: int, seed: int, augment: bool) -> None:
        self.paths = np.array([os.fsencode(path) for path in paths])  # one block of memory, shared by the workers
        self.labels = np.array(labels)
        self.size = size
        self.seed = seed
        self.augment = augment

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Example:
        epoch, index = key
        image = read_image(Path(os.fsdecode(self.paths[index])))
        random = np.random.default_rng(random_state(self.seed, AUGMENTATION, epoch, index))
        box = random_box(image.width, image.height, random) if self.augment else middle_box(image.width, image.height)
        pixels = np.array(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box))
        if self.augment and random.random() < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return torch.from_numpy(pixels), int(self.labels[index])


def random_box(width: int, height: int, random: np.random.Generator) -> Box:
    """Draw a part of a picture: area uniform in [0.08, 1] of it, log of width over height uniform, ratio in [3/4, 4/3].

    Where ten draws do not fit into the picture it is the largest part in the middle with an allowed ratio
    (Szegedy et al., arXiv 1409.4842).
    """
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            left, top = random.uniform(0, width - box_width), random.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    return _centred(width, height, min(width, height * 4 / 3), min(height, width * 4 / 3))


def middle_box(width: int, height: int) -> Box:
    """Return the middle square with 224/256 of the shorter side: the usual resize and centre crop in one step.

    >>> middle_box(512, 256)
    (144.0, 16.0, 368.0, 240.0)
    """
    side = min(width, height) * 224 / 256
    return _centred(width, height, side, side)


def _centred(width: int, height: int, box_width: float, box_height: float) -> Box:
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


class StreamLoader:
    """Batches that worker processes decode, normalised on the device. Lightning takes it as it is.

    Args:
        pictures: pictures that the workers decode.
        order: order of the pictures; its `set_epoch` chooses the epoch.
        workers: number of processes; they stay between epochs.
        mean: mean by channel, (C,), on the device where the batches shall be.
        std: standard deviation by channel, likewise.
    """

    batch_sampler = None  # Lightning reads it of every loader that has a sampler

    def __init__(self, pictures: Pictures, order: Order, workers: int, mean: Tensor, std: Tensor) -> None:
        self.sampler = order
        self.mean = mean
        self.std = std
        self._keys = _Keys(order)
        self._given = 0
        self._resume: dict[str, int] | None = None
        self._loader = DataLoader(
            pictures,
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=mean.is_cuda,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else every epoch would draw from the global one
        )

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one epoch, or the rest of one; which epoch it is, is read when the first batch is taken."""
        device = self.mean.device
        resumed, self._resume = self._resume, None
        self._keys.first = resumed["batches"] if resumed is not None and resumed["epoch"] == self.sampler.epoch else 0
        for number, (images, labels) in enumerate(self._loader, self._keys.first + 1):
            on_device = images.to(device, non_blocking=True)
            self._given = number
            yield normalise(on_device, self.mean, self.std), labels.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what has been yielded: the epoch, and the number of its batches."""
        return {"epoch": self.sampler.epoch, "batches": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on there, if it is of that epoch."""
        self._resume = state


class _Keys:
    """Yields the keys of each batch of the epoch, as a `DataLoader`'s batch sampler."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.first = 0  # batch of the epoch to begin with

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.order.drawn_epoch
        for batch in self.order.batches()[self.first :]:
            yield [(epoch, index) for index in batch.tolist()]


def _collate(examples: Sequence[Example]) -> Batch:
    """Return images (N, 3, H, W) uint8, channels last in memory, and labels (N,) int64."""
    images = torch.stack([image for image, _ in examples]).permute(0, 3, 1, 2)
    return images, torch.tensor([label for _, label in examples])
