"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels; there is nothing to download."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from lt_lightning.data.module import Pairs
from lt_lightning.data.tensors import TensorData

TEST_PER_CLASS: Final = 36


class Digits(TensorData):
    """The set is used with 360 test images, 36 of each class, that no seed changes. `root` is not read."""

    name = "digits"
    classes = 10
    channels = 1
    size = 8
    mean = (0.3055,)
    std = (0.3760,)
    files = None

    def _read(self) -> tuple[Pairs, Pairs]:
        digits = load_digits()
        values = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        images, labels = torch.from_numpy(values)[:, None], torch.from_numpy(digits.target).long()
        test = _test(labels)
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[test] = False
        return Pairs(images[rest], labels[rest]), Pairs(images[test], labels[test])


def _test(labels: Tensor) -> Tensor:
    """Return indices evenly spaced in each class: all writers, whose digits follow each other, are in the test set."""
    classes = [(labels == label).nonzero()[:, 0] for label in range(Digits.classes)]
    spaced = torch.arange(TEST_PER_CLASS)
    return torch.cat([members[spaced * len(members) // TEST_PER_CLASS] for members in classes]).sort().values
