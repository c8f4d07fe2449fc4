"""CIFAR-10 and CIFAR-100 in their binary layout: 50,000 + 10,000 colour images of 32x32 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import torch

from lt_lightning.data.dataset_files import Files, bad, find
from lt_lightning.data.module import Pairs
from lt_lightning.data.tensors import TensorData

PIXELS: Final = 3 * 32 * 32
SITE: Final = "https://www.cs.toronto.edu/~kriz"


class _Cifar(TensorData):
    """What both sets have in common.

    Attributes:
        train: names of the training files.
        test: names of the test files.
        train_records: number of images in each training file.
        test_records: number of images in each test file.
        label_bytes: number of labels at the start of a record; the last one is the class.
    """

    channels = 3
    size = 32
    files: ClassVar[Files]
    train: ClassVar[Sequence[str]]
    test: ClassVar[Sequence[str]]
    train_records: ClassVar[int]
    test_records: ClassVar[int] = 10_000
    label_bytes: ClassVar[int]

    def _read(self) -> tuple[Pairs, Pairs]:
        return self._read_all(self.train, self.train_records), self._read_all(self.test, self.test_records)

    def _read_all(self, names: Sequence[str], records: int) -> Pairs:
        folder = find(self.root, self.files)
        pairs = [read_records(folder / name, records, self.label_bytes, self.classes) for name in names]
        return Pairs(torch.cat([pair.images for pair in pairs]), torch.cat([pair.labels for pair in pairs]))


class Cifar10(_Cifar):
    """Ten classes (Krizhevsky 2009)."""

    name = "cifar10"
    classes = 10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    train = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    test = ("test_batch.bin",)
    train_records = 10_000
    label_bytes = 1
    files = Files(
        folder="cifar-10-batches-bin",
        entries=(*train, *test),
        downloads={f"{SITE}/cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530"},
    )


class Cifar100(_Cifar):
    """A hundred classes (Krizhevsky 2009); the twenty coarse ones are not used."""

    name = "cifar100"
    classes = 100
    mean = (0.5071, 0.4866, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    train = ("train.bin",)
    test = ("test.bin",)
    train_records = 50_000
    label_bytes = 2
    files = Files(
        folder="cifar-100-binary",
        entries=(*train, *test),
        downloads={f"{SITE}/cifar-100-binary.tar.gz": "md5:03b5dce01913d631647c71ecec9e9cb8"},
    )


def read_records(path: Path, count: int, label_bytes: int, classes: int) -> Pairs:
    """Read one file of fixed-length records.

    A record is `label_bytes` labels, of which the last is the class, and three planes of 32x32 pixels.

    Raises:
        ValueError: if the file has another number of records, or a label that is out of range; names the file.
    """
    content = np.fromfile(path, np.uint8)
    expected = count * (label_bytes + PIXELS)
    if content.size != expected:
        raise bad(path, f"has {content.size} bytes, not the {expected} of {count} records")
    records = torch.from_numpy(content).view(count, label_bytes + PIXELS)
    labels = records[:, label_bytes - 1].long()
    if labels.max() >= classes:
        raise bad(path, f"holds the label {labels.max()}; the last class is {classes - 1}")
    return Pairs(records[:, label_bytes:].reshape(count, 3, 32, 32), labels)
